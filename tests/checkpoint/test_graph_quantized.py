"""Quantized files: into a fresh process, and into a float model of the same architecture."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import secateur
import torch
from secateur import Error
from secateur.nn import Quantize, QuantizedConv2d, QuantizedLinear
from torch import Tensor, nn

X = torch.rand(4, 1, 12, 12)


def mk(seed: int = 0, classes: int = 4, stride: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(10), nn.Flatten(),
        nn.Linear(800, classes),
    ).eval()  # fmt: skip


def quantized(model: nn.Module | None = None) -> nn.Module:
    return secateur.quantize(mk() if model is None else model, [X], progress=False)


FRESH = """
import sys, torch, secateur
path, x = sys.argv[1], torch.load(sys.argv[2], weights_only=True)
model = secateur.load(path)
fast = secateur.compile(model, x, budget=1)
torch.save([model(x), fast(x)], sys.argv[3])
"""


def test_in_a_fresh_process(tmp_path: Path) -> None:
    q = quantized()
    for saved in (q, secateur.compile(q, X, budget=1)):
        secateur.save(saved, tmp_path / "f")
        torch.save(X, tmp_path / "x")
        subprocess.run([sys.executable, "-c", FRESH, *(str(tmp_path / name) for name in "fxy")], check=True)
        ours, compiled = torch.load(tmp_path / "y", weights_only=True)
        assert torch.equal(ours, q(X))
        assert torch.allclose(compiled, q(X), atol=1e-5)


def test_into_a_float_model(tmp_path: Path) -> None:
    q = quantized()
    secateur.save(q, tmp_path / "f")
    model = mk(seed=1)
    before = copy.deepcopy(model.state_dict())
    made = secateur.load(tmp_path / "f", model)
    assert made is not model
    assert [type(m) for m in model] == [type(m) for m in mk()]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(made(X), q(X))
    assert isinstance(made.get_submodule("0"), QuantizedConv2d)
    assert isinstance(made.get_submodule("5"), QuantizedLinear)
    secateur.save(secateur.compile(q, X, budget=1), tmp_path / "f")
    assert torch.equal(secateur.load(tmp_path / "f", mk(seed=2))(X), q(X))


def test_into_a_quantized_shell_as_before(tmp_path: Path) -> None:
    secateur.save(quantized(), tmp_path / "f")
    shell = quantized(mk(seed=3))
    assert secateur.load(tmp_path / "f", shell) is shell
    assert torch.equal(shell(X), quantized()(X))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 12)
        self.act = secateur.nn.ThresholdReLU(torch.full((12,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, :12]
        y: Tensor = self.fc(self.act(self.fc(x)))
        return y


def test_a_layer_that_is_called_twice(tmp_path: Path) -> None:
    q = quantized(Twice())
    secateur.save(q, tmp_path / "f")
    assert torch.equal(secateur.load(tmp_path / "f", Twice())(X), q(X))
    q = quantized(nn.Linear(12, 3))
    secateur.save(q, tmp_path / "f")
    assert torch.equal(secateur.load(tmp_path / "f", nn.Linear(12, 3))(X), q(X))


def test_into_another_model(tmp_path: Path) -> None:
    secateur.save(quantized(), tmp_path / "f")
    more = mk()
    more.append(nn.Linear(4, 4))
    renamed = nn.Sequential(mk())
    norm = mk()
    norm[5] = nn.Conv2d(1, 1, 1)
    for model, message in (
        (mk(classes=5), r"the weight of 5 must be \[5, 800\] as in the model, got \[4, 800\]"),
        (mk(stride=2), r"stride of 0 must be \(2, 2\)"),
        (more, r"the file has nothing for 6.weight"),
        (renamed, r"0 must be a Conv2d, got Sequential"),
        (norm, r"5 must be a Linear, got Conv2d"),
    ):
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(
            Error, match=rf"must be of a quantized form of the model given, but {message}.*load\(path\)"
        ):
            secateur.load(tmp_path / "f", model)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_without_a_graph_it_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.checkpoint.saving.described", lambda model, state: ({}, "no"))
    secateur.save(quantized(), tmp_path / "f")
    with pytest.raises(Error, match=r"the file is of a quantized model: load it into what secateur.quantize made"):
        secateur.load(tmp_path / "f", mk())
    with pytest.raises(Error, match=r"does not say what its model computes.*secateur.load\(path, model\)"):
        secateur.load(tmp_path / "f")


def test_of_half_precision(tmp_path: Path) -> None:
    q = quantized().half()
    secateur.save(q, tmp_path / "f")
    x = X.half()
    loaded = secateur.load(tmp_path / "f")
    assert {key: value.dtype for key, value in loaded.state_dict().items()} == {
        key: value.dtype for key, value in q.state_dict().items()
    }
    assert any(isinstance(module, Quantize) for module in loaded.modules())
    try:
        expected = q(x)
    except RuntimeError as error:  # not what torch's operators take
        with pytest.raises(type(error)):
            loaded(x)
        return
    assert torch.equal(loaded(x), expected)
