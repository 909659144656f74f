"""Inputs like the example's, of other values, another batch size and another image size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_LEAST = 8  # pixels: images that would become smaller grow in place of shrinking


@dataclass(frozen=True)
class Others:
    """A call's arguments, and in what they differ from the example's besides their values."""

    args: list[Any]
    batch: bool
    size: bool


def other_inputs(args: Sequence[Any]) -> Iterator[Others]:
    """First both changed, then each alone, then other values only."""
    tensors = [leaf for leaf in pytree.tree_leaves(list(args)) if isinstance(leaf, Tensor)]
    if not tensors or any(t.layout != torch.strided or t.device.type == "meta" for t in tensors):
        return
    batch = tensors[0].shape[0] if all(t.dim() >= 2 for t in tensors) else None
    same_batch = batch is not None and batch > 0 and all(t.shape[0] == batch for t in tensors)
    images = any(_is_image(t) for t in tensors)
    for change_batch, change_size in ((True, True), (True, False), (False, True), (False, False)):
        if (change_batch and not same_batch) or (change_size and not images):
            continue
        change = _changer(change_batch, change_size)
        yield Others([pytree.tree_map(change, a) for a in args], change_batch, change_size)


def _is_image(t: Tensor) -> bool:
    return t.dim() == 4 and t.is_floating_point() and t.shape[2] > 1 and t.shape[3] > 1


def _changer(batch: bool, size: bool) -> Callable[[Any], Any]:
    def change(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        t = value.detach()
        if batch:  # one image of several, or two of one
            t = t[:1] if t.shape[0] > 1 else torch.cat([t, t.flip(-1)])
        if size and _is_image(t):
            rows, columns = (n // 2 if n % 2 == 0 and n >= 2 * _LEAST else 2 * n for n in t.shape[2:])
            t = t.repeat(1, 1, 2, 2)[:, :, :rows, :columns]
        # Values of the same kind, and none that overflows.
        t = t.flip(-1) * 0.75 if t.is_floating_point() and t.dim() else t.clone()
        return t.contiguous()

    return change


__all__ = ["Others", "other_inputs"]
