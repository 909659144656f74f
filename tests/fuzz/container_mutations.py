"""Mutations of safetensors files that keep the outer layers whole, so that what is wrong lies further in.

A file is a header in JSON and bytes. Bytes alone, mutated, would nearly always fail at the length or in the JSON; these
mutations work on the parsed header, on the JSON object inside its metadata, and on single tensors' bytes, and then
mostly put the offsets right again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from random import Random
from typing import Any

SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "U16": 2, "U32": 4,
    "U64": 8, "BOOL": 1, "C64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
NUMBERS = [
    -1, 0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**62,
    2**63 - 1, 2**63, 2**64, 10**400, 0.5, -0.0, 1e300, float("nan"), float("inf"),
]  # fmt: skip
WORDS = [
    "", "gaps", "bits", "all", "float32", "float16", "bfloat16", "float64", "int8", "uint8", "int64", "weight", "0",
    "F32", "U8", "I8", "BOOL", "F8_E4M3", "C64", "Quantize", "QuantizedLinear", "QuantizedConv2d", "ThresholdReLU",
    "secateur", "\ud800", "x" * 300, "1", "2", "3",
]  # fmt: skip
KEYS = ["shape", "dtype", "index", "block", "width", "values", "codes", "signs", "masked", "theta"]
SUFFIXES = ["", "_mask", "_values", "_gaps", "_codes", "_palette", "_signs"]
ODD_BYTES = [b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\xff\x7f"]

Header = dict[str, Any]
Pieces = dict[str, bytearray]


def parsed(data: bytes) -> tuple[Header, Pieces] | None:
    """The header, the JSON in its metadata parsed as well, and the bytes of each tensor; None where it is no file."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length].decode("utf-8"))
        body = data[8 + length :]
        pieces = {}
        for name, about in header.items():
            if name != "__metadata__":
                begin, end = about["data_offsets"]
                pieces[name] = bytearray(body[int(begin) : int(end)])
        if isinstance(header["__metadata__"].get("secateur"), str):
            header["__metadata__"]["secateur"] = json.loads(header["__metadata__"]["secateur"])
        return header, pieces
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def written(header: Header, pieces: Pieces) -> bytes:
    header = dict(header)
    about = header.get("__metadata__")
    if isinstance(about, dict) and "secateur" in about and not isinstance(about["secateur"], str):
        header["__metadata__"] = {**about, "secateur": json.dumps(about["secateur"])}
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + b"".join(bytes(piece) for piece in pieces.values())


def signed(data: bytes) -> bytes:
    """With the digest that is right for what the file holds now, or its mutations would all be found by that alone;
    where it is no such file, as it is."""
    found = parsed(data)
    if found is None or "digest" not in found[0]["__metadata__"]:
        return data
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])  # the description as it is spelt
    metadata = header.pop("__metadata__")
    said: dict[str, Any] = {"__metadata__": {k: v for k, v in metadata.items() if k != "digest"}}
    for name, about in header.items():
        said[name] = [about.get("dtype"), about.get("shape"), hashlib.sha256(found[1][name]).hexdigest()]
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    metadata["digest"] = hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
    text = json.dumps({"__metadata__": metadata, **header}).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def numel(about: Any) -> int | None:
    """The bytes that a header entry asks for, where there can be so many."""
    shape, dtype = about.get("shape"), about.get("dtype")
    # Integers alone: 2**62 times a list would be a list of so many.
    if not isinstance(shape, list) or not all(type(n) is int for n in shape) or dtype not in [*SIZES]:
        return None
    size = math.prod(shape) * SIZES[dtype]
    return size if 0 <= size <= 1 << 14 else None


def settled(header: Header, pieces: Pieces) -> None:
    """Offsets end to end, and as many bytes as each shape says."""
    begin = 0
    for name, piece in pieces.items():
        about = header.get(name)
        if not isinstance(about, dict):
            continue
        size = numel(about)
        if size is not None:
            del piece[size:]
            piece.extend(b"\x01" * (size - len(piece)))
        about["data_offsets"] = [begin, begin + len(piece)]
        begin += len(piece)


def places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, Any]]:
    """All (container, key) in a tree of JSON."""
    found: list[tuple[Any, Any]] = []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        found.append((node, key))
        found += places(value, (*at, key))
    return found


def any_value(random: Random) -> Any:
    return random.choice(
        [
            lambda: random.choice(NUMBERS),
            lambda: random.choice(WORDS),
            lambda: random.randrange(64),
            lambda: [random.choice(NUMBERS[:20]) for _ in range(random.randrange(5))],
            lambda: None,
            lambda: random.random() < 0.5,
            lambda: {},
            lambda: [],
            lambda: {random.choice(KEYS): random.choice(WORDS)},
        ]
    )()


def tree(random: Random, header: Header, pieces: Pieces) -> None:
    """One place of the JSON becomes another value, goes, or comes from another place."""
    all_places = places(header)
    if not all_places:
        return
    node, key = random.choice(all_places)
    choice = random.randrange(6)
    if choice == 0 and isinstance(node[key], int) and not isinstance(node[key], bool):
        node[key] += random.choice([-8, -2, -1, 1, 2, 8])
    elif choice == 1 and isinstance(node, dict):
        node[random.choice(KEYS + WORDS)] = node.pop(key)
    elif choice == 2:
        del node[key]
    elif choice == 3:
        other, place = random.choice(all_places)
        if place in other if isinstance(other, dict) else isinstance(place, int) and place < len(other):
            node[key] = json.loads(json.dumps(other[place]))
    else:
        node[key] = any_value(random)


