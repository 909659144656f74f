"""What the CUDA fronts and kernels must do, as cases that take the operators and the device to run on.

test_cuda_gpu.py runs them on a GPU. test_cuda_emulated.py runs the same cases on the same fronts and kernel bodies,
compiled by the host compiler over an emulated grid, so that neither the code nor its tests meet a GPU unproven.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from secateur import ops  # noqa: F401  (ops: the schemas)
from secateur.ops import reference
from tensors import ARRANGEMENTS, DTYPES, LAYOUTS, make, same_bits, special
from torch import Tensor

# Bit transposes: channels and pixels that are multiples of 8, and not; more than one row.
CHANNELS_LAST = [(2, 16, 8, 8), (3, 24, 5, 7), (2, 3, 7, 9), (4, 5, 4, 4), (2, 8, 1, 1), (1, 64, 3, 3), (5, 1, 6, 6),
                 (3, 7, 1, 5)]  # fmt: skip
# By the list of schemas, so that none is forgotten. sparse_*: layers of the CPU; elsewhere their modules run the twin.
# engine_*: compiled segments, of the CPU too.
OPERATORS = sorted(
    name.removeprefix("secateur::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("secateur::") and not name.startswith(("secateur::sparse_", "secateur::engine_"))
)


@dataclass(frozen=True)
class Target:
    namespace: Any  # torch.ops.secateur, or the emulated one
    device: torch.device

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return getattr(self.namespace, name).default  # type: ignore[no-any-return]


def place(target: Target, layout: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Arranged on the device itself: a copy from the CPU would lose the strides."""
    return LAYOUTS[layout](torch.randn(shape).to(dtype).to(target.device))


def equal(got: Tensor, expected: Tensor) -> bool:
    return same_bits(got.cpu(), expected)


def random_mask(shape: tuple[int, ...]) -> Tensor:
    return reference.mask_pack(torch.rand(shape) < 0.4)


def check_mask_apply(target: Target, weight: Tensor) -> None:
    mask = random_mask(tuple(weight.shape))
    expected = reference.mask_apply(weight.cpu(), mask)
    before, strides = weight.clone(), weight.stride()
    out = target.mask_apply(weight, mask.to(target.device))
    assert equal(out, expected)
    assert out.device == weight.device
    assert out.stride() == torch.empty_like(weight).stride()
    assert same_bits(weight, before)
    assert target.mask_apply_(weight, mask.to(target.device)) is None
    assert equal(weight, expected)
    assert weight.stride() == strides


def check_threshold_relu(target: Target, x: Tensor) -> None:
    channels = 1 if x.dim() == 0 else x.shape[1] if x.dim() > 2 else x.shape[-1]
    thetas = [torch.tensor(0.3), torch.rand(1).double(), torch.rand(channels), torch.rand(channels).double()]
    for theta, maximum in zip(thetas, [None, 0.75, 0.75, None], strict=True):
        y, mask = target.threshold_relu(x, theta.to(target.device), maximum)
        expected = reference.threshold_relu(x.cpu(), theta, maximum)
        assert equal(mask, expected[1])
        assert equal(y, expected[0])
        assert y.stride() == torch.empty_like(x).stride()
        written = x.clone()  # keeps dense strides
        assert equal(target.threshold_relu_(written, theta.to(target.device), maximum), expected[1])
        assert equal(written, expected[0])
    expected = reference.threshold_relu(x.cpu(), thetas[2])  # x itself, whose strides a clone may not have
    assert equal(target.threshold_relu_(x, thetas[2].to(target.device), None), expected[1])
    assert equal(x, expected[0])


def check_statistics(target: Target, weight: Tensor, k: float, signed: bool) -> None:
    on_cpu = weight.cpu()
    rows, columns = reference.rows_and_columns(weight.shape)
    expected = reference.statistics_threshold(on_cpu, k, signed)
    pruned, mask, theta = target.statistics_threshold(weight, k, signed)
    # The sums run in double and cancel in mean - k * std: some double roundings of the larger terms, one of theta.
    scale = on_cpu.double().reshape(rows, columns).abs().amax(1) if rows and columns else torch.zeros(rows).double()
    slack = (1 + abs(k)) * scale * 1e-13 + expected[2].abs().double() * torch.finfo(expected[2].dtype).eps
    assert theta.dtype == expected[2].dtype
    assert bool(((theta.cpu().double() - expected[2].double()).abs() <= slack).all())
    # Mask and weight follow the theta that came back.
    magnitude = on_cpu.reshape(rows, columns).double().abs()
    sample = on_cpu.reshape(rows, columns).double() if signed else magnitude
    constant = sample.amax(1) == sample.amin(1) if rows and columns else torch.ones(rows, dtype=torch.bool)
    keep = (magnitude >= theta.cpu().double().unsqueeze(1)) | constant.unsqueeze(1)
    assert equal(mask, reference.mask_pack(keep))
    assert equal(pruned, reference.mask_apply(on_cpu, mask.cpu()))
    assert equal(weight, on_cpu)
    strides = weight.stride()
    in_place = target.statistics_threshold_(weight, k, signed)
    assert same_bits(in_place[0], mask)
    assert same_bits(in_place[1], theta)
    assert same_bits(weight, pruned)
    assert weight.stride() == strides


