"""A criterion's input for each weight, and its answer.

Every tensor is in the neurons' shape [J, C, T], whatever the layer: J neurons (output channels), C input channels of
one neuron (within its group), T kernel taps (1 for a Linear).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..._base.errors import Error
from ...masks.layout import Layout
from .patterns import Pattern
from .ranking import Field


@dataclass(frozen=True)
class Inputs:
    """Sums over every position at which a layer was applied, in float64.

    The F = C * T inputs of a neuron stand in the order of its weights. Neuron j reads the inputs of group
    j // (J / G); a layer without groups has G = 1.
    """

    count: int  # positions: samples, times the output's pixels in a convolution
    sum: Tensor  # [G, F]
    squares: Tensor  # [G, F]
    gram: Tensor | None = None  # [G, F, F]: sums of x x^T; only for needs = "gram" or "hessian"
    #: Only for needs = "hessian": x is what the pruned network gives, d what the layer saw in the network as it was.
    other: Tensor | None = None  # [G, F]: sums of d
    cross: Tensor | None = None  # [G, F, F]: sums of d x^T
    free_mean: bool = False  # the mean of the layer's output does not matter: its bias, or a BatchNorm, makes up for it
    parts: int = (
        1  # a layer too wide for one Gram matrix: of so many parts of its inputs, which stand as [parts, F / parts]
    )

    @property
    def norms(self) -> Tensor:
        """[G, F]: the L2 norm of each input over all positions."""
        return self.squares.sqrt()

    def rows(self, values: Tensor) -> Tensor:
        """A value a weight [J, C, T] as [G, J / G, F]; [parts, J, F / parts] where there are parts."""
        n, F = self.sum.shape
        if self.parts > 1:
            return values.reshape(values.shape[0], n, F).transpose(0, 1)
        return values.reshape(n, -1, F)

    def neurons(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of :meth:`rows`."""
        return (rows.transpose(0, 1) if self.parts > 1 else rows).reshape(shape)


@dataclass(frozen=True)
class Decision:
    """A criterion's answer for one weight.

    Attributes:
        keep: bool [J, C, T], which weights stay.
        weight: float [J, C, T], new values of the weights that stay, 0 elsewhere. None: they stay as they are.
        bias: float [J], the layer's new bias. None: it stays as it is.
        theta: the threshold or thresholds, any shape, for the report.
        k: the number of standard deviations below the mean that gave theta, for the report.
    """

    keep: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    theta: Tensor | float | None = None
    k: float | None = None


class WeightView:
    """What a criterion sees of one weight. Tensors are copies or read-only: nothing here writes the model."""

    def __init__(
        self,
        name: str,
        stored: Tensor,
        alive: Tensor | None,
        layout: Layout,
        pattern: Pattern,
        bias: Tensor | None = None,
        inputs: Inputs | None = None,
        label: str = "",
    ) -> None:
        self.name = name  # the parameter's key in the model's state_dict
        self.label = label or name  # what the report calls it
        self.pattern = pattern
        self.inputs = inputs  # what the criterion's ``needs`` asked for
        self.total = stored.numel()
        self._stored, self._bias, self._layout = stored.detach(), bias, layout
        self._alive = None if alive is None else layout.neurons(alive)  # [J, C, T] bool; None: every weight lives

    @property
    def weight(self) -> Tensor:
        """A copy of the weights [J, C, T], in float32 or float64; pruned ones are 0."""
        wide = torch.float64 if self._stored.dtype == torch.float64 else torch.float32
        weight = self._neurons.to(wide, copy=True)
        return weight if self._alive is None else weight.masked_fill_(~self._alive, 0.0)

    @property
    def bias(self) -> Tensor | None:
        """A copy of the layer's bias [J]; None where there is none that a decision could replace."""
        return None if self._bias is None else self._bias.detach().clone()

    @property
    def shape(self) -> torch.Size:
        return self._neurons.shape

    @cached_property
    def alive(self) -> Tensor:
        """Bool [J, C, T]: the weights that nothing has pruned yet."""
        if self._alive is not None:
            return self._alive
        return torch.ones(self.shape, dtype=torch.bool, device=self._stored.device)

    @cached_property
    def gone(self) -> int:
        """How many weights are pruned already."""
        return 0 if self._alive is None else self.total - int(self._alive.sum())

    @property
    def norms(self) -> Tensor:
        """The norm of the input of each weight [J, C, T], float64 (a view that repeats the group's norms)."""
        if self.inputs is None:
            raise Error(
                f'prune: needs must be "norms" or "gram" where a criterion reads norms (of {self.label}), got None'
            )
        J, C, T = self.shape
        G = self.inputs.squares.shape[0]
        return self.inputs.norms.reshape(G, 1, C, T).expand(G, J // G, C, T).reshape(J, C, T)

    @cached_property
    def cost(self) -> Tensor | None:
        """Int64 [R, B]: weights that would go with each block; None for single weights."""
        return None if self.pattern.block == 1 else self.pattern.sums(self.alive.to(torch.int64))

    @property
    def largest(self) -> int:
        """The most weights that go with one block: how closely a share of zeros can be hit."""
        return 1 if self.cost is None or not self.cost.numel() else int(self.cost.max())

    def blocks(self, score: Tensor | None = None, *, signed: bool = False, precise: bool = False) -> Field:
        """Scores [J, C, T] as one score a block [R, B]: the mean over the block's weights.

        Args:
            score: of each weight; None takes |w|. signed: with |w|, the statistics are of w. precise: |w| in float64
                (for criteria that compute with it); else single weights stay in float32, where ranking is exact.
        """
        double = precise or self._stored.dtype == torch.float64 or self.pattern.block != 1
        w = self._neurons.to(torch.float64 if double else torch.float32) if score is None else score
        rank = w.abs() if score is None else w
        if self.pattern.block == 1:
            rank = rank.reshape(w.shape[0], -1)
            sample = w.reshape(w.shape[0], -1) if signed else rank
            return Field(rank, sample, self.alive.reshape(w.shape[0], -1), None, self.total, self.gone)
        size = self.pattern.sums(torch.ones_like(w))
        rank = self.pattern.sums(rank) / size
        sample = self.pattern.sums(w) / size if signed else rank
        assert self.cost is not None
        return Field(rank, sample, self.cost > 0, self.cost, self.total, self.gone)

    def weights(self, keep: Tensor) -> Tensor:
        """The inverse of :meth:`blocks` for a choice: bool [R, B] as bool [J, C, T]; what is pruned stays pruned."""
        whole = self.pattern.spread(keep, *self.shape)
        return whole if self._alive is None else whole & self._alive

    @property
    def _neurons(self) -> Tensor:
        return self._layout.neurons(self._stored)
