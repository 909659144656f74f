"""From scores to a choice: the arithmetic that criteria share.

It never sees a layer. It sees a :class:`Field`: scores in rows, one score a block (a weight, a run of weights, a whole
neuron), and says which blocks stay. Glossary: R rows over which statistics are taken, B blocks in a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Field:
    """One weight tensor's blocks."""

    score: Tensor  # [R, B] float32 or float64, >= 0: the mean |w| of each block
    sample: Tensor  # [R, B]: what mean and std are taken of (the score, or the signed mean)
    alive: Tensor  # [R, B] bool: blocks with a weight that is not pruned yet
    cost: Tensor | None  # [R, B] int64: weights that would still become zero with the block; None: 1 where alive
    total: int  # weights in the layer
    gone: int  # weights that are pruned already


@dataclass
class Chosen:
    """The blocks that stay, and by which threshold."""

    keep: Tensor  # [R, B] bool
    theta: Tensor | None = None  # [R] or [1]; None: there is no threshold
    k: float | None = None  # how many standard deviations below the mean theta lies


def statistics(sample: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased std of each row's living entries, in float64.

    Args:
        sample: [R, B]. alive: [R, B] bool.

    Returns:
        mean [R], std [R]. The std of equal values is exactly 0; a row in which nothing lives has mean NaN and std 0.
    """
    values = sample.to(torch.float64)
    if sample.shape[1] and bool(alive.all()):
        var, mean = torch.var_mean(values, 1, correction=0)
        low, high = values.aminmax(dim=1)
        return mean, var.sqrt().masked_fill_(high <= low, 0.0)
    count = alive.sum(1)
    mean = values.masked_fill(~alive, 0.0).sum(1) / count
    spread = (values - mean.unsqueeze(1)).square_().masked_fill_(~alive, 0.0)
    std = (spread.sum(1) / count.clamp(min=1)).sqrt()
    if sample.shape[1]:
        # The mean of equal values need not round to that value: compare them instead.
        high = values.masked_fill(~alive, -math.inf).amax(1)
        low = values.masked_fill(~alive, math.inf).amin(1)
        std = std.masked_fill_(high <= low, 0.0)
    return mean, std


def picked(values: Tensor, which: Tensor) -> Tensor:
    """``values[which]``, flat; a boolean index over millions costs more than asking whether it leaves anything out."""
    return values.reshape(-1) if bool(which.all()) else values[which]


def put_back(chosen: Tensor, which: Tensor) -> Tensor:
    """The inverse of :func:`chosen` for bools: false where nothing was chosen."""
    if chosen.numel() == which.numel():
        return chosen.reshape(which.shape)
    whole = torch.zeros_like(which)
    whole[which] = chosen
    return whole


def counted(fields: Sequence[Field], scores: Sequence[Tensor], sparsity: float) -> list[Chosen]:
    """Drop the lowest scores over all the fields together until the share of zeros is reached.

    Equal scores go in order of their place, so the count is exact (as far as the blocks allow).

    Args:
        fields: the weights. scores: [R, B] each, what to rank by. sparsity: 0 to 1.
    """
    device = fields[0].score.device
    values = torch.cat([picked(s, field.alive).to(device) for s, field in zip(scores, fields, strict=True)])
    cost: Tensor | None = None
    if any(field.cost is not None for field in fields):
        costs = (field.alive.to(torch.int64) if field.cost is None else field.cost for field in fields)
        cost = torch.cat([picked(c, field.alive).to(device) for c, field in zip(costs, fields, strict=True)])
    need = round(sparsity * sum(field.total for field in fields)) - sum(field.gone for field in fields)
    drop, cut = lowest(values, cost, need, spare_one=sparsity < 1, split_ties=True)
    decisions = []
    for field, part in zip(fields, torch.split(drop, [int(f.alive.sum()) for f in fields]), strict=True):
        keep = field.alive & ~put_back(part.to(field.alive.device), field.alive)
        theta = None if cut is None else torch.tensor([cut], dtype=torch.float64)
        decisions.append(Chosen(keep, theta))
    return decisions


def lowest(
    values: Tensor, cost: Tensor | None, need: int, *, spare_one: bool, split_ties: bool
) -> tuple[Tensor, float | None]:
    """Choose the lowest values whose costs come nearest to ``need``.

    Args:
        values: [M]. cost: [M] int64, or None where each costs 1. need: how much to drop in all.
        spare_one: never drop them all. split_ties: equal values may be parted (the first ones go); else they go or
            stay together, whichever comes nearer to ``need``.

    Returns:
        drop [M] bool, and the cut: every dropped value is <= cut and every kept one is >= cut (strictly on one side
        unless ties were parted), half way between the two neighbours. None where nothing is dropped.
    """
    count = values.numel()
    drop = torch.zeros(count, dtype=torch.bool, device=values.device)
    if need <= 0 or count == 0:
        return drop, None
    if cost is None:
        drop = _lowest_by_count(values, min(need, count - 1 if spare_one else count), split_ties, spare_one)
    else:
        ordered, place = torch.sort(values, stable=True)
        reached = torch.cat([cost.new_zeros(1), cost[place].cumsum(0)])  # [M + 1]: dropped by the first c values
        error = (reached - need).abs().to(torch.float64)
        if not split_ties:
            inside = torch.zeros_like(error, dtype=torch.bool)
            inside[1:-1] = ordered[1:] == ordered[:-1]
            error[inside] = math.inf
        if spare_one:
            error[-1] = math.inf
        drop[place[: int(error.argmin())]] = True
    if not bool(drop.any()):
        return drop, None
    last = float(values.masked_fill(~drop, -math.inf).max())
    if bool(drop.all()):
        return drop, last + max(1.0, abs(last))
    first = float(values.masked_fill(drop, math.inf).min())
    middle = last + (first - last) / 2
    return drop, middle if last < middle < first else first


def _lowest_by_count(values: Tensor, want: int, split_ties: bool, spare_one: bool) -> Tensor:
    """The ``want`` lowest of values [M], by selection (a sort of 100 million weights takes ten times as long)."""
    count = values.numel()
    if want >= count:
        return torch.ones(count, dtype=torch.bool, device=values.device)
    if want <= 0:
        return torch.zeros(count, dtype=torch.bool, device=values.device)
    edge = torch.kthvalue(values, want + 1).values  # the lowest value that stays, but for ties
    below = values < edge
    few, many = int(below.sum()), int((values <= edge).sum())
    if split_ties:
        below[(values == edge).nonzero().reshape(-1)[: want - few]] = True
        return below
    if want - few <= many - want or (spare_one and many == count):
        return below
    return values <= edge
