"""The safetensors container (https://github.com/huggingface/safetensors): a length, a header in JSON, bytes.

Read with ordinary reads, not mapped: if a mapped file is truncated, the process is killed. Everything that the
header states is checked, in Python's integers, before anything is believed: the tensors lie end to end, fill the file
to its last byte, and take the bytes that their shapes say.
"""

from __future__ import annotations

import json
import math
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..._base.errors import Error

#: Longer headers are refused: 30,000 pruned layers take about 16 MB.
MOST_HEADER = 16 * 2**20
_MOST_ELEMENTS = 2**62
_MOST_DIMS = 64

#: The container's words for dtypes.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
WORDS = {dtype: word for word, dtype in DTYPES.items()}


class Damaged(Error):
    """A file that is no sound safetensors file; ``why`` is what is wrong, without the path."""

    why = ""


class UnknownDtype(Damaged):
    """A file with a tensor whose dtype has no word in :data:`DTYPES`."""


class _UnknownWord(ValueError):
    pass


@dataclass(frozen=True)
class Part:
    """One tensor of a file: ``begin`` and ``end`` are its bytes, counted from the start of the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def numel(self) -> int:
        return (self.end - self.begin) // self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Container:
    """An open file: ``metadata`` (strings) and ``parts``, both checked; their bytes by :meth:`read`."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._held: bytearray | None = None
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self.metadata, self.parts = _header(self)

    def hold(self) -> None:
        """Bring the whole file into memory: from now on no change of the file matters."""
        self._held = self.piece(0, self.size)

    @property
    def held(self) -> bool:
        return self._held is not None

    def read(self, part: Part, first: int = 0, count: int | None = None) -> Tensor:
        """Elements ``first`` to ``first + count`` of a part, ``[count]``, in memory of its own."""
        count = part.numel - first if count is None else count
        if not count:
            return torch.empty(0, dtype=part.dtype)
        size = part.dtype.itemsize
        raw = self.piece(part.begin + first * size, count * size)
        return torch.frombuffer(raw, dtype=torch.uint8).view(part.dtype)

    def read_into(self, part: Part, target: Tensor) -> None:
        """A whole part into ``target``: contiguous, on the CPU, of its dtype and size."""
        if target.numel():
            flat = target.detach().reshape(-1).view(torch.uint8)
            self._into(memoryview(flat.numpy()), part.begin)  # type: ignore[arg-type,unused-ignore]

    def piece(self, begin: int, count: int) -> bytearray:
        raw = bytearray(count)
        self._into(memoryview(raw), begin)
        return raw

    def _into(self, buffer: memoryview, begin: int) -> None:
        if self._held is not None:
            buffer[:] = memoryview(self._held)[begin : begin + len(buffer)]
            return
        while len(buffer):
            got = os.preadv(self._file.fileno(), [buffer], begin)
            if not got:
                raise self.damaged("it ends before its last tensor does")
            buffer, begin = buffer[got:], begin + got

    def damaged(self, why: str, kind: type[Damaged] = Damaged) -> Damaged:
        error = kind(f"load: {self.path} must be a safetensors file, but it is damaged or another kind: {why}")
        error.why = why
        return error


@contextmanager
def opened(path: Path) -> Iterator[Container]:
    """Open a file and check its header.

    Raises:
        Error: it is no safetensors file. OSError: it cannot be opened or read.
    """
    if sys.byteorder != "little":  # pragma: no cover
        raise Error("load: this machine must be little-endian, as the file format is")
    if stat.S_ISFIFO(path.stat().st_mode):  # opening it would wait for a writer
        raise Error(f"load: {path} must be a file, but is a pipe")
    with open(path, "rb", buffering=0) as file:
        yield Container(file, path)


def _header(file: Container) -> tuple[dict[str, str], dict[str, Part]]:
    if file.size < 8:
        raise file.damaged(f"it has {file.size} bytes")
    length = int.from_bytes(file.piece(0, 8), "little")
    if length > min(file.size - 8, MOST_HEADER):
        raise file.damaged(f"its header would be {length} bytes; the file is {file.size}, and {MOST_HEADER} the most")
    try:
        text = file.piece(8, length).decode("utf-8")
        if not text.startswith("{"):
            raise ValueError("it does not begin with {")
        found = json.loads(text, object_pairs_hook=unique)
        metadata = found.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ must be strings by name")
        parts = {name: _part(name, about, 8 + length) for name, about in found.items()}
    except _UnknownWord as error:
        raise file.damaged(f"its header: {error}", UnknownDtype) from None
    except (ValueError, RecursionError) as error:
        raise file.damaged(f"its header: {str(error) or 'nested too deeply':.200}") from None
    end = 8 + length
    for part in sorted(parts.values(), key=lambda part: (part.begin, part.end)):
        if part.begin != end:
            raise file.damaged(
                f"{part.name!r:.100} begins at byte {part.begin}, not at {end} where the one before ends"
            )
        end = part.end
    if end != file.size:
        raise file.damaged(f"its tensors end at byte {end}, the file at {file.size}")
    return metadata, parts


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads``: an object in which a name comes twice is refused, for readers would disagree about it."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name comes twice")
    return made


def _part(name: str, about: Any, start: int) -> Part:
    if not isinstance(about, dict) or about.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r:.100} must have dtype, shape and data_offsets")
    word, offsets = about["dtype"], about["data_offsets"]
    if not isinstance(word, str) or word not in DTYPES:
        raise _UnknownWord(f"{name!r:.100} has the unknown dtype {word!r:.40}")
    shape = sizes(about["shape"])
    # Bounded here: Python prints no integer of thousands of digits.
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(n) is int and 0 <= n < 2**63 for n in offsets)
    ):
        raise ValueError(f"{name!r:.100} must have two data_offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[word].itemsize:
        raise ValueError(f"{name!r:.100} has a shape of other than its {end - begin} bytes")
    return Part(name, DTYPES[word], shape, start + begin, start + end)


def sizes(shape: Any) -> tuple[int, ...]:
    """A shape out of JSON: sizes whose product, zeros left out, torch can count.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(shape, list) or len(shape) > _MOST_DIMS:
        raise ValueError(f"shape {shape!r:.100}")
    product = 1
    for size in shape:
        if type(size) is not int or size < 0:  # no bool
            raise ValueError(f"shape {shape!r:.100}")
        product *= max(size, 1)
        if product > _MOST_ELEMENTS:
            raise ValueError(f"shape {shape!r:.100} holds too many elements")
    return tuple(shape)


def header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The file's first bytes, up to the tensors, and the order in which these follow.

    The widest dtypes come first and the header is padded to 8 bytes, so that every tensor is aligned in the file.
    """
    about: dict[str, Any] = {"__metadata__": dict(metadata)}
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    begin, places = 0, {}
    for name in order:
        end = begin + tensors[name].numel() * tensors[name].dtype.itemsize
        places[name] = [begin, end]
        begin = end
    for name, tensor in tensors.items():
        about[name] = {"dtype": WORDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": places[name]}
    text = json.dumps(about, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER:
        raise Error(
            f"save: the header must be at most {MOST_HEADER} bytes, but {len(tensors)} tensors take {len(text)}"
        )
    return len(text).to_bytes(8, "little") + text, order


def pieces(first: bytes, tensors: Iterable[Tensor]) -> Iterator[bytes | memoryview]:
    """The file from its first bytes on."""
    yield first
    for tensor in tensors:
        if tensor.numel():
            flat = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            yield memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type,unused-ignore]
