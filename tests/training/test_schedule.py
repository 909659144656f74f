"""The cubic schedule and the pruner that follows it."""

from __future__ import annotations

import warnings

import pytest
import secateur
import torch
from secateur import CubicSchedule, Error, GradualPruner, Magnitude, MeanStd, Random
from torch import nn


def test_the_formula() -> None:
    s = CubicSchedule(0.9, 0.1, begin=10, end=30)
    assert [s(t) for t in (0, 9)] == [0.0, 0.0]
    assert s(10) == pytest.approx(0.1)
    assert s(20) == pytest.approx(0.9 - 0.8 * 0.5**3)
    assert s(30) == s(1000) == 0.9
    assert [s(t) for t in range(10, 31)] == sorted(s(t) for t in range(10, 31))
    assert [t for t in range(40) if CubicSchedule(0.9, begin=10, end=30, every=8).due(t)] == [10, 18, 26, 30]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"final": 1.5, "end": 10}, "CubicSchedule: final must be a number from 0 to 1, got 1.5"),
        ({"final": 0.5, "initial": 0.6, "end": 10}, r"CubicSchedule: initial must not be above final \(0.5\), got 0.6"),
        ({"final": 0.5, "end": 0}, "CubicSchedule: end must be a whole number from 1 up, got 0"),
        ({"final": 0.5, "begin": 5, "end": 5}, "CubicSchedule: end must be a whole number from 6 up, got 5"),
        ({"final": 0.5, "begin": 0.5, "end": 5}, "CubicSchedule: begin must be a whole number from 0 up, got 0.5"),
        ({"final": 0.5, "end": 5, "every": 0}, "CubicSchedule: every must be a whole number from 1 up, got 0"),
    ],
)
def test_bad_schedules(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(Error, match=message):
        CubicSchedule(**arguments)  # type: ignore[arg-type]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20))


@pytest.mark.parametrize("rule", [MeanStd(sparsity=0.9), Magnitude(0.9), Magnitude(0.9, "global"), Random(0.9, seed=3)])
def test_follows_the_curve_while_training(rule: secateur.pruning.criteria.Criterion) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    schedule = CubicSchedule(0.9, end=20, every=4)
    pruner = GradualPruner(model, rule, schedule, overrides={"2": type(rule)(sparsity=0.5)}, optimizer=optimizer)
    reached = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(24):
            optimizer.zero_grad()
            model(torch.randn(8, 40)).square().mean().backward()
            optimizer.step()
            report = pruner.step()
            assert (report is not None) == (step in (4, 8, 12, 16, 20))  # at step 0 the share is still 0
            counted = secateur.sparsity(model)
            if report is not None:
                progress = 1 - (1 - step / 20) ** 3
                assert counted["0"]["sparsity"] == pytest.approx(0.9 * progress, abs=1 / 1200 + 1e-9)
                assert counted["2"]["sparsity"] == pytest.approx(0.5 * progress, abs=1 / 600 + 1e-9)
            reached.append(counted.sparsity)
    assert reached == sorted(reached)
    assert pruner.done
    assert pruner.report is not None
    assert pruner.report["0"]["sparsity"] == pytest.approx(0.9, abs=1e-3)


def test_resumes() -> None:
    model, schedule = net(), CubicSchedule(0.9, end=4)
    first = GradualPruner(model, Magnitude(0.9), schedule)
    for _ in range(3):
        first.step()
    second = GradualPruner(model, Magnitude(0.9), schedule)
    second.load_state_dict(first.state_dict())
    second.step()
    assert secateur.sparsity(model).sparsity == pytest.approx(schedule(3), abs=1e-3)
    with pytest.raises(Error, match="GradualPruner: the state's steps must be a whole number"):
        second.load_state_dict({"steps": -1})


def test_the_last_pruning_says_what_it_could_not_reach() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight.fill_(0.5)
    pruner = GradualPruner(model, MeanStd(sparsity=0.9), CubicSchedule(0.9, end=2))
    pruner.step()
    pruner.step()
    with pytest.warns(UserWarning, match=r"GradualPruner: MeanStd\(sparsity=0.9\) pruned nothing in 0"):
        pruner.step()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: GradualPruner(net(), MeanStd(0.5), s), "criterion must be a rule with sparsity= .*, got MeanStd"),
        (lambda s: GradualPruner(net(), Magnitude(0.8), s), "must end at one sparsity, got 0.8 and 0.9"),
        (lambda s: GradualPruner(net(), Magnitude(0.9), 0.9), "schedule must be a CubicSchedule, got 0.9"),
        (lambda s: GradualPruner(net(), Magnitude(0.9), s, pattern="4x4"), "GradualPruner: pattern must be"),
        (
            lambda s: GradualPruner(net(), Magnitude(0.9), s, overrides={"0": (MeanStd(1), "1x4")}),
            "a criterion in overrides must be a rule with sparsity=",
        ),
    ],
)
def test_bad_pruners(call, message: str) -> None:
    with pytest.raises(Error, match=message):
        call(CubicSchedule(0.9, end=10))


def test_mistakes_show_when_the_pruner_is_made() -> None:
    """Not at the first step that prunes, which may be an epoch later."""
    model, rule, schedule = nn.Linear(8, 8), Magnitude(0.9), CubicSchedule(0.9, end=4)
    for wrong, message in [
        ({"exclude": "typo"}, "exclude must name layers of the model, but 'typo' matches none"),
        ({"exclude": 5}, "exclude must be names"),
        ({"overrides": 5}, "overrides must map layers to rules, got 5"),
    ]:
        with pytest.raises(Error, match=message):
            GradualPruner(model, rule, schedule, **wrong)  # type: ignore[arg-type]
    with pytest.raises(Error, match=r"model must be a torch\.nn\.Module, got NoneType"):
        GradualPruner(None, rule, schedule)  # type: ignore[arg-type]
    with pytest.raises(Error, match="CubicSchedule: begin must be a whole number from 0 up, got '0'"):
        CubicSchedule(0.9, begin="0", end=4)  # type: ignore[arg-type]
