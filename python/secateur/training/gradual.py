"""Pruning little by little while fine-tuning goes on.

The cubic schedule is Zhu & Gupta's (2017, "To prune, or not to prune", arXiv:1710.01878): fast while many weights are
redundant, slower as fewer are left.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer

from .._base.checks import checked_number
from .._base.errors import Error
from ..masks.weights import Entry, check_entries
from ..pruning.criteria import Criterion, patterns
from ..pruning.criteria.base import share_of
from ..pruning.decide import check_data
from ..pruning.prune import check_optimizers, prune_quietly
from ..pruning.targets import Override, assign_criteria
from ..report import Report


@dataclass(frozen=True)
class CubicSchedule:
    """s(t) = final + (initial - final) * (1 - (t - begin) / (end - begin))^3 between ``begin`` and ``end``.

    Args:
        final: share of zeros at ``end`` and after. initial: the share at ``begin``.
        begin: the first step that prunes. end: the step that reaches ``final``.
        every: steps between one pruning and the next; ``end`` itself always prunes.
    """

    final: float
    initial: float = 0.0
    _: KW_ONLY
    begin: int = 0
    end: int
    every: int = 1

    def __post_init__(self) -> None:
        checked_number("CubicSchedule", "final", self.final, 0, 1)
        checked_number("CubicSchedule", "initial", self.initial, 0, 1)
        if self.initial > self.final:
            raise Error(f"CubicSchedule: initial must not be above final ({self.final}), got {self.initial}")
        _whole("begin", self.begin, 0)
        _whole("end", self.end, self.begin + 1)
        _whole("every", self.every, 1)

    def __call__(self, step: int) -> float:
        """The share of zeros at ``step``; 0 before ``begin``."""
        if step < self.begin:
            return 0.0
        return self.final + (self.initial - self.final) * (1 - self.progress(step)) ** 3

    def progress(self, step: int) -> float:
        """How far between begin and end, 0 to 1."""
        return min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)

    def due(self, step: int) -> bool:
        """Whether ``step`` prunes."""
        return step == self.end or (self.begin <= step < self.end and (step - self.begin) % self.every == 0)


def _whole(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise Error(f"CubicSchedule: {name} must be a whole number from {low} up, got {value!r}")


class GradualPruner:
    """Prunes on schedule inside a fine-tuning loop::

        schedule = CubicSchedule(final=0.9, end=1000, every=50)
        pruner = GradualPruner(model, MeanStd(sparsity=0.9), schedule, optimizer=optimizer)
        for batch in batches:
            ...
            optimizer.step()
            pruner.step()

    Args:
        model: pruned in place. criterion: one that has ``sparsity``, which must be the schedule's ``final``.
        schedule: the share of zeros at each step.
        pattern, exclude, include, overrides, optimizer, data, inputs: as in :func:`secateur.prune`. An override's own
            ``sparsity`` is reached along the same curve. ``data`` is gone through at each pruning. Under a pattern
            ``"N:M"`` the schedule ends at 1 - N/M; until then the share of each step is made of the lowest weights that
            are not among the best N of their run, so that every run keeps N, and has no more at the end.

    Raises:
        Error: a rule without ``sparsity=``, or with another one than the schedule's; :func:`secateur.prune`'s errors.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        schedule: CubicSchedule,
        *,
        pattern: str = "1x1",
        exclude: Iterable[Entry] | Entry = (),
        include: Iterable[Entry] | Entry = (),
        overrides: Mapping[Any, Override] | None = None,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        data: Iterable[Any] | None = None,
        inputs: int = 1,
    ) -> None:
        if not isinstance(schedule, CubicSchedule):
            raise Error(f"GradualPruner: schedule must be a CubicSchedule, got {schedule!r}")
        share = _share(criterion, "criterion")
        if share != schedule.final:
            raise Error(
                f"GradualPruner: criterion and schedule must end at one sparsity, got {share} and {schedule.final}"
            )
        patterns.parse(pattern, "GradualPruner")
        optimizers = check_optimizers(optimizer, "GradualPruner")
        excluded, included = check_entries(exclude, "exclude"), check_entries(include, "include")
        # prune's errors now, not steps later
        targets, _, _ = assign_criteria(model, criterion, pattern, excluded, included, overrides)
        check_data(targets, data)
        if isinstance(data, Iterator):
            raise Error(
                f"GradualPruner: data must be batches that can be gone through again, got {type(data).__name__}"
            )
        for override in dict(overrides or {}).values():
            for part in override if isinstance(override, tuple) else (override,):
                if part is not None and not isinstance(part, str):
                    _share(part, "a criterion in overrides")
        self.model, self.criterion, self.schedule = model, criterion, schedule
        self.optimizer = optimizer if isinstance(optimizer, Optimizer) else optimizers or None
        self.data, self.inputs = data, inputs
        self.report: Report | None = None  # of the latest pruning
        self.steps = 0
        self._how: dict[str, Any] = {
            "pattern": pattern,
            "exclude": excluded,
            "include": included,
        }
        self._overrides = dict(overrides or {})

    @property
    def done(self) -> bool:
        """Whether the last pruning is done."""
        return self.steps > self.schedule.end

    def step(self) -> Report | None:
        """Call once after each ``optimizer.step()``; prunes if it is time, and then returns the report.

        Only the first and the last pruning warn: in between layers may well have nothing to prune.
        """
        now = self.steps
        share = self.schedule(now)
        if not self.schedule.due(now) or share <= 0:
            self.steps += 1
            return None
        overrides = {entry: self._scaled(override, now) for entry, override in self._overrides.items()}
        rule = _raised(self.criterion, share)
        how = (self._how["pattern"], self._how["exclude"], self._how["include"], overrides)
        first = self.report is None
        partly = now < self.schedule.end
        self.report, said = prune_quietly(self.model, rule, *how, self.optimizer, self.data, self.inputs, partly=partly)
        self.steps += 1  # now, so that a pruning that was interrupted is made up for by the next step
        if first or now == self.schedule.end:
            for text in said:
                if now == self.schedule.end or "pruned nothing" not in text:
                    warnings.warn(f"GradualPruner: {text}", UserWarning, stacklevel=2)
        return self.report

    def _scaled(self, override: Override, now: int) -> Override:
        if override is None or isinstance(override, str):
            return override
        rule, pattern = override if isinstance(override, tuple) else (override, None)
        final = _share(rule, "a criterion in overrides")
        start = min(self.schedule.initial, final)
        share = final + (start - final) * (1 - self.schedule.progress(now)) ** 3
        scaled = _raised(rule, share)
        return scaled if pattern is None else (scaled, pattern)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the number of steps (the masks are in the model's own state_dict)."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        steps = state.get("steps")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise Error(f"GradualPruner: the state's steps must be a whole number from 0 up, got {steps!r}")
        self.steps = steps


def _share(rule: Any, argument: str) -> float:
    share = share_of(rule) if isinstance(rule, Criterion) else None
    if share is None:
        raise Error(f"GradualPruner: {argument} must be a rule with sparsity= (a schedule raises it), got {rule!r}")
    return share


def _raised(rule: Criterion, share: float) -> Criterion:
    raised = rule.with_sparsity(share)
    if not isinstance(raised, Criterion) or share_of(raised) != share:
        raise Error(
            f"GradualPruner: with_sparsity({share:g}) of {rule!r} must give a criterion with it, got {raised!r}"
        )
    return raised
