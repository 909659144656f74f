"""One layer as a least-squares problem: weights that compute on its inputs what the layer should."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Added to the diagonal of H, as a share of its mean: SparseGPT's.
DAMPING = 0.01


@dataclass(frozen=True)
class Problem:
    """Find w near zero error, error(w) = the sum over rows of (w - target) H (w - target)^T.

    Attributes:
        target: [G, R, F] float64, the best weights if all could stay.
        hessian: [G, F, F] float64, positive definite.
        alive: [G, R, F] bool: weights that may be other than zero.
    """

    target: Tensor
    hessian: Tensor
    alive: Tensor

    def error(self, weights: Tensor) -> float:
        gap = weights - self.target
        return float(((gap @ self.hessian) * gap).sum())

    @property
    def reference(self) -> float:
        """The error of a layer that is all zeros."""
        return self.error(torch.zeros_like(self.target))

    def rows(self, most: int) -> Problem:
        """The problem of some rows alone, evenly spread, at most ``most`` in all."""
        G, R, _ = self.target.shape
        each = max(1, most // G)
        if each >= R:
            return self
        some = torch.linspace(0, R - 1, each, device=self.target.device).round().long()
        return Problem(self.target[:, some], self.hessian, self.alive[:, some])


def problem(weights: Tensor, second: Tensor, cross: Tensor | None, alive: Tensor) -> Problem:
    """The problem from sums over a layer's inputs.

    Args:
        weights: [G, R, F] float64, those of the network that should be computed. second: [G, F, F], the mean of x x^T
            (or their covariance, where the layer's mean output is free). cross: [G, F, F], the mean of d x^T with d the
            inputs that ``weights`` had in their own network; None where d = x. alive: [G, R, F] bool.
    """
    scale = second.diagonal(dim1=1, dim2=2).mean(1)  # [G]
    # A group whose inputs are all zero says nothing: its weights count by their size.
    damp = torch.where(scale > 0, DAMPING * scale, torch.ones_like(scale))
    hessian = second + torch.diag_embed(damp[:, None].expand(second.shape[:2]))
    target = weights
    if cross is not None:
        # w = weights cross (second)^-1 computes what weights compute on d; damped towards weights.
        gap = weights @ (cross - second)
        target = weights + torch.linalg.solve(hessian, gap.transpose(1, 2)).transpose(1, 2)
    return Problem(target, hessian, alive)
