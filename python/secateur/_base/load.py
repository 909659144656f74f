"""What else the machine did while something was measured.

More programs than cores stretch every time, and not all of them alike: who needs two threads at once waits longer than
who needs one. So a measurement says when it happened.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Of the time of a measurement: so long may its thread wait for a core before that is worth a word.
WAITED = 0.05
#: Looks at the machine that a measurement keeps between its beginning and its end.
_LOOK_S = 0.05


class Load:
    """The looks at the machine of one measurement. Any of them is empty where the system does not tell."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.ready: list[int] = []  #: threads that ran or wanted to, this process' own among them, look by look
        self.average: float | None = None  #: the same over the last minute
        self.waited: float | None = None  #: share of the time for which this thread was ready and had no core

    @property
    def busy(self) -> str | None:
        """What there was more of than cores, in words; None: nothing that would stretch a time."""
        found = []
        ready = sum(self.ready) / len(self.ready) if self.ready else 0.0
        # Half a thread more: the system's own come and go.
        if ready > self.cores + 0.5:
            found.append(f"{ready:.1f} threads wanted to run on {_cores(self.cores)}")
        elif self.average is not None and self.average > self.cores + 0.5:
            found.append(f"a load of {self.average:.1f} on {_cores(self.cores)} in the last minute")
        if self.waited is not None and self.waited > WAITED:
            found.append(f"{100 * self.waited:.0f} % of the time was spent waiting for a core")
        return ", ".join(found) or None

    @property
    def warning(self) -> str | None:
        """The line for a report; None where the machine was not busy."""
        reason = self.busy
        return (
            f"WARNING: the machine was busy ({reason}): the times are too long, and not all alike" if reason else None
        )


@contextmanager
def watched() -> Iterator[Load]:
    """Look at the machine while the body runs; the :class:`Load` is complete when it has ended."""
    load = Load(os.cpu_count() or 1)  # of the whole machine, as the numbers that they are held against
    done = threading.Event()

    def look() -> None:
        if (ready := _ready()) is not None:
            load.ready.append(ready)

    def looks() -> None:
        # The thread that looks is awake, so it counts itself.
        while not done.wait(_LOOK_S):
            if (ready := _ready()) is not None:
                load.ready.append(max(ready - 1, 0))

    look()
    begin, waited = time.perf_counter(), _waited_s()
    watcher = threading.Thread(target=looks, name="secateur-load", daemon=True)
    watcher.start()
    try:
        yield load
    finally:
        spent, waited_until = time.perf_counter() - begin, _waited_s()
        done.set()
        watcher.join()
        look()
        if waited is not None and waited_until is not None and spent > 0:
            load.waited = (waited_until - waited) / spent
        load.average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _cores(number: int) -> str:
    return "1 core" if number == 1 else f"{number} cores"


def _ready() -> int | None:
    """Threads of the whole machine that run or could, now."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
    except (OSError, ValueError, IndexError):
        return None


def _waited_s() -> float | None:
    """Seconds for which this thread was ready to run and had no core, since it began."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None
