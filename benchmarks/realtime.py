"""Before all other processes, while something is timed: for machines with other work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def realtime(wanted: bool) -> Iterator[None]:
    """Every thread of this process under SCHED_FIFO (Linux, needs the right to).

    Two threads that meet at a barrier otherwise wait for a slice of whoever holds the second core, and medians count
    slices.
    """
    if not wanted:
        yield
        return

    def schedule(policy: int, priority: int) -> None:
        for thread in os.listdir("/proc/self/task"):
            with suppress(ProcessLookupError):  # it ended meanwhile
                os.sched_setscheduler(int(thread), policy, os.sched_param(priority))

    schedule(os.SCHED_FIFO, 10)
    try:
        yield
    finally:
        schedule(os.SCHED_OTHER, 0)
