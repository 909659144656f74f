"""The operators beside ``copy_``, beside what one writes in eager torch, and beside torch.compile of that.

A case is one operator, type, size and layout.

Bytes are counted as each must move once: a tensor read, a tensor written, the mask. ``copy_`` has the tensor twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from secateur import ops
from torch import Tensor

from .clock import Contender

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30
#: In order of worth: what the goals speak of, then the ends, then the middle.
SIZES = (64 * MB, 64 * KB, GB, 256 * MB, MB, 16 * MB)
DRY_SIZES = (32 * KB, 8 * KB)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Of a row of weights, in bytes.
ROW, LONG_ROWS = 16 * KB, (64 * KB, MB)
ZEROS, K, MAXIMUM = 0.9, -1.0, 6.0


@dataclass(frozen=True)
class Case:
    operator: str
    dtype: torch.dtype
    size: int  # bytes of the tensor
    layout: str = "contiguous"
    row: int = ROW
    compiled: bool = False  # torch.compile takes part, which takes seconds

    def __str__(self) -> str:
        size = f"{self.size // MB} MB" if self.size >= MB else f"{self.size // KB} KB"
        more = [self.layout] * (self.layout != "contiguous") + [f"rows of {self.row // KB} KB"] * (self.row != ROW)
        return ", ".join([self.operator, name_of(self.dtype), size, *more, *["torch.compile"] * self.compiled])


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def cases(dry: bool) -> Iterator[Case]:
    """All cases, in order of worth."""
    sizes: Sequence[int] = DRY_SIZES if dry else SIZES
    three = ("mask_apply", "threshold_relu", "statistics_threshold")
    first = sizes[0]
    for dtype, operator in itertools.product(DTYPES, three):
        yield Case(operator, dtype, first, compiled=not dry or (dtype == DTYPES[0] and operator == three[0]))
    for size in sizes:
        if size != first:
            yield from (Case(operator, dtype, size) for dtype, operator in itertools.product(DTYPES, three))
        yield from (Case("threshold_relu", dtype, size, "channels_last") for dtype in DTYPES)
        yield Case("mask_pack", torch.bool, size)
        yield Case("mask_unpack", torch.bool, size)
    for row, dtype in itertools.product(() if dry else LONG_ROWS, DTYPES):
        yield Case("statistics_threshold", dtype, first, row=row)
    for size, dtype, operator in itertools.product(() if dry else sizes[1:], DTYPES, three):
        yield Case(operator, dtype, size, compiled=True)


def contenders(case: Case, device: torch.device) -> tuple[dict[str, Contender], list[int]]:
    """Who takes part, and the tensor's shape."""
    make = {"mask_apply": _mask_apply, "threshold_relu": _threshold_relu, "mask_pack": _pack, "mask_unpack": _unpack,
            "statistics_threshold": _statistics}[case.operator]  # fmt: skip
    return make(case, device)


Made = tuple[dict[str, Contender], list[int]]


def _copy(x: Tensor) -> Contender:
    target = torch.empty_like(x)
    return Contender(lambda: target.copy_(x), 2 * x.nbytes, check=lambda _: torch.equal(target, x))


