"""What is not finite, what is tiny and what is huge: as torch's dense layers compute it with the same pruned weights.

One difference is there by design: a pruned weight is skipped, so that Inf or NaN in the input reaches only outputs that
a weight connects it with. Dense torch multiplies it by the zero, which gives NaN. Every instruction set in turn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import secateur
import torch
import torch.nn.functional as F
from secateur import ops
from secateur.nn import SparseConv2d, SparseLinear, ThresholdReLU
from tensors import same_bits, special
from torch import Tensor, nn

POISON = [math.nan, math.inf, -math.inf]
TINY = torch.finfo(torch.float32).tiny  # the smallest that is not denormal, 2^-126
LEAST = 2.0**-149  # the smallest denormal


pytestmark = pytest.mark.usefixtures("one_thread", "engine_wins")


@pytest.fixture
def _flush_no_more() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)


def pruned(*shape: int) -> Tensor:
    return torch.randn(shape) * (torch.rand(shape) < 0.3)


def kinds(x: Tensor) -> Tensor:
    """NaN, Inf, -Inf or finite, elementwise."""
    return x.isnan() * 1 + x.isposinf() * 2 + x.isneginf() * 3


LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "linear, one vector": ((23, 40), (40,)),
    "linear, batch": ((23, 40), (37, 40)),
    "conv 3x3": ((9, 6, 3, 3), (2, 6, 11, 13)),
    "conv 1x1": ((20, 16, 1, 1), (1, 16, 7, 7)),
}


def dense(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight) if weight.dim() == 2 else F.conv2d(x, weight, padding=weight.shape[2] // 2)


def forms(weight: Tensor, x: Tensor) -> dict[str, Any]:
    """The layer converted (both of the convolution's kernels), and compiled."""
    if weight.dim() == 2:
        plain: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layers: dict[str, Any] = {"operator": SparseLinear(weight)}
    else:
        pad = weight.shape[2] // 2
        plain = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=pad, bias=False)
        layers = {"operator": SparseConv2d(weight, padding=pad), "blocks": SparseConv2d(weight, padding=pad)}
        layers["blocks"].in_blocks = True
    plain.weight = nn.Parameter(weight)
    return {**layers, "compiled": secateur.compile(plain, torch.randn(x.shape), budget=0.2)}


