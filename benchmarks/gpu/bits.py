"""Part 4: the device's results beside the CPU's, bit for bit; for the sums of the statistics, within a bound.

Everything but those sums only moves bits and compares: it must be the same. The statistics sum a row in double: on a
GPU each thread over its own groups of 8, then a tree over the team (csrc/cuda/statistics_threshold.cu); on the CPU over
16 lanes, in pieces (csrc/cpu/algorithms/statistics_threshold.h). Another order of summation gives another rounding. So
theta may differ by :func:`bound`, and a mask bit only where |w| lies between the two thetas. How many rows have the
very same theta is counted.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from secateur import cpu, ops
from secateur.ops import reference
from secateur.ops.packing import rows_and_columns
from torch import Tensor

from .operators import name_of
from .record import Record, reason

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES: list[tuple[int, ...]] = [
    (64, 1000), (1000, 63), (7, 2048), (7, 2049), (3, 100_003), (512, 512, 3, 3), (64, 3, 7, 7), (2, 64, 56, 56),
    (5, 7, 3, 5), (1,), (0, 4),
]  # fmt: skip
LARGE: list[tuple[int, ...]] = [(2048, 16384), (8, 1 << 22)]
UNIT = 2.0**-53
BOUND = (
    "h = additions on the longest path from a sample to its row's sum, both devices together; u = 2^-53; d = sample - "
    "first sample of the row. |mean - mean'| <= h u E|d| (float64: E|w|) + 2u|mean|; "
    "|var - var'| <= 3 (h + 2) u E[d^2]; |std - std'| <= min(|var - var'| / std, sqrt(|var - var'|)); "
    "|theta - theta'| <= the mean's + |k| times the std's + 2u (|mean| + |k| std), "
    "and one unit in the last place of a theta that is rounded to float32"
)


def main(record: Record) -> None:
    torch.manual_seed(0)
    device = torch.device("cpu" if record.dry else "cuda")
    record.add("bound", {"of": "statistics_threshold's theta", "is": BOUND})
    shapes = SHAPES[:4] + SHAPES[6:] if record.dry else SHAPES + LARGE
    for shape in shapes:
        for dtype in DTYPES:
            what = f"{'x'.join(map(str, shape))}, {name_of(dtype)}"
            if record.out_of_time(what, 1.0):
                continue
            try:
                record.add(
                    "compared", {"shape": list(shape), "dtype": name_of(dtype), **_compare(shape, dtype, device)}
                )
            except AssertionError as error:
                record.fail(what, str(error))
            except Exception as error:  # out of memory, say; the other shapes go on
                record.fail(what, reason(error))


def _on(device: torch.device, function: Any, *arguments: Any) -> list[Tensor]:
    """What an operator returns there, and its first argument afterwards, on the CPU. Dry: by the scalar kernels."""
    there = [a.to(device, copy=True) if isinstance(a, Tensor) else a for a in arguments]
    if device.type == "cpu":
        with cpu.use_isa("scalar"):
            result = function(*there)
    else:
        result = function(*there)
    results = result if isinstance(result, tuple) else (result,)
    return [t.cpu() for t in (*results, there[0]) if isinstance(t, Tensor)]


def _here(function: Any, *arguments: Any) -> list[Tensor]:
    copies = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    result = function(*copies)
    results = result if isinstance(result, tuple) else (result,)
    return [t for t in (*results, copies[0]) if isinstance(t, Tensor)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """NaN equals itself, -0 is not +0; strides do not count."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def _compare(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    x = torch.randn(shape).to(dtype)
    forms = [x, x.contiguous(memory_format=torch.channels_last)] if len(shape) == 4 else [x]
    mask = ops.mask_pack(torch.rand(shape) < 0.5)
    theta = torch.rand(shape[1] if len(shape) > 1 else 1)
    exact = 0
    with torch.no_grad():
        for form in forms:
            for function, arguments in (
                (ops.mask_apply, (form, mask)), (ops.mask_apply_, (form, mask)),
                (ops.threshold_relu, (form, theta, None)), (ops.threshold_relu_, (form, theta, 1.0)),
                (ops.mask_pack, (form > 0,)), (ops.mask_unpack, (mask, list(shape))),
            ):  # fmt: skip
                for a, b in zip(_on(device, function, *arguments), _here(function, *arguments), strict=True):
                    if not same_bits(a, b):
                        raise AssertionError(f"{function.__name__}: not the bits of the CPU")
                exact += 1
        rows = [_statistics(form, k, signed, device) for form in forms for k, signed in ((-1.0, False), (0.3, True))]
    return {"exact": exact, "statistics": rows}


