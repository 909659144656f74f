"""One fixture for the whole folder: ``contest`` runs named contenders in turn and reports medians, spread and ratios.

pytest-benchmark times one function until it is done, then the next: a clock that drifts, or a neighbour who wakes up,
then decides the ratio. Here the package's own timer gives every contender a turn in each round, and ratios come from
the medians; pytest-benchmark keeps the JSON.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from secateur._base import timing

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks is run from the repository's root, not installed

from benchmarks.realtime import realtime

THREADS = 2
SLOW = 0.2  # seconds: what takes longer runs in every fourth round only
Call = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """call: what is timed. bytes: what it has to move (one read, one write, the mask), for GB/s.
    prepare: run before every call, outside the clock. check: validates it, once, before anything is timed."""

    call: Call
    bytes: int = 0
    prepare: Call | None = None
    check: Call | None = None


@dataclass(frozen=True)
class Goal:
    """``ours`` must reach ``at_least`` times the bytes/s (or, where neither counts bytes, the speed) of ``peer``."""

    ours: str
    peer: str
    at_least: float


def bytes_per_second(contender: Contender, seconds: float) -> float:
    return (contender.bytes or 1) / seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--realtime", action="store_true", help="time under SCHED_FIFO: for a busy machine (Linux)")


@pytest.fixture
def contest(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., dict[str, Any]]:
    """contest(contenders, goals=[...], rounds=30, skipped={name: reason}): validate, warm up, run in turn, report."""

    def run(
        contenders: Mapping[str, Contender],
        goals: list[Goal] | None = None,
        rounds: int = 30,
        skipped: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        torch.set_num_threads(THREADS)
        for contender in contenders.values():
            if contender.check is not None:
                contender.check()
        calls = [contender.call for contender in contenders.values()]
        prepare = [contender.prepare for contender in contenders.values()]
        taken: list[list[float]] = []

        def turns() -> None:
            taken.extend(timing.interleave(calls, rounds, prepare=prepare, slow_s=SLOW))

        with realtime(request.config.getoption("--realtime")):
            benchmark.pedantic(turns, rounds=1, iterations=1, warmup_rounds=0)
        seconds = dict(zip(contenders, taken, strict=True))

        rows = {}
        for name, times in seconds.items():
            low, median, high = statistics.quantiles(times, n=4)
            size = contenders[name].bytes
            rows[name] = {
                "runs": len(times),
                "median_ms": median * 1e3,
                "iqr_ms": (high - low) * 1e3,
                "min_ms": min(times) * 1e3,
                "gb_per_s": size / median / 1e9 if size else None,
            }
        results = []
        for goal in goals or []:
            ours, peer = contenders[goal.ours], contenders[goal.peer]
            ratio = bytes_per_second(ours, statistics.median(seconds[goal.ours])) / bytes_per_second(
                peer, statistics.median(seconds[goal.peer])
            )
            best = bytes_per_second(ours, min(seconds[goal.ours])) / bytes_per_second(peer, min(seconds[goal.peer]))
            results.append({"ours": goal.ours, "peer": goal.peer, "at_least": goal.at_least, "ratio": ratio,
                            "ratio_of_best": best, "reached": ratio >= goal.at_least})  # fmt: skip
        report = {"name": request.node.name, "threads": THREADS, "torch": torch.__version__, "rounds": rounds,
                  "contenders": rows, "goals": results, "skipped": dict(skipped or {})}  # fmt: skip
        benchmark.extra_info.update(report)
        request.config.stash[_reports].append(report)
        return report

    return run


_reports = pytest.StashKey[list[dict[str, Any]]]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[_reports] = []
    if not config.option.collectonly:  # JSON with machine, commit and times in .benchmarks/
        config.option.benchmark_autosave = time.strftime("%Y%m%d-%H%M%S")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """`pytest benchmarks/operators` collects bench_*.py; a file named on the command line pytest collects by itself."""
    if file_path.match("bench_*.py") and not parent.session.isinitpath(file_path):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for report in config.stash[_reports]:
        terminalreporter.section(f"{report['name']}, {report['threads']} threads, torch {report['torch']}")
        lines = [f"{'contender':34} {'median ms':>10} {'IQR ms':>8} {'min ms':>8} {'GB/s':>7}"]
        for name, row in sorted(report["contenders"].items(), key=lambda item: item[1]["median_ms"]):
            rate = f"{row['gb_per_s']:7.1f}" if row["gb_per_s"] else f"{'-':>7}"
            lines.append(f"{name:34} {row['median_ms']:10.2f} {row['iqr_ms']:8.2f} {row['min_ms']:8.2f} {rate}")
        lines += [f"{name:34} skipped: {reason}" for name, reason in report["skipped"].items()]
        for goal in report["goals"]:
            verdict = "reached" if goal["reached"] else "MISSED"
            lines.append(
                f"  {goal['ours']} / {goal['peer']}: {goal['ratio']:.2f} of its speed by medians, "
                f"{goal['ratio_of_best']:.2f} by minima; goal {goal['at_least']:g}: {verdict}"
            )
        terminalreporter.write("\n".join(lines) + "\n")
