"""Columns left to right: those of a chunk are chosen together, and the columns behind make up for what goes.

Frantar and Alistarh, "SparseGPT", ICML 2023, over Hassibi and Stork's optimal brain surgeon, NeurIPS 1992: with U the
upper Cholesky factor of H^-1, the weight w of column c costs (w / U_cc)^2 when it goes, and the columns behind it take
over -w / U_cc * U_c. A block B of columns costs \\|w_B U_BB^-1\\|^2. Under "N:M" each run of M columns is chosen when
the sweep comes to it, as SparseGPT does: what the columns before it have handed on is in its weights by then.
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
        errors = torch.zeros_like(w[:, :, first:last])
        for begin, end in blocks.steps(first, last):
            part, here = blocks.part(begin, end), slice(begin, end)
            need = blocks.goal(share, G * R * end) - gone
            drop = _drop(part, w[:, :, here], upper[:, here, here], alive[:, :, here], choose, need)
            stay = alive[:, :, here] & ~drop
            gone += int((~stay).sum())
            keep[:, :, here] = stay
            for c in range(begin, end):
                error = torch.where(stay[:, :, c - begin], 0.0, w[:, :, c]) / upper[:, c, c, None]  # [G, R]
                w[:, :, c:last] -= error.unsqueeze(2) * upper[:, c, None, c:last]
                errors[:, :, c - first] = error
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
    score = blocks.offered(score.masked_fill(cost == 0, torch.inf))
    chosen = choose(score, cost, need - int((~alive).sum()))
    return blocks.spread(chosen.reshape(G, R, -1))
