"""Where zeros may lie: single weights ("1x1"), blocks along the input channels ("1xN"), whole neurons ("neuron").

A pattern groups the weights of a layer into blocks that go or stay together. Criteria rank blocks and never count
channels themselves. Glossary: J neurons (output units), C input channels of one neuron (within its group), T kernel
taps, R rows of B blocks, N the block's length, P = ceil(C / N) blocks along the channels.

A pattern that limits how many weights of a run may stay ("N:M") would be a class beside :class:`Pattern` with blocks of
one weight; :func:`secateur.pruning.drop_lowest` is where its limit would apply.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..._base.errors import Error


@dataclass(frozen=True)
class Pattern:
    """``block``: how many consecutive input channels go together; 0 for whole neurons."""

    block: int

    def __str__(self) -> str:
        return f"1x{self.block}" if self.block else "neuron"

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


def parse(pattern: Any, caller: str = "prune") -> Pattern:
    """``"1x1"``, ``"1x4"``, ... or ``"neuron"`` as a :class:`Pattern`."""
    if isinstance(pattern, str):
        if pattern == "neuron":
            return Pattern(0)
        match = re.fullmatch(r"1x([1-9][0-9]*)", pattern)
        if match:
            return Pattern(int(match[1]))
    raise Error(f'{caller}: pattern must be "1x1", "1xN" (N a whole number, as in "1x4") or "neuron", got {pattern!r}')
