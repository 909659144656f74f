"""The profile's figures on a busy machine: nothing negative, and a warning. The clock is played, not asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import secateur
import torch
from secateur._base import timing
from secateur._base.load import Load
from secateur._base.timing import Spread
from secateur.engine import profiling
from torch import Tensor, nn

X = torch.rand(1, 3, 12, 12)
TIMES = ("ms", "ms_min", "ms_p25", "ms_p75")


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Softmax(1)).eval()
    secateur.prune(model, secateur.Magnitude(0.5))
    return model


@pytest.fixture
def fast(engine_wins: None) -> Any:
    return secateur.compile(network(), X)


def play(monkeypatch: pytest.MonkeyPatch, seconds: Sequence[float]) -> None:
    """A whole call takes these; the layers take what they take."""
    monkeypatch.setattr(timing, "interleave", lambda calls, *_: [list(seconds) for _ in calls])


def machine(monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    class Played:
        def __enter__(self) -> Load:
            return load

        def __exit__(self, *_: object) -> None:
            return None

    monkeypatch.setattr(profiling.load, "watched", Played)


def between(report: secateur.Report) -> str:
    return next(note for note in report.notes if "ms between them" in note)


def test_the_time_between_layers_is_never_negative(fast: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a load hit the layers and had gone when the calls were timed."""
    play(monkeypatch, [1e-9, 1e-9, 1e-9])
    report = secateur.profile(fast, X)
    assert ", 0.000 ms between them (layers are timed one by one)" in between(report)
    assert any(note.startswith("one by one the layers took ") for note in report.notes)
    assert not re.search(r"-\d", str(report).split("note:", 1)[1])
    play(monkeypatch, [1000.0, 1000.0, 1000.0])
    report = secateur.profile(fast, X)
    assert float(re.findall(r"([\d.]+) ms between them", between(report))[0]) > 9e5
    assert not any("one by one the layers took" in note for note in report.notes)


def test_every_time_has_its_least_and_its_spread(fast: Any) -> None:
    report = secateur.profile(fast, X)
    timed = [row for row in report if row["ms"] is not None]
    assert len(timed) >= 3
    assert report.total is not None
    for row in (*timed, report.total):
        assert 0 < row["ms_min"] <= row["ms_p25"] <= row["ms"] <= row["ms_p75"], row["layer"]
    titles = [column.title for column in report.columns]
    assert titles[titles.index("ms") : titles.index("dense ms")] == ["ms", "at best", "25 %", "75 %"]


def test_calls_that_differ_too_much_are_warned_of(fast: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, Load(2))
    play(monkeypatch, [0.001, 0.002, 0.003, 0.009, 0.02])
    report = secateur.profile(fast, X)
    assert "WARNING: calls took 2.000 to 9.000 ms (the middle half of 10; 1.000 at best)" in report.notes[-1]
    play(monkeypatch, [0.00100, 0.00101, 0.00102, 0.00103, 0.5])  # one call of five is no doubt
    assert not any("WARNING" in note for note in secateur.profile(fast, X).notes)


def test_a_busy_machine_is_warned_of(fast: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Load(2)
    machine(monkeypatch, load)
    play(monkeypatch, [0.001])
    assert not any("WARNING" in note for note in secateur.profile(fast, X).notes)
    load.ready = [8, 8]
    report = secateur.profile(fast, X)
    assert "WARNING: the machine was busy (8.0 threads wanted to run on 2 cores)" in report.notes[-1]
    assert report.notes[-1] in str(report)
    assert report.notes[-1] in report.to_dict()["notes"]


def test_of_several_images_nothing_is_said_to_be_between_the_layers(fast: Any) -> None:
    """The engine's clock knows one image."""
    report = secateur.profile(fast, torch.rand(4, 3, 12, 12))
    assert "ms between them" not in str(report)
    assert "ms in a whole call for all 4 (layers are timed one by one)" in str(report)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            return x
        return self.inner(x)  # type: ignore[no-any-return]


def test_what_python_takes_by_itself_is_never_negative(engine_wins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = secateur.compile(Branches().eval(), X)
    taken = iter([[1e-6] * 3, [1e-6] * 3, [1.0, 2.0, 3.0], [1e-6] * 3])  # calls, the forward, its child, calls
    monkeypatch.setattr(timing, "interleave", lambda calls, *_: [next(taken)])
    row = next(row for row in secateur.profile(fast, X) if row["kind"] == "python")
    assert [row[key] for key in TIMES] == [0.0] * 4
    rest = profiling._rest(Spread(5.0, 1.0, 4.0, 9.0, 7), [Spread(1.0, 0.5, 0.9, 8.0, 7)])
    assert (rest.median, rest.least, rest.low, rest.high) == (4.0, 0.5, 1.0, 4.0)
