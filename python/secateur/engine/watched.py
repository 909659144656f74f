"""What callers do to a compiled model between its calls: hooks that they hang on its modules, parameters, buffers and
children that they replace. The tables that torch keeps of them tell."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .._base.refused_hooks import RefusedHooks
from .._base.state import MODE
from .._base.trial import TrialHooks

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_TABLES = ("_parameters", "_buffers", "_modules")


class Watch:
    """The state of one compiled model's tables since it was built."""

    def __init__(self, hooked: Callable[[], None]) -> None:
        self.altered: dict[tuple[int, str], None] = {}  # entries that are not those that were compiled
        self._hooked = weakref.WeakMethod(hooked)

    def hooks_changed(self) -> None:
        if MODE.trials == 0 and (told := self._hooked()) is not None:
            told()

    def install(self, source: nn.Module) -> None:
        """:meth:`prepare` for the model that is in use: what its tables hold now counts as compiled."""
        self.altered.clear()
        self.prepare(source)

    def prepare(self, source: nn.Module) -> None:
        """Put tables that tell in place of the modules' own."""
        made: dict[int, HookTable] = {}  # of a table, which several modules may share
        kept: list[Any] = []  # so that no id comes twice
        for module in source.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            held = module.__dict__
            for name in _HOOKS:
                table = held[name]
                if isinstance(table, RefusedHooks) or (type(table) is HookTable and table.watch is self):
                    continue
                if id(table) not in made:
                    made[id(table)] = HookTable(dict.items(table), self)
                    kept.append(table)
                held[name] = made[id(table)]
            for name in _TABLES:
                table = held[name]
                if isinstance(table, WatchedTable) and table.watch is self:
                    table.accept()
                elif not isinstance(table, WatchedTable):
                    held[name] = WatchedTable(table, self)


class HookTable(TrialHooks):
    """Forward hooks that tell when one comes or goes. Copies and pickles are ordinary tables."""

    def __init__(self, items: Any, watch: Watch) -> None:
        self.watch: Watch | None = None
        super().__init__(items)
        self.watch = watch

    def __setitem__(self, key: int, hook: Any) -> None:
        super().__setitem__(key, hook)
        if self.watch is not None:
            self.watch.hooks_changed()

    def __delitem__(self, key: int) -> None:
        super().__delitem__(key)
        if self.watch is not None:
            self.watch.hooks_changed()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(OrderedDict(dict.items(self)), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return OrderedDict, (list(dict.items(self)),)


class WatchedTable(dict[str, Any]):
    """Parameters, buffers or children of a module. Copies and pickles are ordinary tables."""

    def __init__(self, table: dict[str, Any], watch: Watch) -> None:
        super().__init__(dict.items(table))
        self.watch = watch
        self._compiled = dict(dict.items(self))

    def accept(self) -> None:
        """What is held now is what is compiled."""
        self._compiled = dict(dict.items(self))

    def swap(self, name: str, value: Any) -> None:
        """Another object with the same values."""
        dict.__setitem__(self, name, value)
        self._compiled[name] = value

    def _told(self, name: str) -> None:
        if MODE.trials or MODE.running:
            return
        same = name in self and name in self._compiled and dict.__getitem__(self, name) is self._compiled[name]
        if same or (name not in self and name not in self._compiled):
            self.watch.altered.pop((id(self), name), None)
        else:
            self.watch.altered[id(self), name] = None

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self._told(name)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self._told(name)

    def pop(self, name: str, *default: Any) -> Any:
        value = super().pop(name, *default)
        self._told(name)
        return value

    def popitem(self) -> tuple[str, Any]:
        name, value = super().popitem()
        self._told(name)
        return name, value

    def clear(self) -> None:
        for name in list(self):
            del self[name]

    def setdefault(self, name: str, default: Any = None) -> Any:
        if name not in self:
            self[name] = default
        return self[name]

    def update(self, *args: Any, **kwargs: Any) -> None:
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(dict(dict.items(self)), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(dict.items(self)),)


__all__ = ["HookTable", "Watch", "WatchedTable"]
