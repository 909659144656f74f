"""Which modules assign attributes in their forward, read off the code: an assignment may be skipped in the run that is
watched (a cache that is filled already), and come later."""

from __future__ import annotations

import dis
import types
from typing import Any

from torch import fx, nn

_DEPTH = 4  # methods that call methods


def statically_writing(module: nn.Module) -> dict[nn.Module, str]:
    """The modules inside (and ``module`` itself) with an assignment to an attribute in their forward, and its name."""
    known: dict[type, str] = {}
    found: dict[nn.Module, str] = {}
    for each in module.modules():
        kind = type(each)
        if kind not in known:
            known[kind] = _written_by(kind)
        if known[kind]:
            found[each] = known[kind]
    return found


def _written_by(kind: type) -> str:
    if kind.__module__.startswith(("torch.", "secateur.")) or issubclass(kind, fx.GraphModule):
        return ""
    names: dict[str, None] = {}
    seen: set[types.CodeType] = set()
    for base in kind.__mro__:
        forward = vars(base).get("forward")
        if isinstance(forward, types.FunctionType) and base is not nn.Module and not _is_torchs(base):
            _look(kind, forward.__code__, names, seen, 0)
    return ", ".join(names)


def _is_torchs(kind: type) -> bool:
    return kind.__module__.startswith("torch.")


def _look(kind: type, code: types.CodeType, names: dict[str, None], seen: set[types.CodeType], depth: int) -> None:
    if code in seen or depth > _DEPTH:
        return
    seen.add(code)
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("STORE_ATTR", "DELETE_ATTR"):
            names[str(instruction.argval)] = None
    for name in code.co_names:
        method: Any = getattr(kind, name, None)
        if isinstance(method, types.FunctionType) and not method.__module__.startswith("torch."):
            _look(kind, method.__code__, names, seen, depth + 1)


__all__ = ["statically_writing"]
