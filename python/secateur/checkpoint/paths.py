"""Paths as callers give them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .._base.errors import Error


def path_of(path: Any, caller: str) -> Path:
    """``path``, which must be one that names something.

    Raises:
        Error: it is no path, is empty, or holds what no file system takes.
    """
    try:
        made = os.fsdecode(path)
        os.fsencode(made)
    except TypeError:
        raise Error(f"{caller}: path must be a str or os.PathLike, got {type(path).__name__}") from None
    except UnicodeError:
        raise Error(f"{caller}: path must be a name that the file system can hold, got {path!r}") from None
    if not made:
        raise Error(f"{caller}: path must name a file, got an empty one")
    if "\0" in made:
        raise Error(f"{caller}: path must not hold a null character, got {made!r}")
    return Path(made)
