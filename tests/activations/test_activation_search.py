"""max_accuracy_drop and activation_sensitivity: the budget is kept, steps are on record, bad measures are refused."""

import json
import logging
import sys

import pytest
import torch
from secateur import Error, Magnitude, MeanStd, activation_sensitivity, prune_activations
from secateur.activations.search import _Path
from secateur.activations.sensitivity import Curve
from secateur.activations.sensitivity_report import SensitivityReport
from torch import nn


class Classifier(nn.Module):
    """Two clusters of points: a hidden layer that matters and one that does not."""

    def __init__(self):
        super().__init__()
        self.vital, self.act1 = nn.Linear(16, 32), nn.ReLU()
        self.idle, self.act2 = nn.Linear(16, 32), nn.ReLU()
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.act1(self.vital(x)) + 1e-3 * self.act2(self.idle(x)))


@pytest.fixture(scope="module")
def task():
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 16, generator=g)
    y = torch.randint(4, (800,), generator=g)
    x = centres[y] + 0.9 * torch.randn(800, 16, generator=g)
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()

    def evaluate(network):
        assert not network.training
        assert not torch.is_grad_enabled()
        return (network(x).argmax(1) == y).float().mean()  # a tensor will do

    assert evaluate_quietly(evaluate, model) > 0.9
    return model, list(x[:400].split(100)), evaluate


def evaluate_quietly(evaluate, model):
    with torch.no_grad():
        return float(evaluate(model.eval()))


@pytest.mark.parametrize("criterion", [None, MeanStd, Magnitude, MeanStd(k=50.0), Magnitude(0.1)])
@pytest.mark.parametrize("drop", [0.0, 0.01, 0.1])
def test_the_budget_is_kept_and_used(task, criterion, drop):
    model, batches, evaluate = task
    calls = []

    def counted(network):
        calls.append(network)
        return evaluate(network)

    thin = prune_activations(model, batches, criterion, max_accuracy_drop=drop, evaluate=counted, progress=False)
    before, after = evaluate_quietly(evaluate, model), evaluate_quietly(evaluate, thin)
    assert before - after <= drop + 1e-9
    report = thin.report
    assert (report.baseline, report.accuracy) == (before, after)
    assert len(calls) <= 7 * 2 + 15
    assert calls[0] is not model  # a copy of it: a forward may write into its model
    assert all(torch.equal(a, b) for a, b in zip(calls[0].parameters(), model.parameters(), strict=True))
    assert calls[-1] is thin
    assert report["act2"]["sparsity"] >= 0.95  # it costs nothing
    assert report.sparsity > report.total["zeros_before"] + 0.1
    assert (report["act1"]["k"] is None) == (criterion is Magnitude or isinstance(criterion, Magnitude))
    assert any(f"{len(calls)} evaluations" in note for note in report.notes)


def test_a_larger_budget_gives_more_zeros(task):
    model, batches, evaluate = task
    found = [
        prune_activations(model, batches, max_accuracy_drop=drop, evaluate=evaluate, progress=False).report.sparsity
        for drop in (0.0, 0.02, 0.2)
    ]
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize("granularity", ["channel", "layer", "scalar"])
@pytest.mark.parametrize("over", ["all", "positive"])
def test_every_granularity_searches(task, over, granularity):
    model, batches, evaluate = task
    for family in (MeanStd, Magnitude):
        thin = prune_activations(
            model, batches, family, over=over, granularity=granularity, max_accuracy_drop=0.02, evaluate=evaluate,
            progress=False,
        )  # fmt: skip
        thetas = [m.theta for m in (thin.act1, thin.act2)]
        assert evaluate_quietly(evaluate, model) - evaluate_quietly(evaluate, thin) <= 0.02 + 1e-9
        assert thin.report.sparsity > thin.report.total["zeros_before"]
        distinct = {"channel": 32, "layer": 1, "scalar": 1}[granularity]
        assert all(len(t.unique()) <= distinct for t in thetas)
        assert list(thin.report.sensitivity.layers) == (["all layers"] if granularity == "scalar" else ["act1", "act2"])


def test_steps_are_kept_and_logged(task, caplog, tmp_path):
    model, batches, evaluate = task
    with caplog.at_level(logging.INFO, logger="secateur"):
        thin = prune_activations(model, batches, max_accuracy_drop=0.02, evaluate=evaluate, progress=False)
    report = thin.report
    assert {"step", "zeros", "accuracy", "drop", "kept"} == set(report.steps[0])
    assert all(step["kept"] == (step["drop"] <= 0.02 + 1e-9) for step in report.steps)
    assert report.steps[-1]["step"] == "the result"
    tried = len(report.sensitivity.rows) - 2  # less the two at their own zeros
    assert len([r for r in caplog.records if r.name == "secateur"]) == 1 + tried + len(report.steps)
    assert isinstance(report.sensitivity, SensitivityReport)
    assert set(report.sensitivity.chosen) == {"act1", "act2"}
    for name in ("act1", "act2"):
        assert report.sensitivity.chosen[name] == pytest.approx(report[name]["sparsity"], abs=1e-9)
    json.dumps(report.to_dict())
    assert "k" in str(report).splitlines()[1].split()
    pytest.importorskip("matplotlib")
    for kind in ("png", "svg"):
        report.sensitivity.picture(tmp_path / f"s.{kind}")
        assert (tmp_path / f"s.{kind}").stat().st_size > 3000
    assert ">act1<" in (tmp_path / "s.svg").read_text()


