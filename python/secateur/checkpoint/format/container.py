"""The safetensors container (https://github.com/huggingface/safetensors): a length, a header in JSON, bytes.

Read with ordinary reads, not mapped: if a mapped file is truncated, the process is killed. Everything that the
header states is checked, in Python's integers, before anything is believed: the tensors lie end to end, fill the file
to its last byte, and take the bytes that their shapes say.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..._base.errors import Error
from . import atomic
from .digest import BLANK, DIGEST, Digest

#: Longer headers are refused: 30,000 pruned layers take about 16 MB.
MOST_HEADER = 16 * 2**20
_MOST_ELEMENTS = 2**62
_MOST_DIMS = 64
_STEP = 2**20  # bytes at a time

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
    """An open file: ``metadata`` (strings) and ``parts``, both checked; their bytes by :meth:`read`.

    ``caller``: the function that errors name.
    """

    def __init__(self, file: BinaryIO, path: Path, caller: str = "load") -> None:
        self._file = file
        self._held: bytearray | None = None
        self.path, self.caller = path, caller
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

    def check_digest(self) -> None:
        """Read the whole file and compare it with the digest in its metadata; files that have none are let through.

        Raises:
            Error: it is not what was written.
        """
        stated = self.metadata.get(DIGEST)
        if stated is None:
            return
        digest = Digest(self.metadata)
        for name, part in self.parts.items():
            digest.add(name, WORDS[part.dtype], part.shape, self._bytes(part))
        if digest.digits != stated:
            raise self.error(
                f"must be as it was written, but is damaged or was changed: its digest is {digest.digits}, not "
                f"{stated!r:.40}"
            )

    def _bytes(self, part: Part) -> Iterator[memoryview]:
        """Each piece is overwritten by the next."""
        if self._held is not None:
            yield memoryview(self._held)[part.begin : part.end]
            return
        buffer = memoryview(bytearray(min(_STEP, part.end - part.begin)))
        for first in range(part.begin, part.end, _STEP):
            piece = buffer[: part.end - first]
            self._into(piece, first)
            yield piece

    def error(self, why: str) -> Error:
        """An Error that names the caller and the file."""
        return Error(f"{self.caller}: {self.path}: {why}")

    def damaged(self, why: str, kind: type[Damaged] = Damaged) -> Damaged:
        error = kind(f"{self.caller}: {self.path} must be a safetensors file, but it is damaged or another kind: {why}")
        error.why = why
        return error


@contextmanager
def opened(path: Path, caller: str = "load") -> Iterator[Container]:
    """Open a file and check its header.

    Raises:
        Error: it is no safetensors file. OSError: it cannot be opened or read.
    """
    if sys.byteorder != "little":  # pragma: no cover
        raise Error(f"{caller}: this machine must be little-endian, as the file format is")
    check_is_file(path, caller)
    with open(path, "rb", buffering=0) as file:
        yield Container(file, path, caller)


def check_is_file(path: Path, caller: str) -> None:
    """
    Raises:
        Error: a pipe or a device, whose opening might wait for ever. OSError: it is not there, or a folder.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        kind = "pipe" if stat.S_ISFIFO(mode) else "device or a socket"
        raise Error(f"{caller}: {path} must be a file, but is a {kind}")


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


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, signed: bool) -> None:
    """Write a file, whole or not at all (:mod:`~secateur.checkpoint.format.atomic`).

    Args:
        signed: a digest of all of it joins the metadata. It is computed on the way, and written last.

    Raises:
        Error: so many tensors that the header would be too long, or path names something that is no file. OSError: the
            file cannot be written.
    """
    about, order = _table(tensors, {**metadata, DIGEST: BLANK} if signed else metadata)
    first = _bytes_of(about)
    if not signed:
        atomic.write(path, chain([first], chain.from_iterable(pieces(tensors[name]) for name in order)))
        return
    digest = Digest(metadata)

    def again() -> bytes:
        about["__metadata__"][DIGEST] = digest.digits
        return _bytes_of(about)

    passing = (
        digest.passing(name, about[name]["dtype"], about[name]["shape"], pieces(tensors[name])) for name in order
    )
    atomic.write(path, chain([first], chain.from_iterable(passing)), again)


def _table(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The header, and the order in which the tensors follow it: the widest dtypes first."""
    about: dict[str, Any] = {"__metadata__": dict(metadata)}
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    begin, places = 0, {}
    for name in order:
        end = begin + tensors[name].numel() * tensors[name].dtype.itemsize
        places[name] = [begin, end]
        begin = end
    for name, tensor in tensors.items():
        about[name] = {"dtype": WORDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": places[name]}
    return about, order


def _bytes_of(about: Mapping[str, Any]) -> bytes:
    """The file's first bytes, up to the tensors: padded to 8, so that every tensor is aligned in the file."""
    text = json.dumps(about, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER:
        raise Error(
            f"save: the header must be at most {MOST_HEADER} bytes, but {len(about) - 1} tensors take {len(text)}"
        )
    return len(text).to_bytes(8, "little") + text


def pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, if it has any."""
    if tensor.numel():
        flat = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        yield memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type,unused-ignore]
