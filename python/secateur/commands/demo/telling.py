"""What the demo says while it runs: each stage's result when it is there."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Is told a line.
Say = Callable[[str], None]


def quiet(text: str) -> None:
    """Says nothing."""


def teller(on: bool) -> Say:
    """Prints each line at once, with the seconds since now; or says nothing."""
    if not on:
        return quiet
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - began:4.0f} s] {text}", flush=True)

    return say


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def minutes(seconds: float) -> str:
    """Rounded as a forecast should be."""
    if seconds < 90:
        return f"{max(10, 10 * round(seconds / 10))} seconds"
    return f"{round(seconds / 60)} minutes"