@pytest.mark.parametrize("case", LAYERS)
@torch.no_grad()
def test_what_is_not_finite_reaches_what_a_weight_connects_it_with(case: str, isa: str) -> None:
    shape, input_shape = LAYERS[case]
    weight, x = pruned(*shape), torch.randn(input_shape)
    place = tuple(size // 2 for size in input_shape)
    one = torch.zeros(input_shape)
    one[place] = 1
    reads = dense(one, (weight != 0).float()) > 0  # a weight connects it with the place
    near = dense(one, torch.ones_like(weight)) > 0  # a weight or a zero does
    assert bool(reads.any())
    assert bool((near & ~reads).any())
    for name, layer in forms(weight, x).items():
        for value in POISON:
            x[place] = value
            got, want = layer(x), dense(x, weight)
            assert torch.equal(kinds(got)[reads], kinds(want)[reads]), name
            skipped = near & ~reads
            assert bool(want[skipped].isnan().all())  # this is torch's
            if name == "operator":  # in the engine a layer may run dense
                assert bool(got[skipped].isfinite().all()), name
            finite = got.isfinite()
            assert bool(finite[~near].all()), name
            torch.testing.assert_close(got[finite].double(), _without(x, place, weight)[finite], rtol=1e-4, atol=1e-4)


def _without(x: Tensor, place: tuple[int, ...], weight: Tensor) -> Tensor:
    x = x.clone()
    x[place] = 0
    return dense(x.double(), weight.double())


@pytest.mark.parametrize("value", POISON)
@torch.no_grad()
def test_weights_that_are_not_finite(value: float, isa: str) -> None:
    """They are no zeros, so nothing skips them."""
    weight, x = pruned(12, 6, 3, 3), torch.randn(1, 6, 9, 9)
    weight[4, 2, 1, 1] = value
    want = dense(x, weight)
    for name, layer in forms(weight, x).items():
        got = layer(x)
        inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # at the border zeros of the padding meet it
        assert torch.equal(kinds(got)[inner], kinds(want)[inner]), name
        others = [k for k in range(12) if k != 4]
        torch.testing.assert_close(got[:, others], want[:, others], rtol=1e-4, atol=1e-5)


SCALES = [(1e-38, 1.0), (1e-38, 1e-3), (1e-42, 1.0), (3e37, 1e-3), (1e-30, 1e30), (1e-38, 3e37), (1e-25, 1e-20)]


@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("case", ["linear, one vector", "linear, batch", "conv 3x3"])
@torch.no_grad()
def test_extreme_scales(case: str, scales: tuple[float, float], isa: str) -> None:
    """Products and sums that are denormal, or near the largest: as exact as float32 can hold them."""
    shape, input_shape = LAYERS[case]
    weight, x = pruned(*shape) * scales[0], torch.randn(input_shape) * scales[1]
    want = dense(x.double(), weight.double())
    terms = math.prod(shape[1:])
    # Each term and each sum is rounded: to 2^-24 of its size, or to half of the smallest denormal.
    bound = terms * (2.0**-24 * float(dense(x.double().abs(), weight.double().abs()).max()) + LEAST)
    for name, layer in forms(weight, x).items():
        got = layer(x)
        assert float((got.double() - want).abs().max()) <= bound, name
        assert bool(got.any()) == bool(want.float().any()), name


@pytest.mark.parametrize("case", ["linear, one vector", "linear, batch", "conv 3x3"])
@torch.no_grad()
def test_sums_beyond_the_largest(case: str, isa: str) -> None:
    shape, input_shape = LAYERS[case]
    weight, x = pruned(*shape).abs().clamp(max=3) * 1e38, torch.ones(input_shape) * 100
    weight[0] = 0
    want = dense(x, weight)
    assert bool(want.isposinf().any())
    for name, layer in forms(weight, x).items():
        assert torch.equal(kinds(layer(x)), kinds(want)), name


@pytest.mark.usefixtures("_flush_no_more")
@torch.no_grad()
def test_flush_denormal(isa: str) -> None:
    """torch.set_flush_denormal holds for the thread that calls it, and there for these kernels as for torch's."""
    weight, x = torch.eye(16, 16), torch.full((16,), TINY / 4)
    weight[0, 0] = 2.0**10
    layers = forms(weight, x[None])
    assert float(layers["operator"](x)[1]) == TINY / 4
    assert float(layers["compiled"](x[None])[0, 1]) == TINY / 4
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    for rows in (x, x[None].expand(5, 16).contiguous()):
        want = dense(rows, weight)
        assert not bool(want.any())  # torch takes a denormal input for zero
        for name, layer in layers.items():
            got = layer(rows if name == "operator" or rows.dim() == 2 else rows[None])
            assert not bool(got.any()), name


# ---- operators ----


def test_masks_and_thresholds_of_special_values(isa: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x = special(dtype)
        keep = torch.rand(x.shape) < 0.5
        zero = torch.zeros((), dtype=dtype)
        # Pruned is zero, even where it was NaN or Inf: a weight that is gone has no value.
        assert same_bits(ops.mask_apply(x, ops.mask_pack(keep)), torch.where(keep, x, zero))
        theta = torch.full((35,), 0.25)
        y, _ = ops.threshold_relu(x, theta)
        assert torch.equal(y.isnan(), x.isnan())
        assert torch.equal(y.isposinf(), x.isposinf())
        torch.testing.assert_close(y, torch.where(x < 0.25, zero, x), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bad", POISON)
def test_statistics_refuse_what_is_not_finite(bad: float, isa: str) -> None:
    weight = torch.randn(4, 20)
    weight[2, 3] = bad
    with pytest.raises((RuntimeError, ValueError), match=r"statistics_threshold: .*finite"):
        ops.statistics_threshold(weight, 0.0)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30, 1e37])
def test_statistics_of_extreme_scales(scale: float, isa: str) -> None:
    """theta is computed in float64: the same weights fall, whatever unit they are in."""
    weight = torch.randn(6, 500).round(decimals=2)
    scaled = (weight.double() * scale).float()
    pruned_weight, mask, theta = ops.statistics_threshold(scaled, -0.5)
    rows = scaled.double().abs()
    want = rows.mean(1) + 0.5 * rows.std(1, correction=0)
    torch.testing.assert_close(theta.double(), want, rtol=1e-5, atol=LEAST)
    share = float(ops.mask_unpack(mask, weight.shape).double().mean())
    assert 0.2 < share < 0.4
    assert torch.equal(pruned_weight == 0, ~ops.mask_unpack(mask, weight.shape))


def test_packing_keeps_special_values(isa: str) -> None:
    weight = special(torch.float32)
    layer = SparseLinear(weight)
    assert same_bits(layer.weight, torch.where(weight == 0, torch.zeros(()), weight))


# ---- networks ----

ACTS: list[nn.Module] = [
    nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-2, 2), nn.LeakyReLU(0.1), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(),
    nn.SiLU(), nn.GELU(), nn.Tanh(),
    ThresholdReLU(torch.full((6,), 0.5)), ThresholdReLU(torch.full((6,), 0.5), max=6.0),
]  # fmt: skip


