"""Tables of hooks that take none: of modules that a graph computes without calling them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from .copies import is_ours
from .errors import Error

#: Where a module holds the hooks of its calls.
CALL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class RefusedHooks(OrderedDict[int, Any]):
    """Registering a hook raises Error(``why``): it would never be called. Copies and pickles are empty."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why

    def __setitem__(self, key: int, hook: Any) -> None:
        if not is_ours(hook):  # which knows that it may not be called
            raise Error(self.why)
        super().__setitem__(key, hook)

    def __deepcopy__(self, memo: dict[int, Any]) -> RefusedHooks:
        return RefusedHooks(self.why)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return RefusedHooks, (self.why,)


def refuse_hooks(module: nn.Module, why: str) -> None:
    for name in CALL_HOOKS:
        module.__dict__[name] = RefusedHooks(why)


__all__ = ["CALL_HOOKS", "RefusedHooks", "refuse_hooks"]
