"""Figures that say how far they can be trusted: spread, gain, and what else the machine did. No clock is asked."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from secateur._base import load
from secateur._base.load import Load
from secateur._base.timing import Gain, Spread

# ---- spread and gain ----


def test_spread_is_ordered_and_stays_within_the_runs() -> None:
    spread = Spread.of([3.0, 1.0, 2.0, 10.0, 4.0])
    assert (spread.least, spread.low, spread.median, spread.high, spread.runs) == (1.0, 2.0, 3.0, 4.0, 5)
    assert spread.share == pytest.approx(2 / 3)
    for few in ([2.0], [2.0, 4.0], [2.0, 4.0, 3.0]):
        spread = Spread.of(few)
        assert min(few) == spread.least <= spread.low <= spread.median <= spread.high <= max(few)
    assert Spread.of([0.0, 0.0]).share == 0


def test_a_steady_gain_is_one_figure_with_its_range() -> None:
    gain = Gain.of([4.0, 4.1, 4.2, 4.0], [1.0, 1.0, 1.0, 1.0])
    assert gain.sure
    assert str(gain) == "4.05 (4.00 to 4.12)"
    loss = Gain.of([1.0, 1.0, 1.0], [2.0, 2.0, 2.1])
    assert loss.sure
    assert str(loss).startswith("0.50 (0.4")


@pytest.mark.parametrize(
    ("base", "other"),
    [
        ([80.0, 3.0, 90.0, 75.0, 4.0], [2.2, 2.1, 2.3, 2.2, 2.0]),  # "35.8 times as fast" in half of the rounds
        ([70.0, 75.0, 80.0, 85.0, 9.0], [2.2, 2.1, 2.3, 2.2, 2.0]),  # the shortest runs, less disturbed, say 4.5
        ([1.00, 1.10, 0.95], [1.0, 1.0, 1.0]),  # no difference
        ([1.1, 1.3, 1.0, 1.2], [1.0, 1.0, 1.0, 1.0]),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
    ],
)
def test_a_gain_smaller_than_its_spread_is_a_range_alone(base: list[float], other: list[float]) -> None:
    gain = Gain.of(base, other)
    assert gain.low <= gain.ratio <= gain.high
    assert not gain.sure
    assert str(gain) == f"{gain.low:.2f} to {gain.high:.2f}"


def test_rounds_are_compared_in_pairs() -> None:
    """A load that comes and goes slows both: what they share is no spread."""
    gain = Gain.of([2.0, 20.0, 2.0, 30.0], [1.0, 10.0, 1.0, 15.0])
    assert (gain.ratio, gain.low, gain.high) == (2.0, 2.0, 2.0)
    assert gain.sure


# ---- the machine ----


def looked(cores: int, ready: list[int], average: float | None, waited: float | None) -> Load:
    found = Load(cores)
    found.ready, found.average, found.waited = ready, average, waited
    return found


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (looked(2, [7, 8, 9], 0.4, 0.0), "8.0 threads wanted to run on 2 cores"),
        (looked(2, [1, 1], 6.1, 0.0), "a load of 6.1 on 2 cores in the last minute"),
        (looked(1, [], 6.1, None), "a load of 6.1 on 1 core in the last minute"),
        (looked(64, [30], 20.0, 0.4), "40 % of the time was spent waiting for a core"),
        (looked(2, [7], 6.0, 0.5), "7.0 threads wanted to run on 2 cores, 50 % of the time was spent waiting"),
    ],
)
def test_more_work_than_cores_is_said(found: Load, words: str) -> None:
    assert found.busy is not None
    assert words in found.busy
    assert found.warning is not None
    assert found.warning.startswith("WARNING: the machine was busy (")


@pytest.mark.parametrize(
    "found",
    [looked(2, [1, 2, 3, 2], 1.9, 0.001), looked(2, [], None, None), looked(64, [40], 50.0, 0.0)],
)
def test_a_quiet_machine_and_one_that_does_not_tell_are_not_warned_of(found: Load) -> None:
    assert found.busy is None
    assert found.warning is None


def test_the_machine_is_looked_at_while_the_body_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: Iterator[float] = iter([1.0, 1e9, 1e9, 2e9])
    monkeypatch.setattr(load, "_ready", lambda: 9)
    monkeypatch.setattr(load, "_waited_s", lambda: next(waited))
    monkeypatch.setattr(os, "getloadavg", lambda: (5.0, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with load.watched() as found:
        pass
    assert found.busy is not None
    assert found.ready[0] == found.ready[-1] == 9
    assert found.average == 5.0
    assert found.waited is not None
    assert found.waited > 1
    with pytest.raises(KeyError), load.watched():  # an error of the body comes through, and the looks end
        raise KeyError
    assert "secateur-load" not in {thread.name for thread in load.threading.enumerate()}


def test_a_system_that_does_not_tell_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "Path", lambda name: (_ for _ in ()).throw(OSError(name)))
    monkeypatch.delattr(os, "getloadavg")
    with load.watched() as found:
        pass
    assert (found.ready, found.average, found.waited, found.busy) == ([], None, None, None)
