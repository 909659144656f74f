"""Processes that were forked: torch's threads did not come along, and OpenMP (GNU's) waits for them forever.

This package's kernels run on the calling thread alone there (csrc/ops/threads.h). What torch computes would hang, as it
does in any forked process that does not call ``torch.set_num_threads(1)``, which a DataLoader does for its workers.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref

import torch

#: Whether this process is a fork of the one that imported the package.
forked = False

_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """An RLock that is free in a forked child, where a thread of the parent's would have held it forever. For what is
    built aside and put in its place by one assignment: the child finds it whole, or not there yet."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        if not self._lock._is_owned():  # type: ignore[attr-defined]  # the thread that forked holds it rightly
            self._lock = threading.RLock()


def _in_child() -> None:
    global forked
    forked = True
    for lock in tuple(_locks):
        lock.renew()


os.register_at_fork(after_in_child=_in_child)


def limit_threads() -> None:
    """In a forked process: have torch do with the one thread that is there, before it hangs; said once."""
    global forked
    if not forked:
        return
    forked = False  # settled; whoever raises the number of threads later has reasons of their own
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        warnings.warn(
            "secateur: this process was forked, and torch's threads are not in it (OpenMP would wait for them), so "
            'torch.set_num_threads(1) was called. Start processes with the method "spawn" to have more threads',
            stacklevel=3,
        )
