"""Modules that a model holds in plain attributes: Python lists, tuples, dicts, objects of its own."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_TABLES = frozenset(vars(nn.Module())) | {"_graph", "train_graph", "eval_graph", "meta"}
_STANDARD = frozenset(sys.stdlib_module_names) - {"collections", "types"}
_ATOMS = (bool, int, float, complex, str, bytes, type(None), Tensor, type, types.FunctionType, types.ModuleType)


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """The plain attributes that a person has set on a module."""
    if isinstance(module, torch.jit.ScriptModule):
        return {}
    return {key: value for key, value in vars(module).items() if key not in _TABLES}


def unregistered(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hang in plain attributes only, by where they hang (``steps.0.1``); torch knows nothing of them.

    Parts of what this package or torch has made of a model keep such modules for themselves, and are not searched.
    """
    known = {id(module) for module in model.modules()}
    found: dict[str, nn.Module] = {}
    pending = list(model.named_modules())
    for path, module in pending:  # grows
        if not _is_searched(module):
            continue
        for key, value in attributes_of(module).items():
            for where, inner in _inside(value, f"{path}.{key}" if path else key, set()):
                for name, each in inner.named_modules(prefix=where):
                    if id(each) not in known:
                        known.add(id(each))
                        found[name] = each
                        pending.append((name, each))
    return found


def every_module(model: nn.Module) -> dict[str, nn.Module]:
    """Registered ones under their names, then :func:`unregistered`; each module once."""
    return {**dict(model.named_modules()), **unregistered(model)}


def exchange(model: nn.Module, successors: Mapping[nn.Module, nn.Module]) -> None:
    """Let plain attributes, and what they hold, refer to ``successors`` in place of the modules that these replace."""
    if not successors:
        return
    for module in every_module(model).values():
        for key, value in attributes_of(module).items():
            new = _exchanged(value, successors, set())
            if new is not value:
                module.__dict__[key] = new


def holders_of(model: nn.Module) -> dict[int, int]:
    """How many plain attributes (and items of what they hold) are a certain tensor, by its id."""
    counts: dict[int, int] = {}

    def count(value: Any, seen: set[int]) -> None:
        if isinstance(value, Tensor):
            counts[id(value)] = counts.get(id(value), 0) + 1
        elif not isinstance(value, (*_ATOMS, nn.Module)) and id(value) not in seen:
            seen.add(id(value))
            for _, inner in _items(value):
                count(inner, seen)

    for module in every_module(model).values():
        if _is_searched(module):
            for value in attributes_of(module).values():
                count(value, set())
    return counts


def _is_searched(module: nn.Module) -> bool:
    home = type(module).__module__
    return not home.startswith(("torch.", "secateur.")) or "_graph" in vars(module)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """What a container, or an object of the model's own, holds."""
    if isinstance(value, list | tuple) or type(value).__name__ == "deque":
        yield from ((str(i), item) for i, item in enumerate(value))
    elif isinstance(value, dict):
        yield from ((str(key), item) for key, item in value.items())
    elif isinstance(value, set | frozenset):
        yield from (("item", item) for item in value)
    else:
        home = type(value).__module__.partition(".")[0]
        held = getattr(value, "__dict__", None)
        if home not in _STANDARD and home not in ("torch", "numpy", "secateur") and isinstance(held, dict):
            yield from held.items()


def _inside(value: Any, where: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield where, value
    elif not isinstance(value, _ATOMS) and id(value) not in seen:
        seen.add(id(value))
        for key, item in _items(value):
            yield from _inside(item, f"{where}.{key}", seen)


def _exchanged(value: Any, successors: Mapping[nn.Module, nn.Module], seen: set[int]) -> Any:
    """The value itself, changed where it can be; another one only for modules and tuples."""
    if isinstance(value, nn.Module):
        return successors.get(value, value)
    if isinstance(value, _ATOMS) or id(value) in seen:
        return value
    seen.add(id(value))
    if isinstance(value, tuple | set | frozenset):
        items = [_exchanged(item, successors, seen) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, types.MethodType):
        owner = _exchanged(value.__self__, successors, seen)
        return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
    for key, item in list(_items(value)):
        new = _exchanged(item, successors, seen)
        if new is item:
            continue
        if isinstance(value, dict):
            value[next(k for k in value if str(k) == key)] = new
        elif hasattr(value, "__setitem__"):
            value[int(key)] = new
        else:
            object.__setattr__(value, key, new)
    return value


__all__ = ["attributes_of", "every_module", "exchange", "holders_of", "unregistered"]
