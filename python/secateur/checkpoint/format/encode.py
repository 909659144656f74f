"""One tensor into its parts: where its kept values are, and what they are. The smallest form wins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import symbols
from .decode import MOST_RATIO, positions
from .description import FLOATS, INTEGERS, Entry, Index
from .symbols import Bytes, Numbers, bits_of

#: Bytes that another form must save before it is taken: about the size of its entry in the header.
_WORTH = 48
_BLOCKS = (2, 4, 8, 16, 32)
PACKABLE = (*FLOATS, *INTEGERS)

_Bools = npt.NDArray[np.bool_]


@dataclass
class Packed:
    """An entry and its parts by suffix ("_mask", "_values", ...)."""

    entry: Entry
    parts: dict[str, Tensor]


@dataclass
class _Choice:
    index: Index
    units: Numbers  # rising: the kept ones
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
    stored = value.dtype if narrow is None else narrow
    kept = (value != 0 if keep is None else keep).numpy()
    best = _choose(kept, stored.itemsize, value.numel() * value.element_size(), exact=keep is not None)
    plain = keep is None and best.size + best.values >= value.numel() * stored.itemsize
    flat = value.reshape(-1)
    parts: dict[str, Tensor] = {}
    if plain:
        index, signs, values = Index("all"), None, flat
    else:
        index, where = best.index, positions(best.units, shape, best.index.block)
        parts[f"_{'gaps' if index.kind == 'gaps' else 'mask'}"] = _index(index, best.units, shape)
        signs = _signs(flat, where, shape, parts)
        values = torch.from_numpy(bits_of(flat)[where]).view(value.dtype)
    values = values.to(stored)
    codes, coded = _codes(values) if share else (0, {})
    parts |= coded or {"_values": values}
    if plain and stored == value.dtype and not codes:
        return None
    return Packed(Entry(shape, value.dtype, index, stored, codes, signs, masked=keep is not None), parts)


def _choose(keep: _Bools, itemsize: int, dense: int, exact: bool) -> _Choice:
    """``itemsize``: of a value as stored; ``dense``: bytes of the tensor. ``exact``: the form must hold this very mask,
    so every block is kept whole or not at all."""
    shape, least = keep.shape, dense / MOST_RATIO
    units = np.flatnonzero(keep)
    best = _cheapest(shape, 1, units, len(units) * itemsize, least, None)
    if keep.ndim < 2 or not len(units):
        return best
    for block in _BLOCKS:
        if block > shape[1]:
            break
        pad = -shape[1] % block
        whole = np.pad(keep, ((0, 0), (0, pad), *[(0, 0)] * (keep.ndim - 2))) if pad else keep
        blocks: _Bools = np.logical_or.reduce(whole.reshape(shape[0], -1, block, *shape[2:]), axis=2)
        units = np.flatnonzero(blocks)
        values = (len(units) * block - int(blocks[:, -1].sum()) * pad) * itemsize
        if exact and values != best.values:
            break  # larger blocks would not be whole either
        best = _cheapest(shape, block, units, values, least, best)
    return best


def _cheapest(
    shape: tuple[int, ...], block: int, units: Numbers, values: int, least: float, best: _Choice | None
) -> _Choice:
    """The better one of ``best`` and what blocks of this length offer; readers refuse less than ``least`` bytes."""
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


def _gaps_size(units: Numbers, count: int, width: int) -> int:
    if not count or len(units) * width > count:
        return count + 1  # more than bits take
    most = 2**width - 1
    gaps, rest = _gaps(units, count)
    return symbols.size(len(units) + int((gaps // most).sum()) + -(-rest // most), width)


def _gaps(units: Numbers, count: int) -> tuple[Numbers, int]:
    """How many units are skipped before each kept one, and after the last."""
    return np.diff(units, prepend=-1) - 1, count - 1 - int(units[-1]) if len(units) else count


def _index(index: Index, units: Numbers, shape: tuple[int, ...]) -> Tensor:
    """A packed mask; or gaps, where the largest number stands for so many units without a value."""
    rows, columns = index.grid(shape)
    if index.kind == "bits":
        kept = np.zeros(rows * columns, np.bool_)
        kept[units] = True
        packed: Bytes = np.packbits(kept.reshape(rows, columns), axis=1, bitorder="little")
        return torch.from_numpy(packed)
    most = 2**index.width - 1
    gaps, rest = _gaps(units, rows * columns)
    escapes, gaps = np.divmod(gaps, most)
    ends = np.cumsum(escapes + 1)
    numbers = np.full((int(ends[-1]) if len(ends) else 0) - (-rest // most), most)
    numbers[ends - 1] = gaps
    return torch.from_numpy(symbols.pack(numbers, index.width, fill=most))


def _signs(flat: Tensor, where: Numbers, shape: tuple[int, ...], parts: dict[str, Tensor]) -> Index | None:
    """Where the zeros that are not stored are negative. Libraries that prune by ``weight * mask`` leave such zeros."""
    if not flat.is_floating_point():
        return None
    bits = bits_of(flat)
    negative = bits == np.iinfo(bits.dtype).min  # the sign bit alone: -0.0
    negative[where] = False
    units = np.flatnonzero(negative)
    if not len(units):
        return None
    index = _cheapest(shape, 1, units, 0, 0, None).index
    parts["_signs"] = _index(index, units, shape)
    return index


def _codes(values: Tensor) -> tuple[int, dict[str, Tensor]]:
    """Distinct values, told apart by their bits, and a number for each value; nothing where that is not smaller."""
    found: tuple[npt.NDArray[Any], Numbers] = np.unique(bits_of(values), return_inverse=True)
    palette, numbers = found
    for width in symbols.WIDTHS:
        if len(palette) <= 2**width:
            size = symbols.size(len(values), width) + len(palette) * values.element_size()
            if len(palette) and size + _WORTH < len(values) * values.element_size():
                coded = torch.from_numpy(symbols.pack(numbers.reshape(-1), width))
                return width, {"_codes": coded, "_palette": torch.from_numpy(palette).view(values.dtype)}
            break
    return 0, {}