def _matrix(case: Case, device: torch.device) -> Tensor:
    """Weights: rows of ``case.row`` bytes, shorter where the tensor would have fewer rows than columns."""
    elements = case.size // case.dtype.itemsize
    columns = case.row // case.dtype.itemsize
    if case.row == ROW:
        columns = min(columns, 1 << (elements.bit_length() // 2))
    return torch.randn(elements // columns, columns, device=device, dtype=case.dtype)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def _packed(keep: Tensor) -> Tensor:
    """Bits of rows of whole bytes, in plain torch."""
    place = 2 ** torch.arange(8, dtype=torch.uint8, device=keep.device)
    return (keep.reshape(keep.shape[0], -1, 8) * place).sum(-1, dtype=torch.uint8)


# ---- mask_apply ----


def _mask_apply(case: Case, device: torch.device) -> Made:
    weight = _matrix(case, device)
    keep = torch.rand(weight.shape, device=device) >= ZEROS
    mask, drop, factor = ops.mask_pack(keep), ~keep, keep.to(case.dtype)
    expected = torch.where(keep, weight, 0)
    moved = 2 * weight.nbytes

    def in_place(function: Callable[[Tensor], Any], mask_bytes: int) -> Contender:
        target = weight.clone()
        return Contender(lambda: function(target), moved + mask_bytes, check=lambda _: torch.equal(target, expected))

    made = {
        "copy_": _copy(weight),
        "secateur, in place": in_place(lambda w: ops.mask_apply_(w, mask), mask.nbytes),
        "secateur": Contender(
            lambda: ops.mask_apply(weight, mask), moved + mask.nbytes, check=lambda y: torch.equal(y, expected)
        ),
        "eager: masked_fill_, bool mask": in_place(lambda w: w.masked_fill_(drop, 0), drop.nbytes),
        "eager: mul_, mask of the weight's type": in_place(lambda w: w.mul_(factor), factor.nbytes),
    }
    if case.compiled:
        fast = _compiled(lambda w, d: w.masked_fill_(d, 0))
        made["torch.compile: masked_fill_, bool mask"] = in_place(lambda w: fast(w, drop), drop.nbytes)
    return made, list(weight.shape)


# ---- threshold_relu ----


def composed_threshold_relu(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Values and packed mask. theta: [1, C, 1, 1]."""
    keep = x >= theta
    y = torch.where(keep, x.clamp(max=MAXIMUM), 0)
    return y, _packed(keep & (x > 0) & (x < MAXIMUM))


def _threshold_relu(case: Case, device: torch.device) -> Made:
    elements = case.size // case.dtype.itemsize
    channels = 64 if elements >= 1 << 16 else 8
    side = 32 if elements >= channels << 10 else 8
    x = torch.randn(elements // (channels * side * side), channels, side, side, device=device, dtype=case.dtype)
    if case.layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    theta = torch.rand(channels, device=device)
    view = theta.to(case.dtype).view(1, -1, 1, 1)
    theta = view.flatten().float()  # the same threshold for both: eager compares in the type of x
    expected = composed_threshold_relu(x, view)
    moved = 2 * x.nbytes + x.numel() // 8

    def right(found: tuple[Tensor, Tensor]) -> bool:
        return torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])

    target = x.clone()
    made = {
        "copy_": _copy(x),
        "secateur, in place": Contender(
            lambda: ops.threshold_relu_(target, theta, MAXIMUM), moved,
            check=lambda mask: right((target, mask)),
        ),
        "secateur": Contender(lambda: ops.threshold_relu(x, theta, MAXIMUM), moved, check=right),
        "eager: composed": Contender(lambda: composed_threshold_relu(x, view), moved, check=right),
        "torch.relu, no mask": Contender(lambda: torch.relu(x), 2 * x.nbytes),
    }  # fmt: skip
    if case.compiled:
        fast = _compiled(composed_threshold_relu)
        made["torch.compile: composed"] = Contender(lambda: fast(x, view), moved, check=right)
    return made, list(x.shape)


# ---- statistics_threshold ----


def composed_statistics(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, packed mask, theta; sums in float32, as one writes it."""
    magnitude = weight.float().abs()
    theta = magnitude.mean(1) - K * magnitude.std(1, correction=0)
    keep = magnitude >= theta.unsqueeze(1)
    return torch.where(keep, weight, 0), _packed(keep), theta


def _statistics(case: Case, device: torch.device) -> Made:
    weight = _matrix(case, device)
    expected = composed_statistics(weight)
    moved = 2 * weight.nbytes + weight.numel() // 8 + 4 * weight.shape[0]
    target = weight.clone()

    def right(found: tuple[Tensor, Tensor, Tensor]) -> bool:
        """theta within what float32 sums give; the few weights between the two thetas may go either way."""
        differ = (found[0] != expected[0]).double().mean()
        return torch.allclose(found[2], expected[2], rtol=1e-3, atol=1e-5) and float(differ) < 1e-3

    made = {
        "copy_": _copy(weight),
        "secateur": Contender(lambda: ops.statistics_threshold(weight, K), moved, check=right),
        # Restored before each call: a second pruning would see other statistics.
        "secateur, in place": Contender(
            lambda: ops.statistics_threshold_(target, K), moved, lambda: target.copy_(weight),
            lambda found: right((target, *found)),
        ),
        "eager: composed": Contender(lambda: composed_statistics(weight), moved, check=right),
    }  # fmt: skip
    if case.compiled:
        fast = _compiled(composed_statistics)
        made["torch.compile: composed"] = Contender(lambda: fast(weight), moved, check=right)
    return made, list(weight.shape)


# ---- packing ----


def _pack(case: Case, device: torch.device) -> Made:
    keep = torch.rand(case.size // ROW or 1, min(ROW, case.size), device=device) < 1 - ZEROS
    moved, expected = keep.nbytes + keep.numel() // 8, _packed(keep)
    return {
        "copy_": _copy(keep),
        "secateur": Contender(lambda: ops.mask_pack(keep), moved, check=lambda m: torch.equal(m, expected)),
        "eager: composed": Contender(lambda: _packed(keep), moved, check=lambda m: torch.equal(m, expected)),
    }, list(keep.shape)


def _unpack(case: Case, device: torch.device) -> Made:
    keep = torch.rand(case.size // ROW or 1, min(ROW, case.size), device=device) < 1 - ZEROS
    mask, shape = ops.mask_pack(keep), list(keep.shape)
    place = torch.arange(8, dtype=torch.uint8, device=device)

    def composed() -> Tensor:
        return ((mask.unsqueeze(-1) >> place) & 1).view(shape).bool()

    moved = keep.nbytes + mask.nbytes
    return {
        "copy_": _copy(keep),
        "secateur": Contender(lambda: ops.mask_unpack(mask, shape), moved, check=lambda k: torch.equal(k, keep)),
        "eager: composed": Contender(composed, moved, check=lambda k: torch.equal(k, keep)),
    }, shape


def host_calls(device: torch.device) -> dict[str, Callable[[], Any]]:
    """Calls on small tensors, for what they cost the calling thread: the operator by itself, below autograd, through
    ``secateur.ops``; and torch.add."""
    weight = torch.randn(64, 64, device=device)
    other, theta = weight.clone(), torch.rand(64, device=device)
    mask = ops.mask_pack(weight > 0)
    raw = torch.ops.secateur
    calls: dict[str, Callable[[], Any]] = {
        "torch.add": lambda: torch.add(weight, other),
        "torch.relu_": lambda: torch.relu_(other),
        "torch.ops.secateur.mask_apply_": lambda: raw.mask_apply_.default(weight, mask),
        "torch.ops.secateur.mask_apply": lambda: raw.mask_apply.default(weight, mask),
        "torch.ops.secateur.threshold_relu": lambda: raw.threshold_relu.default(weight, theta, None),
        "torch.ops.secateur.statistics_threshold (waits)": lambda: raw.statistics_threshold.default(weight, K, False),
        "secateur.ops.mask_apply_": lambda: ops.mask_apply_(weight, mask),
        "secateur.ops.mask_apply": lambda: ops.mask_apply(weight, mask),
        "secateur.ops.threshold_relu": lambda: ops.threshold_relu(weight, theta),
    }
    return calls
