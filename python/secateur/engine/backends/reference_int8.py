"""The int8 layers of the plain-torch twin: bit for bit equal to the engine's kernels.

Bytes are held as whole numbers in any dtype. Sums are exact; what follows is float32, one rounding an operation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .program import Grid

_WIDEST = 2.0**30  # the largest value whose rounding stays within 32 bits


def _per_channel(values: Any, like: Tensor) -> Tensor:
    t = torch.as_tensor(values)
    return t.reshape(1, -1, *[1] * (like.dim() - 2))


def quantize(v: Tensor, grid: Grid, theta: Any) -> Tensor:
    """``clamp(round(v / scale) + zero_point, 0, 255)``, and zero_point below theta."""
    scale, zero = grid
    inverse = (1.0 / torch.tensor(scale, dtype=torch.float32).double()).float()
    q = torch.round(torch.nan_to_num(v.float() * inverse, 0.0, _WIDEST, -_WIDEST)).clamp(-_WIDEST, _WIDEST)
    return _limited(q.double() + zero, zero, (0, 255), theta)


def dequantize(q: Tensor, grid: Grid) -> Tensor:
    return (q - grid[1]).float() * torch.tensor(grid[0], dtype=torch.float32)


def _limited(q: Tensor, zero: int, limits: tuple[int, int], theta: Any) -> Tensor:
    q = q.clamp(*limits)
    return q if theta is None else torch.where(q < _per_channel(theta, q), torch.full_like(q, zero), q)


def average(q: Tensor, window: tuple[Any, ...], grid: Grid, made: Grid) -> Tensor:
    kernel, stride, padding, ceil_mode, include, divisor = window
    ones = torch.ones_like(q[:1, :1], dtype=torch.float64)
    places = (kernel, stride, padding, ceil_mode)
    sums = F.avg_pool2d(q.double() - grid[1], *places, divisor_override=1)
    count = F.avg_pool2d(ones, *places, divisor_override=1) / F.avg_pool2d(ones, *places, include, divisor)
    one = torch.ones((), dtype=torch.float32)
    ratio = torch.tensor(grid[0], dtype=torch.float32) / torch.tensor(made[0], dtype=torch.float32)
    factor = one / torch.round(count).float() * ratio
    return _limited(torch.round(sums.float() * factor).double() + made[1], made[1], (0, 255), None)


class Ending:
    """The epilogue of a layer's sums: see Int8Epilogue in csrc/cpu/int8.h."""

    def __init__(
        self, bias: Any, multiplier: Any, residual_multiplier: float, residual: Grid | None, grid: Grid | None,
        limits: tuple[int, int], theta: Any,
    ) -> None:  # fmt: skip
        self.bias, self.multiplier = torch.as_tensor(bias).double(), torch.as_tensor(multiplier).float()
        self.residual_multiplier = torch.tensor(residual_multiplier, dtype=torch.float32)
        self.residual, self.grid, self.limits, self.theta = residual, grid, limits, theta

    def __call__(self, sums: Tensor, other: Tensor | None) -> Tensor:
        """sums: whole numbers ``[N, K, ...]``. other: the residual's bytes. Returns bytes, or float32 values."""
        v = (sums + _per_channel(self.bias, sums)).to(torch.int32).float() * _per_channel(self.multiplier, sums)
        if other is not None:
            assert self.residual is not None
            v = v + (other - self.residual[1]).float() * self.residual_multiplier
        if self.grid is None:
            return v
        q = torch.round(v.clamp(-_WIDEST, _WIDEST)).double() + self.grid[1]
        return _limited(q, self.grid[1], self.limits, self.theta)
