"""What goes together: columns in an order in which a pattern's blocks lie side by side, and who chooses among them.

Under "N:M" each column is a block of its own, the columns of a run (M input channels at one tap) lie side by side, and
the best N of a row's run are held back from every choice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: From scores [N, B] of blocks (the error that each adds if it goes; inf: it is gone, or must stay), how many weights
#: each would take [N, B] int64 and how many weights should go, to which blocks go: bool [N, B].
Chooser = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Blocks:
    """How columns are grouped.

    Attributes:
        order: [F], the columns so that each block's lie side by side. of: [F], each ordered column's block, ascending.
        runs: how many columns of a run may stay, under "N:M"; None: as many as like.
    """

    order: Tensor
    of: Tensor
    runs: Runs | None = None

    @property
    def count(self) -> int:
        return int(self.of[-1]) + 1

    @property
    def single(self) -> bool:
        """Whether each column is a block of its own."""
        return self.count == len(self.of)

    def sums(self, values: Tensor) -> Tensor:
        """[..., F] in this order as sums over each block [..., B]."""
        if self.single:
            return values
        return values.new_zeros(*values.shape[:-1], self.count).index_add_(-1, self.of, values)

    def spread(self, values: Tensor) -> Tensor:
        """[..., B] as one value a column [..., F], in this order."""
        return values if self.single else values[..., self.of]

    def part(self, first: int, last: int) -> Blocks:
        """The columns first..last (excluded), which hold whole blocks."""
        of = self.of[first:last]
        runs = None if self.runs is None else self.runs.part(first, last)
        return Blocks(self.order[first:last], of - of[0], runs)

    def chunks(self, size: int) -> list[tuple[int, int]]:
        """Ranges of about ``size`` columns that split no block and no run."""
        of = self.of if self.runs is None else self.runs.of
        found, first = [], 0
        for start in _starts(of)[1:]:
            if start - first >= size or start == len(of):
                found.append((first, start))
                first = start
        return found

    def steps(self, first: int, last: int) -> list[tuple[int, int]]:
        """The columns first..last (of a chunk) as ranges of which each is chosen at once: run by run, or all."""
        if self.runs is None:
            return [(first, last)]
        starts = [first + start for start in _starts(self.runs.of[first:last])]
        return list(itertools.pairwise(starts))

    def goal(self, share: float, count: int) -> int:
        """How many of ``count`` weights should go; at the runs' own share all, for they say themselves what stays."""
        return count if self.runs is not None and self.runs.reached_by(share) else round(share * count)

    def left(self, alive: Tensor, share: float) -> int:
        """How many of ``alive``, bool [..., F] in this order, should stay; what is gone counts in the share."""
        if self.runs is None or not self.runs.reached_by(share):
            return alive.numel() - round(share * alive.numel())
        lives = torch.zeros(*alive.shape[:-1], int(self.runs.of[-1]) + 1, dtype=torch.int64, device=alive.device)
        return int(lives.index_add_(-1, self.runs.of, alive.to(torch.int64)).clamp(max=self.runs.keep).sum())

    def offered(self, score: Tensor) -> Tensor:
        """Scores [N, B] with inf for those that the runs hold back."""
        return score if self.runs is None else score.masked_fill(self.runs.best(score), math.inf)


@dataclass(frozen=True)
class Runs:
    """Columns of which only so many stay in each row.

    Attributes:
        of: [F], each ordered column's run, ascending. keep: columns that stay of a run. length: of the longest run.
        share: of zeros that is the pattern's own; below it a schedule is on its way.
    """

    of: Tensor
    keep: int
    length: int
    share: float

    def part(self, first: int, last: int) -> Runs:
        of = self.of[first:last]
        return Runs(of - of[0], self.keep, self.length, self.share)

    def reached_by(self, share: float) -> bool:
        return share >= self.share - 1e-6

    def best(self, score: Tensor) -> Tensor:
        """The ``keep`` highest scores [N, F] of each run in a row, bool; inf is gone, of equal ones the later stay."""
        rows, count = len(score), int(self.of[-1]) + 1
        start = torch.searchsorted(self.of, torch.arange(count, device=self.of.device))
        place = self.of * self.length + torch.arange(len(self.of), device=self.of.device) - start[self.of]
        there = score.masked_fill(torch.isinf(score), -math.inf)
        ranked = torch.full((rows, count * self.length), -math.inf, dtype=score.dtype, device=score.device)
        ranked[:, place] = there
        ranked = ranked.reshape(rows, count, self.length)
        highest = ranked.sort(dim=2, stable=True).indices[:, :, max(self.length - self.keep, 0) :]
        stays = torch.zeros(ranked.shape, dtype=torch.bool, device=score.device).scatter_(2, highest, value=True)
        return stays.reshape(rows, -1)[:, place]


def _starts(of: Tensor) -> list[int]:
    """Where each value of an ascending tensor begins, and the end."""
    changes = (of[1:] != of[:-1]).nonzero().reshape(-1) + 1
    return [0, *changes.tolist(), len(of)]


def channel_runs(C: int, T: int, keep: int, M: int, share: float, device: torch.device | None = None) -> Blocks:
    """Single columns [C, T], of which ``keep`` stay in each run of M consecutive channels at one tap ("keep:M")."""
    blocks = channel_blocks(C, T, M, device)
    runs = Runs(blocks.of, keep, max(1, min(M, C)), share)
    return Blocks(blocks.order, torch.arange(C * T, device=device), runs)


def channel_blocks(C: int, T: int, N: int, device: torch.device | None = None) -> Blocks:
    """Blocks of N consecutive input channels at one tap, of columns [C, T] in order; the last one may be shorter."""
    column = torch.arange(C * T, device=device).reshape(C, T)
    order = torch.cat([part.t().reshape(-1) for part in column.split(max(1, min(N, C)))])
    channel, tap = order // T, order % T
    of = channel // max(1, min(N, C)) * T + tap
    return Blocks(order, of)
