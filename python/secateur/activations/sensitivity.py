"""How much accuracy each layer's zeros cost: every other layer a plain ReLU, this one at rising shares of zeros."""

from __future__ import annotations

import bisect
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from .._base.errors import Error
from .._base.evaluator import Evaluator, log
from ..pruning.criteria import Criterion
from .sensitivity_report import SensitivityReport
from .threshold_sites import Placed, place
from .thresholds import Granularity, Group, Over, checked, family_of, groups

#: Levels tried beside a layer's own zeros: shares of the values that its ReLU leaves. Of two networks that we
#: tried, one gave 95 % zeros in a layer for nothing, and the other did not stand 60 % in any.
STEPS = (0.1, 0.3, 0.5, 0.7, 0.9)


def activation_sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    evaluate: Callable[[nn.Module], Any],
    criterion: Criterion | type[Criterion] | None = None,
    *,
    levels: Sequence[float] | None = None,
    over: Over = "all",
    granularity: Granularity | None = None,
    exclude: Sequence[str] = (),
    progress: bool = True,
) -> SensitivityReport:
    """What each layer's thresholds alone cost in accuracy, at rising shares of zeros; the model is left as it is.

    ``evaluate`` is called once for the network without thresholds and at most once for each layer and level.

    Args:
        model, batches, over, granularity, exclude, progress: as for :func:`secateur.prune_activations`. Under
            ``granularity="scalar"`` there is one line, for all layers together.
        evaluate: given a model in evaluation mode, returns its accuracy, 0 to 1.
        criterion: how thresholds are made: ``MeanStd`` (the default) or ``Magnitude``; its numbers are not used.
        levels: shares of zeros to try, above 0 and up to 1; those that a layer's ReLU makes by itself are left out.
            None: its own zeros and 10, 30, 50, 70, 90 % of the values that it leaves.

    Returns:
        The report; ``.picture("sensitivity.svg")`` draws it.

    Raises:
        Error: as for :func:`secateur.prune_activations`; levels that are no numbers in (0, 1].
    """
    caller = "activation_sensitivity"
    family = family_of(caller, criterion)
    steps = None if levels is None else _checked_levels(caller, levels)
    judge = Evaluator(caller, evaluate)
    over, shared = checked(caller, criterion, over, granularity)
    placed = place(model, batches, exclude, progress, caller)
    parts = groups(placed.sites, over, shared)
    bound = 1 + len(parts) * len(steps or STEPS)
    with tqdm(total=bound, desc="sensitivity", disable=not progress, leave=False) as bar:
        report = measure(placed, parts, family, judge, judge(placed.model), steps, bar)
    report.notes += placed.to_warn
    for text in placed.to_warn:
        warnings.warn(f"{caller}: {text}", UserWarning, stacklevel=2)
    return report


def _checked_levels(caller: str, levels: Any) -> list[float]:
    try:
        steps = sorted({float(level) for level in levels})
    except (TypeError, ValueError) as reason:
        raise Error(f"{caller}: levels must be numbers above 0, up to 1, got {levels!r}") from reason
    if not steps or not all(0 < level <= 1 for level in steps):
        raise Error(f"{caller}: levels must be numbers above 0, up to 1, got {levels!r}")
    return steps


def measure(
    placed: Placed,
    parts: Mapping[str, Group],
    family: type[Criterion],
    judge: Evaluator,
    baseline: float,
    levels: Sequence[float] | None,
    bar: Any,
    enough: float = 1.0,
) -> SensitivityReport:
    """Each group alone at rising levels, until it costs more than ``enough``. Leaves every threshold at 0."""
    rows: list[dict[str, Any]] = []
    bar.update()
    for name, part in parts.items():
        own = part.own / part.total
        rows.append({"layer": name, "zeros": own, "accuracy": baseline, "drop": 0.0})
        tried = [own + step * (1 - own) for step in STEPS] if levels is None else levels
        higher = [level for level in tried if level > own]
        bar.update(len(tried) - len(higher))
        for number, level in enumerate(higher, 1):
            chosen = {layer: c.theta for layer, c in part.reach(family, level).items()}
            placed.set(chosen)
            accuracy = judge(placed.model)
            zeros = part.zeros(chosen) / part.total
            rows.append({"layer": name, "zeros": zeros, "accuracy": accuracy, "drop": baseline - accuracy})
            log.info(
                "sensitivity of %s: zeros %.3f, accuracy %.4f, drop %+.4f", name, zeros, accuracy, baseline - accuracy
            )
            bar.set_postfix_str(f"{name} {zeros:.0%}: {accuracy:.4f}", refresh=False)
            bar.update()
            if baseline - accuracy > enough:
                bar.update(len(higher) - number)
                break
        placed.zero()
    notes = (
        [] if enough >= 1 else [f"a layer is tried no further once it alone costs more than {100 * enough:g} points"]
    )
    return SensitivityReport(f"sensitivity of activations: {family.__name__}", rows, baseline, notes)


class Curve:
    """One layer's cost as a function of its zeros: measured drops, made non-decreasing, joined by straight lines."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.zeros: list[float] = []
        self.drops: list[float] = []
        for row in rows:
            # A gain is noise: it must not lower the cost of the levels above it.
            self.zeros.append(max([row["zeros"], *self.zeros[-1:]]))
            self.drops.append(max([row["drop"], *self.drops[-1:]]))

    def segments(self, allowed: float) -> list[tuple[float, float, float]]:
        """(drop for each share of zeros, from, to): the lower convex hull up to the drop that is allowed, so that what
        is cheap comes first."""
        points = [(z, d) for z, d in zip(self.zeros, self.drops, strict=True) if d <= allowed]
        over = len(points)
        if over < len(self.zeros):
            low, high = self.drops[over - 1], self.drops[over]
            share = (allowed - low) / (high - low)
            points.append((self.zeros[over - 1] + share * (self.zeros[over] - self.zeros[over - 1]), allowed))
        hull: list[tuple[float, float]] = []
        for z, d in points:
            if hull and z <= hull[-1][0]:
                continue
            while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], (z, d)):
                hull.pop()
            hull.append((z, d))
        return [(_slope(a, b), a[0], b[0]) for a, b in itertools.pairwise(hull)]

    def cost(self, zeros: float) -> float:
        """The drop at ``zeros``; infinite where nothing was measured."""
        above = bisect.bisect_left(self.zeros, zeros)
        if above == len(self.zeros):
            return float("inf")
        if above == 0:
            return self.drops[0]
        low, high = self.zeros[above - 1], self.zeros[above]
        share = (zeros - low) / (high - low)
        return self.drops[above - 1] + share * (self.drops[above] - self.drops[above - 1])


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
