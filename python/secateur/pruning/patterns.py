"""Where zeros may lie: single weights ("1x1"), blocks along the input channels ("1xN"), whole neurons ("neuron").

A pattern turns a weight into the :class:`~secateur.pruning.criteria.Field` that a rule works on, and the rule's
decision back into one bool a weight. Glossary: J neurons (output units), C input channels of one neuron (within its
group), T kernel taps, N the block's length, P = ceil(C / N) blocks along the channels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._base.errors import Error
from ..masks.layout import Layout
from .criteria import Field


@dataclass(frozen=True)
class Pattern:
    """``block``: how many consecutive input channels go together; 0 for whole neurons."""

    block: int

    def __str__(self) -> str:
        return f"1x{self.block}" if self.block else "neuron"


def parse(pattern: Any, caller: str = "prune") -> Pattern:
    """``"1x1"``, ``"1x4"``, ... or ``"neuron"`` as a :class:`Pattern`."""
    if isinstance(pattern, str):
        if pattern == "neuron":
            return Pattern(0)
        match = re.fullmatch(r"1x([1-9][0-9]*)", pattern)
        if match:
            return Pattern(int(match[1]))
    raise Error(f'{caller}: pattern must be "1x1", "1xN" (N a whole number, as in "1x4") or "neuron", got {pattern!r}')


def field(
    weight: Tensor, alive: Tensor | None, layout: Layout, pattern: Pattern, *, signed: bool, precise: bool
) -> Field:
    """What a rule sees of ``weight`` under ``pattern``.

    Args:
        weight: the stored weight, any float dtype. alive: bool of its shape, or None where every weight lives.
        layout: where its neurons are. signed: statistics of w instead of |w|. precise: scores in float64 (rules that
            compute with them); else single weights stay in float32, where ranking them is exact.
    """
    w = layout.neurons(weight.detach())  # [J, C, T]
    wide = torch.float64 if precise or weight.dtype == torch.float64 or pattern.block != 1 else torch.float32
    w = w.to(wide)
    live = torch.ones(w.shape, dtype=torch.bool, device=w.device) if alive is None else layout.neurons(alive)
    gone = weight.numel() - int(live.sum())
    if pattern.block == 1:
        score = w.abs().reshape(w.shape[0], -1)
        sample = w.reshape(w.shape[0], -1) if signed else score
        return Field(score, sample, live.reshape(w.shape[0], -1), None, weight.numel(), gone)
    size = _sums(torch.ones_like(w), pattern)
    score = _sums(w.abs(), pattern) / size
    sample = _sums(w, pattern) / size if signed else score
    cost = _sums(live.to(torch.int64), pattern)
    return Field(score, sample, cost > 0, cost, weight.numel(), gone)


def keep_weights(keep: Tensor, alive: Tensor | None, shape: torch.Size, layout: Layout, pattern: Pattern) -> Tensor:
    """A decision [R, B] as one bool a weight, in the stored shape; what was pruned before stays pruned."""
    like = layout.neurons(torch.empty(shape, dtype=torch.bool, device="meta"))
    J, C, T = like.shape
    if pattern.block == 0:
        whole = keep.reshape(J, 1, 1).expand(J, C, T)
    elif pattern.block == 1:
        whole = keep.reshape(J, C, T)
    else:
        whole = keep.reshape(J, -1, T).repeat_interleave(_length(pattern, C), 1)[:, :C]
    stored = layout.stored(whole, shape)
    return stored if alive is None else stored & alive


def _sums(values: Tensor, pattern: Pattern) -> Tensor:
    """Sums of [J, C, T] over each block: [J, P * T] for blocks of channels, [1, J] for neurons."""
    J, C, T = values.shape
    if pattern.block == 0:
        return values.sum((1, 2)).reshape(1, J)
    block = _length(pattern, C)
    padded = F.pad(values, (0, 0, 0, -C % block))  # the last block may be shorter
    return padded.reshape(J, -1, block, T).sum(2).reshape(J, -1)


def _length(pattern: Pattern, channels: int) -> int:
    """The block's length in a layer of so many channels: "1x64" over three of them is a block of three."""
    return min(pattern.block, max(channels, 1))
