"""The digest: what was damaged or edited is no file; what was written before there was one is."""

from __future__ import annotations

import copy
import json
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import format_reader
import pytest
import secateur
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from secateur import Error, Magnitude
from secateur.checkpoint.format import container
from secateur.checkpoint.format.digest import Digest
from secateur.checkpoint.report import checkpoint_report
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
import container_mutations


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(3, 8, 3), nn.Linear(40, 16), nn.Linear(16, 16)
        self.norm, self.act = nn.BatchNorm1d(16), secateur.nn.ThresholdReLU(torch.full((16,), 0.5))
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("small", torch.randn(5).to(torch.float8_e4m3fn))
        self.register_buffer("nothing", torch.zeros(0, 4))


def dense() -> nn.Module:
    torch.manual_seed(0)
    return Mixed()


def pruned() -> nn.Module:
    model = dense()
    secateur.prune(model, Magnitude(0.9))
    return model


def in_blocks() -> nn.Module:
    model = dense()
    secateur.prune(model, Magnitude(0.5), pattern="1x4")
    return model


def in_integers() -> nn.Module:
    torch.manual_seed(0)
    weight = (torch.randint(-127, 128, (16, 40)) * (torch.rand(16, 40) > 0.8)).to(torch.int8)
    return nn.Sequential(
        secateur.nn.Quantize(0.02, 3), secateur.nn.QuantizedLinear(weight, torch.rand(16) + 0.1, torch.randn(16), 0.5)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "dense": (dense, {}), "pruned": (pruned, {}), "shared": (pruned, {"share": True}), "blocks": (in_blocks, {}),
    "narrow": (pruned, {"values": "float16"}), "integers": (in_integers, {}),
}  # fmt: skip


def bits(model: nn.Module) -> dict[str, bytes]:
    return {k: v.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for k, v in model.state_dict().items()}


def refused(path: Path, model: nn.Module, message: str = "load: ") -> None:
    before = bits(model)
    with pytest.raises(Error, match=message) as raised:
        secateur.load(path, model)
    assert str(path) in str(raised.value) or "file and model must hold the same names" in str(raised.value)
    assert bits(model) == before


def edited(raw: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A file with another header."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


@pytest.mark.parametrize("name", MODELS)
def test_no_flipped_bit_is_believed(tmp_path: Path, name: str) -> None:
    make, options = MODELS[name]
    path = tmp_path / "f"
    secateur.save(make(), path, **options)
    raw = path.read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    chosen = random.Random(0)
    model = make()
    some = 300 if name == "pruned" else 50
    for first, last, count in ((start, len(raw), some), (0, start, some)):  # tensors, header
        for _ in range(count):
            damaged = bytearray(raw)
            damaged[chosen.randrange(first, last)] ^= 1 << chosen.randrange(8)
            path.write_bytes(damaged)
            refused(path, model)


def test_no_bit_of_a_small_file_is_free(tmp_path: Path) -> None:
    """Not even of the word "digest": what is left would be a file of before."""
    path = tmp_path / "f"
    secateur.save(nn.Linear(2, 2), path)
    raw, model = path.read_bytes(), nn.Linear(2, 2)
    for i in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[i // 8] ^= 1 << i % 8
        path.write_bytes(damaged)
        refused(path, model)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["block of zeros", "two pieces exchanged", "piece twice"])
def test_damage_in_stretches(tmp_path: Path, name: str, kind: str) -> None:
    make, options = MODELS[name]
    path = tmp_path / "f"
    secateur.save(make(), path, **options)
    raw = path.read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    a, b = start, start + (len(raw) - start) // 2
    damaged = bytearray(raw)
    if kind == "block of zeros":
        damaged[a : a + 64] = bytes(64)
    elif kind == "piece twice":
        damaged[b : b + 64] = raw[a : a + 64]
    else:
        damaged[a : a + 64], damaged[b : b + 64] = raw[b : b + 64], raw[a : a + 64]
    assert damaged != raw
    path.write_bytes(damaged)
    refused(path, make())


def exchange(a: str, b: str) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[a]["data_offsets"], header[b]["data_offsets"] = header[b]["data_offsets"], header[a]["data_offsets"]

    return change


def described(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], None]:
    def edit(header: dict[str, Any]) -> None:
        about = json.loads(header["__metadata__"]["secateur"])
        change(about)
        header["__metadata__"]["secateur"] = json.dumps(about)

    return edit


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "two tensors' offsets": exchange("fc.bias", "head.bias"),
    "two tensors' offsets, one zeros": exchange("norm.bias", "norm.weight"),
    "two tensors' names": lambda h: h.update({"fc.bias": h["head.bias"], "head.bias": h["fc.bias"]}),
    "a mask's and a threshold's theta": described(lambda a: a["packed"]["fc.weight"].update(theta=[1, 2, 3])),
    "a mask taken away": described(lambda a: [a["packed"]["fc.weight"].pop(k) for k in ("masked", "theta")]),
    "layers": described(lambda a: a.update(layers={})),
    "the digest": lambda h: h["__metadata__"].update(digest="0" * 16),
    "the digest's case": lambda h: h["__metadata__"].update(digest=h["__metadata__"]["digest"].upper() + " "),
    "an empty digest": lambda h: h["__metadata__"].update(digest=""),
}


