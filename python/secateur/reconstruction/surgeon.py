"""Pruning in stages by what each weight's loss costs exactly, given the weights that are still there.

With S a row's survivors, to drop the block B of them and solve the others again adds w_B ((H_SS^-1)_BB)^-1 w_B^T to the
row's error (Hassibi and Stork, 1992; for blocks, Kurtic et al., "The Optimal BERT Surgeon", EMNLP 2022). After each
stage the survivors are solved again, so the next one compares weights as they are by then. Exact as this is, it costs
R q^3 for q survivors a row; so the first weights, which hardly matter, go by the sweep.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import Blocks, Chooser
from .problem import Problem
from .survivors import factored, solved
from .sweep import swept

#: Of the survivors a stage leaves this share at least.
STAGE = 0.8
#: A layer's stages may take so many multiplications; where they would take more, the sweep goes further.
MOST_WORK = 1.5e12


def pruned(
    problem: Problem, blocks: Blocks, choose: Chooser, share: float, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights of little error with a share of zeros.

    Args:
        keep: bool [G, R, F], what is left already; None: what is alive.

    Returns:
        The weights [G, R, F], solved by least squares and 0 where pruned; which of them stay, bool.
    """
    G, R, F = problem.target.shape
    if keep is None:
        begin = first_share(G * R, F, share)
        keep = swept(problem, blocks, choose, begin) if begin > 0 else problem.alive
    w = solved(problem, keep)
    total = keep.numel()
    left, last = int(keep.sum()), total - round(share * total)
    while left > last:
        score, cost = _scores(problem, blocks, keep, w)
        drop = choose(score, cost, left - max(last, int(left * STAGE)))
        fewer = keep & ~_unordered(blocks, drop, keep.shape)
        now = int(fewer.sum())
        if now == left:  # the blocks that are left are larger than what should go
            break
        keep, left = fewer, now
        w = solved(problem, keep)
    return w, keep


def first_share(rows: int, F: int, share: float) -> float:
    """The share of zeros that the sweep reaches, so that what follows it stays within ``MOST_WORK``."""
    first = max(0.0, 1 - 2 * (1 - share))
    while first < share:
        q, work = (1 - first) * F, 0.0
        while q > (1 - share) * F:
            work += rows * q**3
            q *= STAGE
        if work <= MOST_WORK:
            return first
        first = share if share - first < 0.02 else first + (share - first) / 4
    return share


def _scores(problem: Problem, blocks: Blocks, keep: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """What each block's loss adds to the error [G * R, B], inf where it is gone; its weights that are left."""
    G, R, F = keep.shape
    flat = w.reshape(G * R, F)
    own = flat.new_zeros(G * R, F)  # each weight's part of its block's price
    of = torch.empty_like(blocks.of)
    of[blocks.order] = blocks.of  # the block of each column as it is stored
    if bool(keep.all()) and blocks.single:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(problem.hessian)).diagonal(dim1=1, dim2=2)
        own = (w.square() / inverse[:, None]).reshape(G * R, F)
    else:
        for rows in factored(problem, keep):
            inverse = torch.cholesky_inverse(rows.factor)
            mine = torch.where(rows.real, flat[rows.row[:, None], rows.place], 0.0)
            if blocks.single:
                price = mine.square() / inverse.diagonal(dim1=1, dim2=2)
            else:
                block = torch.where(rows.real, of[rows.place], -1)
                alike = (block[:, :, None] == block[:, None, :]) & rows.real[:, :, None]
                eye = torch.eye(block.shape[1], dtype=torch.bool, device=block.device)
                within = torch.where(alike | eye, inverse, 0.0)
                price = mine * torch.cholesky_solve(mine.unsqueeze(2), torch.linalg.cholesky(within)).squeeze(2)
            own[rows.row] = torch.zeros_like(own[rows.row]).scatter_(1, rows.place, price * rows.real)
    score = blocks.sums(own[:, blocks.order])
    cost = blocks.sums(keep.reshape(G * R, F)[:, blocks.order].to(torch.int64))
    return score.masked_fill(cost == 0, torch.inf), cost


def _unordered(blocks: Blocks, chosen: Tensor, shape: torch.Size) -> Tensor:
    whole = torch.empty(shape, dtype=torch.bool, device=chosen.device)
    whole[:, :, blocks.order] = blocks.spread(chosen.reshape(*shape[:2], -1))
    return whole
