"""The outcome of pruning: one record a weight, and the warnings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .._base.checks import names_of
from .criteria.base import share_of
from .criteria.patterns import SemiStructured
from .targets import Target, by_criterion


@dataclass(frozen=True)
class Pruned:
    """One weight, after the pruning."""

    target: Target
    mask: Tensor  # packed
    zeros: int
    gone: int  # zeros before
    step: int  # how closely a share of zeros can be hit
    k: float | None
    notes: tuple[str, ...]

    @property
    def unchanged(self) -> bool:
        return self.zeros <= self.gone

    @property
    def total(self) -> int:
        return self.target.weight.value.numel()

    @property
    def why_nothing(self) -> str:
        """Why nothing went, where the share of zeros is not there already."""
        pattern = self.target.pattern
        if isinstance(pattern, SemiStructured):
            return f"no {pattern.run} input channels in a row hold more than {pattern.keep} weights at one tap"
        return self.target.criterion.why_nothing

    @property
    def why_missed(self) -> str:
        pattern = self.target.pattern
        if isinstance(pattern, SemiStructured):
            return f'"{pattern}" keeps {pattern.keep} of a shorter last run too, and zeros may have been there before'
        return self.target.criterion.why_missed

    @property
    def wanted(self) -> int:
        """Zeros that the criterion was to reach; 0 for one without ``sparsity``."""
        return round((share_of(self.target.criterion) or 0) * self.total)


def outcome(pruned: Sequence[Pruned]) -> list[str]:
    """The warnings about the result."""
    by_target = {id(one.target): one for one in pruned}

    def grouped(some: Iterable[Pruned]) -> list[list[Pruned]]:
        return [[by_target[id(target)] for target in group] for group in by_criterion(one.target for one in some)]

    said = []
    for group in grouped(one for one in pruned if one.unchanged and not one.target.pooled):
        for why_nothing in dict.fromkeys(one.why_nothing for one in group):  # patterns have reasons of their own
            idle = [one for one in group if one.why_nothing == why_nothing]
            criterion = idle[0].target.criterion
            reached = share_of(criterion) is not None and all(one.gone >= one.wanted for one in idle)
            why = "that many zeros are there already" if reached else why_nothing
            names = names_of([one.target.label for one in idle])
            said.append(f"{criterion!r} pruned nothing in {names}: {why}")
    said += [
        f"{pool[0].target.criterion!r} pruned nothing: that many zeros are there already"
        for pool in grouped(one for one in pruned if one.target.pooled)
        if all(one.unchanged for one in pool)
    ]
    empty = [one.target.label for one in pruned if one.zeros == one.total]
    if empty:
        said.append(f"no weight is left in {names_of(empty)}: emptied whole, its output is its bias alone")
    return said + _missed(pruned)


def _missed(pruned: Sequence[Pruned]) -> list[str]:
    """Layers whose share of zeros is further from the criterion's than it must be."""
    missed: dict[str, list[str]] = {}  # by the reason
    for one in pruned:
        criterion = one.target.criterion
        share = share_of(criterion)
        if share is None or one.target.pooled or one.unchanged or one.zeros == one.total:
            continue
        if abs(one.zeros - one.wanted) > one.step:
            text = f"{one.target.label} has {100 * one.zeros / one.total:.1f} %, not {100 * share:.1f} %"
            missed.setdefault(one.why_missed, []).append(text)
    return [f"{names_of(texts)}: {why}" for why, texts in missed.items()]
