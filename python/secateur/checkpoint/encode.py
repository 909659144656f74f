"""One tensor into its parts: where its kept values are, and what they are. The smallest form wins."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from . import symbols
from .decode import MOST_RATIO, positions
from .description import FLOATS, INTEGERS, Entry, Index

#: What another form must save before it is taken: about what its words in the header take.
_WORTH = 48
_BLOCKS = (2, 4, 8, 16, 32)
PACKABLE = (*FLOATS, *INTEGERS)


@dataclass
class Packed:
    """An entry and its parts by suffix ("_mask", "_values", ...)."""

    entry: Entry
    parts: dict[str, Tensor]


@dataclass
class _Choice:
    index: Index
    units: Tensor  # int64, rising: the kept ones
    size: int  # bytes of the index
    values: int  # bytes of the values


def packed(value: Tensor, keep: Tensor | None, narrow: torch.dtype | None, share: bool) -> Packed | None:
    """The smallest form of a tensor on the CPU; None where that is the plain tensor.

    Args:
        value: any shape, of a dtype in :data:`PACKABLE`.
        keep: its mask, bool of its shape, which then is stored whatever it costs; None: what is not 0 is kept.
        narrow: store floating values as this dtype. share: store each distinct value once, where that is smaller.
    """
    shape = tuple(value.shape)
    stored = narrow if narrow is not None and value.is_floating_point() else value.dtype
    dense = value.numel() * stored.itemsize
    best = _choose(value, value != 0 if keep is None else keep, stored.itemsize, exact=keep is not None)
    choice = best if keep is not None or best.size + best.values < dense else None
    index = Index("all") if choice is None else choice.index
    flat = value.reshape(-1)
    where = None if choice is None else positions(choice.units, shape, index.block)
    values = flat if where is None else flat[where]
    parts: dict[str, Tensor] = {}
    signs = None
    if choice is not None:
        parts[f"_{'gaps' if index.kind == 'gaps' else 'mask'}"] = _index(index, choice.units, shape)
        signs = _signs(flat, where, shape, parts)
    codes, coded = _codes(values.to(stored)) if share else (0, {})
    parts |= coded or {"_values": values.to(stored)}
    if index.kind == "all" and stored == value.dtype and not codes:
        return None
    return Packed(Entry(shape, value.dtype, index, stored, codes, signs, masked=keep is not None), parts)


def _choose(value: Tensor, keep: Tensor, itemsize: int, exact: bool) -> _Choice:
    """``itemsize``: of a value as stored. ``exact``: a form that holds this very mask (blocks are kept whole)."""
    shape = tuple(keep.shape)
    least = value.numel() * value.element_size() / MOST_RATIO
    units = keep.reshape(-1).nonzero().reshape(-1)
    best = _cheapest(shape, 1, units, len(units) * itemsize, least, None)
    if keep.dim() < 2 or not len(units):
        return best
    for block in _BLOCKS:
        if block > shape[1]:
            break
        blocks = F.pad(keep, (*(0, 0) * (keep.dim() - 2), 0, -shape[1] % block))
        blocks = blocks.reshape(shape[0], -1, block, *shape[2:]).any(2)
        units = blocks.reshape(-1).nonzero().reshape(-1)
        values = (len(units) * block - int(blocks[:, -1].sum()) * (-shape[1] % block)) * itemsize
        if exact and values != best.values:
            break  # larger blocks would not be whole either
        best = _cheapest(shape, block, units, values, least, best)
    return best


def _cheapest(
    shape: tuple[int, ...], block: int, units: Tensor, values: int, least: float, best: _Choice | None
) -> _Choice:
    """The better one of ``best`` and what blocks of this length offer; a reader believes ``least`` bytes and more."""
    plain = Index("bits", block)
    rows, columns = plain.grid(shape)
    for index, size in [
        (plain, rows * symbols.size(columns, 1)),
        *((Index("gaps", block, width), _gaps_size(units, rows * columns, width)) for width in (4, 8)),
    ]:
        if size >= least and (best is None or size + values + _WORTH < best.size + best.values):
            best = _Choice(index, units, size, values)
    assert best is not None  # a bit for each element is always enough
    return best


def _gaps_size(units: Tensor, count: int, width: int) -> int:
    if not count or len(units) * width > count:
        return count + 1  # more than bits take
    most = 2**width - 1
    gaps, rest = _gaps(units, count)
    return symbols.size(len(units) + int((gaps // most).sum()) + -(-rest // most), width)


def _gaps(units: Tensor, count: int) -> tuple[Tensor, int]:
    """How many units are skipped before each kept one, and after the last."""
    gaps = torch.diff(units, prepend=torch.tensor([-1])) - 1
    return gaps, count - 1 - int(units[-1]) if len(units) else count


def _index(index: Index, units: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A packed mask; or gaps, of which the largest stands for so many units without a value."""
    rows, columns = index.grid(shape)
    if index.kind == "bits":
        kept = torch.zeros(rows * columns, dtype=torch.bool)
        kept[units] = True
        return ops.mask_pack(kept.reshape(rows, columns))
    most = 2**index.width - 1
    gaps, rest = _gaps(units, rows * columns)
    steps = gaps // most + 1
    numbers = torch.full((int(steps.sum()) - (-rest // most),), most)
    numbers[steps.cumsum(0) - 1] = gaps % most
    return symbols.pack(numbers, index.width, fill=most)


def _signs(flat: Tensor, where: Tensor | None, shape: tuple[int, ...], parts: dict[str, Tensor]) -> Index | None:
    """Where the zeros that are not stored are negative: ``weight * mask``, as other libraries prune, leaves such."""
    if not flat.is_floating_point():
        return None
    negative = (flat == 0) & torch.signbit(flat)
    negative[where] = False
    units = negative.nonzero().reshape(-1)
    if not len(units):
        return None
    index = _cheapest(shape, 1, units, 0, 0, None).index
    parts["_signs"] = _index(index, units, shape)
    return index


def _codes(values: Tensor) -> tuple[int, dict[str, Tensor]]:
    """Distinct values, told apart by their bits, and a number for each value; nothing where that is not smaller."""
    bits = values.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])
    palette, numbers = torch.unique(bits, return_inverse=True)
    for width in symbols.WIDTHS:
        if len(palette) <= 2**width:
            size = symbols.size(len(values), width) + len(palette) * values.element_size()
            if len(palette) and size + _WORTH < len(values) * values.element_size():
                return width, {"_codes": symbols.pack(numbers, width), "_palette": palette.view(values.dtype)}
            break
    return 0, {}
