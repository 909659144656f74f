"""secateur.compile and secateur.profile: what stays torch, what is refused, and what is said of it."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import secateur
import torch
import torch.nn.functional as F
from compiling import X, assert_near, compiled, in_torch, kinds, net, prune, set_clock, with_state
from secateur import Error
from secateur.engine import CompiledModel
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread", "engine_wins")


# ---- what stays torch ----


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.logsumexp(x, 1, keepdim=True) + x.cumsum(1)


def test_the_unknown_runs_in_torch_between_segments_and_is_named() -> None:
    model = prune(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Odd(), nn.Conv2d(6, 4, 3), nn.GroupNorm(2, 4)))
    x = torch.randn(2, 3, 10, 12)
    fast = compiled(model, x)
    why = {row["kind"]: row["why"] for row in fast.report if row["kernel"] == "torch"}
    assert why["logsumexp"] == "the engine has no logsumexp"
    assert why["cumsum"] == "the engine has no cumsum"
    assert why["GroupNorm"] == "the engine has no GroupNorm"
    assert kinds(fast).count("conv2d") == 2
    assert_near(fast(x), model, x)
    assert_near(fast(x[:, :, :7]), model, x[:, :, :7])


class Branches(nn.Module):
    """Python decides by values: torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3))
        self.two = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two(y) if float(x.sum()) > 0 else y


def test_untraceable_forwards_run_as_they_are_around_their_children() -> None:
    model = prune(Branches())
    x = torch.rand(2, 3, 9, 9)
    for whole in (model, nn.Sequential(nn.Conv2d(3, 3, 1), model).eval()):
        fast = compiled(whole, x)
        assert any("cannot trace" in row["why"] for row in fast.report)
        assert kinds(fast).count("conv2d") >= 3
        assert_near(fast(x), whole, x)
        assert_near(fast(-x), whole, -x)


def test_hooks_run() -> None:
    model = prune(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    model[0].register_forward_hook(lambda m, inputs, y: y + 1)
    x = torch.randn(1, 3, 7, 7)
    assert_near(compiled(model, x)(x), model, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_run_in_torch(dtype: torch.dtype) -> None:
    model = prune(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())).to(dtype)
    x = torch.randn(2, 3, 9, 9, dtype=dtype)
    fast = compiled(model, x)
    assert kinds(fast) == []
    assert torch.equal(fast(x), model(x))


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor, y: Tensor, scale: float = 2.0) -> dict[str, Any]:
            z = F.relu(self.a(x) + self.b(y)) * scale
            return {"map": z, "rows": [self.c(z.mean((2, 3))), x], "none": None}

    model = prune(Two())
    x, y = torch.randn(2, 3, 8, 9), torch.randn(2, 2, 8, 9)
    fast = compiled(model, x, y)
    got, want = fast(x, y), model(x, y)
    assert in_torch(fast) == []
    assert type(got) is dict
    assert list(got) == list(want)
    assert type(got["rows"]) is list
    assert got["none"] is None
    torch.testing.assert_close(got["map"], want["map"])
    torch.testing.assert_close(got["rows"][0], want["rows"][0])
    assert torch.equal(got["rows"][1], x)
    torch.testing.assert_close(fast(y=y, x=x)["map"], want["map"])
    torch.testing.assert_close(compiled(model, x, y, 3.0)(x, y, 3.0)["map"], model(x, y, 3.0)["map"])


def test_torch_where_torch_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, engine=3.0, plain=2.0)
    model = prune(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    x = torch.randn(2, 3, 9, 9)
    fast = compiled(model, x)
    assert kinds(fast) == []
    assert [row["why"] for row in fast.report] == ["the engine would take 1.50x as long"]
    assert torch.equal(fast(x), model(x))
    set_clock(monkeypatch, engine=1.0, plain=9.0)  # a copy keeps the choice
    assert torch.equal(copy.deepcopy(fast)(x), model(x))


def test_a_result_that_differs_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.engine.lowering import segment

    run = segment.Segment._outputs
    monkeypatch.setattr(segment.Segment, "_outputs", lambda self, made, args: run(self, [y * 1.01 for y in made], args))
    model = prune(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    x = torch.randn(2, 3, 9, 9)
    fast = compiled(model, x)
    assert [row["why"] for row in fast.report] == ["its result differs from torch's on the example"]
    assert torch.equal(fast(x), model(x))


def test_choices_by_the_real_clock(real_clock: None) -> None:
    model = prune(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)), 0.9)
    x = torch.randn(1, 32, 28, 28)
    fast = compiled(model, x)
    assert_near(fast(x), model, x)
    assert any(" in the engine, " in note and " in torch, " in note for note in fast.report.notes)


# ---- what is refused ----


