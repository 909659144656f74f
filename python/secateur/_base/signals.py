"""Code that Ctrl-C must not interrupt, and torch's gradient mode after code that it may interrupt."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def keeps_grad_mode(function: Callable[P, R]) -> Callable[P, R]:
    """Turn gradients on again if they were on before: an interrupt amid ``torch.no_grad``'s exit leaves them off."""

    @functools.wraps(function)
    def kept(*args: P.args, **kwargs: P.kwargs) -> R:
        enabled = torch.is_grad_enabled()
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_grad_enabled(enabled)

    return kept


@contextmanager
def held_signals(*, repeated: bool = False) -> Iterator[None]:
    """Delays Python's signal handlers (and so Ctrl-C's KeyboardInterrupt) until the block is left.

    A second signal of a kind runs its handler at once, so that an endless block can be left; with ``repeated`` it is
    delayed too. Handlers run in the main thread only: in other threads nothing is delayed.
    """
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler):
                    stack.enter_context(_held(number, handler, repeated))
        yield


@contextmanager
def _held(number: int, handler: Callable[[int, FrameType | None], Any], repeated: bool) -> Iterator[None]:
    came: list[FrameType | None] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if came and not repeated:
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
