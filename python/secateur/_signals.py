"""Work that must not be cut in two: torch.fx patches ``nn.Module`` while it traces, and an exception amid its undoing
leaves every module of the process broken."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any


@contextmanager
def held_signals() -> Iterator[None]:
    """Holds what Python's signal handlers would raise (Ctrl-C's KeyboardInterrupt) until the block is left.

    A second signal of a kind runs its handler at once, so that a block that never ends can be left nevertheless.
    Handlers run in the main thread alone: in any other nothing is held.
    """
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler):
                    stack.enter_context(_held(number, handler))
        yield


@contextmanager
def _held(number: int, handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    came: list[FrameType | None] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if came:
            handler(number, frame)
        came.append(frame)

    try:
        signal.signal(number, hold)
        yield
    finally:
        if signal.getsignal(number) is hold:  # the block may have set its own
            signal.signal(number, handler)
        if came:
            handler(number, came[0])