@pytest.mark.parametrize("name", EDITS)
def test_no_edited_header_is_believed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "f"
    secateur.save(pruned(), path)
    path.write_bytes(edited(path.read_bytes(), EDITS[name]))
    message = "f: must be as it was written, but is damaged or was changed: its digest is "
    refused(path, pruned(), message)
    with pytest.raises(Error, match=r"^to_dense_state_dict: .*" + message):
        secateur.to_dense_state_dict(path)
    with pytest.raises(Error, match=r"^report: .*" + message):
        checkpoint_report(path)


def test_one_dtype_for_another_of_its_size(tmp_path: Path) -> None:
    model = nn.Module()
    model.register_buffer("t", torch.arange(1, 7, dtype=torch.int32).reshape(2, 3))
    secateur.save(model, tmp_path / "f")
    raw = (tmp_path / "f").read_bytes()
    for change in ({"dtype": "F32"}, {"shape": [3, 2]}):
        (tmp_path / "f").write_bytes(edited(raw, lambda header, change=change: header["t"].update(change)))  # type: ignore[misc]
        with pytest.raises(Error, match="must be as it was written"):
            secateur.to_dense_state_dict(tmp_path / "f")


@pytest.mark.parametrize("name", MODELS)
def test_files_of_before_load(tmp_path: Path, name: str) -> None:
    make, options = MODELS[name]
    path = tmp_path / "f"
    secateur.save(make(), path, **options)
    found = bits(secateur.load(path, make()))
    path.write_bytes(edited(path.read_bytes(), lambda header: header["__metadata__"].pop("digest")))
    other = make()
    for p in other.parameters():
        p.data.add_(1.0)
    assert bits(secateur.load(path, other)) == found


def test_a_file_that_another_tool_lays_out_anew_loads(tmp_path: Path) -> None:
    """The digest is of what the file holds, not of where."""
    secateur.save(pruned(), tmp_path / "f")
    with safe_open(tmp_path / "f", "pt") as file:
        save_file({key: file.get_tensor(key) for key in file.keys()}, tmp_path / "g", file.metadata())  # noqa: SIM118
    assert (tmp_path / "f").read_bytes() != (tmp_path / "g").read_bytes()
    assert bits(secateur.load(tmp_path / "g", dense())) == bits(pruned())


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_the_specification_says(tmp_path: Path, name: str) -> None:
    make, options = MODELS[name]
    path = tmp_path / "f"
    secateur.save(make(), path, **options)
    with safe_open(path, "pt") as file:
        stated = file.metadata()["digest"]
    assert format_reader.digest(path.read_bytes()) == stated
    assert len(stated) == 16


def test_unknown_words_in_the_metadata_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    secateur.save(nn.Linear(2, 2), path)
    path.write_bytes(edited(path.read_bytes(), lambda header: header["__metadata__"].update(digess="")))
    refused(
        path,
        nn.Linear(2, 2),
        "must have no word in its metadata but format, version, secateur, graph, digest, got 'digess'",
    )


def test_what_is_written_is_what_was_hashed() -> None:
    """A tensor that another thread changes while it is saved makes no file that does not load."""
    data = bytearray(5_000_000)
    digest, same = Digest({}), Digest({})
    written = b""
    for piece in digest.passing("t", "U8", [len(data)], [memoryview(data)]):
        data[:] = bytes([data[0] + 1]) * len(data)
        written += piece
    same.add("t", "U8", [len(data)], [written])
    assert digest.digits == same.digits
    assert len(set(written)) > 1


def test_large_tensors_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(700, 900), nn.Linear(700, 900))
    secateur.save(model, tmp_path / "f")
    sizes: list[int] = []
    into = container.Container._into

    def noted(self: Any, buffer: memoryview, begin: int) -> None:
        sizes.append(len(buffer))
        into(self, buffer, begin)

    monkeypatch.setattr(container.Container, "_into", noted)
    with container.opened(tmp_path / "f") as file:
        file.check_digest()
    assert max(sizes) <= 2**20
    assert sum(sizes) == (tmp_path / "f").stat().st_size


def test_the_fuzzer_signs_what_it_mutates(tmp_path: Path) -> None:
    """Or every mutation would end at the digest."""
    model = pruned()
    secateur.save(model, tmp_path / "f")
    raw = (tmp_path / "f").read_bytes()
    reasons: list[str] = []
    for seed in range(400):
        made = container_mutations.mutated(raw, seed)
        if made is None:
            continue
        (tmp_path / "f").write_bytes(container_mutations.signed(made))
        try:
            secateur.load(tmp_path / "f", copy.deepcopy(model))
            reasons.append("loads")
        except Error as error:
            reasons.append(str(error))
    assert sum("its digest is" in reason for reason in reasons) < len(reasons) / 20
    assert reasons.count("loads") > 20
    assert len(reasons) > 300