def test_sensitivity_is_that_of_one_layer_alone(task):
    model, batches, evaluate = task
    report = activation_sensitivity(model, batches, evaluate, levels=(0.5, 0.9, 0.7, 1.0), progress=False)
    assert report.baseline == evaluate_quietly(evaluate, model)
    for name, rows in report.layers.items():
        assert rows[0]["drop"] == 0
        assert [row["zeros"] for row in rows[1:]] == [
            pytest.approx(level, abs=0.01) for level in (0.5, 0.7, 0.9, 1.0) if level > rows[0]["zeros"]
        ]
        for row in rows[1:]:
            others = [other for other in ("act1", "act2") if other != name]
            alone = prune_activations(
                model, batches, MeanStd(sparsity=round(row["zeros"], 2)), exclude=others, progress=False
            )
            assert row["accuracy"] == pytest.approx(evaluate_quietly(evaluate, alone), abs=2e-3)
    assert report.layers["act1"][-1]["drop"] > 0.3
    assert abs(report.layers["act2"][-1]["drop"]) < 0.02
    assert "drop (points)" in str(report)


def test_levels_start_from_what_each_relu_leaves(task):
    model, batches, evaluate = task
    report = activation_sensitivity(model, batches, evaluate, Magnitude, progress=False)
    for rows in report.layers.values():
        own = rows[0]["zeros"]
        wanted = [own + share * (1 - own) for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)]
        assert [row["zeros"] for row in rows] == [pytest.approx(level, abs=0.005) for level in wanted]


def test_what_cannot_be_calibrated_is_said(task):
    class Spare(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.spare = inner, nn.ReLU()

        def forward(self, x):
            return self.inner(x)

    model, batches, evaluate = task
    with pytest.warns(UserWarning, match="activation_sensitivity: 'spare' never ran"):
        report = activation_sensitivity(Spare(model), batches, evaluate, levels=[0.9], progress=False)
    assert any("never ran" in note for note in report.notes)
    assert list(report.layers) == ["inner.act1", "inner.act2"]
    with pytest.warns(UserWarning, match="prune_activations: '1' is called with different numbers of channels"):
        thin = prune_activations(Grows(), batches, max_accuracy_drop=0.1, evaluate=accurate, progress=False)
    assert len(thin.report.rows) == 0


class Grows(nn.Sequential):
    """One ReLU for several widths, in a forward that tracing can't follow: nothing is left to search."""

    def __init__(self):
        super().__init__(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        x = self[1](self[0](x))
        return self[1](self[2](x)) if float(x.sum()) > -1 else x


def test_the_given_model_and_its_mode_are_left_alone(task):
    model, batches, evaluate = task
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    model.head.eval()
    thin = prune_activations(model, batches, max_accuracy_drop=0.02, evaluate=evaluate, progress=False)
    assert (model.training, model.head.training, thin.training, thin.head.training) == (True, False, True, False)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    model.eval()


def test_the_drop_is_against_the_model_with_its_thresholds(task):
    """A network that was tuned with thresholds may be worse without: then there is nothing to search from."""
    model, batches, _ = task
    tuned = prune_activations(model, batches, MeanStd(k=0.0), progress=False)

    def likes_thresholds(network):
        return 0.9 if bool((network.act1.theta > 0).any()) else 0.5

    with pytest.raises(
        Error, match=r"max_accuracy_drop must leave room .* is 0\.4000 below the given model's, got 0\.1"
    ):
        prune_activations(tuned, batches, max_accuracy_drop=0.1, evaluate=likes_thresholds, progress=False)


def test_a_measure_that_varies_is_judged_once_more_at_the_end(task):
    model, batches, _ = task
    calls = 0
    low: set[int] = set()  # which calls get a bad answer

    def fickle(network):
        nonlocal calls
        calls += 1
        return 0.5 if calls in low else 0.9

    def run():
        nonlocal calls
        calls = 0
        return prune_activations(model, batches, max_accuracy_drop=0.01, evaluate=fickle, progress=False)

    run()
    last = calls
    low = {last}
    steps = run().report.steps
    assert [step["step"] for step in steps[-2:]] == ["the result", "the result, 0.75 of the way"]
    assert [step["kept"] for step in steps[-2:]] == [False, True]
    low = set(range(last, last + 4))
    with pytest.raises(Error, match="evaluate must give the same for the same network"):
        run()


def accurate(network):
    return 0.9


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_accuracy_drop": 0.1}, "evaluate must be given with max_accuracy_drop, got None"),
        ({"evaluate": accurate}, "max_accuracy_drop must be given with evaluate, got None"),
        ({"max_accuracy_drop": 0.1, "evaluate": 3}, "evaluate must be a function of the model, got int"),
        (
            {"max_accuracy_drop": -0.1, "evaluate": accurate},
            r"max_accuracy_drop must be a number from 0 to 1 .* got -0\.1",
        ),
        ({"max_accuracy_drop": 1, "evaluate": accurate}, "max_accuracy_drop must be a number from 0 to 1 .* got 1"),
        ({"max_accuracy_drop": float("nan"), "evaluate": accurate}, "max_accuracy_drop must be a number .* got nan"),
        ({"max_accuracy_drop": "1", "evaluate": accurate}, "max_accuracy_drop must be a number .* got '1'"),
        (
            {"criterion": 3, "max_accuracy_drop": 0.1, "evaluate": accurate},
            "criterion must be MeanStd or Magnitude, got 3",
        ),
        (
            {"max_accuracy_drop": 0.1, "evaluate": lambda m: None},
            "evaluate must return an accuracy from 0 to 1, got None",
        ),
        ({"max_accuracy_drop": 0.1, "evaluate": lambda m: 98.0}, r"evaluate must return an accuracy .* got 98\.0"),
        ({"max_accuracy_drop": 0.1, "evaluate": lambda m: float("nan")}, "evaluate must return an accuracy .* got nan"),
    ],
)
def test_refuses(task, options, match):
    model, batches, _ = task
    with pytest.raises(Error, match="prune_activations: " + match):
        prune_activations(model, batches, progress=False, **options)


