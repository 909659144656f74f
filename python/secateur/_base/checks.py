"""Arguments checked: each error names the function, the argument, the rule and the value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .errors import Error


def checked_number(owner: str, name: str, value: Any, low: float, high: float) -> float:
    """``value`` as a float within [low, high], or an Error that says what was wrong."""
    rule = "a finite number" if math.isinf(low) else f"a number from {low:g} to {high:g}"
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)  # numpy and torch scalars are numbers too
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and low <= number <= high):
        raise Error(f"{owner}: {name} must be {rule}, got {value!r}")
    return number


def checked_choice(owner: str, name: str, value: Any, allowed: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise Error(f"{owner}: {name} must be {' or '.join(repr(a) for a in allowed)}, got {value!r}")


def names_of(names: Sequence[str], most: int = 8) -> str:
    """The first names, for a message, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
