"""mask_apply: selects bits, nothing else; in any memory layout; its gradient goes through the same mask."""

from __future__ import annotations

import pytest
import secateur
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from secateur import ops
from secateur.ops import reference
from tensors import ARRANGEMENTS, DTYPES, LAYOUTS, RANKS, arrangement_id, make, same_bits, special


def random_mask(shape: tuple[int, ...]) -> torch.Tensor:
    return reference.mask_pack(torch.rand(shape) < 0.4)


@pytest.mark.parametrize(("layout", "shape"), ARRANGEMENTS, ids=arrangement_id)
def test_equals_its_twin(layout: str, shape: tuple[int, ...], isa: str) -> None:
    for dtype in DTYPES:
        weight, mask = make(layout, shape, dtype), random_mask(shape)
        before = weight.clone()
        expected = reference.mask_apply(weight, mask)
        assert same_bits(ops.mask_apply(weight, mask), expected)
        assert same_bits(weight, before)
        strides = weight.stride()
        ops.mask_apply_(weight, mask)
        assert same_bits(weight, expected)
        assert weight.stride() == strides


@pytest.mark.parametrize("dtype", DTYPES, ids=arrangement_id)
def test_moves_bits_and_does_not_multiply(dtype: torch.dtype, isa: str) -> None:
    weight = special(dtype)
    keep = torch.arange(weight.numel()).reshape(weight.shape) % 2 == 0
    out = ops.mask_apply(weight, reference.mask_pack(keep))
    assert same_bits(out[keep], weight[keep])  # NaN keeps its payload, -0 its sign
    assert same_bits(out[~keep], torch.zeros_like(out[~keep]))  # NaN * 0 would be NaN, -1 * 0 would be -0


def test_in_place_writes_only_the_window(isa: str) -> None:
    base = torch.full((6, 40), 7.0)
    window = base[1:-1, 2:-5]
    ops.mask_apply_(window, torch.zeros(4, 5, dtype=torch.uint8))
    expected = torch.full((6, 40), 7.0)
    expected[1:-1, 2:-5] = 0
    assert torch.equal(base, expected)


def test_reads_a_mask_in_any_layout(isa: str) -> None:
    weight, mask = torch.randn(9, 100), random_mask((9, 100))
    assert torch.equal(ops.mask_apply(weight, mask.t().contiguous().t()), reference.mask_apply(weight, mask))


def test_unused_bits_of_the_last_byte_do_not_matter(isa: str) -> None:
    weight, mask = torch.randn(3, 13), random_mask((3, 13))
    dirty = mask.clone()
    dirty[:, -1] |= 0b11100000
    assert torch.equal(ops.mask_apply(weight, dirty), ops.mask_apply(weight, mask))


def test_an_expanded_weight_can_be_read_but_not_written() -> None:
    weight, mask = torch.randn(1, 33).expand(4, 33), random_mask((4, 33))
    assert torch.equal(ops.mask_apply(weight, mask), reference.mask_apply(weight, mask))
    with pytest.raises(secateur.Error, match=r"^mask_apply_: weight must not overlap .*\[4, 33\] .* \[0, 1\]$"):
        ops.mask_apply_(weight, mask)


def test_a_weight_that_overlaps_itself_partly_cannot_be_written() -> None:
    windows = torch.randn(20).unfold(0, 5, 1)  # [16, 5] with strides [1, 1]
    with pytest.raises(secateur.Error, match="must not overlap itself"):
        ops.mask_apply_(windows, random_mask((16, 5)))


@pytest.mark.parametrize("shape", [(3, 1000), (2, 70_000), (1, 200_000), (500, 130)])
def test_any_number_of_threads_gives_the_same_bits(shape: tuple[int, ...], threads: int) -> None:
    weight, mask = torch.randn(shape), random_mask(shape)
    assert same_bits(ops.mask_apply(weight, mask), reference.mask_apply(weight, mask))


def test_gradient_is_the_incoming_one_under_the_mask() -> None:
    weight, mask = torch.randn(4, 19, requires_grad=True), random_mask((4, 19))
    incoming = torch.randn(4, 19)
    (gradient,) = torch.autograd.grad(ops.mask_apply(weight, mask), weight, incoming)
    assert same_bits(gradient, reference.mask_apply(incoming, mask))


def test_in_place_is_for_no_grad_use() -> None:
    weight, mask = torch.randn(3, 9, requires_grad=True), random_mask((3, 9))
    with pytest.raises(secateur.Error, match=r"^mask_apply_: weight must not require a gradient here; use mask_apply,"):
        ops.mask_apply_(weight, mask)
    with torch.no_grad():
        ops.mask_apply_(weight, mask)


def test_autograd_notices_a_write_in_place() -> None:
    weight, x = torch.randn(3, 9, requires_grad=True), torch.randn(2, 9, requires_grad=True)
    y = torch.nn.functional.linear(x, weight)
    with torch.no_grad():
        ops.mask_apply_(weight, random_mask((3, 9)))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_compiles_with_inductor() -> None:
    weight, mask = torch.randn(5, 21, requires_grad=True), random_mask((5, 21))

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return (ops.mask_apply(weight * 2, mask) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True)(weight)
    (gradient,) = torch.autograd.grad(compiled, weight)
    (expected,) = torch.autograd.grad(loss(weight), weight)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("weight", "mask", "message"),
    [
        (torch.zeros(3, 9, dtype=torch.int32), torch.zeros(3, 2, dtype=torch.uint8),
         "weight must be float32, float64, float16 or bfloat16, got int32"),
        (torch.zeros(3, 9), torch.zeros(3, 2), "mask must be uint8, got float32"),
        (torch.zeros(3, 9), torch.zeros(3, 9, dtype=torch.bool), "mask must be uint8, got bool"),
        (torch.zeros(3, 9), torch.zeros(3, 1, dtype=torch.uint8),
         r"mask must be \[3, 2\] for a tensor of shape \[3, 9\], got \[3, 1\]"),
        (torch.zeros(3, 9), torch.zeros(2, 2, dtype=torch.uint8), r"mask must be \[3, 2\] .* got \[2, 2\]"),
        (torch.zeros(3, 9), torch.zeros(6, dtype=torch.uint8), r"mask must be \[3, 2\] .* got \[6\]"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["mask_apply", "mask_apply_"])
def test_errors(name: str, weight: torch.Tensor, mask: torch.Tensor, message: str) -> None:
    with pytest.raises(secateur.Error, match=f"^{name}: {message}$"):
        getattr(ops, name)(weight, mask)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(0, 12), min_size=0, max_size=5).map(tuple),
    layout=st.sampled_from(sorted(LAYOUTS)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_any_shape(shape: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int, isa: str) -> None:
    torch.manual_seed(seed)
    weight = make(layout if len(shape) in RANKS[layout] else "contiguous", shape, dtype)
    mask = random_mask(shape)
    expected = reference.mask_apply(weight, mask)
    assert same_bits(ops.mask_apply(weight, mask), expected)
    ops.mask_apply_(weight, mask)
    assert same_bits(weight, expected)