@pytest.mark.parametrize("levels", [(), (0.0,), (1.5,), 0.5, ("a",)])
def test_refuses_levels(task, levels):
    model, batches, evaluate = task
    with pytest.raises(Error, match="activation_sensitivity: levels must be numbers above 0, up to 1"):
        activation_sensitivity(model, batches, evaluate, levels=levels, progress=False)
    with pytest.raises(Error, match="activation_sensitivity: batches must hold at least one batch"):
        activation_sensitivity(model, [], evaluate, progress=False)


def test_a_picture_needs_matplotlib_and_a_kind(tmp_path, monkeypatch):
    row = {"layer": "a", "zeros": 0.5, "accuracy": 0.9, "drop": 0.0}
    report = SensitivityReport("t", [row], 0.9, [])
    with pytest.raises(Error, match=r"picture: path must end in \.png, \.svg, \.pdf, got .*bmp"):
        report.picture(tmp_path / "x.bmp")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Error, match="matplotlib, which is not installed: pip install matplotlib"):
        report.picture(tmp_path / "x.svg")


def test_a_curve_sells_what_is_cheap_first():
    points = [(0.4, 0.0), (0.6, -0.01), (0.8, 0.02), (0.9, 0.01), (0.95, 0.06)]
    curve = Curve([{"zeros": zeros, "drop": drop} for zeros, drop in points])
    assert curve.cost(0.7) == pytest.approx(0.01)  # the gain at 0.6 is no credit
    assert curve.cost(0.9) == pytest.approx(0.02)  # and what looks like one at 0.9 costs what 0.8 does
    assert curve.cost(0.925) == pytest.approx(0.04)
    assert curve.cost(0.96) == float("inf")
    assert curve.segments(0.0) == [(0.0, 0.4, 0.6)]
    whole = curve.segments(1.0)
    assert [(low, high) for _, low, high in whole] == [(0.4, 0.6), (0.6, 0.9), (0.9, 0.95)]
    assert [slope for slope, _, _ in whole] == [pytest.approx(s) for s in (0.0, 0.02 / 0.3, 0.04 / 0.05)]
    assert curve.segments(0.04)[-1][2] == pytest.approx(0.925)  # up to what is allowed


def test_the_path_starts_with_what_is_free_and_goes_by_price():
    def curve(*points):
        return Curve([{"zeros": zeros, "drop": drop} for zeros, drop in points])

    curves = {"small": curve((0.5, 0.0), (0.6, 0.01)), "large": curve((0.2, 0.0), (0.4, 0.0), (0.8, 0.02))}
    path = _Path(curves, {"small": 10, "large": 1000}, 0.02)
    assert path.length == 3
    wanted = {
        0: (0.5, 0.2),
        0.5: (0.5, 0.3),
        1: (0.5, 0.4),
        1.5: (0.5, 0.6),
        2: (0.5, 0.8),
        2.5: (0.55, 0.8),
        3: (0.6, 0.8),
    }
    for place, (small, large) in wanted.items():
        assert path.at(place) == {"small": pytest.approx(small), "large": pytest.approx(large)}


def test_progress_is_shown_when_asked(task, capsys):
    model, batches, evaluate = task
    prune_activations(model, batches, max_accuracy_drop=0.02, evaluate=evaluate)
    shown = capsys.readouterr().err
    assert "thresholds" in shown
    prune_activations(model, batches, max_accuracy_drop=0.02, evaluate=evaluate, progress=False)
    assert capsys.readouterr().err == ""
