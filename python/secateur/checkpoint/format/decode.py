"""Positions and values out of their parts, a piece at a time, so that little memory is needed beside the tensor.

Everything here checks what it reads and trusts no count: bits in unused places, gaps beyond the end, blocks, codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from . import symbols
from .description import Index
from .symbols import Bytes, Numbers

#: A tensor may be at most so many times larger than its index. This bounds the size that a short file can claim.
MOST_RATIO = 1024
_NUMBERS = 2**17  # bits, gaps or codes at a time

#: Gives bytes ``first`` to ``first + count`` of a part.
Reader = Callable[[int, int], Bytes]


class Damaged(ValueError):
    """What is wrong, in words that follow the part's name."""


def positions(units: Numbers, shape: tuple[int, ...], block: int) -> Numbers:
    """The elements of kept units, as indices into the flat tensor, unit by unit."""
    if block == 1:
        return units
    channels, taps = shape[1], math.prod(shape[2:])
    blocks = -(-channels // block)
    at, tap = np.divmod(units, taps)
    row, first = np.divmod(at, blocks)
    channel = (first * block)[:, None] + np.arange(block)  # [units, block]
    flat = ((row * channels)[:, None] + channel) * taps + tap[:, None]
    return flat.reshape(-1) if channels % block == 0 else flat[channel < channels]


def units(index: Index, shape: tuple[int, ...], read: Reader, size: int) -> Iterator[Numbers]:
    """The kept units, rising, in pieces; ``size``: the bytes of the index.

    Raises:
        Damaged: the index is none of this shape (an index of bits must have the size of its shape already).
    """
    return _bits(index, shape, read, size) if index.kind == "bits" else _gaps(index, shape, read, size)


def _pieces(size: int, width: int) -> Iterator[tuple[int, int]]:
    step = _NUMBERS * width // 8
    for first in range(0, size, step):
        yield first, min(step, size - first)


def _bits(index: Index, shape: tuple[int, ...], read: Reader, size: int) -> Iterator[Numbers]:
    _, columns = index.grid(shape)
    width = symbols.size(columns, 1)  # bytes of a row
    for first, count in _pieces(size, 1):
        bits = np.flatnonzero(symbols.unpack(read(first, count), 1)) + 8 * first
        if columns % 8 == 0:
            yield bits
            continue
        row, column = np.divmod(bits, 8 * width)
        if bool((column >= columns).any()):
            raise Damaged("must have zeros in the unused bits of a row's last byte")
        yield row * columns + column


def _gaps(index: Index, shape: tuple[int, ...], read: Reader, size: int) -> Iterator[Numbers]:
    count, most = index.units(shape), 2**index.width - 1
    here = 0  # units passed so far
    before_last = 0
    for first, length in _pieces(size, index.width):
        numbers = symbols.unpack(read(first, length), index.width)
        value = numbers != most
        ends = np.cumsum(numbers + value, dtype=np.int64) + here
        kept = ends[value] - 1
        if len(kept) and kept[-1] >= count:
            raise Damaged(f"must stay within {count} elements or blocks, but reach {kept[-1] + 1}")
        last = 8 // index.width  # numbers in the last byte
        before_last = int(ends[-last - 1]) if len(ends) > last else here
        here = int(ends[-1])
        yield kept
    if not before_last < count <= here:
        raise Damaged(f"must end with {count} elements or blocks and not before, but cover {here}")


_ONES = np.array([bin(byte).count("1") for byte in range(256)])


def count(index: Index, shape: tuple[int, ...], read: Reader, size: int) -> int:
    """How many values the kept units hold; all of the index is checked."""
    if index.kind == "bits" and index.block == 1 and index.grid(shape)[1] % 8 == 0:
        return sum(int(_ONES[read(*piece)].sum()) for piece in _pieces(size, 1))
    if index.block == 1 or shape[1] % index.block == 0:
        return sum(len(piece) for piece in units(index, shape, read, size)) * index.block
    channels, taps = shape[1], math.prod(shape[2:])
    blocks = -(-channels // index.block)
    total = 0
    for piece in units(index, shape, read, size):
        short = int((piece // taps % blocks == blocks - 1).sum())
        total += len(piece) * index.block - short * (-channels % index.block)
    return total


def codes(width: int, read: Reader, first: int, count: int) -> npt.NDArray[Any]:
    """Codes ``first`` to ``first + count``."""
    begin, end = first * width // 8, symbols.size(first + count, width)
    skip = first - begin * 8 // width
    return symbols.unpack(read(begin, end - begin), width)[skip : skip + count]


def check_codes(width: int, read: Reader, count: int, palette: int) -> None:
    """Every code names a value of the palette, and what is left of the last byte is 0."""
    for first in range(0, count, _NUMBERS):
        most = int(codes(width, read, first, min(_NUMBERS, count - first)).max())
        if most >= palette:
            raise Damaged(f"must name one of {palette} values, but one is {most}")
    left = count * width % 8
    if left and int(read(symbols.size(count, width) - 1, 1)[0]) >> left:
        raise Damaged("must have zeros in the unused bits of the last byte")
