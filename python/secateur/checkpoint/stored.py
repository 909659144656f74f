"""One tensor of a file: its sizes are checked, then what its parts hold, and then it is made, a piece at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..ops.packing import rows_and_columns
from .format import decode, symbols
from .format.container import Container, Part
from .format.decode import Damaged, Reader
from .format.description import Entry, Index
from .format.symbols import Numbers, bits_of

_STEP = 2**17  # elements at a time


@dataclass(frozen=True)
class Plain:
    """A tensor that the file holds as it is."""

    key: str
    part: Part
    file: Container

    @property
    def shape(self) -> tuple[int, ...]:
        return self.part.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.part.dtype

    @property
    def size(self) -> int:
        """Its bytes in the file."""
        return self.part.end - self.part.begin

    def check(self) -> None:
        """A byte of a bool is 0 or 1: torch's kernels rely on it."""
        if self.dtype != torch.bool:
            return
        for first in range(0, self.part.numel, _STEP):
            raw = self.file.read(self.part, first, min(_STEP, self.part.numel - first)).view(torch.uint8)
            if bool((raw > 1).any()):
                raise self.file.error(f"{self.key} must hold bools, 0 or 1 a byte, got {int(raw.max())}")

    def fill(self, flat: Tensor) -> None:
        """Write the values into ``flat``: contiguous, on the CPU, of this dtype and number of elements."""
        self.file.read_into(self.part, flat)


