"""A compiled model as a part of what torch.compile, torch.export and torch.func are given."""

from __future__ import annotations

import pytest
import secateur
import torch
import torch._dynamo.testing
from secateur.engine import CompiledModel
from secateur.engine.lowering.segment import Decision, Segment
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def engine_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segment, "_measure", lambda self, args, budget_s: Decision(True, "forced", 1.0, 2.0))


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * 2).sum(1) + 1


def _pair() -> tuple[nn.Module, CompiledModel]:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    secateur.prune(model, secateur.Magnitude(sparsity=0.8))
    return model, secateur.compile(model, torch.randn(1, 3, 9, 9), budget=0.2)


def test_torch_compile_leaves_it_as_it_is() -> None:
    model, fast = _pair()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    whole = torch.compile(Around(fast), backend=counter)
    for batch in (1, 3):
        x = torch.randn(batch, 3, 9, 9)
        with torch.no_grad():
            torch.testing.assert_close(whole(x), Around(model)(x), rtol=1e-4, atol=1e-5)
    assert counter.frame_count >= 2  # what stands before it and after it is compiled


def test_an_exported_program_holds_plain_torch() -> None:
    """A program's id means nothing in another process."""
    model, fast = _pair()
    x = torch.randn(2, 3, 9, 9)
    fast(x)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Around(fast), (x,), dynamic_shapes=({0: batch},))
    assert "secateur" not in str(program.graph)
    assert "conv2d" in str(program.graph)
    y = torch.randn(5, 3, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(y), Around(model)(y), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fast(y), model(y), rtol=1e-4, atol=1e-5)


def test_vmap_and_tensor_subclasses_run_in_torch() -> None:
    class Kind(Tensor):
        pass

    model, fast = _pair()
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        got = fast(x.as_subclass(Kind))
        assert type(got) is Kind
        torch.testing.assert_close(got.as_subclass(Tensor), model(x), rtol=1e-4, atol=1e-5)
        stack = torch.stack([x, x + 1, x - 1])
        got = torch.vmap(fast)(stack)
        assert "calls inside torch.func's transforms run in torch" in fast.report.notes
        torch.testing.assert_close(got, torch.vmap(model)(stack), rtol=1e-4, atol=1e-5)


def test_autocast() -> None:
    """It is followed: what torch makes bfloat16 is bfloat16 here."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(2, 3, 9, 9)
    fast = secateur.compile(model, x, budget=0.2)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            got = fast(x)
            assert torch.equal(got, model(x))
            assert torch.equal(fast(x.bfloat16()), model(x.bfloat16()))
        assert "calls under autocast run in torch" in fast.report.notes
        assert fast(x).dtype == torch.float32
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)
