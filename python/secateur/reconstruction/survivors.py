"""Exact least squares on the weights that stay, row by row: each row has survivors of its own.

Rows with about as many survivors are solved together, padded to the most of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import Problem

#: Matrices of rows that are solved together take so many bytes.
CHUNK_BYTES = 1 << 27


@dataclass(frozen=True)
class Rows:
    """Some rows, q survivors each at most."""

    row: Tensor  # [n], of G * R
    place: Tensor  # [n, q], the survivors' columns; any column where not ``real``
    real: Tensor  # [n, q] bool
    factor: Tensor  # [n, q, q], the Cholesky factor of H on the survivors, 1 on the diagonal where not ``real``

    def solve(self, wanted: Tensor) -> Tensor:
        """The survivors' values [n, q]; ``wanted`` is what :func:`wanted_by` gives."""
        right = wanted[self.row[:, None], self.place] * self.real
        return torch.cholesky_solve(right.unsqueeze(2), self.factor).squeeze(2)

    def put(self, values: Tensor, into: Tensor) -> None:
        """Write values [n, q] into rows of zeros of ``into`` [G * R, F]."""
        into[self.row] = torch.zeros_like(into[self.row]).scatter_(1, self.place, values * self.real)


def factored(problem: Problem, keep: Tensor) -> Iterator[Rows]:
    """The rows that have survivors. keep: [G, R, F] bool."""
    G, R, F = keep.shape
    flat = keep.reshape(G * R, F)
    counts = flat.sum(1)
    order = counts.argsort(stable=True)
    start = int((counts == 0).sum())
    ordered = counts[order].tolist()
    while start < G * R:
        # All rows of a chunk are padded to the last one's count, at most a third above the first one's.
        stop = start + 1
        while stop < G * R and ordered[stop] <= ordered[start] * 4 // 3 + 4:
            if (stop + 1 - start) * ordered[stop] ** 2 * 8 > CHUNK_BYTES:
                break
            stop += 1
        row, q = order[start:stop], ordered[stop - 1]
        place = flat[row].to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :q]
        real = torch.arange(q, device=keep.device) < counts[row, None]
        matrix = _gathered(problem.hessian, row // R, place)
        if not bool(real.all()):
            matrix.mul_(real[:, :, None]).mul_(real[:, None, :])
            matrix.diagonal(dim1=1, dim2=2).add_(~real)
        yield Rows(row, place, real, torch.linalg.cholesky(matrix))
        start = stop


def _gathered(hessian: Tensor, group: Tensor, place: Tensor) -> Tensor:
    """H of each row's group on its columns ``place`` [n, q]: [n, q, q]."""
    n, q = place.shape
    F = hessian.shape[2]
    # One flat index: several times as fast as an index a dimension.
    where = (group[:, None] * F + place)[:, :, None] * F + place[:, None, :]
    return hessian.reshape(-1).index_select(0, where.reshape(-1)).reshape(n, q, q)


def wanted_by(problem: Problem) -> Tensor:
    """The right-hand sides, target H, [G * R, F]."""
    return (problem.target @ problem.hessian).reshape(-1, problem.target.shape[2])


def solved(problem: Problem, keep: Tensor) -> Tensor:
    """The weights [G, R, F] of least error that are 0 where ``keep`` is not: (target H)_S = w_S H_SS, row by row."""
    G, R, F = keep.shape
    wanted = wanted_by(problem)
    result = torch.zeros_like(wanted)
    for rows in factored(problem, keep):
        rows.put(rows.solve(wanted), result)
    return result.reshape(G, R, F)
