"""From calibration statistics to thresholds: which values count, which channels share them, and each rule's thresholds.

A :class:`Group` is the layers that share one k or one level: each layer alone, or all of them (``"scalar"``). Glossary:
C channels of a layer, G of them that share a mean and a std (C under ``"channel"``, else 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._base.errors import Error
from ..pruning.criteria import Criterion, MeanStd
from .calibration import ChannelStatistics, solve

Over = Literal["all", "positive"]
Granularity = Literal["channel", "layer", "scalar"]


def checked(
    caller: str, criterion: Criterion | type[Criterion] | None, over: Any, granularity: Any
) -> tuple[Over, Granularity]:
    """``over`` and ``granularity`` (None: what suits the rule), or an Error that says what was wrong."""
    if over not in ("all", "positive"):
        raise Error(f"{caller}: over must be 'all' or 'positive', got {over!r}")
    if granularity not in (None, "channel", "layer", "scalar"):
        raise Error(f"{caller}: granularity must be 'channel', 'layer', 'scalar' or None, got {granularity!r}")
    rule = MeanStd if criterion is None else criterion
    if rule.scope == "global":
        if granularity not in (None, "scalar"):
            raise Error(
                f"{caller}: granularity must be 'scalar' or None with scope='global', which is one threshold for all "
                f"layers, got {granularity!r}"
            )
        return over, "scalar"
    return over, granularity or rule.activation_granularity or "channel"


@dataclass(frozen=True)
class Moments:
    """The values that count: how many, mean, sum of squared deviations, least and largest; ``[G]`` float64 each."""

    count: Tensor
    mean: Tensor
    m2: Tensor
    least: Tensor
    most: Tensor

    @classmethod
    def of(cls, s: ChannelStatistics, over: Over) -> Moments:
        """For each channel of one layer."""
        every = torch.full_like(s.mean, s.count)
        if over == "all":
            return cls(every, s.mean, s.m2, s.minimum, s.maximum)
        # The values that are not positive are 0 in a ReLU's output, so they add nothing to the sums.
        count = s.positive
        mean = every * s.mean / count.clamp_min(1)
        m2 = (s.m2 + every * s.mean.square() - count * mean.square()).clamp_min(0)
        return cls(count, mean, m2, s.least_positive, s.maximum.clamp_min(0))

    @classmethod
    def pooled(cls, parts: Sequence[Moments]) -> Moments:
        """All of them together, ``[1]``."""
        count, mean, m2 = (torch.cat([getattr(p, key) for p in parts]) for key in ("count", "mean", "m2"))
        total = count.sum(0, keepdim=True)
        middle = (count * mean).sum(0, keepdim=True) / total.clamp_min(1)
        spread = (m2 + count * (mean - middle).square()).sum(0, keepdim=True)
        least = torch.cat([p.least for p in parts]).amin(0, keepdim=True)
        return cls(total, middle, spread, least, torch.cat([p.most for p in parts]).amax(0, keepdim=True))

    @property
    def std(self) -> Tensor:
        """Biased."""
        return (self.m2 / self.count.clamp_min(1)).sqrt()

    @property
    def constant(self) -> Tensor:
        """Those that only ever had one value, or none."""
        return ~(self.least < self.most)

    def theta(self, k: float) -> Tensor:
        """mean - k * std, of either sign. A constant's theta is exactly its value, despite rounding."""
        return torch.where(self.constant, self.most, self.mean - k * self.std)


@dataclass(frozen=True)
class Chosen:
    """One layer's thresholds."""

    theta: Tensor  # [C] float32, >= 0
    clamped: int  # how many came out negative
    k: float | None = None  # MeanStd's, given or solved


