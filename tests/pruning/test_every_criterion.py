"""What every criterion of the package must do. A new one needs a line in SAMPLES."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import secateur
import torch
from secateur import Criterion, CubicSchedule, GradualPruner, Magnitude, MeanStd, OptimalBrain, Random, Wanda
from secateur.pruning import criteria
from torch import nn

#: Objects of every criterion that has ``sparsity``, at 0.5; where data is needed, the tests give it.
SAMPLES: dict[type[Criterion], list[Criterion]] = {
    MeanStd: [MeanStd(sparsity=0.5), MeanStd(sparsity=0.5, of="signed")],
    Magnitude: [Magnitude(0.5), Magnitude(0.5, "global")],
    OptimalBrain: [OptimalBrain(0.5), OptimalBrain(0.5, "global", seed=3)],
    Wanda: [Wanda(0.5), Wanda(0.5, "layer")],
    Random: [Random(0.5, seed=1), Random(0.5, "neuron", 1)],
}
each_sample = pytest.mark.parametrize("rule", [rule for rules in SAMPLES.values() for rule in rules], ids=repr)

BATCHES = [torch.randn(8, 4, 9, 9, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.Flatten(), nn.Linear(108, 16)
    )


def data_for(rule: Criterion) -> list[torch.Tensor] | None:
    return None if rule.needs is None else BATCHES


def test_every_criterion_has_samples() -> None:
    public = {value for value in vars(criteria).values() if isinstance(value, type) and issubclass(value, Criterion)}
    assert public - {Criterion} == set(SAMPLES)
    for kind in SAMPLES:
        assert getattr(secateur, kind.__name__) is kind
        assert kind.__name__ in secateur.__all__


@each_sample
def test_it_is_a_value(rule: Any) -> None:
    names = {kind.__name__: kind for kind in SAMPLES}
    assert eval(repr(rule), names) == rule
    for same in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule)), rule.with_sparsity(0.2).with_sparsity(0.5)):
        assert same == rule
        assert hash(same) == hash(rule)
    assert rule.with_sparsity(0.2).sparsity == 0.2
    assert rule.with_sparsity(0.2) != rule


@each_sample
@pytest.mark.parametrize("pattern", ["1x1", "1x4", "1x3", "neuron"])
def test_it_reaches_its_share_under_a_pattern(rule: Criterion, pattern: str) -> None:
    model, before = net(), net()
    try:
        report = secateur.prune(model, rule, pattern=pattern, data=data_for(rule))
    except secateur.Error as refused:
        assert "pattern must be" in str(refused)  # noqa: PT017
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
        return
    largest = {"1x1": 1, "1x4": 4, "1x3": 3}.get(report["0"]["pattern"], 108)
    for row in report:
        rows = row["shape"][0] if rule.scope == "row" else 1  # each of which rounds its share
        assert rule.scope == "global" or abs(row["zeros"] - 0.5 * row["weights"]) <= largest * rows
    assert report.sparsity == pytest.approx(0.5, abs=0.06)
    for layer in (model[0], model[2], model[4]):
        w = (layer.weight != 0).reshape(*layer.weight.shape[:2], -1)
        if report["0"]["pattern"] == "neuron":
            assert torch.equal(w.flatten(1).all(1), w.flatten(1).any(1))
        elif pattern != "1x1":
            for part in w.split(int(pattern[2:]), 1):
                assert torch.equal(part.all(1), part.any(1))


@each_sample
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
@pytest.mark.parametrize("gradually", [False, True])
def test_it_works_in_runs_or_refuses_them(rule: Criterion, pattern: str, gradually: bool) -> None:
    model, before = net(), net()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the way layers may have nothing to prune; the first one has short runs
            if gradually:
                pruner = GradualPruner(model, rule, CubicSchedule(0.5, end=3), pattern=pattern, data=data_for(rule))
                for _ in range(4):
                    pruner.step()
            else:
                secateur.prune(model, rule, pattern=pattern, data=data_for(rule))
    except secateur.Error as refused:
        assert "pattern must be" in str(refused) or "scope must be" in str(refused)  # noqa: PT017
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
        return
    assert secateur.verify(model, pattern).holds
    for layer in (model[2], model[4]):
        whole = (layer.weight != 0).reshape(*layer.weight.shape[:2], -1)[:, :8]
        assert torch.equal(whole.sum(1), torch.full_like(whole[:, 0], 4, dtype=torch.int64))


@each_sample
def test_pruned_weights_stay_pruned(rule: Criterion) -> None:
    model = net()
    secateur.prune(model, Magnitude(0.3))
    gone = [(layer.weight == 0) for layer in (model[0], model[2], model[4])]
    secateur.prune(model, rule, data=data_for(rule))
    for layer, before in zip((model[0], model[2], model[4]), gone, strict=True):
        assert (layer.weight[before] == 0).all()
    assert secateur.sparsity(model).sparsity >= 0.45


@each_sample
def test_it_may_be_raised_step_by_step(rule: Criterion) -> None:
    model = net()
    pruner = GradualPruner(model, rule, CubicSchedule(0.5, end=3), data=data_for(rule))
    reached = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whole neurons of a small layer miss a share
        for _ in range(4):
            pruner.step()
            reached.append(secateur.sparsity(model).sparsity)
    assert reached == sorted(reached)
    assert reached[-1] == pytest.approx(0.5, abs=0.06)


@each_sample
def test_the_same_twice_and_beside_others(rule: Criterion) -> None:
    one, two = net(), net()
    secateur.prune(one, rule, data=data_for(rule))
    secateur.prune(two, MeanStd(0.0), overrides={"*": rule}, data=data_for(rule))
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
