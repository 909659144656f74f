"""secateur.save / load: round trips, sizes, and files that must not be believed."""

from __future__ import annotations

import copy
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from secateur import Error, Magnitude, MeanStd, masks
from secateur.checkpoint.format import atomic
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.lstm = nn.LSTM(8, 6)
        self.fc = nn.Linear(8, 10)
        self.register_buffer("scale", torch.tensor(2.5))  # 0-d
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("flags", torch.tensor([True, False]))


def pruned(share: float = 0.8) -> Net:
    model = Net()
    secateur.prune(model, MeanStd(sparsity=share))
    return model


def same(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a
    )


def test_round_trip_into_a_plain_model(tmp_path: Path) -> None:
    model = pruned()
    model.bn(torch.randn(4, 8, 5, 5))  # num_batches_tracked, an int64 of no dimension
    path = tmp_path / "model.safetensors"
    secateur.save(model, path)
    other = Net()
    assert secateur.load(path, other) is other
    assert same(model, other)
    assert secateur.sparsity(other).to_dict() == secateur.sparsity(model).to_dict()  # thetas too
    optimizer = torch.optim.AdamW(other.parameters(), 0.1)
    other.fc(torch.randn(2, 8)).sum().backward()
    optimizer.step()
    assert torch.equal(other.fc.weight == 0, model.fc.weight == 0)  # fine-tuning goes on
    assert not torch.equal(other.fc.weight, model.fc.weight)


def test_round_trip_into_a_model_that_is_pruned_otherwise(tmp_path: Path) -> None:
    secateur.save(pruned(0.5), tmp_path / "half")
    target = pruned(0.9)
    secateur.load(tmp_path / "half", target)
    assert secateur.sparsity(target).sparsity == pytest.approx(0.5, abs=0.01)
    secateur.save(Net(), tmp_path / "dense")
    secateur.load(tmp_path / "dense", target)
    assert not list(masks.masked_modules(target))
    assert list(target.state_dict()) == list(Net().state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    model = pruned().to(dtype)
    secateur.save(model, tmp_path / "f")
    assert same(model, secateur.load(tmp_path / "f", Net().to(dtype)))
    with pytest.raises(Error, match=rf"must be torch.float32 as in the model, got {dtype} \(convert the model with"):
        secateur.load(tmp_path / "f", Net())


def test_non_contiguous_nan_and_minus_zero(tmp_path: Path) -> None:
    model = pruned().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.register_buffer("turned", torch.randn(5, 7).t())
    other = nn.Module()
    zeros = torch.zeros(64, 64)
    zeros[0, 1], zeros[3, 3] = -0.0, float("nan")
    other.register_buffer("zeros", zeros)
    model.add_module("other", other)
    secateur.save(model, tmp_path / "f")
    back = copy.deepcopy(model)
    for value in back.state_dict().values():
        value.zero_()
    secateur.load(tmp_path / "f", back)
    found: Tensor = back.other.zeros  # type: ignore[assignment, union-attr]
    assert torch.equal(found.view(torch.int32), zeros.view(torch.int32))  # the sign of zeros too
    assert torch.signbit(found[0, 1])
    found.zero_()
    zeros.zero_()
    assert same(model, back)


def test_zeros_of_others_are_packed_too(tmp_path: Path) -> None:
    model = nn.Linear(256, 256)
    torch.nn.utils.prune.l1_unstructured(model, "weight", amount=0.9)
    torch.nn.utils.prune.remove(model, "weight")
    secateur.save(model, tmp_path / "f")
    # weight * mask has left about half of the zeros negative: a bit an element to tell which, 1/32 of the dense file.
    assert (tmp_path / "f").stat().st_size < 0.155 * 4 * 256 * 256
    other = secateur.load(tmp_path / "f", nn.Linear(256, 256))
    assert same(model, other)  # and no mask, for it had none
    assert torch.equal(torch.signbit(model.weight), torch.signbit(other.weight))  # type: ignore[arg-type]
    secateur.save(masks.apply(masks.adopt(model)), tmp_path / "f")  # which makes them positive
    assert (tmp_path / "f").stat().st_size < 0.125 * 4 * 256 * 256


@pytest.mark.parametrize(("share", "most"), [(0.9, 0.125), (0.5, 0.535)])
def test_sizes(tmp_path: Path, share: float, most: float) -> None:
    model = nn.Sequential(nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128), nn.Linear(1024, 256))
    save_file(model.state_dict(), tmp_path / "dense")
    report = secateur.prune(model, MeanStd(sparsity=share))
    secateur.save(model, tmp_path / "packed")
    dense, packed = ((tmp_path / name).stat().st_size for name in ("dense", "packed"))
    assert packed <= most * dense
    assert report.total is not None
    # The report counts a bit a weight, as in memory; in the file gaps may be smaller.
    assert 0.8 * report.total["bytes_packed"] < packed < 1.05 * report.total["bytes_packed"]


