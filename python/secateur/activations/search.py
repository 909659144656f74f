"""Thresholds under an accuracy budget: each layer alone first, then all together.

The joint pass turns one number for all layers: the position on a path that starts at ReLU's own zeros. First all layers
rise together to the zeros that each has alone at no cost. Then layer after layer rises to the zeros that it has alone
for the whole budget, in the order of the accuracy that a zero costs. (A common drop for all layers in place of a common
price let a layer of 128 values eat the budget of one of 25,000.) Bisection finds how far along the path the budget
reaches. Single layers are then raised further, the cheapest first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from .._base.errors import Error
from .._base.evaluator import Evaluator, log
from ..pruning.criteria import Criterion
from ..report import Column, Report
from .sensitivity import STEPS, Curve, measure
from .sensitivity_report import SensitivityReport
from .threshold_sites import Placed
from .thresholds import Chosen, Group

#: Steps by which single layers are raised, one round each.
RAISES = (0.05, 0.02)
#: No layer is raised above this: it passes almost nothing on, and an accuracy that does not drop is not to be trusted.
TOP = 0.99
BISECTIONS = 8
#: accuracies are ratios of counts: 0.99 - 0.985 is 0.005 and a rounding error
ROUNDING = 1e-9


class SearchReport(Report):
    """The report of a search: ``sensitivity``, the ``steps`` of the joint pass (``step``, ``zeros``, ``accuracy``,
    ``drop``, ``kept``), the ``accuracy`` of the result and the ``baseline`` it is held against."""

    def __init__(self, plain: Report, columns: Sequence[Column], found: Found) -> None:
        super().__init__(plain.title, columns, plain.rows, [*plain.notes, found.summary], plain.total)
        self.sensitivity = found.sensitivity
        self.steps = found.steps
        self.accuracy = found.accuracy
        self.baseline = found.baseline

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
            "accuracy": self.accuracy,
            "baseline": self.baseline,
            "steps": [dict(step) for step in self.steps],
            "sensitivity": self.sensitivity.to_dict(),
        }


@dataclass
class Found:
    """The result of the search."""

    family: type[Criterion]
    chosen: dict[str, Chosen]
    sensitivity: SensitivityReport
    steps: list[dict[str, Any]]
    accuracy: float
    baseline: float
    allowed: float
    calls: int

    @property
    def summary(self) -> str:
        return (
            f"accuracy {100 * self.accuracy:.2f} % against {100 * self.baseline:.2f} %, as evaluate sees it: a drop of "
            f"{100 * (self.baseline - self.accuracy):.2f} points where {100 * self.allowed:g} were allowed; "
            f"{self.calls} evaluations"
        )

    def report(self, plain: Report) -> SearchReport:
        plain.title = f"activations: {self.family.__name__}, searched: accuracy may drop {100 * self.allowed:g} points"
        columns = list(plain.columns)
        if self.family.activation_k:
            columns.insert(4, Column("k", "k", "number"))
        return SearchReport(plain, columns, self)


class _Joint:
    """Evaluates the network at one share of zeros for each group."""

    def __init__(
        self,
        placed: Placed,
        parts: Mapping[str, Group],
        family: type[Criterion],
        judge: Evaluator,
        baseline: float,
        bar: Any,
    ) -> None:
        self.placed, self.parts, self.family, self.judge = placed, parts, family, judge
        self.baseline, self.bar = baseline, bar
        self.steps: list[dict[str, Any]] = []

    def chosen(self, levels: Mapping[str, float]) -> dict[str, Chosen]:
        found: dict[str, Chosen] = {}
        for name, part in self.parts.items():
            found.update(part.reach(self.family, levels[name]))
        return found

    def drop(self, levels: Mapping[str, float], step: str, allowed: float) -> float:
        thetas = {name: c.theta for name, c in self.chosen(levels).items()}
        self.placed.set(thetas)
        accuracy = self.judge(self.placed.model)
        drop = self.baseline - accuracy
        values = sum(part.total for part in self.parts.values())
        zeros = sum(part.zeros(thetas) for part in self.parts.values()) / max(values, 1)
        kept = drop <= allowed + ROUNDING
        self.steps.append({"step": step, "zeros": zeros, "accuracy": accuracy, "drop": drop, "kept": kept})
        log.info(
            "%s: zeros %.4f, accuracy %.4f, drop %+.4f, %s", step, zeros, accuracy, drop, "kept" if kept else "too much"
        )
        self.bar.set_postfix_str(f"{zeros:.1%} zeros: {accuracy:.4f}", refresh=False)
        self.bar.update()
        return drop


def search(
    original: nn.Module,
    placed: Placed,
    parts: Mapping[str, Group],
    family: type[Criterion],
    judge: Evaluator,
    allowed: float,
    progress: bool,
) -> Found:
    """The most zeros found whose accuracy is at most ``allowed`` below that of ``original``."""
    bound = 2 + len(parts) * (len(STEPS) + len(RAISES)) + 1 + BISECTIONS + 1
    with tqdm(total=bound, desc="thresholds", disable=not progress, leave=False) as bar:
        baseline = judge.of_given(original)
        plain = judge(placed.model)
        bar.update()
        log.info("accuracy of the given model %.4f, without thresholds %.4f", baseline, plain)
        if baseline - plain > allowed + ROUNDING:
            raise Error(
                f"{judge.caller}: max_accuracy_drop must leave room for the network without thresholds, whose accuracy "
                f"is {baseline - plain:.4f} below the given model's, got {allowed:g}"
            )
        sensitivity = measure(placed, parts, family, judge, plain, None, bar, enough=allowed)
        joint = _Joint(placed, parts, family, judge, baseline, bar)
        curves = {name: Curve(rows) for name, rows in sensitivity.layers.items()}
        levels = _along_the_path(joint, curves, allowed)
        levels = _one_by_one(joint, curves, levels, allowed)
        chosen, levels = _verified(joint, levels, allowed)
    for name, part in parts.items():
        sensitivity.chosen[name] = part.zeros({layer: chosen[layer].theta for layer in part.sites}) / part.total
    accuracy = joint.steps[-1]["accuracy"]
    return Found(family, chosen, sensitivity, joint.steps, accuracy, baseline, allowed, judge.calls)


class _Path:
    """Levels for a number from 0 to ``length``: see the top of this file."""

    def __init__(self, curves: Mapping[str, Curve], values: Mapping[str, int], allowed: float) -> None:
        self.start = {name: curve.zeros[0] for name, curve in curves.items()}
        self.free: list[tuple[str, float]] = []  # (layer, to): zeros at no cost, all layers together
        self.priced: list[tuple[float, str, float, float]] = []  # (drop for each zero, layer, from, to), one by one
        for name, curve in curves.items():
            for slope, low, high in curve.segments(allowed):
                if slope <= 0:
                    self.free.append((name, high))
                else:
                    self.priced.append((slope / values[name], name, low, high))
        self.priced.sort()
        self.length = 1.0 + len(self.priced)

    def at(self, place: float) -> dict[str, float]:
        levels = dict(self.start)
        for name, high in self.free:
            levels[name] += min(place, 1.0) * (high - self.start[name])
        for number, (_, name, low, high) in enumerate(self.priced, 1):
            if place > number:
                levels[name] = low + min(place - number, 1.0) * (high - low)
        return levels


def _along_the_path(joint: _Joint, curves: Mapping[str, Curve], allowed: float) -> dict[str, float]:
    path = _Path(curves, {name: part.total for name, part in joint.parts.items()}, allowed)
    low, high = 0.0, path.length
    if joint.drop(path.at(high), "all layers, the end of the path", allowed) <= allowed + ROUNDING:
        return path.at(high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if joint.drop(path.at(middle), f"all layers, {middle / path.length:.3f}", allowed) <= allowed + ROUNDING:
            low = middle
        else:
            high = middle
    return path.at(low)


def _one_by_one(
    joint: _Joint, curves: Mapping[str, Curve], levels: dict[str, float], allowed: float
) -> dict[str, float]:
    """Raise single layers, the least cost for each zero gained first."""
    for by in RAISES:

        def price(name: str, by: float = by, levels: dict[str, float] = levels) -> tuple[float, float]:
            now, curve, values = levels[name], curves[name], joint.parts[name].total
            gain = (min(now + by, TOP) - now) * values
            # Ties (often layers that cost nothing on a small sample): the largest layer first.
            after = curve.cost(min(now + by, TOP))
            return (after - curve.cost(now)) / gain if math.isfinite(after) else math.inf, -gain

        for name in sorted((n for n in levels if levels[n] < TOP - 1e-6), key=price):
            raised = {**levels, name: min(levels[name] + by, TOP)}
            step = f"{name} from {100 * levels[name]:.1f} to {100 * raised[name]:.1f} %"
            if joint.drop(raised, step, allowed) <= allowed + ROUNDING:
                levels = raised
    return levels


def _verified(joint: _Joint, levels: dict[str, float], allowed: float) -> tuple[dict[str, Chosen], dict[str, float]]:
    """Evaluate the result once more, as it will be returned; go back if ``evaluate`` varies and it fails."""
    own = {name: part.own / part.total for name, part in joint.parts.items()}
    for back in (1.0, 0.75, 0.5, 0.0):
        tried = {name: own[name] + back * (level - own[name]) for name, level in levels.items()}
        step = "the result" if back == 1 else f"the result, {back:g} of the way"
        if joint.drop(tried, step, allowed) <= allowed + ROUNDING:
            return joint.chosen(tried), tried
    raise Error(
        f"{joint.judge.caller}: evaluate must give the same for the same network, it gave an accuracy that is "
        f"{joint.steps[-1]['drop']:.4f} below the given model's for the network without thresholds"
    )