def _statistics(weight: Tensor, k: float, signed: bool, device: torch.device) -> dict[str, Any]:
    here = ops.statistics_threshold(weight, k, signed)
    pruned, mask, theta = _on(device, ops.statistics_threshold, weight, k, signed)[:3]
    off = (theta.double() - here[2].double()).abs()
    rows, columns = rows_and_columns(weight.shape)
    if rows == 0 or columns == 0:
        return {"k": k, "signed": signed, "rows": rows}
    flat = weight.reshape(rows, columns)
    allowed = bound(flat, k, signed)
    if not bool((off <= allowed).all()):
        worst = int((off - allowed).argmax())
        raise AssertionError(f"theta of row {worst} is off by {float(off[worst])}, allowed is {float(allowed[worst])}")
    low, high = (f(theta.double(), here[2].double()).unsqueeze(1) for f in (torch.minimum, torch.maximum))
    other = reference.mask_unpack(mask, (rows, columns)) != reference.mask_unpack(here[1], (rows, columns))
    size = flat.double().abs()
    if bool((other & ~((low <= size) & (size < high))).any()):
        raise AssertionError("a mask bit differs although |w| does not lie between the two thetas")
    if not same_bits(pruned, ops.mask_apply(weight, mask)):
        raise AssertionError("the pruned weight is not the weight under its mask")
    again = _on(device, ops.statistics_threshold_, weight, k, signed)
    if not (same_bits(again[0], mask) and same_bits(again[1], theta) and same_bits(again[2], pruned)):
        raise AssertionError("in place it is something else")
    return {
        "k": k, "signed": signed, "rows": rows, "rows_with_the_same_theta": int((theta == here[2]).sum()),
        "largest_difference": float(off.max()), "of_its_bound": float((off / allowed.clamp_min(1e-300)).max()),
        "bits_that_differ": int(other.sum()),
    }  # fmt: skip


def bound(weight: Tensor, k: float, signed: bool) -> Tensor:
    """How far two thetas of one row may lie apart, [rows]: :data:`BOUND`. weight: [rows, columns]."""
    sample = weight.double() if signed else weight.double().abs()
    d = sample - sample[:, :1]
    mean, std, square = sample.mean(1).abs(), sample.std(1, correction=0), d.square().mean(1)
    h = additions(weight.shape[1])
    linear = sample.abs().mean(1) if weight.dtype == torch.float64 else d.abs().mean(1)
    of_mean = h * UNIT * linear + 2 * UNIT * mean
    of_variance = 3 * (h + 2) * UNIT * square
    of_std = torch.minimum(of_variance / std.clamp_min(1e-300), of_variance.sqrt())
    whole = of_mean + abs(k) * of_std + 2 * UNIT * (mean + abs(k) * std)
    if weight.dtype == torch.float64:
        return whole
    theta = mean + abs(k) * std  # at least as large as |theta|
    return whole + theta * torch.finfo(torch.float32).eps + torch.finfo(torch.float32).smallest_normal


def additions(columns: int) -> int:
    """On the longest path from a sample to its row's sum: of the GPU's order and of the CPU's together."""
    team = 32 if columns <= 2048 else 256  # a warp or a block
    gpu = 8 * math.ceil(columns / (8 * team)) + int(math.log2(team))
    lanes, piece = 16, 4096
    on_cpu = math.ceil(min(columns, piece) / lanes) + 2 * math.ceil(columns / piece) + 1 + int(math.log2(lanes))
    return gpu + on_cpu
