"""The smallest weights, a layer each or over all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..._base.checks import checked_choice, checked_number
from .base import TIES_MISS, ActivationGroup, Criterion, decisions
from .runs import counted_under
from .view import Decision, WeightView


@dataclass(frozen=True, repr=False)
class Magnitude(Criterion):
    """Drop the smallest |w| until the share of zeros is reached, layer by layer or over all layers together.

    Args:
        sparsity: zeros to reach, as a share (0 to 1) of all weights, those that are zero already included.
        scope: ``"layer"`` reaches it in every layer, ``"global"`` over all layers with one common threshold.
    """

    sparsity: float
    scope: Literal["layer", "global"] = "layer"

    why_missed: ClassVar[str] = TIES_MISS
    activation_granularity: ClassVar[Literal["channel", "layer"] | None] = "layer"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", checked_number("Magnitude", "sparsity", self.sparsity, 0, 1))
        checked_choice("Magnitude", "scope", self.scope, ("layer", "global"))

    def __repr__(self) -> str:
        return f"Magnitude(sparsity={self.sparsity:g}{', scope=' + repr(self.scope) if self.scope != 'layer' else ''})"

    def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
        fields = [view.blocks() for view in pool]
        return decisions(pool, counted_under(pool, fields, [field.score for field in fields], self.sparsity))

    def activation_thresholds(self, group: ActivationGroup) -> tuple[dict[str, Tensor], float | None]:
        return group.lowest(self.sparsity), None

    @classmethod
    def for_activation_zeros(cls, zeros: float, group: ActivationGroup) -> Magnitude:
        return cls(min(max(group.share_of_counted(zeros), 0.0), 1.0))