@pytest.mark.parametrize("act", ACTS, ids=lambda a: type(a).__name__)
@torch.no_grad()
def test_activations_of_special_values(act: nn.Module, isa: str) -> None:
    values = special(torch.float32).flatten()[:60].reshape(1, 6, 2, 5)
    model = nn.Sequential(nn.MaxPool2d(1), act).eval()
    fast = secateur.compile(model, torch.randn(1, 6, 2, 5), budget=0.2)
    got, want = fast(values), model(values)
    assert torch.equal(kinds(got), kinds(want))
    finite = want.isfinite()
    torch.testing.assert_close(got[finite], want[finite], rtol=1e-5, atol=1e-6)


def network() -> nn.Module:
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 7),
    )  # fmt: skip
    model[1].running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("value", POISON)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@torch.no_grad()
def test_a_network_given_what_is_not_finite(sparse: bool, value: float, isa: str) -> None:
    model = network()
    if sparse:
        secateur.prune(model, secateur.MeanStd(sparsity=0.6), exclude=["8"])
    x = torch.randn(2, 3, 16, 16)
    for fast in (secateur.compile(model, x, budget=0.5), secateur.convert(model, x)):
        y = x.clone()
        y[1, 1, 7, 6] = value
        got, want = fast(y), model(y)
        assert torch.equal(got[0], fast(x)[0])  # the other image knows nothing of it
        if sparse:  # skipped zeros make no NaN of their own
            assert bool((kinds(got)[1].eq(0) | want[1].isnan()).any())
            assert not bool((got.isnan() & want.isfinite()).any())
            if math.isnan(value):
                assert bool(got[1].isnan().all())
        else:
            assert torch.equal(kinds(got), kinds(want))


@torch.no_grad()
def test_a_network_of_extreme_scales(isa: str) -> None:
    for scale in (1e-38, 1e-30, 1e30, 1e36):
        model = network()
        model[1] = nn.Identity()
        for p in (model[0].bias, model[4].bias, model[8].bias):
            p.zero_()
        secateur.prune(model, secateur.MeanStd(sparsity=0.6))
        x = torch.randn(2, 3, 16, 16) * scale
        fast = secateur.compile(model, x, budget=0.5)
        want = model.double()(x.double())
        model.float()
        got = fast(x)
        # The sums' roundings: 2^-24 of what is summed, a few hundred terms; or half of the smallest denormal each.
        assert float((got.double() - want).abs().max()) <= 1e-5 * float(want.abs().max()) + 500 * LEAST
