"""Forked processes: torch's threads do not exist in the child, and GNU OpenMP waits for them forever.

This package's kernels run on the calling thread alone there (csrc/ops/threads.h). torch's operators would hang, as in
any forked process that does not call ``torch.set_num_threads(1)``. A DataLoader calls it for its workers.
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
    """An RLock that is free in a forked child. A plain one could stay locked by a thread that the child does not have.
    Use it for objects that are built aside and published by one assignment: the child finds them whole or absent."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        if not self._lock._is_owned():  # type: ignore[attr-defined]  # the thread that forked may still hold it
            self._lock = threading.RLock()


def _in_child() -> None:
    global forked
    forked = True
    for lock in tuple(_locks):
        lock.renew()


os.register_at_fork(after_in_child=_in_child)


def limit_threads() -> None:
    """In a forked process, limit torch to the one thread that exists, before it hangs; with one warning."""
    global forked
    if not forked:
        return
    forked = False  # checked once: a later change of the number of threads is the caller's own
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        warnings.warn(
            "secateur: this process was forked, and torch's threads are not in it (OpenMP would wait for them), so "
            'torch.set_num_threads(1) was called. Start processes with the method "spawn" to have more threads',
            stacklevel=3,
        )
