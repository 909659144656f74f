"""Side-by-side timing: contenders take turns within each round, medians are compared.

On a shared machine only such ratios mean anything; an absolute time shows the machine's load. The parts of one call
(:func:`secateur.profile`, the demo's layers) cannot take turns and are clocked where they run.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: A measurement shorter than this is repeated within its turn, or the clock's own cost would show.
SHORTEST_TURN_S = 2e-4
#: Of contenders that take this long, one that takes three times as long as another needs no second measurement.
CLEAR_S, CLEAR = 0.1, 3.0


def interleave(
    contenders: Sequence[Callable[[], object]],
    rounds: int = 7,
    budget_s: float | None = None,
    *,
    least: int = 3,
    until_clear: bool = False,
    prepare: Sequence[Callable[[], object] | None] | None = None,
    slow_s: float = math.inf,
) -> list[list[float]]:
    """Run every contender once a round, after two warm-up runs each; gives the seconds of each one's runs.

    Args:
        contenders: calls without arguments.
        rounds: how many turns each gets.
        budget_s: stop after the round in which this much time has passed.
        least: but no sooner than after this many rounds.
        until_clear: only the fastest contender matters. The second warm-up run is enough if the slowest takes
            :data:`CLEAR_S` or more and the fastest a third of that or less.
        prepare: called before each call of a contender, untimed (None: nothing).
        slow_s: contenders that take longer run in every fourth round only.
    """
    before = [None] * len(contenders) if prepare is None else list(prepare)

    def seconds(which: int, times: int = 1) -> float:
        if (ready := before[which]) is not None:
            ready()
        begin = time.perf_counter()
        for _ in range(times):
            contenders[which]()
        return (time.perf_counter() - begin) / times

    warm, repeats = [], []
    for i in range(len(contenders)):
        seconds(i)
        warm.append(seconds(i))
        # A contender that is prepared before each call cannot be repeated at once.
        repeats.append(1 if before[i] is not None else max(1, int(SHORTEST_TURN_S / max(warm[-1], 1e-9))))
    if until_clear and max(warm) >= max(CLEAR_S, CLEAR * min(warm)):
        return [[seconds] for seconds in warm]
    times: list[list[float]] = [[] for _ in contenders]
    begin = time.perf_counter()
    for done in range(rounds):
        if budget_s is not None and done >= least and time.perf_counter() - begin > budget_s:
            break
        # Every second round backwards, so that no contender always follows the same one.
        order = range(len(contenders)) if done % 2 == 0 else reversed(range(len(contenders)))
        for i in order:
            if warm[i] < slow_s or done % 4 == 0:
                times[i].append(seconds(i, repeats[i]))
    return times


def medians(contenders: Sequence[Callable[[], object]], rounds: int = 7, budget_s: float | None = None) -> list[float]:
    """The median seconds of each contender, see :func:`interleave`."""
    return [statistics.median(each) for each in interleave(contenders, rounds, budget_s)]


@dataclass(frozen=True)
class Spread:
    """The runs of one contender, in seconds: the median, the shortest, and where the middle half of them lies."""

    median: float
    least: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Of one run or more."""
        ends = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
        return cls(statistics.median(seconds), min(seconds), ends[0], ends[2], len(seconds))

    @property
    def share(self) -> float:
        """How wide the middle half is, relative to the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


@dataclass(frozen=True)
class Gain:
    """How many times as fast as another a contender is."""

    ratio: float  # of the medians
    low: float  # what the rounds leave possible
    high: float

    @classmethod
    def of(cls, base: Sequence[float], other: Sequence[float]) -> Gain:
        """``other`` against ``base``, the seconds of the same rounds.

        The range holds the ratios of the middle half of the rounds, each with what ran beside it, and the ratio of the
        shortest runs, which a load touches least.
        """
        ratio = statistics.median(base) / statistics.median(other)
        rounds = Spread.of([a / b for a, b in zip(base, other, strict=True)])
        every = (ratio, rounds.low, rounds.high, min(base) / min(other))
        return cls(ratio, min(every), max(every))

    @property
    def sure(self) -> bool:
        """The rounds differ by less than what is gained or lost, and by less than a factor of two."""
        return self.high - self.low < abs(self.ratio - 1) and self.high < 2 * self.low

    def __str__(self) -> str:
        """The ratio with its range; the range alone where no single figure can be trusted."""
        between = f"{self.low:.2f} to {self.high:.2f}"
        return f"{self.ratio:.2f} ({between})" if self.sure else between
