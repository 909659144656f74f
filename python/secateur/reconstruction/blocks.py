"""What goes together: columns in an order in which a pattern's blocks lie side by side, and who chooses among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: From scores [N, B] of blocks (the error that each adds if it goes; inf: it is gone), how many weights each would take
#: [N, B] int64 and how many weights should go, to which blocks go: bool [N, B].
Chooser = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Blocks:
    """How columns are grouped.

    Attributes:
        order: [F], the columns so that each block's lie side by side. of: [F], each ordered column's block, ascending.
        whole: a row is one block (whole neurons).
        unit: blocks that a choice may compare only whole (4 for 2:4 over single weights); chunks are multiples of it.
    """

    order: Tensor
    of: Tensor
    whole: bool = False
    unit: int = 1

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
        return Blocks(self.order[first:last], of - of[0], self.whole, self.unit)

    def chunks(self, size: int) -> list[tuple[int, int]]:
        """Ranges of about ``size`` columns that split no block and no unit."""
        starts = torch.searchsorted(self.of, torch.arange(0, self.count, self.unit, device=self.of.device)).tolist()
        found, first = [], 0
        for start in [*starts[1:], len(self.of)]:
            if start - first >= size or start == len(self.of):
                found.append((first, start))
                first = start
        return found


def channel_blocks(C: int, T: int, N: int, device: torch.device | None = None, unit: int = 1) -> Blocks:
    """Blocks of N consecutive input channels at one tap, of columns [C, T] in order; the last one may be shorter."""
    column = torch.arange(C * T, device=device).reshape(C, T)
    order = torch.cat([part.t().reshape(-1) for part in column.split(max(1, min(N, C)))])
    channel, tap = order // T, order % T
    of = channel // max(1, min(N, C)) * T + tap
    return Blocks(order, of, unit=unit)