def arrangements(target: Target, dtype: torch.dtype) -> None:
    """float32 meets them all; each other type, for which the fronts choose the same ways, a third of its own."""
    some = ARRANGEMENTS if dtype == torch.float32 else ARRANGEMENTS[DTYPES.index(dtype) - 1 :: 3]
    for layout, shape in some:
        check_mask_apply(target, place(target, layout, shape, dtype))
        check_threshold_relu(target, place(target, layout, shape, dtype))
        check_statistics(target, place(target, layout, shape, dtype), -0.5, False)
        check_statistics(target, place(target, layout, shape, dtype), 0.7, True)


def channels_last(target: Target, dtype: torch.dtype) -> None:
    for shape in CHANNELS_LAST:
        check_mask_apply(target, place(target, "channels_last", shape, dtype))
        check_threshold_relu(target, place(target, "channels_last", shape, dtype))
        check_statistics(target, place(target, "channels_last", shape, dtype), -1.0, False)


def packing(target: Target, _dtype: torch.dtype) -> None:
    for layout, shape in ARRANGEMENTS:
        keep = LAYOUTS[layout]((torch.rand(shape) < 0.5).to(target.device))
        mask = target.mask_pack(keep)
        assert equal(mask, reference.mask_pack(keep.cpu()))
        assert equal(target.mask_unpack(mask, list(shape)), keep.cpu().contiguous())
        spaced = torch.stack([mask, ~mask], dim=-1)[..., 0]  # a mask that is not contiguous
        assert equal(target.mask_unpack(spaced, list(shape)), keep.cpu().contiguous())


def many_weights(target: Target, dtype: torch.dtype) -> None:
    """All arrangements in one list, among weights of the other sizes of elements; then lists that share memory."""
    kinds = [("channels_last", shape, dtype) for shape in CHANNELS_LAST]
    kinds += [(layout, shape, dtype) for layout, shape in ARRANGEMENTS]
    kinds += [("contiguous", (5, 19), other) for other in DTYPES]
    kinds += [("contiguous", (1, 1000003), dtype), ("offset", (99, 1003), dtype)]
    weights = [place(target, *kind) for kind in kinds]
    masks = [random_mask(tuple(weight.shape)) for weight in weights]
    expected = [reference.mask_apply(weight.cpu(), mask) for weight, mask in zip(weights, masks, strict=True)]
    strides = [weight.stride() for weight in weights]
    assert target.mask_apply_many_(weights, [mask.to(target.device) for mask in masks]) is None
    for i, weight in enumerate(weights):
        assert equal(weight, expected[i]), kinds[i]
        assert weight.stride() == strides[i]

    base = place(target, "contiguous", (64, 4099), dtype)
    views = [base, base, base[:, :100], base[3:], base.t(), base[:, 1::2]]
    twin = base.cpu().clone()
    twins = [twin, twin, twin[:, :100], twin[3:], twin.t(), twin[:, 1::2]]
    masks = [random_mask(tuple(view.shape)) for view in views]
    reference.mask_apply_many_(twins, masks)
    target.mask_apply_many_(views, [mask.to(target.device) for mask in masks])
    assert equal(base, twin)


def special_values(target: Target, dtype: torch.dtype) -> None:
    x = special(dtype)
    check_mask_apply(target, x.to(target.device))
    check_threshold_relu(target, x.to(target.device))
    check_threshold_relu(target, x.to(target.device).t())


def long_rows(target: Target, dtype: torch.dtype) -> None:
    """Rows over 2048 belong to a whole block, shorter ones to a warp; and a tensor larger than any grid."""
    for shape in [(3, 2048), (3, 2049), (2, 6151), (300, 40), (1, 200003)]:
        check_statistics(target, make("contiguous", shape, dtype).to(target.device), -0.3, False)
        check_statistics(target, make("contiguous", shape, dtype).to(target.device) + 100, 0.3, True)  # mean >> std
    check_mask_apply(target, make("contiguous", (1, 1000003), dtype).to(target.device))
    check_threshold_relu(target, make("offset", (999, 1003), dtype).to(target.device))


def constant_rows(target: Target, dtype: torch.dtype) -> None:
    for columns in (1, 7, 3000):
        weight = torch.tensor([0.1, -3.3, 0.0, 7.7]).to(dtype).unsqueeze(1).repeat(1, columns)
        for k, signed in [(-2.0, False), (2.0, True)]:
            check_statistics(target, weight.clone().to(target.device), k, signed)


