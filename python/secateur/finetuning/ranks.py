"""The processes of torch.distributed that train together: each brings its share of the batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """All processes of the default group; one alone where there is none. Every method is called by all of them."""

    def __init__(self) -> None:
        there = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if there else 1
        self.rank = dist.get_rank() if there else 0

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def first(self, value: float, device: torch.device) -> float:
        """Rank 0's value."""
        if self.size == 1:
            return value
        sent = torch.tensor(value, dtype=torch.float64, device=device)
        dist.broadcast(sent, 0)
        return float(sent)

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Their means over all ranks, in place, in one message a dtype."""
        if self.size == 1:
            return
        for dtype in sorted({t.dtype for t in tensors}, key=str):
            some = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in some])
            dist.all_reduce(flat)
            flat /= self.size
            for t, part in zip(some, flat.split([t.numel() for t in some]), strict=True):
                t.copy_(part.view_as(t))

    def send_(self, tensors: Sequence[Tensor]) -> None:
        """Rank 0's values to all, in place."""
        if self.size > 1:
            for t in tensors:
                sent = t.detach().contiguous()
                dist.broadcast(sent, 0)
                with torch.no_grad():
                    t.copy_(sent)

    def send(self, value: Any) -> Any:
        """Rank 0's object."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The objects of all ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found


__all__ = ["Ranks"]
