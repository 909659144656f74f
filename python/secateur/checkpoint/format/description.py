"""What a file's metadata says about its tensors: one JSON object. FORMAT.md is its specification.

Reading checks every word by itself; :mod:`secateur.checkpoint.content` checks them against the tensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..._base.errors import Error
from ...masks import Theta
from ...ops.packing import rows_and_columns
from . import container
from .digest import DIGEST
from .symbols import WIDTHS

FORMAT = "secateur"
VERSION = 2

_METADATA = ("format", "version", FORMAT, DIGEST)

#: Blocks of more channels are not stored as blocks.
MOST_BLOCK = 64

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in (*FLOATS, *INTEGERS)}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Index:
    """How positions among ``units`` are stored: all of them, a bit each, or the gaps between them.

    A unit is an element, or a block of ``block`` neighbours along dim 1 (the last one of a row may be shorter).
    """

    kind: str  # "all", "bits" or "gaps"
    block: int = 1
    width: int = 0  # bits of a gap

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Units as rows and columns."""
        if self.block > 1:
            shape = (shape[0], -(-shape[1] // self.block), *shape[2:])
        return rows_and_columns(shape)

    def units(self, shape: tuple[int, ...]) -> int:
        rows, columns = self.grid(shape)
        return rows * columns


@dataclass(frozen=True)
class Entry:
    """One packed tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    index: Index
    values: torch.dtype  # as stored: float16 or bfloat16 where precision was given up
    codes: int = 0  # bits of a number that names one of the palette's values; 0: the values themselves
    signs: Index | None = None  # where zeros are negative
    masked: bool = False
    theta: Theta | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"shape": list(self.shape), "dtype": name_of(self.dtype)}
        found |= _index_to_json(self.index)
        if self.values != self.dtype:
            found["values"] = name_of(self.values)
        if self.codes:
            found["codes"] = self.codes
        if self.signs is not None:
            found["signs"] = _index_to_json(self.signs)
        if self.masked:
            found |= {"masked": True, "theta": None if self.theta is None else list(self.theta)}
        return found


@dataclass
class Description:
    """The whole of it. ``layers``: names of modules whose tensors have rules of their own, and their classes."""

    packed: dict[str, Entry] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    version: int = VERSION

    def metadata(self) -> dict[str, str]:
        about = {
            "packed": {key: entry.to_json() for key, entry in self.packed.items()},
            "aliases": self.aliases,
            "layers": self.layers,
        }
        text = json.dumps(about, separators=(",", ":"), allow_nan=False)
        return {"format": FORMAT, "version": str(self.version), FORMAT: text}


def parse(metadata: Mapping[str, str], path: Path, caller: str = "load") -> Description:
    """The metadata of a file, checked.

    Raises:
        Error: not by :func:`secateur.save`, of a later version, or damaged.
    """
    if metadata.get("format") != FORMAT:
        raise Error(
            f"{caller}: {path} must be a file that secateur.save wrote, got format {metadata.get('format')!r:.40} "
            "(secateur.import_checkpoint takes plain checkpoints)"
        )
    version = metadata.get("version", "")
    if not re.fullmatch("[1-9][0-9]{0,8}", version):
        raise Error(f"{caller}: {path} must have a version, got {version!r:.40}")
    if int(version) > VERSION:
        raise Error(f"{caller}: {path} has version {version}, and this secateur reads up to {VERSION}: update it")
    if unknown := metadata.keys() - _METADATA:  # a spoilt "digest" must not pass for none
        raise Error(
            f"{caller}: {path} must have no word in its metadata but {', '.join(_METADATA)}, got {min(unknown)!r:.40}"
        )
    try:
        about = json.loads(metadata[FORMAT], object_pairs_hook=container.unique)
        return Description(
            {key: _entry(entry, int(version)) for key, entry in about["packed"].items()},
            _strings(about["aliases"]),
            _strings(about["layers"] if int(version) > 1 else {}),
            int(version),
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise Error(
            f"{caller}: {path} must describe its packed tensors, but that part is damaged: {error!r:.200}"
        ) from None


def _strings(found: dict[str, Any]) -> dict[str, str]:
    if not all(isinstance(value, str) for value in found.values()):
        raise ValueError("names must be strings")
    return found


def _entry(about: dict[str, Any], version: int) -> Entry:
    known = {"shape", "dtype", "masked", "theta"}
    if version > 1:
        known |= {"index", "block", "width", "values", "codes", "signs"}
    if unknown := about.keys() - known:
        raise ValueError(f"unknown word {min(unknown)}")
    shape, dtype = container.sizes(about["shape"]), _BY_NAME[about["dtype"]]
    if version == 1 and dtype not in FLOATS:
        raise ValueError(f"dtype {dtype}")
    masked, theta, codes = about.get("masked", False), about.get("theta"), about.get("codes", 0)
    if not isinstance(masked, bool):
        raise ValueError(f"masked {masked!r}")
    if theta is not None:
        if not isinstance(theta, list) or not all(type(x) in (int, float) and math.isfinite(x) for x in theta):
            raise ValueError(f"theta {theta!r:.100}")
        low, mean, high = (float(value) for value in theta)
        theta = (low, mean, high)
    index = _index(about, len(shape))
    if masked and index.kind == "all":
        raise ValueError("masked, but without an index")
    values = _BY_NAME[about["values"]] if "values" in about else dtype
    if values != dtype and (values.itemsize != 2 or not values.is_floating_point or not dtype.is_floating_point):
        raise ValueError(f"values {values} for {dtype}")
    if type(codes) is not int or codes not in (0, *WIDTHS):
        raise ValueError(f"codes {codes!r}")
    signs = None
    if "signs" in about:
        signs = _index(about["signs"], len(shape))
        if not dtype.is_floating_point or signs.kind == "all" or signs.block > 1 or index.kind == "all":
            raise ValueError(f"signs {signs}")
    return Entry(shape, dtype, index, values, codes, signs, masked, theta)


def _index(about: dict[str, Any], dims: int) -> Index:
    kind, block, width = about.get("index", "bits"), about.get("block", 1), about.get("width", 0)
    if kind not in ("all", "bits", "gaps") or type(block) is not int or type(width) is not int:
        raise ValueError(f"index {kind!r}, block {block!r}, width {width!r}")
    if width not in ((4, 8) if kind == "gaps" else (0,)):
        raise ValueError(f"width {width} of {kind}")
    if not 1 <= block <= MOST_BLOCK or (block > 1 and (dims < 2 or kind == "all")):
        raise ValueError(f"block {block} of {dims} dims")
    return Index(kind, block, width)


def _index_to_json(index: Index) -> dict[str, Any]:
    """The differences from version 1, where every index is a bit an element."""
    found: dict[str, Any] = {}
    if index.kind != "bits":
        found["index"] = index.kind
    if index.block > 1:
        found["block"] = index.block
    if index.width:
        found["width"] = index.width
    return found
