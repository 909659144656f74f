"""A script at work: its text made a Python module, so that pickles, ``inspect`` and TorchScript find its classes."""

from __future__ import annotations

import itertools
import linecache
import sys
from types import ModuleType, TracebackType
from typing import Any

from torch import nn

_numbers = itertools.count()


class Program:
    """A module's text, loaded while the ``with`` statement lasts."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.name = f"written_module_{next(_numbers)}"

    def __enter__(self) -> Program:
        file = f"<{self.name}>"
        self.module = ModuleType(self.name)
        self.module.__file__ = file
        sys.modules[self.name] = self.module
        linecache.cache[file] = (len(self.text), None, self.text.splitlines(keepends=True), file)
        try:
            exec(compile(self.text, file, "exec"), self.module.__dict__)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        sys.modules.pop(self.name, None)
        linecache.cache.pop(f"<{self.name}>", None)

    def make(self) -> nn.Module:
        model: nn.Module = self.module.make()
        return model

    def inputs(self, size: tuple[int, int, int]) -> tuple[Any, ...]:
        given: tuple[Any, ...] = self.module.inputs(*size)
        return given

    @property
    def seen(self) -> list[Any]:
        """What hooks have seen; emptied by who reads it."""
        found: list[Any] = getattr(self.module, "SEEN", [])
        return found

    @property
    def low_precision(self) -> bool:
        return bool(getattr(self.module, "LOW_PRECISION", False))
