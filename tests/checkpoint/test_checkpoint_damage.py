"""Files that must not be believed: the container's header, and what each form says of itself."""

from __future__ import annotations

import copy
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from secateur import Error
from test_checkpoint_forms import zeros
from torch import Tensor, nn

METADATA = {"format": "secateur", "version": "2", "secateur": '{"packed":{},"aliases":{},"layers":{}}'}


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def one(entry: Any, data: bytes = bytes(8)) -> bytes:
    return file_of({"__metadata__": METADATA, "t": entry}, data)


HEADERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it has 0 bytes"),
    "seven bytes": (bytes(7), "it has 7 bytes"),
    "a length beyond the file": (file_of({}, length=3), "its header would be 3 bytes"),
    "a length of 2^63": (file_of({}, length=2**63), "its header would be 9223372036854775808 bytes"),
    "a header of 100 MB": (file_of(b"{}" + b" " * 100_000_000), "its header would be 100000002 bytes"),
    "not UTF-8": (file_of(b'{"\xff":1}'), "its header: 'utf-8' codec"),
    "no object": (file_of(b"[]"), "does not begin with {"),
    "a byte order mark": (file_of("\ufeff{}".encode()), "does not begin with {"),
    "two objects": (file_of(b"{}{}"), "its header: Extra data"),
    "nested": (file_of(b'{"a":' * 100_000), "its header: "),
    "a huge number": (file_of(b'{"a":' + b"9" * 5000 + b"}"), "its header: "),
    "a name twice": (file_of(b'{"__metadata__":{},"__metadata__":{}}'), "a name comes twice"),
    "a word twice": (file_of(b'{"t":{"dtype":"F32","dtype":"F32"}}'), "a name comes twice"),
    "metadata of numbers": (file_of({"__metadata__": {"format": 1}}), "must be strings by name"),
    "metadata that is none": (file_of({"__metadata__": []}), "must be strings by name"),
    "no dtype": (one({"shape": [2], "data_offsets": [0, 8]}), "must have dtype, shape and data_offsets"),
    "a word too many": (one({**entry([2], 0, 8), "x": 1}), "must have dtype, shape and data_offsets"),
    "an unknown dtype": (one(entry([2], 0, 8, "F33")), "has the unknown dtype 'F33'"),
    "a dtype that is none": (one(entry([2], 0, 8, [])), "has the unknown dtype"),
    "a negative size": (one(entry([-2, -1], 0, 8)), "shape"),
    "a bool for a size": (one(entry([True, 2], 0, 8)), "shape"),
    "a float for a size": (one(entry([2.0], 0, 8)), "shape"),
    "a product of 2^64": (one(entry([2**32, 2**32], 0, 8)), "holds too many elements"),
    "a product of 2^64 and 0": (one(entry([2**32, 2**32, 0], 0, 0), b""), "holds too many elements"),
    "65 dims": (one(entry([1] * 65, 0, 4)), "shape"),
    "other bytes than the shape's": (one(entry([3], 0, 8)), "has a shape of other than its 8 bytes"),
    "offsets in reverse": (one(entry([2], 8, 0)), "has a shape of other than its -8 bytes"),
    "negative offsets": (one(entry([2], -8, 0)), "must have two data_offsets"),
    "three offsets": (one({**entry([2], 0, 8), "data_offsets": [0, 4, 8]}), "must have two data_offsets"),
    "a hole": (one(entry([1], 4, 8)), "begins at byte"),
    "bytes that nobody has": (one(entry([1], 0, 4)), "its tensors end at byte"),
    "a tensor beyond the end": (one(entry([4], 0, 16)), "its tensors end at byte"),
    "two in one place": (
        file_of({"__metadata__": METADATA, "a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)), "begins at byte",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_a_bad_header(tmp_path: Path, name: str) -> None:
    raw, message = HEADERS[name]
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(Error, match=rf"must be a safetensors file, but it is damaged or another kind: .*{message}"):
        secateur.load(tmp_path / "f", nn.Linear(2, 2))


# ---- what the forms say ----


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gaps = nn.Parameter(zeros((60, 50), 0.9))
        self.long = nn.Parameter(zeros((60, 50), 0.99))
        self.blocks = nn.Parameter(zeros((20, 25, 3, 3), 0.7, 4))
        self.coded = nn.Parameter(zeros((60, 50), 0.5).sign() * (torch.arange(50) % 3 + 1))
        self.signed = nn.Parameter(zeros((60, 50), 0.5) * -torch.ones(50))
        self.plain = nn.Parameter(torch.ones(4))
        self.int8 = secateur.nn.QuantizedLinear(torch.ones(3, 2, dtype=torch.int8), torch.ones(3), None, 1.0)
        self.quantize = secateur.nn.Quantize(0.5, 7)
        self.act = secateur.nn.ThresholdReLU(torch.ones(3))
        self.register_buffer("flags", torch.tensor([True, False]))


Change = Callable[[dict[str, Tensor], dict[str, Any]], object]


def word(key: str, **words: Any) -> Change:
    """Change words of an entry; None takes one away."""

    def change(tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        entry = about["packed"][key]
        entry.update(words)
        for name in [name for name, value in words.items() if value is None]:
            del entry[name]

    return change


def part(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors, about: tensors.__setitem__(name, change(tensors[name].clone()))


def value(name: str, at: int, new: Any) -> Change:
    return part(name, lambda tensor: tensor.reshape(-1).index_fill(0, torch.tensor(at), new).reshape(tensor.shape))


PART = "must describe its packed tensors, but that part is damaged"
FORMS: dict[str, tuple[Change, str]] = {
    "an index of no kind": (word("gaps", index="lists"), PART),
    "no width": (word("gaps", width=None), PART),
    "another width": (word("gaps", width=2), PART),
    "a width as text": (word("gaps", width="4"), PART),
    "a width of bits": (word("coded", width=4), PART),
    "blocks of 0": (word("blocks", block=0), PART),
    "blocks of 65": (word("blocks", block=65), PART),
    "blocks of true": (word("blocks", block=True), PART),
    "blocks of one dim": (word("gaps", shape=[3000], block=2), PART),
    "codes of 3 bits": (word("coded", codes=3), PART),
    "codes of true": (word("coded", codes=True), PART),
    "values that are wider": (word("gaps", values="float64"), PART),
    "values that are integers": (word("gaps", values="int16"), PART),
    "signs of all": (word("signed", signs={"index": "all"}), PART),
    "signs of blocks": (word("signed", signs={"block": 2}), PART),
    "signs that are a list": (word("signed", signs=[]), PART),
    "a word of tomorrow": (word("gaps", order="columns"), PART),
    "a mask of all": (word("gaps", masked=True, index="all", width=None), PART),
    "theta as text": (word("gaps", theta="123"), PART),
    "theta of NaN": (word("gaps", theta=[float("nan")] * 3), PART),
    "theta of two": (word("gaps", theta=[1, 2]), PART),
    "a shape of floats": (word("gaps", shape=[60.0, 50.0]), PART),
    "layers as a list": (lambda t, a: a.update(layers=[]), PART),
    "an alias that is no name": (lambda t, a: a["aliases"].update(x=3), PART),
    "an alias of an alias": (lambda t, a: a["aliases"].update(x="plain", y="x"), "says that y shares x"),
    "an alias of its own": (lambda t, a: a["aliases"].update(x="x"), "says that x shares x"),
    "an alias twice there": (lambda t, a: a["aliases"].update(gaps="plain"), "says that gaps shares plain"),
    "no gaps": (lambda t, a: t.pop("gaps_gaps"), "must hold gaps_gaps and gaps_values, but one is missing"),
    "gaps of two dims": (part("gaps_gaps", lambda t: t[None]), r"gaps_gaps must be uint8 \[n\], got"),
    "a gap beyond": (value("gaps_gaps", -1, 0xEE), "gaps_gaps must stay within 3000 elements or blocks, but reach"),
    "gaps that end early": (part("gaps_gaps", lambda t: t[:-9]), "gaps_gaps must end with 3000 elements"),
    "gaps that go on": (
        part("gaps_gaps", lambda t: torch.cat((t, t.new_full((1,), 255)))),
        "gaps_gaps must end with 3000 elements or blocks and not before, but cover",
    ),
    "gaps that say nothing": (part("gaps_gaps", lambda t: t[:0]), "gaps must take at most 1024 times"),
    "a larger tensor": (word("gaps", shape=[61, 50]), r"gaps must be \[60, 50\] as in the model"),
    "a tensor without end": (word("gaps", shape=[2**20, 2**20]), "gaps must take at most 1024 times the bytes of"),
    "a value less": (part("long_values", lambda t: t[1:]), "long_values must hold one value a set bit"),
    "values of two dims": (part("long_values", lambda t: t[None]), r"long_values must be torch.float32 \[n\]"),
    "other blocks": (word("blocks", block=8), r"blocks_mask must be uint8 \[20, 5\], got torch.uint8 \[20, 8\]"),
    "a block more": (value("blocks_mask", 0, 255), "blocks_values must hold one value a set bit"),
    "a block outside": (value("blocks_mask", 7, 0x80), "blocks_mask must have zeros in the unused bits"),
    "a code of no value": (value("coded_codes", 0, 255), "coded_codes must name one of 6 values, but one is 15"),
    "codes too few": (part("coded_codes", lambda t: t[1:]), "coded_codes must be the .* bytes of .* codes"),
    "codes of two dims": (part("coded_codes", lambda t: t[None]), r"coded_codes must be uint8 \[n\]"),
    "no palette": (part("coded_palette", lambda t: t[:0]), "coded_codes must name one of 0 values, but one is"),
    "a palette too large": (
        part("coded_palette", lambda t: t.repeat(3)), r"coded_palette must be torch.float32 of at most 16 values"
    ),
    "a palette of another dtype": (part("coded_palette", lambda t: t.double()), "coded_palette must be torch.float32"),
    "signs of another shape": (part("signed_signs", lambda t: t[1:]), r"signed_signs must be uint8 \[60, 7\]"),
    "signs outside": (value("signed_signs", 6, 0x80), "signed_signs must have zeros in the unused bits"),
    "a bool of 2": (part("flags", lambda t: torch.tensor([2, 0], dtype=torch.uint8)), "flags must be torch.bool as"),
    "a scale of NaN": (value("int8.weight_scale", 1, float("nan")), r"int8.weight_scale must be finite and > 0"),
    "a scale of 0": (value("int8.input_scale", 0, 0.0), r"int8.input_scale must be finite and > 0, got \[0.0\]"),
    "a scale of infinity": (value("quantize.scale", 0, float("inf")), r"quantize.scale must be finite and > 0"),
    "a zero point of 256": (value("quantize.zero_point", 0, 256), r"quantize.zero_point must be int32 in \[0, 255\]"),
    "a threshold below 0": (value("act.theta", 2, -1.0), "act.theta must be finite and >= 0"),
}  # fmt: skip


def saved(path: Path, change: Change) -> None:
    """A changed file without a digest, which would be the first thing to be wrong."""
    model = Net()
    secateur.save(model, path, share=True)
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    about = json.loads(metadata["secateur"])
    assert about["packed"]["gaps"]["index"] == "gaps"
    assert about["packed"]["blocks"]["block"] == 4
    assert about["packed"]["coded"]["codes"] == 4
    assert "signs" in about["packed"]["signed"]
    change(tensors, about)
    del metadata["digest"]
    save_file(tensors, path, {**metadata, "secateur": json.dumps(about)})


@pytest.mark.parametrize("name", FORMS)
def test_a_bad_form_changes_nothing(tmp_path: Path, name: str) -> None:
    change, message = FORMS[name]
    saved(tmp_path / "f", change)
    model = Net()
    before = copy.deepcopy(model)
    with pytest.raises(Error, match=message):
        secateur.load(tmp_path / "f", model)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before.state_dict()[key])


def test_gaps_belong_to_one_size(tmp_path: Path) -> None:
    """Where there is no model to compare with."""
    saved(tmp_path / "f", word("gaps", shape=[61, 50]))
    with pytest.raises(Error, match="gaps_gaps must end with 3050 elements or blocks and not before, but cover 30"):
        secateur.to_dense_state_dict(tmp_path / "f")


def test_a_sound_one_loads(tmp_path: Path) -> None:
    saved(tmp_path / "f", lambda tensors, about: None)
    secateur.load(tmp_path / "f", Net())


def test_a_bool_is_0_or_1(tmp_path: Path) -> None:
    """torch's kernels rely on it: a bool of 2 indexes what is not there."""
    header = {"__metadata__": METADATA, "t": entry([2], 0, 2, "BOOL")}
    (tmp_path / "f").write_bytes(file_of(header, b"\x01\x02"))
    model = nn.Module()
    model.register_buffer("t", torch.tensor([True, False]))
    with pytest.raises(Error, match=r"load: .*/f: t must hold bools, 0 or 1 a byte, got 2"):
        secateur.load(tmp_path / "f", model)


def test_what_load_would_refuse_is_not_saved(tmp_path: Path) -> None:
    model = Net()
    model.int8.weight_scale[1] = float("inf")
    with pytest.raises(Error, match=r"save: int8.weight_scale must be finite and > 0, got \[1.0, inf, 1.0\]"):
        secateur.save(model, tmp_path / "f")


def test_version_1_has_no_words_of_version_2(tmp_path: Path) -> None:
    saved(tmp_path / "f", lambda tensors, about: None)
    raw = (tmp_path / "f").read_bytes().replace(b'"version":"2"', b'"version":"1"')
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(Error, match=PART):
        secateur.load(tmp_path / "f", Net())


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Error, match="pipe must be a file, but is a pipe"):
        secateur.load(tmp_path / "pipe", nn.Linear(2, 2))


def test_empty_tensors_of_any_size(tmp_path: Path) -> None:
    about = {"packed": {"t": {"shape": [2**61, 0], "dtype": "float32"}}, "aliases": {}, "layers": {}}
    header = {
        "__metadata__": {**METADATA, "secateur": json.dumps(about)},
        "t_mask": entry([2**61, 0], 0, 0, "U8"), "t_values": entry([0], 0, 0), "u": entry([0, 2**61], 0, 0),
    }  # fmt: skip
    (tmp_path / "f").write_bytes(file_of(header))
    found = secateur.to_dense_state_dict(tmp_path / "f")
    assert found["t"].shape == (2**61, 0)
    assert found["u"].shape == (0, 2**61)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    """No signal kills the process, as one would if the file were mapped."""
    from secateur.checkpoint.format.container import opened

    secateur.save(Net(), tmp_path / "f")
    with opened(tmp_path / "f") as file:
        part = file.parts["signed_values"]
        (tmp_path / "f").write_bytes(b"short")
        with pytest.raises(Error, match="it ends before its last tensor does"):
            file.read(part)
