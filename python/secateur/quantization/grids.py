"""Observers: the statistics of a value during calibration, and the grid of 256 steps that suits it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._base.errors import Error

Method = Literal["min-max", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("mse", "min-max", "percentile")  # in the order in which ties are decided

#: The share of values that "percentile" leaves outside at each end.
_TAIL = 1e-4
#: The finest step, relative to the largest value: float32 itself is coarser below it.
_LEAST = 2.0**-20


@dataclass(frozen=True)
class Grid:
    """``real = (q - zero_point) * scale`` for the bytes q."""

    scale: float
    zero_point: int


class Observer(nn.Module):
    """Stands during calibration where a value shall become bytes: passes it on, and counts it.

    The histogram is torch's (``HistogramObserver``, 2,048 bins that widen with the data).
    """

    def __init__(self, name: str, caller: str) -> None:
        super().__init__()
        self.name, self.caller = name, caller
        self.reach = 0.0  # sum over calls of the largest |value|
        self.calls = 0
        self._counts: Any = None
        self._made: dict[tuple[Method, float | None], Grid] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.watch(x)
        return x

    def watch(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        values = x.detach().to(torch.float32)
        self._made.clear()
        if not bool(torch.isfinite(values).all()):
            raise Error(f"{self.caller}: the activations of {self.name!r} must be finite, got NaN or Inf")
        if self._counts is None:
            from torch.ao.quantization.observer import HistogramObserver  # only here: it takes a while to import

            self._counts = HistogramObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine).to(x.device)
        self._counts(values)
        self.reach += float(values.abs().amax())
        self.calls += 1

    @property
    def seen(self) -> bool:
        return self.calls > 0

    @property
    def range(self) -> tuple[float, float]:
        """Least and largest value, 0 between them."""
        return min(float(self._counts.min_val), 0.0), max(float(self._counts.max_val), 0.0)

    def grid(self, method: Method, limit: float | None = None) -> Grid:
        """The grid by ``method``; its largest value is at most ``limit``."""
        if (method, limit) not in self._made:
            self._made[method, limit] = self._grid(method, limit)
        return self._made[method, limit]

    def _grid(self, method: Method, limit: float | None) -> Grid:
        low, high = self.range
        if method != "min-max" and high > low:
            low, high = self._percentile(low, high) if method == "percentile" else self._least_error(low, high)
        if limit is not None:
            high = min(high, limit)
        grid = grid_of(low, high)
        if limit is not None and grid.zero_point == 0:
            # 255 steps in float32 may come out a rounding above it.
            scale = torch.tensor(grid.scale)
            while 255 * scale > limit:
                scale = torch.nextafter(scale, torch.zeros(()))
            grid = Grid(float(scale), 0)
        return grid

    def _bins(self) -> tuple[Tensor, Tensor]:
        """(centres, counts), float64."""
        counts = self._counts.histogram.double()
        low, high = float(self._counts.min_val), float(self._counts.max_val)
        width = (high - low) / counts.numel()
        return low + width * (torch.arange(counts.numel(), dtype=torch.float64) + 0.5), counts.cpu()

    def _percentile(self, low: float, high: float) -> tuple[float, float]:
        centres, counts = self._bins()
        below = counts.cumsum(0) / counts.sum()
        inside = (below > _TAIL) & (below - counts / counts.sum() < 1 - _TAIL)
        kept = centres[inside]
        if kept.numel() == 0:
            return low, high
        half = float(centres[1] - centres[0]) / 2
        return max(low, min(float(kept[0]) - half, 0.0)), min(high, max(float(kept[-1]) + half, 0.0))

    def _least_error(self, low: float, high: float) -> tuple[float, float]:
        """The range whose grid has the least squared error over the histogram.

        Our own search: the observer's shrinks the range quantile by quantile from one end at a time. On ReLU's
        one-sided values it ends with more error than the best of evenly tried ranges (ReLU of a normal: 1.40e-5
        against 1.24e-5, of its cube: 6.2e-3 against 4.6e-3, where the whole range gives 5.3e-3).
        """
        centres, counts = self._bins()
        centres, counts = centres[counts > 0], counts[counts > 0]
        shares = torch.linspace(0.1, 1.0, 46, dtype=torch.float64)
        ones = torch.ones_like(shares)
        best = (1.0, 1.0)
        rounds = [(shares, shares)]
        if low < 0 < high:  # then each end alone, from where both together did best
            rounds += [(shares, ones), (ones, shares)]
        for i, (lows, highs) in enumerate(rounds):
            if i:
                lows, highs = (lows, ones * best[1]) if i == 1 else (ones * best[0], highs)
            errors = _errors(low * lows, high * highs, centres, counts)
            at = int(errors.argmin())
            best = float(lows[at]), float(highs[at])
        return low * best[0], high * best[1]


def _errors(lows: Tensor, highs: Tensor, centres: Tensor, counts: Tensor) -> Tensor:
    """The squared error of each range's grid, summed over the histogram: ``[M]``."""
    scale = ((highs - lows) / 255).unsqueeze(1)  # [M, 1]
    zero = torch.round(-lows.unsqueeze(1) / scale)
    q = (torch.round(centres / scale) + zero).clamp(0, 255)  # [M, bins]
    return ((q - zero) * scale - centres).square() @ counts


def grid_of(low: float, high: float) -> Grid:
    """The grid that covers [low, high] and 0; some grid where all values are 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    if not scale > torch.finfo(torch.float32).tiny * 2**24 or not math.isfinite(scale):
        if not math.isfinite(scale):
            raise Error(f"quantize: the values of an activation must span less than 1e38, got {low} to {high}")
        return Grid(1.0 / 255, 0)
    return Grid(scale, min(max(round(-low / scale), 0), 255))
