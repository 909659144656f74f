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
from .survivors import factored, solved, wanted_by
from .sweep import swept

#: Of the survivors a stage leaves this share at least; in runs, where a weight's loss settles which others must
#: stay, more (2:4 and 4:8 of correlated inputs: a tenth less error than by fifths).
STAGE, STAGE_IN_RUNS = 0.8, 0.9
#: A layer's stages may take so many multiplications; where they would take more, the sweep goes further.
MOST_WORK = 2e11


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
    stage = STAGE if blocks.runs is None else STAGE_IN_RUNS
    fresh, begin = keep is None, 0.0
    if keep is None:
        begin = first_share(G * R, F, share, stage)
        keep = swept(problem, blocks, choose, begin) if begin > 0 else problem.alive
    left, last = int(keep.sum()), blocks.left(keep[:, :, blocks.order], share)
    while left > last:
        score, cost = _priced(problem, blocks, keep)
        drop = choose(blocks.offered(score), cost, left - max(last, int(left * stage)))
        fewer = keep & ~_unordered(blocks, drop, keep.shape)
        now = int(fewer.sum())
        if now == 0 and last > 0:  # the last block is larger than what should stay
            fewer = keep & _unordered(blocks, _dearest(score), keep.shape)
            now = int(fewer.sum())
        if now == left:  # the blocks that are left are larger than what should go
            break
        keep, left = fewer, now
    w = solved(problem, keep)
    if blocks.runs is not None and fresh and begin < share:
        # Stages drop what is cheap now, wherever it is; where inputs hardly depend on one another the sweep may come
        # out ahead (by 2 %; else the stages by 10 to 30), and it costs little.
        other = swept(problem, blocks, choose, share)
        swept_w = solved(problem, other)
        if problem.error(swept_w) < problem.error(w):
            return swept_w, other
    return w, keep


def _dearest(score: Tensor) -> Tensor:
    """The one block whose loss costs most."""
    priced = score.masked_fill(torch.isinf(score), -1.0)
    return (priced == priced.max()) & (torch.arange(priced.numel(), device=score.device) == priced.argmax()).reshape(
        score.shape
    )


def first_share(rows: int, F: int, share: float, stage: float = STAGE) -> float:
    """The share of zeros that the sweep reaches, so that what follows it stays within ``MOST_WORK``.

    None if that is little; else until twice as many weights are left as should be; else further.
    """
    first = 0.0
    while first < share:
        q, work = (1 - first) * F, 0.0
        while q > max(1.0, (1 - share) * F):
            work += rows * q**3
            q *= stage
        if work <= MOST_WORK:
            return first
        half = 1 - 2 * (1 - share)
        first = half if first < half else first + (share - first) / 4
        if share - first < 0.02:
            break
    return share


def _priced(problem: Problem, blocks: Blocks, keep: Tensor) -> tuple[Tensor, Tensor]:
    """What each block's loss adds to the error [G * R, B], inf where it is gone; its weights that are left."""
    G, R, F = keep.shape
    own = problem.target.new_zeros(G * R, F)  # each weight's part of its block's price
    if bool(keep.all()) and blocks.single:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(problem.hessian)).diagonal(dim1=1, dim2=2)
        own = (problem.target.square() / inverse[:, None]).reshape(G * R, F)
    else:
        of = torch.empty_like(blocks.of)
        of[blocks.order] = blocks.of  # the block of each column as it is stored
        wanted = wanted_by(problem)
        for rows in factored(problem, keep):
            w = rows.solve(wanted)
            eye = torch.eye(w.shape[1], dtype=w.dtype, device=w.device).expand_as(rows.factor)
            root = torch.linalg.solve_triangular(rows.factor, eye, upper=False)  # H_SS^-1 = root^T root
            if blocks.single:
                price = w.square() / root.square().sum(1)
            else:
                price = w * _within_blocks(root, torch.where(rows.real, of[rows.place], -1), w)
            rows.put(price, own)
    score = blocks.sums(own[:, blocks.order])
    cost = blocks.sums(keep.reshape(G * R, F)[:, blocks.order].to(torch.int64))
    return score.masked_fill(cost == 0, torch.inf), cost


def _within_blocks(root: Tensor, block: Tensor, w: Tensor) -> Tensor:
    """((H_SS^-1)_BB)^-1 w_B for every block B at once [n, q]; ``block`` [n, q] is each survivor's, -1 for none."""
    inverse = root.transpose(1, 2) @ root
    alike = block[:, :, None] == block[:, None, :]
    inverse.mul_(alike & (block >= 0)[:, :, None])
    inverse.diagonal(dim1=1, dim2=2).add_(block < 0)
    return torch.cholesky_solve(w.unsqueeze(2), torch.linalg.cholesky(inverse)).squeeze(2)


def _unordered(blocks: Blocks, chosen: Tensor, shape: torch.Size) -> Tensor:
    whole = torch.empty(shape, dtype=torch.bool, device=chosen.device)
    whole[:, :, blocks.order] = blocks.spread(chosen.reshape(*shape[:2], -1))
    return whole