@dataclass(frozen=True)
class Packed:
    """A tensor in parts."""

    key: str
    entry: Entry
    parts: dict[str, Part]  # by suffix
    file: Container

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.entry.dtype

    @property
    def size(self) -> int:
        """Its bytes in the file."""
        return sum(part.end - part.begin for part in self.parts.values())

    def check_sizes(self) -> None:
        """Check all that needs no reading of a part: dtypes, shapes, and that the tensor is no larger than its index
        can hold."""
        entry, parts = self.entry, self.parts
        if entry.index.kind != "all":
            self._check_index("_gaps" if entry.index.kind == "gaps" else "_mask", entry.index)
        if entry.signs is not None:
            self._check_index("_signs", entry.signs)
        if entry.codes:
            palette, coded = parts["_palette"], parts["_codes"]
            if palette.dtype != entry.values or len(palette.shape) != 1 or not palette.numel <= 2**entry.codes:
                raise self.file.error(
                    f"{self.key}_palette must be {entry.values} of at most {2**entry.codes} values, got {palette}"
                )
            if coded.dtype != torch.uint8 or len(coded.shape) != 1:
                raise self.file.error(f"{self.key}_codes must be uint8 [n], got {coded}")
        else:
            values = parts["_values"]
            if values.dtype != entry.values or len(values.shape) != 1:
                raise self.file.error(f"{self.key}_values must be {entry.values} [n], got {values}")
        if entry.index.kind == "all":
            self._check_count(entry.numel)

    def _check_index(self, suffix: str, index: Index) -> None:
        part = self.parts[suffix]
        name = f"{self.key}{suffix}"
        if index.kind == "gaps":
            if part.dtype != torch.uint8 or len(part.shape) != 1:
                raise self.file.error(f"{name} must be uint8 [n], got {part}")
        else:
            rows, columns = index.grid(self.shape)
            size = symbols.size(columns, 1)
            if part.dtype != torch.uint8 or part.shape != (rows, size):
                raise self.file.error(f"{name} must be uint8 [{rows}, {size}], got {part}")
        if suffix != "_signs" and self.entry.numel * self.dtype.itemsize > decode.MOST_RATIO * part.numel:
            raise self.file.error(
                f"{self.key} must take at most {decode.MOST_RATIO} times the bytes of {name}, {part.numel}, but "
                f"would be {self.dtype} {list(self.shape)}"
            )

    def check(self) -> None:
        """Read the index and the codes, and check them: after this, :meth:`fill` cannot fail."""
        entry = self.entry
        count = entry.numel
        if entry.index.kind != "all":
            count = self._count("_gaps" if entry.index.kind == "gaps" else "_mask", entry.index)
            self._check_count(count)
        if entry.signs is not None:
            self._count("_signs", entry.signs)
        if entry.codes:
            with self._damaged("_codes"):
                palette = self.parts["_palette"].numel
                decode.check_codes(entry.codes, self._reader(self.parts["_codes"]), count, palette)

    def _count(self, suffix: str, index: Index) -> int:
        with self._damaged(suffix):
            part = self.parts[suffix]
            return decode.count(index, self.shape, self._reader(part), part.numel)

    def fill(self, flat: Tensor) -> None:
        """Write the values into ``flat``: contiguous, on the CPU, of this dtype and number of elements."""
        entry, bits = self.entry, bits_of(flat)
        if entry.index.kind == "all":
            for first in range(0, len(bits), _STEP):
                count = min(_STEP, len(bits) - first)
                bits[first : first + count] = self._values(first, count)
            return
        bits[:] = 0
        if entry.signs is not None:
            part = self.parts["_signs"]
            for units in decode.units(entry.signs, self.shape, self._reader(part), part.numel):
                bits[units] = np.iinfo(bits.dtype).min  # the sign bit alone: -0.0
        first = 0
        for where in self._positions():
            bits[where] = self._values(first, len(where))
            first += len(where)

    def mask(self) -> Tensor:
        """The packed mask, uint8 [rows, ceil(columns / 8)], in memory of its own."""
        part = self._index_part(self.entry.index)
        rows, columns = rows_and_columns(self.shape)
        if self.entry.index.kind == "bits" and self.entry.index.block == 1:
            return self.file.read(part).reshape(part.shape)
        size = symbols.size(columns, 1)
        bits = np.zeros(rows * size, np.uint8)
        for where in self._positions():
            row, column = np.divmod(where, columns)
            np.bitwise_or.at(bits, row * size + column // 8, np.uint8(1) << (column % 8).astype(np.uint8))
        return torch.from_numpy(bits.reshape(rows, size))

    def _positions(self) -> Iterator[Numbers]:
        index = self.entry.index
        part = self._index_part(index)
        step = max(_STEP // index.block, 1)
        for units in decode.units(index, self.shape, self._reader(part), part.numel):
            for first in range(0, len(units), step):
                yield decode.positions(units[first : first + step], self.shape, index.block)

    def _values(self, first: int, count: int) -> npt.NDArray[Any]:
        """Values ``first`` to ``first + count``, the bits of the tensor's own dtype."""
        entry = self.entry
        if not entry.codes:
            return bits_of(self.file.read(self.parts["_values"], first, count).to(entry.dtype))
        palette = bits_of(self.file.read(self.parts["_palette"]).to(entry.dtype))
        codes = decode.codes(entry.codes, self._reader(self.parts["_codes"]), first, count)
        return np.take(palette, codes)

    def _check_count(self, count: int) -> None:
        if self.entry.codes:
            part, size = self.parts["_codes"], symbols.size(count, self.entry.codes)
            if part.numel != size:
                raise self.file.error(f"{self.key}_codes must be the {size} bytes of {count} codes, got {part.numel}")
        elif self.parts["_values"].numel != count:
            got = self.parts["_values"].numel
            raise self.file.error(f"{self.key}_values must hold one value a set bit, {count}, got {got}")

    def _index_part(self, index: Index) -> Part:
        return self.parts["_gaps" if index.kind == "gaps" else "_mask"]

    def _reader(self, part: Part) -> Reader:
        return lambda first, count: np.frombuffer(self.file.piece(part.begin + first, count), np.uint8)

    @contextlib.contextmanager
    def _damaged(self, suffix: str) -> Iterator[None]:
        try:
            yield
        except Damaged as why:
            raise self.file.error(f"{self.key}{suffix} {why}") from None
