"""MaskedLinear and MaskedConv2d: plain layers that own their mask."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import secateur
import torch
from secateur import Error, Magnitude
from secateur.nn import MaskedConv2d, MaskedLinear
from secateur.ops import mask_pack
from torch import nn

MAKE: dict[str, Any] = {
    "linear": (lambda **kw: MaskedLinear(10, 6, **kw), lambda **kw: nn.Linear(10, 6, **kw), (4, 10)),
    "linear no bias": (
        lambda **kw: MaskedLinear(10, 6, False, **kw),
        lambda **kw: nn.Linear(10, 6, False, **kw),
        (10,),
    ),
    "conv": (
        lambda **kw: MaskedConv2d(4, 6, 3, stride=2, padding=1, **kw),
        lambda **kw: nn.Conv2d(4, 6, 3, stride=2, padding=1, **kw),
        (2, 4, 9, 9),
    ),
    "conv circular groups": (
        lambda **kw: MaskedConv2d(4, 6, 3, groups=2, padding=1, padding_mode="circular", **kw),
        lambda **kw: nn.Conv2d(4, 6, 3, groups=2, padding=1, padding_mode="circular", **kw),
        (4, 7, 7),
    ),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_and_gradients(name: str, dtype: torch.dtype) -> None:
    """The plain layer on a multiplied weight is the reference, in training and in evaluation."""
    masked, plain, shape = MAKE[name]
    keep = torch.rand(plain().weight.shape) < 0.4
    layer, dense = masked(mask=keep, dtype=dtype), plain(dtype=dtype)
    assert isinstance(layer, type(dense))
    dense.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "weight_mask"})
    with torch.no_grad():  # as a careless update would leave it
        layer.weight.add_(0.5)
        dense.weight.copy_(layer.weight * keep)
    x, y = torch.randn(shape, dtype=dtype, requires_grad=True), None
    y = x.detach().clone().requires_grad_()
    out, expected = layer(x), dense(y)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(layer.weight.grad, dense.weight.grad * keep)
    assert (layer.weight.grad[~keep] == 0).all()
    layer.eval()
    assert (layer.weight[~keep] == 0).all()
    torch.testing.assert_close(layer(x), expected)


def test_evaluation_is_the_plain_forward() -> None:
    layer = MaskedLinear(8, 8, mask=torch.rand(8, 8) < 0.5).eval()
    program = torch.export.export(layer, (torch.randn(2, 8),))
    assert [str(n.target) for n in program.graph.nodes if n.op == "call_function"] == ["aten.linear.default"]


def test_no_mask_keeps_all() -> None:
    layer = MaskedConv2d(3, 5, 3)
    assert layer.weight_mask is not None
    assert layer.weight_mask.tolist() == [[255, 255, 255, 7]] * 5
    assert list(layer.state_dict()) == ["weight", "bias", "weight_mask"]
    with torch.device("meta"):
        assert MaskedLinear(3, 3).weight_mask is not None


@pytest.mark.parametrize("packed", [True, False])
def test_set_mask(packed: bool) -> None:
    layer = MaskedConv2d(3, 5, 3)
    keep = torch.rand(5, 3, 3, 3) < 0.5
    layer.set_mask(mask_pack(keep) if packed else keep)
    assert torch.equal(layer.weight != 0, keep)
    assert layer.weight_mask is not None
    assert torch.equal(layer.weight_mask, mask_pack(keep))


def test_bad_masks() -> None:
    layer = MaskedLinear(10, 6)
    before = copy.deepcopy(layer.state_dict())
    for mask, message in [
        (torch.ones(6, 9, dtype=torch.bool), r"be bool \[6, 10\] or packed uint8 \[6, 2\], got bool \[6, 9\]"),
        (torch.ones(6, 10), r"got float32 \[6, 10\]"),
        (torch.ones(6, 10, dtype=torch.uint8), r"got uint8 \[6, 10\]"),
        (torch.full((6, 2), 255, dtype=torch.uint8), "mask must have zeros in the unused bits of a row's last byte"),
        ([[True]], "mask must be a tensor, got list"),
    ]:  # fmt: skip
        with pytest.raises(Error, match=message):
            layer.set_mask(mask)  # type: ignore[arg-type]
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    with pytest.raises(Error, match=r"MaskedConv2d.from_dense: layer must be a Conv2d, got Linear"):
        MaskedConv2d.from_dense(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(Error, match=r"MaskedLinear.from_dense: the layer's weight must be an initialized Parameter"):
        MaskedLinear.from_dense(nn.LazyLinear(2))


@pytest.mark.parametrize("source", ["mask", "pruned", "zeros"])
def test_from_dense(source: str) -> None:
    dense = nn.Conv2d(4, 6, 3, padding="same", dilation=2, dtype=torch.float64).eval()
    keep = torch.rand(6, 4, 3, 3) < 0.5
    if source == "pruned":
        secateur.prune(dense, Magnitude(0.5))
        keep = dense.weight.detach() != 0
    elif source == "zeros":
        with torch.no_grad():
            dense.weight.mul_(keep)
    before = dense.weight.detach().clone()
    layer = MaskedConv2d.from_dense(dense, keep if source == "mask" else None)
    assert torch.equal(dense.weight, before)  # theirs is left alone
    assert torch.equal(layer.weight, before * keep)
    assert not layer.training
    assert layer.padding == "same"
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    if source != "mask":
        torch.testing.assert_close(layer(x), dense(x))
    assert MaskedLinear.from_dense(nn.Linear(3, 3, bias=False)).bias is None


def test_trains_copies_pickles_prunes_strips_and_saves(tmp_path: Any) -> None:
    def net() -> nn.Sequential:
        return nn.Sequential(MaskedConv2d(1, 4, 3), nn.Flatten(), MaskedLinear(144, 10))

    model = net()
    report = secateur.prune(model, Magnitude(0.8))
    assert abs(report["2"]["zeros"] - 1152) <= 1
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        optimizer = torch.optim.AdamW(other.parameters(), 0.01)
        for _ in range(2):
            other(torch.randn(4, 1, 8, 8)).square().mean().backward()
            optimizer.step()
        assert secateur.sparsity(other).sparsity == pytest.approx(0.8, abs=1e-3)
    fresh = net()
    fresh.load_state_dict(model.state_dict())  # the mask is part of the class: it loads strictly
    assert secateur.sparsity(fresh).sparsity == pytest.approx(0.8, abs=1e-3)
    secateur.save(model, tmp_path / "model.safetensors")
    loaded = secateur.load(tmp_path / "model.safetensors", net())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    secateur.load(tmp_path / "model.safetensors", plain)
    secateur.strip(model)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(model.train()(x), plain(x))


def test_compiles_in_one_graph() -> None:
    layer = MaskedLinear(16, 8, mask=torch.rand(8, 16) < 0.5)
    x = torch.randn(3, 16)
    expected = layer(x)
    expected.sum().backward()
    gradient = layer.weight.grad
    layer.weight.grad = None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    out = compiled(x)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    torch.testing.assert_close(layer.weight.grad, gradient)
