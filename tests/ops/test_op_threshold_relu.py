"""threshold_relu: 0 below theta, what is above as it was, NaN and gradients as torch.relu has them."""

from __future__ import annotations

import pytest
import secateur
import secateur.cpu
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from secateur import ops
from secateur.ops import reference
from tensors import ARRANGEMENTS, DTYPES, LAYOUTS, RANKS, SHAPES, arrangement_id, make, same_bits, special
from torch import Tensor


def channels_of(shape: tuple[int, ...]) -> int:
    return 1 if not shape else shape[1] if len(shape) > 2 else shape[-1]


def check(x: Tensor, theta: Tensor, max: float | None) -> None:
    before = x.clone()
    expected_y, expected_mask = reference.threshold_relu(x, theta, max)
    y, mask = ops.threshold_relu(x, theta, max)
    assert same_bits(y, expected_y)
    assert same_bits(mask, expected_mask)
    assert same_bits(x, before)
    strides = x.stride()
    mask = ops.threshold_relu_(x, theta, max)
    assert same_bits(x, expected_y)
    assert same_bits(mask, expected_mask)
    assert x.stride() == strides


@pytest.mark.parametrize(("layout", "shape"), ARRANGEMENTS, ids=arrangement_id)
def test_equals_its_twin(layout: str, shape: tuple[int, ...], isa: str) -> None:
    for dtype in DTYPES:
        for theta in (torch.rand(channels_of(shape)), torch.tensor(0.3)):
            if theta.numel():
                check(make(layout, shape, dtype), theta, None)
                check(make(layout, shape, dtype), theta, 0.8)


# Mask bits travel between channels_last memory and logical order: sizes off the byte in either direction, and some
# whose rows are longer than the piece in which they are moved.
MAPS = [(2, 8, 8, 8), (2, 16, 7, 7), (3, 3, 23, 23), (2, 13, 5, 3), (1, 64, 28, 28), (2, 9, 3, 1)]


@pytest.mark.parametrize("shape", MAPS, ids=arrangement_id)
def test_channels_last_masks_are_in_logical_order(shape: tuple[int, ...], isa: str, threads: int) -> None:
    x, theta = torch.randn(shape), torch.rand(shape[1])
    expected = reference.threshold_relu(x, theta)[1]
    last = x.contiguous(memory_format=torch.channels_last)
    y, mask = ops.threshold_relu(last, theta)
    assert same_bits(mask, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert same_bits(ops.mask_apply(last, mask), reference.mask_apply(x, mask))


@pytest.mark.parametrize("dtype", DTYPES, ids=arrangement_id)
@pytest.mark.parametrize("theta", [0.0, 0.5, 1e30])
@pytest.mark.parametrize("max", [None, 0.25, 6.0, float("inf")])
def test_special_values(dtype: torch.dtype, theta: float, max: float | None, isa: str) -> None:
    check(special(dtype), torch.tensor(theta), max)


def test_nan_stays_and_passes_its_gradient(isa: str) -> None:
    x = torch.tensor([[float("nan"), 1.0, -1.0]], requires_grad=True)
    y, mask = ops.threshold_relu(x, torch.tensor(0.5), 6.0)
    assert y.isnan().tolist() == [[True, False, False]]
    assert mask.tolist() == [[0b011]]
    assert torch.autograd.grad(y[:, 1:].sum(), x)[0].tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=arrangement_id)
def test_with_theta_0_it_is_relu_and_relu6_gradients_included(dtype: torch.dtype, isa: str) -> None:
    values = [0.0, -0.0, 6.0, 6.5, 5.5, -3.0, torch.finfo(dtype).tiny, *torch.linspace(-7, 7, 30).tolist()]
    for max, torchs in [(None, F.relu), (6.0, F.relu6)]:
        x = torch.tensor([values], dtype=dtype, requires_grad=True)
        ours, expected = ops.threshold_relu(x, torch.zeros(()), max)[0], torchs(x)
        assert torch.equal(ours, expected)
        assert torch.equal(torch.autograd.grad(ours.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0])


def test_16_bit_activations_are_compared_in_float32(isa: str) -> None:
    """bfloat16(0.1) is 0.1001: not below 0.1, but below 0.1002, which rounds to the same bfloat16."""
    x = torch.tensor([[0.1]], dtype=torch.bfloat16)
    assert ops.threshold_relu(x, torch.tensor(0.1))[0].item() == x.item()
    assert ops.threshold_relu(x, torch.tensor(0.1002))[0].item() == 0


def test_theta_in_double(isa: str) -> None:
    between = 1 + 2**-30  # rounds to 1 in float32
    theta = torch.tensor(between, dtype=torch.float64)
    assert ops.threshold_relu(torch.ones(1, 1), theta)[0].item() == 1
    assert ops.threshold_relu(torch.ones(1, 1, dtype=torch.float64), theta)[0].item() == 0


