"""Times on a GPU by events, on a CPU by the clock: the same contenders, in turn, medians with their spread.

On a GPU every call finds its tensors out of L2: before each one a buffer of four times the cache is read. (Not written:
its dirty lines would be written back during the call.) While that runs the host prepares the call, so the time of a
launch is not in the figure. Clocks are as they are: on a rented machine nobody may set them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..networks.contest import spread
from .record import reason

#: In place of the figures of a contender whose result is not right.
WRONG = "WRONG RESULT"


@dataclass(frozen=True)
class Contender:
    """run: what is timed. prepare: done before each call, untimed. check: after one call, whether its result is right
    (a wrong one is not timed). moved: bytes that must cross the memory bus once."""

    run: Callable[[], Any]
    moved: int = 0
    prepare: Callable[[], Any] | None = None
    check: Callable[[Any], bool] | None = None


class Clock:
    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        torch.manual_seed(seed)
        if self.on_gpu:
            l2 = torch.cuda.get_device_properties(device).L2_cache_size
            self._buffer = torch.ones(4 * l2 // 4, dtype=torch.int32, device=device)

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def compare(
        self, contenders: Mapping[str, Contender], seconds: float, rounds: int = 25, flush: bool = True, warm: int = 2
    ) -> dict[str, dict[str, Any]]:
        """All contenders once a round, every second round backwards, until ``rounds`` or ``seconds`` are over (at least
        three rounds). Gives for each one its spread, or ``failed`` with the reason."""
        found = {name: row for name, c in contenders.items() if (row := self._ready(c, warm)) is not None}
        order = [name for name in contenders if name not in found]
        taken: dict[str, list[float]] = {name: [] for name in order}
        end = time.monotonic() + seconds
        for number in range(rounds):
            if number >= 3 and time.monotonic() > end:
                break
            turns = [(name, self._turn(contenders[name], flush)) for name in order]
            self.synchronize()
            for name, ended in turns:
                taken[name].append(ended())
            order.reverse()
        for name, times in taken.items():
            found[name] = spread(times)
        moved = {name: c.moved for name, c in contenders.items()}
        for name, row in found.items():
            if moved[name] and row.get("median_ms"):
                row["moved_bytes"] = moved[name]
                row["gb_s"] = moved[name] / row["median_ms"] / 1e6
        return {name: found[name] for name in contenders}

    def _ready(self, contender: Contender, warm: int) -> dict[str, Any] | None:
        """None for a contender that works and is right; it is warm then."""
        try:
            for number in range(1 + warm):
                if contender.prepare is not None:
                    contender.prepare()
                result = contender.run()
                if number == 0 and contender.check is not None and not contender.check(result):
                    return {"failed": WRONG}
                del result
            self.synchronize()
        except Exception as error:  # one that cannot is named; the others are timed
            if self.on_gpu:
                torch.cuda.empty_cache()
            return {"failed": reason(error)}
        return None

    def _turn(self, contender: Contender, flush: bool) -> Callable[[], float]:
        """One timed call; its time in seconds is there once the device is done."""
        if contender.prepare is not None:
            contender.prepare()
        if not self.on_gpu:
            begin = time.perf_counter()
            contender.run()
            taken = time.perf_counter() - begin
            return lambda: taken
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if flush:
            self._buffer.sum()
        start.record()
        contender.run()
        stop.record()
        return lambda: start.elapsed_time(stop) * 1e-3

    def host(
        self, calls: Mapping[str, Callable[[], Any]], loops: int = 30, batch: int = 100
    ) -> dict[str, dict[str, Any]]:
        """Microseconds of the calling thread for one call: what a launch costs, not what it launches. ``batch`` calls
        between two looks at the clock, few enough for the device's queue to take them all."""
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            for _ in range(batch):
                call()
        for _ in range(loops):
            for name, call in calls.items():
                self.synchronize()
                begin = time.perf_counter()
                for _ in range(batch):
                    call()
                taken[name].append((time.perf_counter() - begin) / batch)
        self.synchronize()
        return {name: _microseconds(spread(times)) for name, times in taken.items()}


def _microseconds(row: dict[str, Any]) -> dict[str, Any]:
    return {"median_us": 1e3 * row["median_ms"], "iqr_us": 1e3 * row["iqr_ms"], "min_us": 1e3 * row["min_ms"],
            "runs": row["runs"]}  # fmt: skip


def beside_copy(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same rows with ``share_of_copy``: bytes a second over those of ``copy_`` in the same rounds."""
    copy = rows.get("copy_", {}).get("gb_s")
    for row in rows.values():
        if copy and row.get("gb_s"):
            row["share_of_copy"] = row["gb_s"] / copy
    return rows
