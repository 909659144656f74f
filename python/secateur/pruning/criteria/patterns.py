"""Where zeros may lie: single weights ("1x1"), blocks along the input channels ("1xN"), whole neurons ("neuron"), and
single weights of which so many may stay in a run of input channels ("N:M").

A pattern groups the weights of a layer into blocks that go or stay together. Criteria rank blocks and never count
channels themselves. Glossary: J neurons (output units), C input channels of one neuron (within its group), T kernel
taps, R rows of B blocks, N the block's length, P = ceil(C / N) blocks along the channels. A run of "N:M" is M
consecutive input channels at one tap.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._base.errors import Error


@dataclass(frozen=True)
class Pattern:
    """``block``: how many consecutive input channels go together; 0 for whole neurons."""

    block: int

    def __str__(self) -> str:
        return f"1x{self.block}" if self.block else "neuron"

    def broken(self, kept: Tensor) -> Tensor:
        """Which blocks break the pattern where ``kept`` (bool [J, C, T]) are the weights left: bool [R, B]."""
        left = self.sums(kept.to(torch.int8))
        return (left > 0) & (left < self.sums(torch.ones_like(kept, dtype=torch.int8)))

    def sums(self, values: Tensor) -> Tensor:
        """Sums of [J, C, T] over each block: [J, P * T] for blocks of channels, [1, J] for neurons."""
        J, C, T = values.shape
        if self.block == 0:
            return values.sum((1, 2)).reshape(1, J)
        block = self._length(C)
        padded = F.pad(values, (0, 0, 0, -C % block))  # the last block may be shorter
        return padded.reshape(J, -1, block, T).sum(2).reshape(J, -1)

    def spread(self, blocks: Tensor, J: int, C: int, T: int) -> Tensor:
        """One value a block [R, B] as one value a weight [J, C, T] (a view where that is possible)."""
        if self.block == 0:
            return blocks.reshape(J, 1, 1).expand(J, C, T)
        if self.block == 1:
            return blocks.reshape(J, C, T)
        return blocks.reshape(J, -1, T).repeat_interleave(self._length(C), 1)[:, :C]

    def _length(self, channels: int) -> int:
        """The block's length in a layer of so many channels: "1x64" over three of them is a block of three."""
        return min(self.block, max(channels, 1))


#: Zeros anywhere.
ANYWHERE = Pattern(1)


@dataclass(frozen=True)
class SemiStructured(Pattern):
    """At most ``keep`` nonzeros in each run of ``run`` consecutive input channels at one kernel tap: "2:4", say.

    Its blocks are single weights. The last run of a layer may be shorter; it keeps as many as the others. (Mishra et
    al., "Accelerating Sparse Deep Neural Networks", 2021, arXiv:2104.08378; "semi-structured" is torch's word.)
    """

    block: int = field(default=1, init=False)
    keep: int
    run: int

    def __str__(self) -> str:
        return f"{self.keep}:{self.run}"

    @property
    def share(self) -> float:
        """The share of zeros in a layer whose runs are whole."""
        return 1 - self.keep / self.run

    def reached_by(self, share: float) -> bool:
        """Whether a share of zeros is the pattern's own, but for rounding; a schedule comes from smaller ones."""
        return share >= self.share - 1e-6

    @property
    def two_of_four(self) -> bool:
        """Whether weights under this pattern are 2:4 as well, the one that sparse tensor cores skip."""
        return self.keep == 1 or (self.keep == 2 and self.run % 4 == 0)  # four channels lie in two runs at most

    def spare(self, score: Tensor, alive: Tensor) -> Tensor:
        """The weights that may go: those that live and are not among the best of their run.

        Of equal scores the later ones stay, as wherever scores are ranked.

        Args:
            score: [J, C, T], finite. alive: bool [J, C, T].
        """
        J, C, T = score.shape
        run = min(self.run, max(C, 1))
        ranked = F.pad(score.masked_fill(~alive, -math.inf), (0, 0, 0, -C % run), value=-math.inf)
        ranked = ranked.reshape(J, -1, run, T)
        best = ranked.sort(dim=2, stable=True).indices[:, :, max(run - self.keep, 0) :]
        stays = torch.zeros(ranked.shape, dtype=torch.bool, device=score.device).scatter_(2, best, value=True)
        return alive & ~stays.reshape(J, -1, T)[:, :C]

    def broken(self, kept: Tensor) -> Tensor:
        return Pattern(self.run).sums(kept.to(torch.int8)) > self.keep


def parse(pattern: Any, caller: str = "prune") -> Pattern:
    """``"1x1"``, ``"1x4"``, ..., ``"2:4"``, ... or ``"neuron"`` as a :class:`Pattern`."""
    if isinstance(pattern, str):
        if pattern == "neuron":
            return Pattern(0)
        number = "([1-9][0-9]{0,17})"  # longer ones are no channels, and int() refuses thousands of digits
        if match := re.fullmatch(f"1x{number}", pattern):
            return Pattern(int(match[1]))
        if (match := re.fullmatch(f"{number}:{number}", pattern)) and int(match[1]) < int(match[2]):
            return SemiStructured(int(match[1]), int(match[2]))
    raise Error(
        f'{caller}: pattern must be "1x1", "1xN" (N a whole number, as in "1x4"), "N:M" (whole numbers, N below M, as '
        f'in "2:4") or "neuron", got {pattern!r:.80}'
    )
