"""Which layers integers cost most, and leaving those in fp32."""

from __future__ import annotations

import math
from typing import Any

import pytest
import secateur
import torch
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")


class Uneven(nn.Sequential):
    """Three layers; the second one's input has a few values that are 3,000 times the others."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
        with torch.no_grad():
            self[0].weight[0] *= 3000  # its channel drowns the other 31 in one scale
            self[2].weight[:, 0] /= 3000


def agreement(model: nn.Module, x: Tensor) -> Any:
    """Accuracy: how often the class is the one that fp32 finds."""
    with torch.no_grad():
        labels = model(x).argmax(1)
    return lambda other: (other(x).argmax(1) == labels).double().mean()


def test_report() -> None:
    model, x = Uneven(), torch.randn(64, 16)
    report = secateur.quantization_sensitivity(model, [x], agreement(model, x), progress=False)
    assert [row["layer"] for row in report] == ["0", "2", "4"]
    assert report.worst[0] == "2"
    assert report["2"]["sqnr"] < min(report["0"]["sqnr"], report["4"]["sqnr"]) - 10
    assert report.baseline == 1.0
    assert report["2"]["drop"] == pytest.approx(1 - report["2"]["accuracy"])
    assert "signal to noise (dB)" in str(report)
    assert report.to_dict()["baseline"] == 1.0


def test_without_evaluate_it_is_noise_alone() -> None:
    model, x = Uneven(), torch.randn(64, 16)
    report = secateur.quantization_sensitivity(model, iter([x]), exclude=["4"], progress=False)
    assert [row["layer"] for row in report] == ["0", "2"]
    assert report.worst == ["2", "0"]
    assert report.baseline is None
    assert report["0"]["accuracy"] is report["0"]["drop"] is None


def test_a_layer_that_says_nothing_loses_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    report = secateur.quantization_sensitivity(model, [torch.randn(3, 4)], progress=False)
    assert [row["sqnr"] for row in report] == [math.inf, math.inf]


def test_layers_that_lose_too_much_stay_in_fp32() -> None:
    model, x = Uneven(), torch.randn(256, 16)
    calls = []
    judge = agreement(model, x)

    def evaluate(other: nn.Module) -> float:
        calls.append(other)
        return float(judge(other))

    plain = secateur.quantize(model, [x], calibration="min-max", evaluate=evaluate, progress=False)
    assert plain.report.accuracy < 0.95
    assert len(calls) == 2
    q = secateur.quantize(model, [x], calibration="min-max", evaluate=evaluate, max_accuracy_drop=0.03, progress=False)
    assert [row["form"] for row in q.report] == ["int8", "fp32", "int8"]
    assert q.report["2"]["why"] == "left in fp32 for accuracy"
    assert q.report.accuracy == evaluate(q) >= 0.97
    assert [step["fp32"] for step in q.report.steps] == [["2"]]
    assert q.report.steps[0]["accuracy"] == q.report.accuracy
    assert "of the given model 100.00 %" in str(q.report)


def test_as_few_as_it_takes() -> None:
    """Doubling, then bisection: 5 of 8 layers have to stay, whichever they are."""
    model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(8)])
    asked = []

    def evaluate(other: nn.Module) -> float:
        real = sum(type(m) is nn.Linear for m in other.modules())
        asked.append(real)
        return 1.0 if real >= 5 else 0.5

    q = secateur.quantize(
        model, [torch.randn(8, 6)], calibration="mse", evaluate=evaluate, max_accuracy_drop=0.1, progress=False
    )
    assert asked == [8, 0, 1, 2, 4, 7, 5]
    assert sum(row["form"] == "fp32" for row in q.report) == 5


def test_errors() -> None:
    model, x = Uneven(), torch.randn(8, 16)
    with pytest.raises(secateur.Error, match="quantization_sensitivity: evaluate must be a function of the model"):
        secateur.quantization_sensitivity(model, [x], 3, progress=False)
    with pytest.raises(secateur.Error, match="quantization_sensitivity: calibration must be"):
        secateur.quantization_sensitivity(model, [x], calibration="all", progress=False)
    with pytest.raises(secateur.Error, match="quantization_sensitivity: exclude must match a layer"):
        secateur.quantization_sensitivity(model, [x], exclude=["x"], progress=False)
    message = r"max_accuracy_drop must be one that int8 layers can keep, but with one of 3 in int8 accuracy is 0.0000"
    with pytest.raises(secateur.Error, match=message):
        secateur.quantize(
            model, [x], calibration="mse", max_accuracy_drop=0.1, progress=False,
            evaluate=lambda m: float(type(m) is Uneven),
        )  # fmt: skip
