"""Weights or neurons at random: the baseline."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..._base.checks import checked_choice, checked_number
from ..._base.errors import Error
from .base import TIES_MISS, Criterion, decisions
from .patterns import ANYWHERE, Pattern
from .ranking import Chosen, Field
from .runs import counted_under
from .view import Decision, WeightView


@dataclass(frozen=True, repr=False)
class Random(Criterion):
    """Drop weights, or whole neurons, at random: the baseline that every other rule must beat.

    Args:
        sparsity: zeros to reach, as a share (0 to 1) of the layer's weights.
        unit: ``"element"`` draws single weights (or blocks, under a block pattern; for each run, under "N:M"),
            ``"neuron"`` whole output units.
        seed: makes the draw repeatable, layer by layer (a layer's draw does not depend on the other layers). None draws
            from torch's global generator. Processes that must prune alike need a seed.
    """

    sparsity: float
    unit: Literal["element", "neuron"] = "element"
    seed: int | None = None

    why_missed: ClassVar[str] = TIES_MISS

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", checked_number("Random", "sparsity", self.sparsity, 0, 1))
        checked_choice("Random", "unit", self.unit, ("element", "neuron"))
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise Error(f"Random: seed must be an int or None, got {self.seed!r}")

    def __repr__(self) -> str:
        unit = f", unit={self.unit!r}" if self.unit != "element" else ""
        return f"Random(sparsity={self.sparsity:g}{unit}{'' if self.seed is None else f', seed={self.seed}'})"

    def pattern_for(self, pattern: Pattern) -> Pattern:
        if self.unit == "neuron" and pattern not in (ANYWHERE, Pattern(0)):
            raise Error(f'prune: pattern must be "1x1" or "neuron" for {self!r}, which drops neurons, got "{pattern}"')
        return Pattern(0) if self.unit == "neuron" else pattern

    def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
        fields = [view.blocks() for view in pool]
        chosen = []
        for view, field in zip(pool, fields, strict=True):
            (one,) = counted_under([view], [field], [self._scores(field, view.name)], self.sparsity)
            chosen.append(Chosen(one.keep))  # a draw's threshold means nothing
        return decisions(pool, chosen)

    def _scores(self, field: Field, name: str) -> Tensor:
        """Scores [R, B] drawn uniformly; with a seed they depend on it and on the layer's name alone."""
        generator = None
        if self.seed is not None:
            generator = torch.Generator()
            generator.manual_seed((self.seed * 0x9E3779B1 + zlib.crc32(name.encode())) % 2**63)
        return torch.rand(field.alive.shape, generator=generator, dtype=torch.float64).to(field.alive.device)