def entry(random: Random, header: Header, pieces: Pieces) -> None:
    """One word of a packed tensor's description, to another that may be there."""
    about = header.get("__metadata__", {}).get("secateur")
    packed = about.get("packed") if isinstance(about, dict) else None
    if not isinstance(packed, dict) or not packed:
        return
    found = packed[random.choice(list(packed))]
    if not isinstance(found, dict):
        return
    changes: dict[str, Any] = {
        "index": random.choice(["bits", "gaps", "all"]),
        "width": random.choice([0, 4, 8]),
        "block": random.choice([1, 2, 3, 4, 64]),
        "codes": random.choice([0, 1, 2, 4, 8, 16]),
        "values": random.choice(WORDS[4:8]),
        "dtype": random.choice(WORDS[4:11]),
        "masked": random.random() < 0.5,
        "signs": random.choice([{}, {"index": "gaps", "width": 4}, {"index": "gaps", "width": 8}]),
        "theta": random.choice([None, [1, 2, 3], [float("nan")] * 3, "123", [1]]),
        "shape": [random.choice([0, 1, 2, 3, 8, 9, 64, 1000, 2**20]) for _ in range(random.randrange(5))],
    }
    word = random.choice(list(changes))
    found[word] = changes[word]


def alias(random: Random, header: Header, pieces: Pieces) -> None:
    about = header.get("__metadata__", {}).get("secateur")
    if isinstance(about, dict) and isinstance(about.get("aliases"), dict):
        names = [*pieces, *WORDS[:12]]
        about["aliases"][random.choice(names)] = random.choice(names)


def layer(random: Random, header: Header, pieces: Pieces) -> None:
    about = header.get("__metadata__", {}).get("secateur")
    if isinstance(about, dict) and isinstance(about.get("layers"), dict):
        name = random.choice(list(pieces) or [""]).rpartition(".")[0]
        about["layers"][name] = random.choice(WORDS)


def part(random: Random, header: Header, pieces: Pieces) -> None:
    """A tensor of another name, or one more of its kind, or none."""
    if not pieces:
        return
    name = random.choice(list(pieces))
    base = name
    for suffix in SUFFIXES[1:]:
        base = base.removesuffix(suffix)
    other = base + random.choice(SUFFIXES)
    if random.random() < 0.3:
        del pieces[name]
        header.pop(name, None)
    elif other not in pieces and name in header:
        header[other] = json.loads(json.dumps(header[name]))
        pieces[other] = bytearray(pieces[name])
        if random.random() < 0.5:
            del pieces[name], header[name]


def number(random: Random, header: Header, pieces: Pieces) -> None:
    """A tensor's shape or dtype, its bytes as they were or as the shape then asks for."""
    names = [name for name in pieces if isinstance(header.get(name), dict)]
    if not names:
        return
    about = header[random.choice(names)]
    shape = about.get("shape")
    if isinstance(shape, list) and shape and random.random() < 0.7:
        at = random.randrange(len(shape))
        shape[at] = random.choice([shape[at] + 1 if isinstance(shape[at], int) else 1, 0, 1, random.choice(NUMBERS)])
    else:
        about["dtype"] = random.choice(list(SIZES))


def content(random: Random, header: Header, pieces: Pieces) -> None:
    """Bits of a mask, gaps, codes, values: single bits, bytes or numbers that are none."""
    names = [name for name, piece in pieces.items() if piece]
    if not names:
        return
    for _ in range(random.choice([1, 1, 2, 8])):
        piece = pieces[random.choice(names)]
        if not piece:
            continue
        at = random.randrange(len(piece))
        choice = random.randrange(4)
        if choice == 0:
            piece[at] ^= 1 << random.randrange(8)
        elif choice == 1:
            piece[at] = random.choice([0, 1, 15, 16, 127, 128, 240, 255, random.randrange(256)])
        elif choice == 2:
            odd = random.choice(ODD_BYTES)
            at -= at % len(odd)
            piece[at : at + len(odd)] = odd[: len(piece) - at]
        else:
            piece[at:] = bytes([random.choice([0, 255])]) * (len(piece) - at)


MUTATIONS = [tree, tree, entry, entry, entry, alias, layer, part, number, content, content, content]


def mutated(data: bytes, seed: int) -> bytes | None:
    """A file like this one, other in one to four places; None where it is no file to begin with."""
    random = Random(seed)
    found = parsed(data)
    if found is None:
        return None
    header, pieces = found
    for _ in range(random.choice([1, 1, 1, 2, 2, 3, 4])):
        # What an earlier mutation had spoilt.
        with contextlib.suppress(TypeError, AttributeError, KeyError, IndexError, ValueError):
            random.choice(MUTATIONS)(random, header, pieces)
    try:
        if random.random() < 0.85:
            settled(header, pieces)
        return written(header, pieces)
    except (TypeError, ValueError, AttributeError, RecursionError):
        return None
