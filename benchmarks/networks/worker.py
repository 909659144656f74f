"""A process that holds one engine and obeys: one JSON object a line on standard input, one back on standard output.

Run by contest.py as ``python -m benchmarks.networks.worker ADAPTER THREADS OPTIONS``, in the engine's own environment.
Whatever the engine itself prints goes to standard error.

It has a clock of its own: secateur, whose timer the other benchmarks use, is not installed in every engine's
environment, and here a turn is one process's, between those of others.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..realtime import realtime
from . import adapters

#: A turn begins with untimed calls, for at least this long: threads wake up, caches fill with what is the engine's.
WAKE_UP_S = 0.03
#: What takes longer than this needs no waking up: caches are filled within a small part of one call.
LONG_CALL_S = 0.25


def memory(key: str) -> float:
    """VmRSS or VmHWM (the peak since :func:`forget_peak`) of this process in MB; NaN where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6
    except (OSError, StopIteration):
        return float("nan")


def forget_peak() -> None:
    with suppress(OSError):  # where it cannot be forgotten, the peak of the loading stays in
        Path("/proc/self/clear_refs").write_text("5")


def _sqnr_db(expected: np.ndarray, found: np.ndarray) -> float:
    signal = float(np.square(expected).sum())
    return float(10 * np.log10(signal / max(float(np.square(found - expected).sum()), 1e-30 * signal)))


class Worker:
    def __init__(self, adapter: str, threads: int, options: dict[str, Any]) -> None:
        self.adapter: adapters.Adapter = getattr(adapters, adapter)(threads, options)
        self.shortest = 0.0  # seconds of the latest untimed call

    def hello(self) -> dict[str, Any]:
        return {"versions": self.adapter.versions}

    def prepare(self, **arguments: Any) -> dict[str, Any]:
        assert isinstance(self.adapter, adapters.Preparer)
        return self.adapter.prepare(**arguments)

    def load(self, model: str, x: str, batch: int) -> dict[str, Any]:
        """Ready to run means: the first output is there. torch.compile does its work in that call."""
        images = np.load(x)[:batch]
        gc.collect()
        base = memory("VmRSS")
        forget_peak()
        begin = time.perf_counter()
        self.adapter.load(Path(model), images)
        self.adapter.call()
        ready = time.perf_counter() - begin
        gc.collect()
        peak = memory("VmHWM")
        forget_peak()
        for _ in range(2):
            begin = time.perf_counter()
            self.adapter.call()
            self.shortest = time.perf_counter() - begin
        return {
            "ready_s": ready,
            "base_mb": base,
            "load_peak_mb": peak - base,
            "run_peak_mb": memory("VmHWM") - base,
            "settings": self.adapter.settings,
        }

    def input(self, x: str, batch: int) -> dict[str, Any]:
        """Another batch size, without loading again."""
        self.adapter.input(np.load(x)[:batch])
        begin = time.perf_counter()
        self.adapter.call()
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        self.adapter.call()
        self.shortest = time.perf_counter() - begin
        return {"first_call_s": first}

    def check(self, reference: str, batch: int) -> dict[str, Any]:
        """The largest difference from the float64 reference, over its largest value; and the ratio of signal to
        noise, ``10 log10(sum y^2 / sum (y - found)^2)``, in decibels (at most 300). own_sqnr_db: beside the same
        quantized model in torch, where there is one."""
        expected = np.load(reference)[:batch]
        found = np.asarray(self.adapter.output(self.adapter.call()), dtype=np.float64)
        if found.shape != expected.shape:
            raise ValueError(f"the output must have the shape {expected.shape}, has {found.shape}")
        off = float(np.abs(found - expected).max() / np.abs(expected).max())
        if not np.isfinite(off):
            return {"error": None, "sqnr_db": None, "own_sqnr_db": None}
        own = self.adapter.same_in_torch()
        return {
            "error": off,
            "sqnr_db": _sqnr_db(expected, found),
            "own_sqnr_db": None if own is None else _sqnr_db(own.astype(np.float64), found),
        }

    def run(self, seconds: float, first: bool = False) -> dict[str, Any]:
        """One turn. ``first``: before all other processes."""
        with realtime(first):
            return self._run(seconds)

    def _run(self, seconds: float) -> dict[str, Any]:
        call, clock = self.adapter.call, time.perf_counter
        if self.shortest < LONG_CALL_S:
            end = clock() + WAKE_UP_S
            while clock() < end:
                call()
        taken: list[float] = []
        end = clock() + seconds
        while not taken or clock() + 0.5 * taken[-1] < end:
            begin = clock()
            call()
            taken.append(clock() - begin)
        return {"seconds": taken}

    def profile(self) -> dict[str, Any]:
        return {"profile": self.adapter.profile()}


def _obey(make: Callable[[], Worker], requests: TextIO, replies: TextIO) -> None:
    def reply(value: dict[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    try:
        worker = make()
        reply(worker.hello())
    except ImportError as missing:
        reply({"missing": str(missing)})
        return
    for line in requests:
        request = json.loads(line)
        try:
            reply(getattr(worker, request.pop("do"))(**request))
        except Exception as failure:  # the run goes on without this engine, and says why
            traceback.print_exc()
            reply(
                {"failed": f"{type(failure).__name__}: {str(failure).strip().splitlines()[0] if str(failure) else ''}"}
            )


def main() -> None:
    with suppress(AttributeError, OSError):  # a stopped worker must not outlive the one that steers it
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    adapter, threads, options = sys.argv[1:]
    _obey(lambda: Worker(adapter, int(threads), json.loads(options)), sys.stdin, replies)


if __name__ == "__main__":
    main()
