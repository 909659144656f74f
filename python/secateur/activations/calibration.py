"""Streaming statistics of activations: exact moments, and the distribution as a histogram.

One pass is enough for every rule, so a one-shot generator of batches works, and no activation is ever stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._base.errors import Error

# Activations are binned by the top bits of their float32 pattern: logarithmic bins whose width is a fixed fraction of
# the value. They need no range, which is unknown at the first batch.
_LOWEST_EXPONENT = -24  # everything in (0, 2**-24) shares the first bin
_EXPONENTS = 40  # everything from 2**16 up shares the last one
_CELLS = 1 << 19  # bins over all channels together: 4 MB a layer at most, up to 400 channels or so
_CHUNK = 1 << 21  # elements converted to float64 at a time


class ChannelStatistics:
    """Count, mean, M2 (sum of squared deviations), minimum, maximum and histogram for each of C channels.

    Moments are float64 and merged by Chan, Golub and LeVeque's update ("Updating formulae and a pairwise algorithm for
    computing sample variances", 1979), so the result doesn't depend on how the data is cut into batches beyond float64
    rounding. The histogram counts the positive values only; the rest of ``count`` is zero already.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.channels = channels
        self.count = 0  # values seen, per channel
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.m2 = torch.zeros_like(self.mean)
        self.minimum = torch.full_like(self.mean, math.inf)
        self.maximum = torch.full_like(self.mean, -math.inf)
        self.least_positive = torch.full_like(self.mean, math.inf)
        #: relative width of a bin is 2**-bits
        self.bits = min(10, max(5, int(math.log2(_CELLS / (_EXPONENTS * channels))))) if channels else 5
        self.bins = _EXPONENTS << self.bits
        self._histogram = torch.zeros(channels * self.bins, dtype=torch.int64, device=device)
        self._cumulative: Tensor | None = None  # [C, bins], made when first asked for

    @property
    def std(self) -> Tensor:
        """Biased, ``[C]``."""
        return (self.m2 / max(self.count, 1)).sqrt()

    @property
    def constant(self) -> Tensor:
        """``[C]``: channels that only ever had one value."""
        return self.minimum == self.maximum

    def update(self, values: Tensor) -> None:
        """Take in ``values [C, n]``."""
        self._cumulative = None
        for part in torch.split(values, max(1, _CHUNK // max(self.channels, 1)), dim=1):
            self._update(part)

    def _update(self, part: Tensor) -> None:
        n = part.shape[1]
        if n == 0:
            return
        exact = part.to(torch.float64)
        mean = exact.mean(1)
        self.merge_moments(n, mean, (exact - mean.unsqueeze(1)).square().sum(1))
        self.minimum = torch.minimum(self.minimum, exact.amin(1))
        self.maximum = torch.maximum(self.maximum, exact.amax(1))
        self.least_positive = torch.minimum(self.least_positive, exact.masked_fill(exact <= 0, math.inf).amin(1))
        self._histogram += torch.bincount(self._cells(part), minlength=self._histogram.numel())

    def merge_moments(self, count: int, mean: Tensor, m2: Tensor) -> None:
        """Chan's update with another sample's count, mean ``[C]`` and M2 ``[C]``."""
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.m2 = self.m2 + m2 + delta.square() * (self.count * (count / total))
        self.count = total

    def _position(self, values: Tensor) -> Tensor:
        """The bin of positive float32 values, counted from the lowest."""
        pattern = values.contiguous().view(torch.int32) >> (23 - self.bits)
        return (pattern - ((_LOWEST_EXPONENT + 127) << self.bits)).clamp(0, self.bins - 1)

    def _cells(self, part: Tensor) -> Tensor:
        single = part.to(torch.float32)  # [C, n]
        row = torch.arange(self.channels, device=part.device, dtype=torch.int32).unsqueeze(1) * self.bins
        return (self._position(single) + row)[single > 0]

    @property
    def positive(self) -> Tensor:
        """``[C]`` float64: how many values are positive."""
        return self._below()[:, -1].to(torch.float64)

    def _below(self) -> Tensor:
        """``[C, bins]``: values up to and with each bin."""
        if self._cumulative is None:
            self._cumulative = self._histogram.view(self.channels, self.bins).cumsum(1)
        return self._cumulative

    def zeros_below(self, theta: Tensor) -> tuple[float, float]:
        """:meth:`counts_below` for all channels together."""
        counted, off = self.counts_below(theta)
        return float(counted.sum()), float(off.sum())

    def counts_below(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """How many values would be zero under ``theta [C]``, ReLU's own zeros included, and the most it can be off by:
        ``[C]`` each, float64.

        Values are taken to be spread evenly inside the bin that holds theta; all of that bin is the error bound.
        """
        histogram, cumulative = self._histogram.view(self.channels, self.bins), self._below()
        limit = theta.to(torch.float32).unsqueeze(1)  # [C, 1]
        position = self._position(limit.clamp_min(0))
        inside = histogram.gather(1, position).squeeze(1).to(torch.float64)
        below = cumulative.gather(1, position).squeeze(1).to(torch.float64) - inside
        # The bin's edges, from the same bit pattern that chose it.
        pattern = (position + ((_LOWEST_EXPONENT + 127) << self.bits)).to(torch.int32)
        low = (pattern << (23 - self.bits)).view(torch.float32).squeeze(1).to(torch.float64)
        high = ((pattern + 1) << (23 - self.bits)).view(torch.float32).squeeze(1).to(torch.float64)
        # The largest value seen bounds the last bin in use, so that a threshold above it counts everything.
        high = torch.minimum(high, torch.nextafter(self.maximum, torch.full_like(self.maximum, math.inf)))
        share = ((theta.to(torch.float64) - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
        partial = (share > 0) & (share < 1)
        return self.count - self.positive + below + inside * share, torch.where(partial, inside, 0.0)

    @property
    def total(self) -> int:
        return self.count * self.channels


class Record:
    """What a :class:`Calibrator` has seen."""

    def __init__(self) -> None:
        self.statistics: ChannelStatistics | None = None
        self.sequences = False  # it saw 3-d activations: dim 1 is taken for the channel, which may be wrong
        self.counting_channels = False  # what comes is no data: only its number of channels counts
        self.mixed = False  # it saw different numbers of channels: no threshold per channel fits
        self.replaced: nn.Module | None = None  # the ReLU module in whose place the calibrator stands


class Calibrator(nn.Module):
    """Replaces a ReLU during calibration: computes it, and records its output."""

    def __init__(self, name: str, max: float | None, inplace: bool, caller: str = "prune_activations") -> None:
        super().__init__()
        self.name = name
        self.caller = caller  # the function that errors about the data name
        self.max = max
        self.inplace = inplace
        self.record = Record()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu_(x) if self.inplace else torch.relu(x)
        if self.max is not None:
            y = y.clamp_(max=self.max)
        self._watch(y.detach())
        return y

    def _watch(self, y: Tensor) -> None:
        if not y.dtype.is_floating_point:
            raise Error(f"{self.caller}: the activations of {self.name!r} must be real floats, got {y.dtype}")
        seen = self.record
        channel = 0 if y.dim() < 2 else 1
        seen.sequences |= y.dim() == 3
        by_channel = y.reshape(1, 1) if y.dim() == 0 else y.movedim(channel, 0).flatten(1)  # [C, n]
        if y.dim() == 1:
            by_channel = y.unsqueeze(1)
        if seen.counting_channels:
            seen.mixed |= seen.statistics is not None and seen.statistics.channels != by_channel.shape[0]
            return
        if not bool(torch.isfinite(by_channel).all()):
            raise Error(f"{self.caller}: the activations of {self.name!r} must be finite, got NaN or Inf")
        if seen.statistics is None:
            seen.statistics = ChannelStatistics(by_channel.shape[0], y.device)
        if seen.statistics.channels == by_channel.shape[0]:
            seen.statistics.update(by_channel)
        else:
            seen.mixed = True


def solve(zeros: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """The least x in [low, high] (by bisection) at which the non-decreasing ``zeros(x)`` reaches ``wanted``."""
    for _ in range(100):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if zeros(middle) >= wanted:
            high = middle
        else:
            low = middle
    return high
