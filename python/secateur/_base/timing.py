"""Side-by-side timing: contenders take turns within each round, medians are compared.

On a shared machine only such ratios mean anything; a time by itself is the machine's mood.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

#: A measurement shorter than this is repeated within its turn, or the clock's own cost would show.
SHORTEST_TURN_S = 2e-4
#: Of contenders that take this long, one that takes three times as long as another needs no second measurement.
CLEAR_S, CLEAR = 0.1, 3.0


def interleave(
    contenders: Sequence[Callable[[], object]],
    rounds: int = 7,
    budget_s: float | None = None,
    *,
    until_clear: bool = False,
) -> list[list[float]]:
    """Run every contender once a round, after two warm-up runs each; gives the seconds of each one's runs.

    Args:
        contenders: calls without arguments.
        rounds: how many turns each gets.
        budget_s: stop after the round in which this much time has passed (but after three rounds at least).
        until_clear: who is fastest is all that is asked, so the second warm-up run is all where it takes the slowest
            :data:`CLEAR_S` or more and the fastest a third of that or less.
    """
    warm, repeats = [], []
    for run in contenders:
        run()
        begin = time.perf_counter()
        run()
        warm.append(time.perf_counter() - begin)
        repeats.append(max(1, int(SHORTEST_TURN_S / max(warm[-1], 1e-9))))
    if until_clear and max(warm) >= max(CLEAR_S, CLEAR * min(warm)):
        return [[seconds] for seconds in warm]
    times: list[list[float]] = [[] for _ in contenders]
    begin = time.perf_counter()
    for done in range(rounds):
        if budget_s is not None and done >= 3 and time.perf_counter() - begin > budget_s:
            break
        # Every second round backwards, so that no contender always follows the same one.
        order = range(len(contenders)) if done % 2 == 0 else reversed(range(len(contenders)))
        for i in order:
            turn = time.perf_counter()
            for _ in range(repeats[i]):
                contenders[i]()
            times[i].append((time.perf_counter() - turn) / repeats[i])
    return times


def medians(contenders: Sequence[Callable[[], object]], rounds: int = 7, budget_s: float | None = None) -> list[float]:
    """The median seconds of each contender, see :func:`interleave`."""
    return [statistics.median(each) for each in interleave(contenders, rounds, budget_s)]