def test_compile_refuses() -> None:
    model = net()
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: secateur.compile("net", X), "compile: model must be a torch.nn.Module, got str"),
        (lambda: secateur.compile(model, X, budget=0), "compile: budget must be a positive number of seconds, got 0"),
        (lambda: secateur.compile(model, X, budget=True), "budget must be a positive number of seconds, got True"),
        (lambda: secateur.compile(model, X, budget=math.nan), "budget must be a positive number of seconds, got nan"),
        (lambda: secateur.compile(model, X[:0]), r"example_input must hold at least one image, got \[0, 3, 10, 9\]"),
        (
            lambda: secateur.compile(model, X[:, :2]),
            "example_input must be what the model takes: RuntimeError",
        ),
        (lambda: secateur.compile(model, (X, X)), "compile: example_input must be what the model takes: TypeError"),
        (lambda: secateur.compile(model, None), "compile: example_input must be what the model takes"),
        (lambda: secateur.compile(nn.LazyLinear(3), X), "compile: model must be initialized, but weight is not"),
    ]
    for call, message in refused:
        with pytest.raises(Error, match=message):
            call()


def test_calls_refuse_what_the_example_was_not() -> None:
    fast = compiled(net(), X)
    refused: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: fast(X[0]),
            r"input 0 must be float32 \[N, 3, H, W\] on cpu, as the example was, got float32 \[N,",
        ),
        (lambda: fast(X[:, :2]), r"must be float32 \[N, 3, H, W\] on cpu, .*, got float32 \[N, 2, H, W\] on cpu"),
        (lambda: fast(X.double()), r"must be float32 .*, got float64 \[N, 3, H, W\] on cpu"),
        (lambda: fast(X.to("meta")), r"got float32 \[N, 3, H, W\] on meta"),
        (lambda: fast(X, X), r"inputs must be 1, as in the example, got 2"),
        (lambda: fast(), r"inputs must be 1, as in the example, got 0"),
        (lambda: fast("x"), r"input 0 must be float32 .* got str 'x'"),
        (lambda: fast(y=X), r"compile: missing a required argument: 'input'"),
    ]
    for call, message in refused:
        with pytest.raises(Error, match=message):
            call()
    assert_near(fast(X), net_of(fast), X)


def net_of(fast: CompiledModel) -> nn.Module:
    return with_state(net(), fast.state_dict())


def test_torchscript_is_for_parts_only() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        part = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval())
    with pytest.raises(Error, match="compile: model must be the module itself, got what TorchScript made of it"):
        compiled(part, X)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), part, nn.Conv2d(4, 4, 1)).eval()
    fast = compiled(model, X)
    assert in_torch(fast) == ["1.forward"]
    assert kinds(fast).count("conv2d") == 2
    with torch.no_grad():
        torch.testing.assert_close(fast(X), model(X))


def test_what_cannot_be_planned_runs_in_torch() -> None:
    far = nn.Conv2d(3, 2, 3, padding=100, dilation=100)  # taps further apart than 16 bits reach, in a wide image
    model = prune(nn.Sequential(far, nn.ReLU()))
    fast = compiled(model, X)
    assert kinds(fast)
    wide = torch.randn(1, 3, 4, 4000)
    with pytest.warns(UserWarning, match=r"compile: 0: torch computes \[1, 3, 4, 4000\], for .* too large for 16-bit"):
        assert_near(fast(wide), model, wide)
    fast = compiled(model, wide)
    assert kinds(fast) == []
    assert "the engine refuses it: engine: 0: the image is too large for 16-bit offsets" in in_words(fast)
    assert_near(fast(wide), model, wide)

    valid = compiled(prune(nn.Sequential(nn.Conv2d(3, 4, 5))), X)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        valid(X[:, :, :4])


def in_words(fast: CompiledModel) -> str:
    return "; ".join(row["why"] for row in fast.report)


# ---- profile ----


def test_profile() -> None:
    model = nn.Sequential(*net(), Softmax())
    fast = compiled(model, X)
    report = secateur.profile(fast, X)
    rows = {row["layer"]: row for row in report}
    assert rows["0"]["kind"] == rows["3"]["kind"] == "conv2d"
    assert rows["7"]["kind"] == "linear"
    assert rows["3"]["shape"] == (8, 8, 3, 3)
    assert rows["3"]["zeros"] == pytest.approx(float((model[3].weight == 0).float().mean()))
    assert rows["3"]["kernel"] in ("sparse", "dense")
    assert rows["3"]["tile"]
    assert rows["3"]["why"]
    assert 0 < rows["3"]["ms"] < 1e3
    assert rows["3"]["roofline"] > 0
    other = next(row for row in report if row["kind"] == "softmax")
    assert (other["kernel"], other["why"]) == ("torch", "the engine has no softmax")
    assert report.total is not None
    assert report.total["ms"] > 0
    assert "conv2d" in str(report)
    with pytest.raises(Error, match=r"profile: fast must come from secateur\.compile, got Sequential"):
        secateur.profile(model, X)
    with pytest.raises(Error, match=r"profile: fast must come from secateur\.compile, got int"):
        secateur.profile(3, X)
    with pytest.raises(Error, match="input 0 must be"):
        secateur.profile(fast, X[:, :1])


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


def test_profile_of_what_cannot_be_traced() -> None:
    x = torch.rand(2, 3, 9, 9)
    report = secateur.profile(compiled(prune(Branches()), x), x)
    assert [row["kind"] for row in report if row["kind"] in ("python", "conv2d")] == ["python"] + ["conv2d"] * 3
    assert all(row["ms"] is not None for row in report if row["kind"] in ("python", "conv2d"))
