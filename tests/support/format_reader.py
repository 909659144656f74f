"""FORMAT.md once more, in plain Python without torch, numpy or this package: a reader that shares no line with it.

Slow, and only for files that are sound.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
WORDS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8",
}  # fmt: skip


def read(path: Path) -> dict[str, list[bytes]]:
    """Every tensor by its key: its elements in row-major order, each as its bytes."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert metadata["format"] == "secateur"
    about = json.loads(metadata["secateur"])
    parts: dict[str, tuple[str, bytes]] = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        parts[name] = entry["dtype"], raw[8 + length + begin : 8 + length + end]
    found = {key: unpacked(key, entry, parts) for key, entry in about["packed"].items()}
    for name, (word, data) in parts.items():
        found[name] = pieces(data, SIZES[word])
    for name, key in about["aliases"].items():
        found[name] = found[key]
    return found


def digest(raw: bytes) -> str:
    """What a file's digest must be, whatever it says itself."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    said = {"__metadata__": {k: v for k, v in header.pop("__metadata__").items() if k != "digest"}}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = raw[8 + length + begin : 8 + length + end]
        said[name] = [entry["dtype"], entry["shape"], hashlib.sha256(data).hexdigest()]
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def unpacked(key: str, entry: dict[str, Any], parts: dict[str, tuple[str, bytes]]) -> list[bytes]:
    shape, word = entry["shape"], WORDS[entry["dtype"]]
    zero = bytes(SIZES[word])
    made = [zero] * math.prod(shape)
    if entry.get("index", "bits") == "all":
        places = list(range(len(made)))
    else:
        places = elements(entry, shape, index(entry, shape, key, parts))
    if "signs" in entry:
        for place in index(entry["signs"], shape, key, parts, "_signs"):
            made[place] = zero[:-1] + b"\x80"
    if "codes" in entry:
        word_stored, palette = parts.pop(f"{key}_palette")
        values = pieces(palette, SIZES[word_stored])
        values = [values[n] for n in numbers(parts.pop(f"{key}_codes")[1], entry["codes"])[: len(places)]]
    else:
        word_stored, data = parts.pop(f"{key}_values")
        values = pieces(data, SIZES[word_stored])
    if word_stored != word:
        values = [widened(value, word_stored, word) for value in values]
    for place, value in zip(places, values, strict=True):
        made[place] = value
    return made


def numbers(data: bytes, width: int) -> list[int]:
    if width == 16:
        return [low | high << 8 for low, high in zip(data[::2], data[1::2], strict=True)]
    return [byte >> shift & (2**width - 1) for byte in data for shift in range(0, 8, width)]


def index(
    about: dict[str, Any], shape: list[int], key: str, parts: dict[str, tuple[str, bytes]], suffix: str | None = None
) -> list[int]:
    """The numbers of the kept units."""
    kind, block = about.get("index", "bits"), about.get("block", 1)
    data = parts.pop(key + (suffix or {"bits": "_mask", "gaps": "_gaps"}[kind]))[1]
    if kind == "gaps":
        kept, here = [], 0
        for number in numbers(data, about["width"]):
            if number == 2 ** about["width"] - 1:
                here += number
            else:
                kept.append(here + number)
                here += number + 1
        return kept
    grid = [shape[0], -(-shape[1] // block), *shape[2:]] if block > 1 else shape
    columns = math.prod(grid[1:])
    row = -(-columns // 8)
    return [r * columns + c for r in range(grid[0]) for c in range(columns) if data[r * row + c // 8] >> c % 8 & 1]


def elements(about: dict[str, Any], shape: list[int], units: list[int]) -> list[int]:
    """The elements of the units, unit by unit."""
    block = about.get("block", 1)
    if block == 1:
        return units
    taps, blocks = math.prod(shape[2:]), -(-shape[1] // block)
    found = []
    for unit in units:
        row, first, tap = unit // taps // blocks, unit // taps % blocks * block, unit % taps
        found += [(row * shape[1] + c) * taps + tap for c in range(first, min(first + block, shape[1]))]
    return found


def widened(value: bytes, word: str, to: str) -> bytes:
    number = struct.unpack("<e", value)[0] if word == "F16" else struct.unpack("<f", b"\0\0" + value)[0]
    return struct.pack("<d" if to == "F64" else "<f", number)
