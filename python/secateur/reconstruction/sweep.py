"""Columns left to right: those of a chunk are chosen together, and the columns behind make up for what goes.

Frantar and Alistarh, "SparseGPT", ICML 2023, over Hassibi and Stork's optimal brain surgeon, NeurIPS 1992: with U the
upper Cholesky factor of H^-1, the weight w of column c costs (w / U_cc)^2 when it goes, and the columns behind it take
over -w / U_cc * U_c. A block B of columns costs \\|w_B U_BB^-1\\|^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import Blocks, Chooser
from .problem import Problem

#: Columns that are chosen together.
CHUNK = 64


def inverse_factor(problem: Problem, blocks: Blocks) -> Tensor:
    """U, the upper Cholesky factor of H^-1 in the order of ``blocks``, [G, F, F]."""
    H = problem.hessian[:, blocks.order][:, :, blocks.order]
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    return upper


def swept(problem: Problem, blocks: Blocks, choose: Chooser, share: float, upper: Tensor | None = None) -> Tensor:
    """Which weights stay, bool [G, R, F], for a share of zeros of all weights.

    Each chunk gets its share, and what it missed is made up by the next, so that the count is exact where blocks allow.
    ``upper`` is what :func:`inverse_factor` gives, if it is known already.
    """
    order = blocks.order
    w = problem.target[:, :, order].masked_fill(~problem.alive[:, :, order], 0.0)
    alive = problem.alive[:, :, order]
    G, R, _ = w.shape
    upper = inverse_factor(problem, blocks) if upper is None else upper
    keep = alive.clone()
    gone = 0
    for first, last in blocks.chunks(CHUNK):
        part = blocks.part(first, last)
        U = upper[:, first:last, first:last]
        chunk = w[:, :, first:last]
        drop = _drop(part, chunk, U, alive[:, :, first:last], choose, round(share * G * R * last) - gone)
        stay = alive[:, :, first:last] & ~drop
        gone += int((~stay).sum())
        keep[:, :, first:last] = stay
        errors = torch.zeros_like(chunk)
        for c in range(last - first):
            error = torch.where(stay[:, :, c], 0.0, chunk[:, :, c]) / U[:, c, c, None]  # [G, R]
            chunk[:, :, c:] -= error.unsqueeze(2) * U[:, c, None, c:]
            errors[:, :, c] = error
        w[:, :, last:] -= errors @ upper[:, first:last, last:]
    result = torch.empty_like(keep)
    result[:, :, order] = keep
    return result


def _drop(blocks: Blocks, w: Tensor, U: Tensor, alive: Tensor, choose: Chooser, need: int) -> Tensor:
    """What goes of one chunk [G, R, n], bool; ``need`` weights in all, those that are gone included."""
    G, R, _ = w.shape
    own = U if blocks.single else U * (blocks.of[:, None] == blocks.of[None])
    z = (
        w / U.diagonal(dim1=1, dim2=2)[:, None]
        if blocks.single
        else torch.linalg.solve_triangular(own, w, upper=True, left=False)
    )
    score = blocks.sums(z.square()).reshape(G * R, -1)
    cost = blocks.sums(alive.to(torch.int64)).reshape(G * R, -1)
    chosen = choose(score.masked_fill(cost == 0, torch.inf), cost, need - int((~alive).sum()))
    return blocks.spread(chosen.reshape(G, R, -1))
