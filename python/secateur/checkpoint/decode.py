"""Positions and values out of their parts, a piece at a time, so that little memory is needed beside the tensor.

Everything here checks what it reads and trusts no count: bits in unused places, gaps beyond the end, blocks, codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import ops
from . import symbols
from .description import Index

#: A tensor may be at most so many times larger than its index: what a short file may claim is bounded.
MOST_RATIO = 1024
_BYTES = 2**15  # of an index at a time

#: Gives bytes ``first`` to ``first + count`` of a part.
Reader = Callable[[int, int], Tensor]


class Damaged(ValueError):
    """What is wrong, in words that follow the part's name."""


def positions(units: Tensor, shape: tuple[int, ...], block: int) -> Tensor:
    """The elements of kept units, as int64 indices into the flat tensor, unit by unit."""
    if block == 1:
        return units
    channels, taps = shape[1], math.prod(shape[2:])
    blocks = -(-channels // block)
    tap, at = units % taps, units // taps
    channel = (at % blocks * block).unsqueeze(1) + torch.arange(block)  # [units, block]
    flat = (((at // blocks) * channels).unsqueeze(1) + channel) * taps + tap.unsqueeze(1)
    return flat[channel < channels]


def units(index: Index, shape: tuple[int, ...], read: Reader, size: int) -> Iterator[Tensor]:
    """The kept units, rising, int64, in pieces; ``size``: the bytes of the index.

    Raises:
        Damaged: the index is none of this shape (an index of bits must have the size of its shape already).
    """
    return _bits(index, shape, read, size) if index.kind == "bits" else _gaps(index, shape, read, size)


def _bits(index: Index, shape: tuple[int, ...], read: Reader, size: int) -> Iterator[Tensor]:
    _, columns = index.grid(shape)
    width = symbols.size(columns, 1)  # bytes of a row
    for first in range(0, size, _BYTES):
        raw = read(first, min(_BYTES, size - first))
        bits = ops.mask_unpack(raw.unsqueeze(0), (1, 8 * len(raw))).reshape(-1).nonzero().reshape(-1)
        if columns % 8 == 0:
            yield bits + 8 * first
            continue
        byte = bits // 8 + first
        column = byte % width * 8 + bits % 8
        if bool((column >= columns).any()):
            raise Damaged("must have zeros in the unused bits of a row's last byte")
        yield byte // width * columns + column


def _gaps(index: Index, shape: tuple[int, ...], read: Reader, size: int) -> Iterator[Tensor]:
    count, most = index.units(shape), 2**index.width - 1
    here = 0  # units that are behind us
    before_last = 0
    for first in range(0, size, _BYTES // 8):
        numbers = symbols.unpack(read(first, min(_BYTES // 8, size - first)), index.width)
        ends = torch.where(numbers == most, most, numbers + 1).cumsum(0) + here
        kept = ends[numbers != most] - 1
        if len(kept) and int(kept[-1]) >= count:
            raise Damaged(f"must stay within {count} elements or blocks, but reach {int(kept[-1]) + 1}")
        last = 8 // index.width  # numbers in the last byte
        before_last = int(ends[-last - 1]) if len(ends) > last else here
        here = int(ends[-1])
        yield kept
    if not before_last < count <= here:
        raise Damaged(f"must end with {count} elements or blocks and not before, but cover {here}")


def count(index: Index, shape: tuple[int, ...], read: Reader, size: int) -> int:
    """How many values the kept units hold; all of the index is checked."""
    if index.kind == "all":
        return math.prod(shape)
    if index.kind == "bits" and index.block == 1 and index.grid(shape)[1] % 8 == 0:
        return sum(_popcount(read(first, min(_BYTES, size - first))) for first in range(0, size, _BYTES))
    if index.block == 1 or shape[1] % index.block == 0:
        return sum(len(piece) for piece in units(index, shape, read, size)) * index.block
    return sum(len(positions(piece, shape, index.block)) for piece in units(index, shape, read, size))


_ONES = torch.tensor([bin(byte).count("1") for byte in range(256)], dtype=torch.int64)


def _popcount(raw: Tensor) -> int:
    return int((torch.bincount(raw.to(torch.int32), minlength=256) * _ONES).sum())


def codes(width: int, read: Reader, first: int, count: int) -> Tensor:
    """Codes ``first`` to ``first + count``, int64."""
    begin, end = first * width // 8, symbols.size(first + count, width)
    skip = first - begin * 8 // width if width < 8 else 0
    return symbols.unpack(read(begin, end - begin), width)[skip : skip + count]


def check_codes(width: int, read: Reader, count: int, palette: int) -> None:
    """Every code names a value of the palette, and what is left of the last byte is 0."""
    step = _BYTES // 2 * 8 // width  # whole bytes
    for first in range(0, count, step):
        found = codes(width, read, first, min(step, count - first))
        if int(found.max()) >= palette:
            raise Damaged(f"must name one of {palette} values, but one is {int(found.max())}")
    left = count * width % 8
    if left and int(read(symbols.size(count, width) - 1, 1)) >> left:
        raise Damaged("must have zeros in the unused bits of the last byte")
