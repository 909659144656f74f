"""The threshold mean - k * std, a neuron each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ... import ops
from ..._base.checks import checked_choice, checked_number
from ..._base.errors import Error
from .base import TIES_KEEP, TIES_MISS, ActivationGroup, Criterion, Written, decisions
from .patterns import SemiStructured
from .ranking import Chosen, Field, lowest, picked, put_back, statistics
from .runs import in_runs
from .view import Decision, WeightView


@dataclass(frozen=True, repr=False)
class MeanStd(Criterion):
    """Per neuron j: drop what lies below theta_j = mean(|w_j|) - k * std(|w_j|) (biased std).

    Give k, or the share of zeros to reach: then k is solved for each layer from its own weights, as the quantile of
    (|w| - mean_j) / std_j. For Gaussian weights k = 1 drops 15.5 %, 0 drops 57.5 %, -1 drops 83.9 %, -2 drops 95.5 %,
    and from 1.33 up nothing at all, so k may be negative. A neuron whose std is 0 keeps all its weights. Under "N:M",
    which takes ``sparsity`` alone, there is no k: (|w| - mean_j) / std_j ranks the weights of each run.

    Args:
        k: how many standard deviations below the mean the threshold lies; either sign.
        sparsity: zeros to reach, as a share (0 to 1) of all the layer's weights, those that are zero already included.
        of: ``"abs"`` takes mean and std of |w|, ``"signed"`` of w itself (the literal reading; what is compared is
            |w| all the same).

    Raises:
        Error: neither or both of k and sparsity; a number out of range.
    """

    k: float | None = None
    _: KW_ONLY
    sparsity: float | None = None
    of: Literal["abs", "signed"] = "abs"

    why_missed: ClassVar[str] = TIES_MISS
    activation_granularity: ClassVar[Literal["channel", "layer"] | None] = "channel"
    activation_k: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if (self.k is None) == (self.sparsity is None):
            given = "neither" if self.k is None else f"k={self.k!r} and sparsity={self.sparsity!r}"
            raise Error(f"MeanStd: exactly one of k and sparsity must be given, got {given}")
        if self.k is not None:
            object.__setattr__(self, "k", checked_number("MeanStd", "k", self.k, -math.inf, math.inf))
        if self.sparsity is not None:
            object.__setattr__(self, "sparsity", checked_number("MeanStd", "sparsity", self.sparsity, 0, 1))
        checked_choice("MeanStd", "of", self.of, ("abs", "signed"))

    def __repr__(self) -> str:
        given = f"k={self.k:g}" if self.k is not None else f"sparsity={self.sparsity:g}"
        return f"MeanStd({given}{', of=' + repr(self.of) if self.of != 'abs' else ''})"

    @property
    def zeros_count_in(self) -> str:
        return "" if self.k is None else "its mean and std"

    @property
    def why_nothing(self) -> str:
        if self.k is None:
            return TIES_KEEP
        return "no weight lies below theta = mean - k * std (a lower k prunes more; sparsity= solves k for you)"

    def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
        return decisions(pool, [self._chosen(view) for view in pool])

    def _chosen(self, view: WeightView) -> Chosen:
        signed = self.of == "signed"
        if not isinstance(view.pattern, SemiStructured):
            return mean_std(view.blocks(signed=signed, precise=True), self)
        if self.sparsity is None:
            raise Error(f'prune: sparsity must be given for pattern "{view.pattern}", got {self!r}')
        field = view.blocks(signed=signed)
        # A run lies in one neuron, where z has the order of |w|. Runs compare on a schedule's way alone.
        z = None if view.pattern.reached_by(self.sparsity) else standardized(field)
        return in_runs(view, field, field.score, self.sparsity, across=z)

    def fused(self) -> Callable[[Tensor], Written] | None:
        k, signed = self.k, self.of == "signed"
        if k is None:
            return None
        return lambda weight: Written(*ops.statistics_threshold_(weight, k, signed), k)

    def activation_thresholds(self, group: ActivationGroup) -> tuple[dict[str, Tensor], float | None]:
        k = self.k if self.k is not None else group.solve_k(float(self.sparsity or 0))
        return group.below_mean(k), k

    @classmethod
    def for_activation_zeros(cls, zeros: float, group: ActivationGroup) -> MeanStd:
        return cls(sparsity=zeros)


def standardized(field: Field) -> Tensor:
    """(score - mean) / std of its row, float64 [R, B]; 0 in rows of equal values."""
    mean, std = (each.unsqueeze(1) for each in statistics(field.sample, field.alive))
    return torch.where(std > 0, (field.score.to(torch.float64) - mean) / std, 0.0)


def mean_std(field: Field, rule: MeanStd) -> Chosen:
    """Apply a :class:`MeanStd` to one field; statistics over the blocks that are not pruned yet."""
    mean, std = statistics(field.sample, field.alive)
    varied = std > 0  # [R]: a row of equal values keeps all
    score = field.score.to(torch.float64)
    if rule.k is not None:
        theta = mean - rule.k * std
        drop = (score < theta.unsqueeze(1)) & varied.unsqueeze(1)
        return Chosen(field.alive & ~drop, theta, rule.k)
    assert rule.sparsity is not None
    need = round(rule.sparsity * field.total) - field.gone
    may_go = field.alive & varied.unsqueeze(1)  # [R, B]
    z = picked((score - mean.unsqueeze(1)).div_(std.unsqueeze(1)), may_go)  # [M]
    cost = None if field.cost is None else picked(field.cost, may_go)
    spare_one = rule.sparsity < 1 and z.numel() == int(field.alive.sum())
    drop, cut = lowest(z, cost, need, spare_one=spare_one, split_ties=False)
    keep = field.alive & ~put_back(drop, may_go)
    if cut is None:
        return Chosen(keep)
    return Chosen(keep, mean + cut * std, -cut)