def bad_weights(target: Target, dtype: torch.dtype) -> None:
    """NaN or Inf: an error that names the first bad neuron, and not one weight changed."""
    for shape in [(6, 9), (6, 5, 3, 3), (6, 3000)]:
        for layout in ("contiguous", "channels_last", "transposed"):
            if layout == "channels_last" and len(shape) != 4:
                continue
            for poison in (float("nan"), float("inf"), -float("inf")):
                weight = place(target, layout, shape, dtype)
                weight.select(0, 4).fill_(poison)
                weight[(3,) + (-1,) * (len(shape) - 1)] = poison
                before = weight.clone()
                for name in ("statistics_threshold", "statistics_threshold_"):
                    message = rf"{name}: weight must be finite, got NaN or Inf .* in neuron 3"
                    with pytest.raises(RuntimeError, match=message):
                        getattr(target, name)(weight, 0.5)
                    assert same_bits(weight, before)
    if dtype == torch.float64:
        with pytest.raises(RuntimeError, match="squares beyond float64"):
            target.statistics_threshold(torch.tensor([[1e300, 2e300]], dtype=dtype, device=target.device), 1.0)


def same_every_time(target: Target, dtype: torch.dtype) -> None:
    weight = place(target, "contiguous", (64, 700), dtype)
    first = target.statistics_threshold(weight, 0.3)
    for _ in range(3):
        for a, b in zip(first, target.statistics_threshold(weight, 0.3), strict=True):
            assert same_bits(a, b)


def errors(target: Target, dtype: torch.dtype) -> None:
    device = target.device
    weight = torch.randn(4, 10, dtype=torch.float64).to(dtype).to(device)
    mask = torch.zeros(4, 2, dtype=torch.uint8, device=device)
    theta = torch.zeros(10, device=device)
    overlapping = weight[:1].expand(4, 10)
    cases: list[tuple[str, tuple[Any, ...], str]] = [
        ("mask_apply", (weight.int(), mask), "mask_apply: weight must be float32, float64, .*, got int32"),
        ("mask_apply", (weight, mask.bool()), "mask_apply: mask must be uint8, got bool"),
        ("mask_apply_", (weight, mask[:, :1]), r"mask_apply_: mask must be \[4, 2\] for .* \[4, 10\], got \[4, 1\]"),
        ("mask_apply_", (overlapping, mask), "mask_apply_: weight must not overlap itself"),
        (
            "mask_apply_many_",
            ([weight], [mask, mask]),
            "mask_apply_many_: masks must have one mask for each of the 1 we",
        ),
        ("mask_apply_many_", ([weight, weight.int()], [mask] * 2), r"mask_apply_many_: weights\[1\] must be float32"),
        ("mask_apply_many_", ([weight, overlapping], [mask] * 2), r"weights\[1\] must not overlap itself"),
        ("mask_apply_many_", ([weight] * 2, [mask, mask[:, :1]]), r"masks\[1\] must be \[4, 2\] .* got \[4, 1\]"),
        ("mask_apply_many_", ([weight] * 2, [mask, mask.bool()]), r"masks\[1\] must be uint8, got bool"),
        ("statistics_threshold", (weight, float("nan")), "statistics_threshold: k must be finite, got nan"),
        ("statistics_threshold", (weight.int(), 1.0), "statistics_threshold: weight must be float32"),
        ("statistics_threshold_", (overlapping, 1.0), "statistics_threshold_: weight must not overlap itself"),
        ("threshold_relu", (weight, theta[:3]), "threshold_relu: theta must have 1 value or one for each of the 10"),
        ("threshold_relu", (weight, theta.int()), "threshold_relu: theta must be float32 or float64, got int32"),
        (
            "threshold_relu",
            (weight, theta.view(2, 5)),
            r"threshold_relu: theta must be a scalar or \[C\], got .*\[2, 5\]",
        ),
        ("threshold_relu", (weight, theta, 0.0), "threshold_relu: max must be > 0, got 0"),
        ("threshold_relu_", (overlapping, theta), "threshold_relu_: x must not overlap itself"),
        ("mask_pack", (weight,), "mask_pack: keep must be bool"),
        ("mask_unpack", (mask, [4, 17]), r"mask_unpack: mask must be \[4, 3\] for shape \[4, 17\], got \[4, 2\]"),
        ("mask_unpack", (mask, [-4, 10]), "mask_unpack: shape must not be negative"),
    ]
    for name, args, message in cases:
        with pytest.raises(RuntimeError, match=message):
            getattr(target, name)(*args)


CASES = [
    arrangements,
    channels_last,
    many_weights,
    special_values,
    long_rows,
    constant_rows,
    bad_weights,
    same_every_time,
    errors,
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
