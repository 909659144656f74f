"""What modules are written with: one small function a feature, in a file of its family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

#: Where a feature is written: a forward's statement; the inputs; the results; a whole class; ``make()``.
Where = Literal["statement", "inputs", "outputs", "class", "make"]


@dataclass(frozen=True)
class Feature:
    name: str
    where: Where
    write: Callable[..., Any]


FEATURES: dict[str, Feature] = {}


def feature(where: Where) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a function into the table, under its own name."""

    def enter(write: Callable[..., Any]) -> Callable[..., Any]:
        name = write.__name__
        assert name not in FEATURES, name
        FEATURES[name] = Feature(name, where, write)
        return write

    return enter


for _family in ("layers", "inplace", "views", "state", "sharing", "control", "dtypes", "inputs", "outputs", "shell"):
    import_module(f"{__name__}.{_family}")


def of(where: Where) -> list[str]:
    return [name for name, each in FEATURES.items() if each.where == where]