class Group:
    """Layers that share one k or one level."""

    def __init__(self, sites: Mapping[str, ChannelStatistics], over: Over, granularity: Granularity) -> None:
        self.sites = dict(sites)
        self.over = over
        self.by_channel = granularity == "channel"
        moments = {name: Moments.of(s, over) for name, s in sites.items()}
        if self.by_channel:
            self.moments = moments
        else:
            common = Moments.pooled(list(moments.values()))
            self.moments = dict.fromkeys(sites, common)
        self.total = sum(s.total for s in sites.values())
        self.own = self.zeros({name: torch.zeros_like(s.mean) for name, s in self.sites.items()})

    def zeros(self, thetas: Mapping[str, Tensor]) -> float:
        """How many values would be zero, ReLU's own zeros included."""
        return sum(float(s.counts_below(counting(s, thetas[name]))[0].sum()) for name, s in self.sites.items())

    def apply(self, criterion: Criterion) -> dict[str, Chosen]:
        """The rule's thresholds for each layer."""
        thetas, k = criterion.activation_thresholds(self)
        return {name: self._chosen(name, theta, k) for name, theta in thetas.items()}

    def reach(self, family: type[Criterion], zeros: float) -> dict[str, Chosen]:
        """Thresholds of a family of rules under which the zeros, as a share of all values, reach ``zeros``."""
        if zeros * self.total < self.own + 0.5:  # not one value more than ReLU's own
            return {name: self._chosen(name, torch.zeros_like(s.mean)) for name, s in self.sites.items()}
        return self.apply(family.for_activation_zeros(zeros, self))

    def below_mean(self, k: float) -> dict[str, Tensor]:
        """mean - k * std for each layer."""
        return {name: m.theta(k) for name, m in self.moments.items()}

    def lowest(self, sparsity: float) -> dict[str, Tensor]:
        """For each layer the thresholds under which the zeros reach ``sparsity`` of the values that count."""
        if self.by_channel:
            return {name: self._quantiles(name, sparsity) for name in self.sites}
        level = self._level(sparsity)
        return {name: torch.full_like(s.mean[:1], level) for name, s in self.sites.items()}

    def share_of_counted(self, zeros: float) -> float:
        """A share of all values as a share of those that count; below 0 or above 1 where that cannot be."""
        return zeros if self.over == "all" else (zeros * self.total - self.own) / max(self.total - self.own, 1)

    def _chosen(self, name: str, theta: Tensor, k: float | None = None) -> Chosen:
        every = theta.expand(self.sites[name].channels)
        return Chosen(every.clamp_min(0).to(torch.float32).contiguous(), int((every < 0).sum()), k)

    def solve_k(self, sparsity: float) -> float:
        """The largest k (the fewest pruned) under which the zeros reach ``sparsity``."""

        def zeros(minus_k: float) -> float:
            thetas = self.below_mean(-minus_k)
            return self.zeros({name: self._chosen(name, theta).theta for name, theta in thetas.items()})

        lows, highs = [], []
        for m in self.moments.values():
            # A std that is rounding alone moves no threshold, and would stretch the search for k to 1e300.
            live = ~m.constant & (m.std > 1e-9 * m.mean)
            if bool(live.any()):
                std = m.std[live]
                lows.append(-float((m.mean[live] / std).max()))  # every threshold at or below 0
                highs.append(float(((m.most - m.mean)[live] / std).max()))  # every threshold at its largest value
        if not lows:
            return 0.0
        low, high = min(lows), max(highs)
        if zeros(low) >= sparsity * self.total:
            return -low
        return -solve(zeros, sparsity * self.total, low, high * (1 + 1e-6))

    def _level(self, sparsity: float) -> float:
        """The lowest single threshold under which the zeros reach ``sparsity`` of the values that count."""

        def zeros(level: float) -> float:
            return self.zeros({name: torch.full_like(s.mean, level) for name, s in self.sites.items()})

        wanted = sparsity * self.total
        if self.over == "positive":
            wanted = self.own + sparsity * (self.total - self.own)
        if self.own >= wanted:
            return 0.0
        return solve(zeros, wanted, 0.0, max(float(s.maximum.max()) for s in self.sites.values()) * (1 + 1e-6))

    def _quantiles(self, name: str, sparsity: float) -> Tensor:
        """For each channel the lowest threshold under which its own zeros reach ``sparsity``: ``[C]``."""
        s = self.sites[name]
        own = s.count - s.positive
        wanted = own + sparsity * s.positive if self.over == "positive" else torch.full_like(own, sparsity * s.count)
        low = torch.zeros_like(s.mean)
        high = s.maximum.clamp_min(0) * (1 + 1e-6)
        for _ in range(60):  # float32 tells apart less than 2**-40 of a channel's range
            middle = (low + high) / 2
            reached = s.counts_below(counting(s, middle))[0] >= wanted
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
        return torch.where(own >= wanted, torch.zeros_like(high), high)


def groups(sites: Mapping[str, ChannelStatistics], over: Over, granularity: Granularity) -> dict[str, Group]:
    """The groups of a network by name: the layer's own, or ``"all layers"``."""
    if granularity == "scalar":
        return {"all layers": Group(sites, over, granularity)} if sites else {}
    return {name: Group({name: s}, over, granularity) for name, s in sites.items()}


def counting(s: ChannelStatistics, theta: Tensor) -> Tensor:
    """The limit to count below: no positive value lies below the least one, whatever the histogram's bin holds."""
    exact = theta.to(torch.float64).expand(s.channels)
    return torch.where(exact <= s.least_positive, 0.0, exact)


def prunes_nothing(s: ChannelStatistics, theta: Tensor) -> bool:
    """Whether no positive value can lie below its threshold."""
    return bool((counting(s, theta) == 0).all())


def makes_thresholds(criterion: Any) -> bool:
    """Whether a criterion, or a class of criteria, makes thresholds for activations."""
    family = criterion if isinstance(criterion, type) else type(criterion)
    return issubclass(family, Criterion) and family.activation_granularity is not None


def family_of(caller: str, criterion: Any) -> type[Criterion]:
    """The class whose numbers are to be searched: given as a class, an object of it, or None for the default."""
    if criterion is None:
        return MeanStd
    if not makes_thresholds(criterion):
        raise Error(f"{caller}: criterion must be MeanStd or Magnitude, got {criterion!r}")
    return criterion if isinstance(criterion, type) else type(criterion)
