"""mask_apply_many_: a list of weights, each as mask_apply_ would leave it; all of them or, after an error, none."""

from __future__ import annotations

import threading

import pytest
import secateur
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from secateur import ops
from secateur.ops import reference
from tensors import ARRANGEMENTS, DTYPES, LAYOUTS, RANKS, make, same_bits, special
from torch import Tensor


def random_mask(shape: tuple[int, ...]) -> Tensor:
    return reference.mask_pack(torch.rand(shape) < 0.4)


def check(weights: list[Tensor], masks: list[Tensor]) -> None:
    expected = [reference.mask_apply(weight, mask) for weight, mask in zip(weights, masks, strict=True)]
    strides = [weight.stride() for weight in weights]
    assert ops.mask_apply_many_(weights, masks) is None
    for i, (weight, want) in enumerate(zip(weights, expected, strict=True)):
        assert same_bits(weight, want), i
        assert weight.stride() == strides[i]


def test_every_shape_layout_and_dtype_in_one_list(isa: str) -> None:
    weights = [make(layout, shape, dtype) for layout, shape in ARRANGEMENTS for dtype in DTYPES]
    check(weights, [random_mask(tuple(weight.shape)) for weight in weights])


def test_each_alone(isa: str) -> None:
    for layout, shape in ARRANGEMENTS:
        weight = make(layout, shape)
        check([weight], [random_mask(shape)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moves_bits_and_does_not_multiply(dtype: torch.dtype, isa: str) -> None:
    weights = [special(dtype), special(dtype).t().contiguous()]
    keep = [torch.arange(weight.numel()).reshape(weight.shape) % 2 == 0 for weight in weights]
    before = [weight.clone() for weight in weights]
    ops.mask_apply_many_(weights, [reference.mask_pack(each) for each in keep])
    for weight, old, kept in zip(weights, before, keep, strict=True):
        assert same_bits(weight[kept], old[kept])
        assert same_bits(weight[~kept], torch.zeros_like(weight[~kept]))


# Rows of one slice and more, lists of many small ones, channels_last rows that are cut: more than one thread has work.
SIZES = [
    [(3, 1000), (2, 70_000), (1, 200_000), (500, 130)],
    [(1 + i % 3, 1 + i % 97) for i in range(1500)],
    [(2, 300, 16, 16), (700, 64, 3, 3), (1, 70, 40, 40), (40000,), (40000, 2)],
]


@pytest.mark.parametrize("shapes", SIZES, ids=["rows", "many", "convolutions"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_any_number_of_threads_gives_the_same_bits(
    shapes: list[tuple[int, ...]], layout: str, threads: int, isa: str
) -> None:
    weights = [make(layout if len(shape) in RANKS[layout] else "contiguous", shape) for shape in shapes]
    check(weights, [random_mask(shape) for shape in shapes])


def test_in_place_writes_only_the_window(isa: str) -> None:
    base = torch.full((6, 40), 7.0)
    ops.mask_apply_many_([base[1:-1, 2:-5], base.new_ones(3)], [torch.zeros(4, 5).byte(), torch.zeros(3, 1).byte()])
    expected = torch.full((6, 40), 7.0)
    expected[1:-1, 2:-5] = 0
    assert torch.equal(base, expected)


def test_weights_that_share_memory_are_masked_one_after_another(threads: int, isa: str) -> None:
    """Each thread would write back what another has zeroed, if both had read before."""
    for _ in range(5):
        base = torch.randn(64, 4099)
        views = [base, base, base[:, :100], base[3:], base.t(), base[:, 1::2]]
        masks = [random_mask(tuple(view.shape)) for view in views]
        expected = base.clone()
        for view, mask in zip([expected, expected, expected[:, :100], expected[3:], expected.t(), expected[:, 1::2]],
                              masks, strict=True):  # fmt: skip
            reference.mask_apply_(view, mask)
        ops.mask_apply_many_(views, masks)
        assert same_bits(base, expected)


def test_one_mask_for_several_weights() -> None:
    mask = random_mask((5, 33))
    check([torch.randn(5, 33), torch.randn(5, 33)], [mask, mask])


def test_reads_masks_in_any_layout(isa: str) -> None:
    mask = random_mask((9, 100))
    check([torch.randn(9, 100), torch.randn(1, 100)], [mask.t().contiguous().t(), mask[4:5]])


def test_empty_lists_and_empty_weights() -> None:
    ops.mask_apply_many_([], [])
    ops.mask_apply_many_((), ())
    check([torch.randn(0, 4), torch.randn(3, 0)], [random_mask((0, 4)), random_mask((3, 0))])


def test_autograd_notices_every_write() -> None:
    weights = [torch.randn(3, 9, requires_grad=True), torch.randn(4, 9, requires_grad=True)]
    x = torch.randn(2, 9, requires_grad=True)
    masks = [random_mask((3, 9)), random_mask((4, 9))]
    for weight in weights:
        y = torch.nn.functional.linear(x, weight)
        with torch.no_grad():
            ops.mask_apply_many_(weights, masks)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_in_place_is_for_no_grad_use() -> None:
    weights = [torch.randn(3, 9), torch.randn(3, 9, requires_grad=True)]
    masks = [random_mask((3, 9)), random_mask((3, 9))]
    with pytest.raises(
        secateur.Error, match=r"^mask_apply_many_: weights\[1\] must not require a gradient here; use mask_apply,"
    ):
        ops.mask_apply_many_(weights, masks)
    with torch.no_grad():
        ops.mask_apply_many_(weights, masks)


@pytest.mark.parametrize(
    ("place", "weight", "mask", "message"),
    [
        (0, torch.zeros(3, 9, dtype=torch.int32), None,
         r"weights\[0\] must be float32, float64, float16 or bfloat16, got int32"),
        (2, torch.zeros(3, 9, dtype=torch.int8), None,
         r"weights\[2\] must be float32, float64, float16 or bfloat16, got int8"),
        (1, None, torch.zeros(3, 2), r"masks\[1\] must be uint8, got float32"),
        (2, None, torch.zeros(3, 1, dtype=torch.uint8),
         r"masks\[2\] must be \[3, 2\] for a tensor of shape \[3, 9\], got \[3, 1\]"),
        (1, torch.zeros(1, 9).expand(3, 9), None, r"weights\[1\] must not overlap itself in memory .* \[0, 1\]"),
        (1, [1.0], None, r"weights\[1\] must be a Tensor, got list"),
        (1, None, "x", r"masks\[1\] must be a Tensor, got str"),
        (0, torch.zeros(3, 9).to_sparse(), None, r"weights\[0\] must be an ordinary .* Tensor, got sparse_coo"),
        (1, torch.zeros(3, 9, device="meta"), None, r"weights\[1\] must be on cpu, got meta"),
        (1, None, torch.zeros(3, 2, dtype=torch.uint8, device="meta"), r"masks\[1\] must be on cpu, got meta"),
    ],
)  # fmt: skip
def test_an_error_names_the_place_and_changes_nothing(place: int, weight: object, mask: object, message: str) -> None:
    weights: list[object] = [torch.ones(3, 9) for _ in range(3)]
    masks: list[object] = [torch.zeros(3, 2, dtype=torch.uint8) for _ in range(3)]
    untouched = [w for i, w in enumerate(weights) if i != place or weight is None]
    if weight is not None:
        weights[place] = weight
    if mask is not None:
        masks[place] = mask
    with pytest.raises(secateur.Error, match=f"^mask_apply_many_: {message}$"):
        ops.mask_apply_many_(weights, masks)  # type: ignore[arg-type]
    assert all(bool((w == 1).all()) for w in untouched)  # type: ignore[attr-defined]


@pytest.mark.parametrize("counts", [(2, 1), (1, 2), (0, 1), (1, 0)])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_lists_of_different_lengths(counts: tuple[int, int], device: str) -> None:
    weights = [torch.ones(3, 9, device=device) for _ in range(counts[0])]
    masks = [torch.zeros(3, 2, dtype=torch.uint8, device=device) for _ in range(counts[1])]
    with pytest.raises(
        secateur.Error,
        match=f"^mask_apply_many_: masks must have one mask for each of the {counts[0]} weights, got {counts[1]}$",
    ):
        ops.mask_apply_many_(weights, masks)


@pytest.mark.parametrize("given_", [3, None, torch.zeros(3, 9), "ab"])
def test_what_is_no_list(given_: object) -> None:
    mask = torch.zeros(3, 2, dtype=torch.uint8)
    with pytest.raises(secateur.Error, match=r"^mask_apply_many_: weights must be List\[Tensor\], got "):
        ops.mask_apply_many_(given_, [mask])  # type: ignore[arg-type]
    with pytest.raises(secateur.Error, match=r"^mask_apply_many_: masks must be List\[Tensor\], got "):
        ops.mask_apply_many_([torch.zeros(3, 9)], given_)  # type: ignore[arg-type]


def test_compiles_with_inductor() -> None:
    masks = [random_mask((5, 21)), random_mask((4, 8))]

    def step(a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            a.mul_(2)
            ops.mask_apply_many_([a, b], masks)
        return (a.sum() + b.sum()) * 3

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True)
    weights = torch.randn(5, 21), torch.randn(4, 8)
    again = [weight.clone() for weight in weights]
    torch.testing.assert_close(compiled(*again), step(*weights))
    for a, b in zip(weights, again, strict=True):
        assert same_bits(a, b)


def test_from_several_threads_at_once() -> None:
    lists = [[torch.randn(300, 129) for _ in range(6)] for _ in range(4)]
    masks = [random_mask((300, 129)) for _ in range(6)]
    expected = [[reference.mask_apply(w, m) for w, m in zip(weights, masks, strict=True)] for weights in lists]
    callers = [threading.Thread(target=ops.mask_apply_many_, args=(weights, masks)) for weights in lists]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for weights, wanted in zip(lists, expected, strict=True):
        assert all(same_bits(w, e) for w, e in zip(weights, wanted, strict=True))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), min_size=0, max_size=5).map(tuple), max_size=8),
    layout=st.sampled_from(sorted(LAYOUTS)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_any_list(shapes: list[tuple[int, ...]], layout: str, dtype: torch.dtype, seed: int, isa: str) -> None:
    torch.manual_seed(seed)
    weights = [make(layout if len(shape) in RANKS[layout] else "contiguous", shape, dtype) for shape in shapes]
    check(weights, [random_mask(shape) for shape in shapes])
