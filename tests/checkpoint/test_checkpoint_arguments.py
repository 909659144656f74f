"""Arguments of the wrong kind, and files of other kinds: an Error that says what is right."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import secateur
import torch
from safetensors.torch import save_file
from secateur import Error
from secateur.checkpoint.report import checkpoint_report
from secateur.commands import cli
from torch import nn


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 4))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated
        yield


class NoPath:
    def __fspath__(self) -> int:
        return 3


CALLS: dict[str, tuple[Callable[[Path], object], str]] = {
    "load, exchanged": (lambda f: secateur.load(net(), f), r"load: the path comes first, .*load\(path, model\)"),
    "save, exchanged": (lambda f: secateur.save(f, net()), r"save: the model comes first, .*save\(model, path\)"),
    "import, exchanged": (
        lambda f: secateur.import_checkpoint(net(), f), r"import_checkpoint: the checkpoint comes first, then the model"
    ),
    "import of a model": (lambda f: secateur.import_checkpoint(net(), net()), r"got a model: give its state_dict\(\)"),
    "load, two models": (lambda f: secateur.load(net(), net()), "load: path must be a str or os.PathLike, got Seq"),
    "load, a number": (lambda f: secateur.load(3, net()), "load: path must be a str or os.PathLike, got int"),
    "load, no path": (lambda f: secateur.load(NoPath(), net()), "load: path must be a str or os.PathLike, got NoPath"),
    "load, a class": (lambda f: secateur.load(f, nn.Linear), "load: model must be a torch.nn.Module, got type"),
    "load, a state_dict": (lambda f: secateur.load(f, net().state_dict()), "load: model must be a torch.nn.Module"),
    "save, a state_dict": (lambda f: secateur.save(net().state_dict(), f), "save: model must be a torch.nn.Module"),
    "save, a dtype": (lambda f: secateur.save(net(), f, values=torch.float16), "save: values must be None, "),
    "save, an array": (lambda f: secateur.save(net(), f, values=np.zeros(2)), "save: values must be None, "),
    "save, share=1": (lambda f: secateur.save(net(), f, share=1), "save: share must be True or False, got 1"),
    "import, nothing": (lambda f: secateur.import_checkpoint(None, net()), "import_checkpoint: path must be a str or"),
    "import, a list": (lambda f: secateur.import_checkpoint([], net()), "import_checkpoint: path must be a str or"),
    "import, a number": (
        lambda f: secateur.import_checkpoint({5: torch.ones(1)}, net()), r"names .* must be strings, got 5 \(int\)"
    ),
    "import, a pair": (
        lambda f: secateur.import_checkpoint({("a", 1): torch.ones(1)}, net()), "names of tensors must be strings, got "
    ),
    "import, bytes": (lambda f: secateur.import_checkpoint({b"a": torch.ones(1)}, net()), "must be strings, got b'a'"),
    "a sparsifier of numbers": (
        lambda f: secateur.import_checkpoint({}, net(), {"state": {"a": 3}}), r"sparsifier must be the state_dict\(\)"
    ),
    "dense, a model": (lambda f: secateur.to_dense_state_dict(net()), "to_dense_state_dict: path must be a str or os"),
    "load, no name": (lambda f: secateur.load("", net()), "load: path must name a file, got an empty one"),
    "save, no name": (lambda f: secateur.save(net(), ""), "save: path must name a file, got an empty one"),
    "import, no name": (lambda f: secateur.import_checkpoint("", net()), "import_checkpoint: path must name a file"),
    "dense, no name": (lambda f: secateur.to_dense_state_dict(b""), "to_dense_state_dict: path must name a file"),
    "load, null": (lambda f: secateur.load("a\0b", net()), "load: path must not hold a null character"),
    "save, null": (lambda f: secateur.save(net(), Path("a\0b")), "save: path must not hold a null character"),
    "import, null": (lambda f: secateur.import_checkpoint(b"a\0b", net()), "import_checkpoint: path must not hold"),
    "dense, null": (lambda f: secateur.to_dense_state_dict("a\0b"), "to_dense_state_dict: path must not hold a null"),
    "report, null": (lambda f: checkpoint_report(Path("a\0b")), "report: path must not hold a null character"),
    "load, half a character": (lambda f: secateur.load("\ud800", net()), "load: path must be a name that the file"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_arguments_of_the_wrong_kind(tmp_path: Path, name: str) -> None:
    call, message = CALLS[name]
    secateur.save(net(), tmp_path / "f")
    before = (tmp_path / "f").read_bytes()
    with pytest.raises(Error, match=message):
        call(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == before


# ---- files of other kinds ----


def other_kinds(folder: Path) -> dict[str, Path]:
    made = {name: folder / name for name in ("zip", "legacy", "script", "cut", "npz", "npy", "pickle", "text", "plain")}
    torch.save(net().state_dict(), made["zip"])
    torch.save(net().state_dict(), made["legacy"], _use_new_zipfile_serialization=False)
    torch.jit.script(net()).save(made["script"])
    made["cut"].write_bytes(made["zip"].read_bytes()[:1000])
    with made["npz"].open("wb") as file:
        np.savez(file, a=np.zeros(3))
    with made["npy"].open("wb") as file:
        np.save(file, np.zeros(3))
    made["pickle"].write_bytes(pickle.dumps({"a": 1}))
    made["text"].write_text("no tensors in here")
    save_file(dict(net().state_dict()), made["plain"])
    return made


def test_files_of_other_kinds(tmp_path: Path) -> None:
    """``load`` says what to call; whatever is not imported is an Error."""
    for kind, path in other_kinds(tmp_path).items():
        for caller, call in (
            ("load", lambda path=path: secateur.load(path, net())),
            ("to_dense_state_dict", lambda path=path: secateur.to_dense_state_dict(path)),
        ):
            with pytest.raises(Error, match=f"^{caller}: .*{kind} must be a ") as raised:
                call()
            if kind in ("zip", "legacy", "plain"):
                assert "secateur.import_checkpoint" in str(raised.value)
        model = net()
        if kind in ("zip", "legacy", "plain"):
            secateur.import_checkpoint(path, model)
            continue
        with pytest.raises(Error, match=f"^import_checkpoint: .*{kind} must be a "):
            secateur.import_checkpoint(path, model)


def test_torch_saves_under_other_names(tmp_path: Path) -> None:
    for odd in ({5: torch.ones(2)}, {"state_dict": {5: torch.ones(2)}}, {"epoch": 1, None: torch.ones(2)}):
        torch.save(odd, tmp_path / "f")
        for caller, call in (
            ("import_checkpoint", lambda: secateur.import_checkpoint(tmp_path / "f", net())),
            ("report", lambda: checkpoint_report(tmp_path / "f")),
        ):
            with pytest.raises(Error, match=f"^{caller}: .*f must hold tensors by name, got one by (5|None)"):
                call()


def test_damage_inside_a_tensor_names_the_file(tmp_path: Path) -> None:
    model = nn.Linear(64, 64)
    secateur.prune(model, secateur.Magnitude(0.95))
    path = tmp_path / "model.safetensors"
    secateur.save(model, path)
    raw = path.read_bytes()
    for at in range(1, 400, 7):
        damaged = bytearray(raw)
        damaged[-at] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(Error, match=rf"^load: {re.escape(str(path))}: "):
            secateur.load(path, nn.Linear(64, 64))
        with pytest.raises(Error, match=rf"^to_dense_state_dict: {re.escape(str(path))}: "):
            secateur.to_dense_state_dict(path)


@pytest.mark.parametrize("arguments", [["report", "a\0b"], ["report", ""], ["report", "none"], ["report", "."]])
def test_the_command_line_says_it_in_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("secateur: ")
    assert said.count("\n") == 1