def test_shared_tensors_are_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self, tie: bool = True) -> None:
            super().__init__()
            self.embed = nn.Embedding(64, 32)
            self.head = nn.Linear(32, 64, bias=False)
            if tie:
                self.head.weight = self.embed.weight
            self.block = nn.Linear(4, 4)
            self.again = self.block  # a whole module under two names

    model = Tied()
    with pytest.warns(UserWarning, match="tied"):
        secateur.prune(model, Magnitude(0.5))
    secateur.save(model, tmp_path / "f")
    with safe_open(tmp_path / "f", "pt") as file:
        assert len([key for key in file.keys() if key.endswith("_values")]) == 2  # noqa: SIM118
    for tie in (True, False):
        other = secateur.load(tmp_path / "f", Tied(tie))
        assert same(model, other)


def test_wrappers_are_looked_through(tmp_path: Path) -> None:
    model = pruned()
    secateur.save(nn.DataParallel(model), tmp_path / "f")
    wrapped = nn.DataParallel(Net())
    assert secateur.load(tmp_path / "f", wrapped) is wrapped
    assert same(model, wrapped.module)


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    """Documented names and bits: any reader of safetensors can unpack it."""
    model = pruned()
    secateur.save(model, tmp_path / "f")
    tensors = load_file(tmp_path / "f")
    weight = model.fc.weight.detach()
    assert torch.equal(tensors["fc.weight_mask"], secateur.ops.mask_pack(weight != 0))
    assert torch.equal(tensors["fc.weight_values"], weight[weight != 0])
    assert torch.equal(tensors["fc.bias"], model.fc.bias)
    with safe_open(tmp_path / "f", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "secateur"
    assert metadata["version"] == "2"
    entry = json.loads(metadata["secateur"])["packed"]["fc.weight"]
    assert (entry["shape"], entry["dtype"], entry["masked"]) == ([10, 8], "float32", True)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(0, 9), columns=st.integers(0, 20), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_any_shape_comes_back(tmp_path: Path, rows: int, columns: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(rows, columns, generator=generator)
    value[torch.rand(rows, columns, generator=generator) < share] = 0
    model, other = nn.Module(), nn.Module()
    model.register_buffer("t", value)
    other.register_buffer("t", torch.ones(rows, columns))
    secateur.save(model, tmp_path / "f")
    secateur.load(tmp_path / "f", other)
    assert torch.equal(other.t, value)  # type: ignore[arg-type]


def tamper(path: Path, change: Any) -> None:
    """Rewrite a good file with its parts changed by ``change(tensors, metadata, about)``."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    about = json.loads(metadata["secateur"])
    change(tensors, metadata, about)
    if "secateur" in metadata:
        metadata["secateur"] = json.dumps(about)
    save_file(tensors, path, metadata)


def flip(tensors: dict[str, Tensor]) -> None:
    tensors["fc.weight_mask"][0, 0] ^= 1


BAD: dict[str, tuple[Any, str]] = {
    "another format": (lambda t, m, a: m.update(format="pt"), "a file that secateur.save wrote, got format 'pt'"),
    "no version": (lambda t, m, a: m.pop("version"), "must have a version, got ''"),
    "a later version": (lambda t, m, a: m.update(version="3"), "has version 3, and this secateur reads up to 2"),
    "no description": (lambda t, m, a: m.pop("secateur"), "must describe its packed tensors, but that part is damaged"),
    "a damaged description": (lambda t, m, a: a.update(packed=[]), "that part is damaged"),
    "another dtype": (lambda t, m, a: a["packed"]["fc.weight"].update(dtype="int9"), "that part is damaged"),
    "a negative size": (lambda t, m, a: a["packed"]["fc.weight"].update(shape=[-10, -8]), "that part is damaged"),
    "a mask is gone": (lambda t, m, a: t.pop("fc.weight_mask"), "must hold fc.weight_mask and fc.weight_values"),
    "packed and dense": (lambda t, m, a: t.update({"fc.weight": torch.zeros(10, 8)}), "packed or dense, but has both"),
    "a mask bit more": (lambda t, m, a: flip(t), r"fc.weight_values must hold one value a set bit, \d+, got \d+"),
    "a value less": (lambda t, m, a: t.update({"fc.weight_values": t["fc.weight_values"][1:]}), "one value a set bit"),
    "values of another dtype": (
        lambda t, m, a: t.update({"fc.weight_values": t["fc.weight_values"].double()}),
        "fc.weight_values must be torch.float32",
    ),
    "a mask of another dtype": (
        lambda t, m, a: t.update({"fc.weight_mask": t["fc.weight_mask"].int()}),
        r"fc.weight_mask must be uint8 \[10, 1\]",
    ),
    "another shape": (
        lambda t, m, a: a["packed"]["fc.weight"].update(shape=[8, 10]),
        r"fc.weight_mask must be uint8 \[8, 2\], got torch.uint8 \[10, 1\]",
    ),
    "a huge shape": (lambda t, m, a: a["packed"]["fc.weight"].update(shape=[10, 2**39]), "must be uint8"),
    "the same bits in another shape": (
        lambda t, m, a: a["packed"]["fc.weight"].update(shape=[10, 2, 4]),
        r"fc.weight must be \[10, 8\] as in the model, got \[10, 2, 4\]",
    ),
    "unused bits": (
        lambda t, m, a: t["conv.weight_mask"].__setitem__((0, 3), 0x80),
        "conv.weight_mask must have zeros in the unused bits",
    ),
    "a version of 5,000 digits": (lambda t, m, a: m.update(version="9" * 5000), "must have a version, got '9999"),
    "a theta out of range": (
        lambda t, m, a: a["packed"]["fc.weight"].update(theta=[10**400, 1, 1]),
        "must describe its packed tensors, but that part is damaged: OverflowError",
    ),
    "masked is no bool": (
        lambda t, m, a: a["packed"]["fc.weight"].update(masked=1),
        "must describe its packed tensors, but that part is damaged: ValueError",
    ),
    "an alias of nothing": (lambda t, m, a: a["aliases"].update({"x": "y"}), "says that x shares y"),
    "a tensor is missing": (lambda t, m, a: t.pop("fc.bias"), "but the file lacks fc.bias"),
    "a tensor too many": (lambda t, m, a: t.update({"fc.more": torch.ones(3)}), "but the model lacks fc.more"),
    "a dense tensor's shape": (lambda t, m, a: t.update({"fc.bias": torch.ones(9)}), r"fc.bias must be \[10\] as"),
    "a mask where none can be": (
        lambda t, m, a: (
            t.pop("bn.running_mean"),
            t.update({"bn.running_mean_mask": torch.ones(8, 1, dtype=torch.uint8)}),
            t.update({"bn.running_mean_values": torch.ones(8)}),
            a["packed"].update({"bn.running_mean": {"shape": [8], "dtype": "float32", "masked": True}}),
        ),
        "bn.running_mean is masked in the file and must be able to take its mask: the model has no such weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("target", ["plain", "pruned"])
def test_a_bad_file_changes_nothing(tmp_path: Path, name: str, target: str) -> None:
    change, message = BAD[name]
    path = tmp_path / "f"
    secateur.save(pruned(), path)
    tamper(path, change)
    model = Net() if target == "plain" else pruned(0.5)
    before = copy.deepcopy(model)
    with pytest.raises(Error, match=message):
        secateur.load(path, model)
    assert same(model, before)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "header"])
def test_damaged_files(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "f"
    secateur.save(pruned(), path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"hello" * 9, "cut": whole[:-5], "header": b"\xff" * 8 + whole[8:]}[damage])
    model = Net()
    before = copy.deepcopy(model)
    with pytest.raises(Error, match="must be a safetensors file, but it is damaged or another kind"):
        secateur.load(path, model)
    assert same(model, before)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "f")
    with pytest.raises(Error, match="must be a safetensors file"):
        secateur.load(tmp_path / "f", Net())
    save_file(Net().state_dict(), tmp_path / "g")
    with pytest.raises(Error, match=r"must be a file that secateur.save wrote, got format None"):
        secateur.load(tmp_path / "g", Net())


def test_files_that_cannot_be_opened_are_os_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        secateur.load(tmp_path / "none", Net())
    with pytest.raises(IsADirectoryError):
        secateur.load(tmp_path, Net())
    with pytest.raises(FileNotFoundError):
        secateur.save(Net(), tmp_path / "no" / "where")


def test_links_are_followed_and_names_may_be_long(tmp_path: Path) -> None:
    model = pruned()
    (tmp_path / "link").symlink_to("file")
    secateur.save(model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "file").is_symlink()
    assert same(model, secateur.load(tmp_path / "link", Net()))
    long = bytes(tmp_path / ("n" * 255))
    secateur.save(model, long)
    assert same(model, secateur.load(long, Net()))


@pytest.mark.parametrize("path", [None, 5, 0.5])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(Error, match=r"save: path must be a str or os.PathLike, got "):
        secateur.save(Net(), path)
    # open(5) would close descriptor 5
    with pytest.raises(Error, match=r"load: path must be a str or os.PathLike, got "):
        secateur.load(path, Net())


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Error, match="pipe must be a file or not be there yet, but is a device or a pipe"):
        secateur.save(Net(), tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(Error, match="but is a folder"):
        secateur.save(Net(), tmp_path)


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    secateur.save(pruned(), path)
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444 & ~_umask()
    before = path.read_bytes()

    def fail(file: int, piece: Any) -> None:
        os.write(file, b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "_write", fail)
    with pytest.raises(KeyboardInterrupt):
        secateur.save(pruned(0.5), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return {"a": 1}

    with pytest.raises(Error, match="save: _extra_state must be a tensor, for nothing is pickled, got dict"):
        secateur.save(Extra(2, 2), tmp_path / "f")
    with pytest.raises(Error, match="save: weight must be initialized"):
        secateur.save(nn.LazyLinear(2), tmp_path / "f")
    with pytest.raises(Error, match="save: weight must be an ordinary tensor with values, got meta"):
        secateur.save(nn.Linear(2, 2, device="meta"), tmp_path / "f")
    with pytest.raises(Error, match=r"save: model must be a torch.nn.Module, got dict"):
        secateur.save({}, tmp_path / "f")  # type: ignore[arg-type]
    with pytest.raises(Error, match=r"load: model must be a torch.nn.Module"):
        secateur.load(tmp_path / "f", {})  # type: ignore[arg-type]
    model = pruned()
    with torch.no_grad():
        model.fc.weight.add_(1)
    with pytest.raises(Error, match=r"save: fc.weight must be zero where it is pruned.*secateur.masks.apply"):
        secateur.save(model, tmp_path / "f")
    assert not list(tmp_path.iterdir())
    secateur.save(masks.apply(model), tmp_path / "f")


def test_names_that_would_collide(tmp_path: Path) -> None:
    """A tensor whose packed names are taken is stored dense; a masked one cannot be, which is said."""
    model = nn.Linear(64, 64)
    with torch.no_grad():
        model.weight[1:] = 0
    model.register_buffer("weight_values", torch.arange(3.0))
    secateur.save(model, tmp_path / "f")
    other = nn.Linear(64, 64)
    other.register_buffer("weight_values", torch.zeros(3))
    assert same(model, secateur.load(tmp_path / "f", other))
    secateur.prune(model, Magnitude(0.995))
    with pytest.raises(Error, match="save: weight_values must not be in the state_dict: the masked weight"):
        secateur.save(model, tmp_path / "f")
