"""|w| times the norm of its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..._base.checks import checked_choice, checked_number
from .base import Criterion, decisions, drop_lowest
from .patterns import SemiStructured
from .ranking import Chosen
from .view import Decision, WeightView


@dataclass(frozen=True, repr=False)
class Wanda(Criterion):
    """Drop the lowest \\|w\\| * \\|x\\|: a weight counts by the norm of its input over the data, sqrt(sum of x^2).

    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024. The weights that stay do
    not change. Inputs are those of the network before it is pruned: one pass over the data.

    Args:
        sparsity: zeros to reach, as a share (0 to 1) of all weights, those that are zero already included.
        scope: ``"row"`` reaches it in every neuron, as in the paper; ``"layer"`` in every layer. Whole neurons
            (``pattern="neuron"``) are compared within their layer either way, and under ``"N:M"`` the weights of each
            run with one another.

    Raises:
        Error: a number out of range; in ``prune``: no ``data``, or none that reaches the layer.
    """

    sparsity: float
    scope: Literal["row", "layer"] = "row"

    needs = "norms"
    why_missed: ClassVar[str] = "blocks go whole, zeros that were there stay, and each row keeps a weight"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", checked_number("Wanda", "sparsity", self.sparsity, 0, 1))
        checked_choice("Wanda", "scope", self.scope, ("row", "layer"))

    def __repr__(self) -> str:
        return f"Wanda(sparsity={self.sparsity:g}{', scope=' + repr(self.scope) if self.scope != 'row' else ''})"

    def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
        scores = [view.weight.abs() * view.norms for view in pool]
        pattern = pool[0].pattern
        in_runs = isinstance(pattern, SemiStructured) and pattern.reached_by(self.sparsity)  # on the way rows count
        if self.scope == "layer" or pattern.block == 0 or in_runs:
            return drop_lowest(pool, scores, self.sparsity)
        return [self._by_row(view, score) for view, score in zip(pool, scores, strict=True)]

    def _by_row(self, view: WeightView, score: Tensor) -> Decision:
        """Each row's lowest blocks until its zeros come nearest to the share; equal scores go in order."""
        field = view.blocks(score)  # [J, B]
        J, B = field.score.shape
        cost = field.alive.to(torch.int64) if field.cost is None else field.cost
        width = view.total // J
        may = field.alive
        if isinstance(view.pattern, SemiStructured):  # the best of each run may not
            may = view.pattern.spare(score, view.alive).reshape(J, B)
        place = field.score.masked_fill(~may, torch.inf).argsort(dim=1, stable=True)
        reached = torch.cat([cost.new_zeros(J, 1), cost.gather(1, place).cumsum(1)], 1)  # [J, B + 1]
        need = (round(self.sparsity * width) - (width - cost.sum(1, keepdim=True))).clamp(min=0)
        error = (reached - need).abs()
        many = error.argmin(1, keepdim=True)  # of blocks that go
        most = may.sum(1, keepdim=True)
        if self.sparsity < 1:
            most = torch.minimum(most, (field.alive.sum(1, keepdim=True) - 1).clamp(min=0))
        many = torch.minimum(many, most)
        drop = torch.zeros_like(field.alive).scatter_(1, place, torch.arange(B, device=place.device) < many)
        return decisions([view], [Chosen(field.alive & ~drop)])[0]