def test_in_place_writes_only_the_window(isa: str) -> None:
    base = torch.full((6, 40), -7.0)
    ops.threshold_relu_(base[1:-1, 2:-5], torch.zeros(33))
    expected = torch.full((6, 40), -7.0)
    expected[1:-1, 2:-5] = 0
    assert torch.equal(base, expected)


@pytest.mark.parametrize("shape", [(3, 1000), (2, 3, 40_000), (1, 5, 200, 200), (300, 130)])
def test_any_number_of_threads_gives_the_same_bits(shape: tuple[int, ...], threads: int) -> None:
    check(torch.randn(shape), torch.rand(channels_of(shape)), 0.9)


def test_an_expanded_input_can_be_read_but_not_written() -> None:
    x, theta = torch.randn(1, 3, 4, 4).expand(2, 3, 4, 4), torch.rand(3)
    assert same_bits(ops.threshold_relu(x, theta)[0], reference.threshold_relu(x, theta)[0])
    with pytest.raises(secateur.Error, match=r"^threshold_relu_: x must not overlap itself"):
        ops.threshold_relu_(x, theta)


def test_in_place_is_for_no_grad_use() -> None:
    x = torch.randn(3, 9, requires_grad=True)
    with pytest.raises(secateur.Error, match=r"^threshold_relu_: x must not require a gradient here"):
        ops.threshold_relu_(x, torch.tensor(0.1))


def test_backward_keeps_only_the_mask() -> None:
    """1 bit an activation, where a ReLU keeps its whole output."""
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.threshold_relu(torch.randn(2, 3, 8, 8, requires_grad=True), torch.rand(3))
    assert [(t.dtype, tuple(t.shape)) for t in saved] == [(torch.uint8, (2, 24))]


ERRORS = [
    (torch.zeros(2, 3, dtype=torch.int8), torch.zeros(3), None, r"x must be float32, .*, got int8"),
    (torch.zeros(2, 3), torch.zeros(2), None, r"theta must have 1 value .* 3 channels of x \[2, 3\], got 2"),
    (torch.zeros(2, 3, 4), torch.zeros(4), None, r"theta must have 1 value .* the 3 channels of x \[2, 3, 4\], got 4"),
    (torch.zeros(2, 3), torch.zeros(1, 3), None, r"theta must be a scalar or \[C\], got shape \[1, 3\]"),
    (torch.zeros(2, 3), torch.zeros(3, dtype=torch.bfloat16), None, r"theta must be float32 or float64, got bfloat16"),
    (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), None, r"theta must be float32 or float64, got int64"),
    (torch.zeros(2, 3), torch.tensor([0, -0.5, 0]), None, r"theta must be finite and >= 0, got -0.5 for channel 1"),
    (torch.zeros(2, 3), torch.tensor([0, 0, float("nan")]), None, r"theta must be finite .* got nan for channel 2"),
    (torch.zeros(2, 3), torch.tensor(float("inf")), None, r"theta must be finite and >= 0, got inf for channel 0"),
    (torch.zeros(2, 3), torch.tensor(1e300, dtype=torch.float64), None, r"theta must be finite and >= 0, got inf .*"),
    (torch.zeros(2, 3), torch.zeros(3), 0.0, r"max must be > 0, got 0"),
    (torch.zeros(2, 3), torch.zeros(3), -6.0, r"max must be > 0, got -6"),
    (torch.zeros(2, 3), torch.zeros(3), float("nan"), r"max must be > 0, got nan"),
]


@pytest.mark.parametrize(("x", "theta", "max", "message"), ERRORS, ids=[e[3] for e in ERRORS])
@pytest.mark.parametrize("name", ["threshold_relu", "threshold_relu_"])
def test_errors(name: str, x: Tensor, theta: Tensor, max: float | None, message: str) -> None:
    before = x.clone()
    with pytest.raises(secateur.Error, match=f"^{name}: {message}$"):
        getattr(ops, name)(x, theta, max)
    assert same_bits(x, before)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.one_of(st.sampled_from(SHAPES), st.lists(st.integers(1, 12), min_size=1, max_size=5).map(tuple)),
    layout=st.sampled_from(sorted(LAYOUTS)),
    dtype=st.sampled_from(DTYPES),
    per_channel=st.booleans(),
    max=st.one_of(st.none(), st.floats(0.01, 3)),
    seed=st.integers(0, 2**31),
)
def test_any_shape(
    shape: tuple[int, ...], layout: str, dtype: torch.dtype, per_channel: bool, max: float | None, seed: int, isa: str
) -> None:
    torch.manual_seed(seed)
    x = make(layout if len(shape) in RANKS[layout] else "contiguous", shape, dtype)
    channels = channels_of(shape)
    check(x, torch.rand(channels) if per_channel and channels else torch.rand(()), max)
