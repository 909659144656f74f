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
        group = row // R
        matrix = problem.hessian[group[:, None, None], place[:, :, None], place[:, None, :]]  # [n, q, q]
        both = real[:, :, None] & real[:, None, :]
        matrix = torch.where(both, matrix, torch.eye(q, dtype=matrix.dtype, device=matrix.device))
        yield Rows(row, place, real, torch.linalg.cholesky(matrix))
        start = stop


def solved(problem: Problem, keep: Tensor) -> Tensor:
    """The weights [G, R, F] of least error that are 0 where ``keep`` is not: (target H)_S = w_S H_SS, row by row."""
    G, R, F = keep.shape
    wanted = (problem.target @ problem.hessian).reshape(G * R, F)
    result = torch.zeros_like(wanted)
    for rows in factored(problem, keep):
        right = torch.where(rows.real, wanted[rows.row[:, None], rows.place], 0.0)
        values = torch.cholesky_solve(right.unsqueeze(2), rows.factor).squeeze(2)
        result[rows.row] = torch.zeros_like(result[rows.row]).scatter_(1, rows.place, values * rows.real)
    return result.reshape(G, R, F)
