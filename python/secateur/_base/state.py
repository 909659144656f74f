"""What a model's forward could change, so that a trial run of a model that is ours leaves no trace."""

from __future__ import annotations

import copy
import random
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .copies import is_torchs
from .held import every_module


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restores the random state of torch (the CPU's, and the GPUs' in use), Python, and NumPy where it is loaded."""
    numpy = sys.modules.get("numpy.random")
    python, array = random.getstate(), numpy.get_state() if numpy is not None else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.set_state(array)


_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_STANDARD = frozenset(sys.stdlib_module_names) - {"collections"}


class State:
    """What a model's forward could change: its tables, attributes, buffers, and what these hold, by identity.

    Taken by a walk over the modules and all that can be reached from their attributes (lists, dicts, sets, tensors,
    modules that hang in plain attributes, objects of the model's own classes).
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules: list[tuple[nn.Module, dict[str, Any], list[tuple[Any, dict[str, Any]]]]] = []
        self._holders: list[tuple[Any, Any]] = []  # container, a shallow copy of its contents
        self._tensors: list[tuple[Tensor, int, Tensor | None]] = []  # tensor, version, its values
        self._seen: dict[int, Any] = {}
        pending = [model, *model.modules()]
        while pending:
            value = pending.pop()
            if isinstance(value, _ATOMS) or id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            pending.extend(self._note(value))

    def _note(self, value: Any) -> list[Any]:
        if isinstance(value, torch.jit.ScriptModule):
            for t in (*value.parameters(), *value.buffers()):
                self._keep(t, not isinstance(t, nn.Parameter))
            return []
        if isinstance(value, nn.Module):
            return self._note_module(value)
        if isinstance(value, Tensor):
            self._keep(value, not isinstance(value, nn.Parameter))
            return []
        kind = type(value)
        if kind is tuple or isinstance(value, tuple):
            return list(value)
        if isinstance(value, list | set):
            self._holders.append((value, kind(value) if kind in (list, set) else copy.copy(value)))
            return list(value)
        if isinstance(value, dict):
            self._holders.append((value, dict(value)))
            return list(value.values())
        if kind.__name__ == "deque":
            self._holders.append((value, list(value)))
            return list(value)
        if kind.__module__ == "numpy" and hasattr(value, "copy") and hasattr(value, "flags"):
            self._holders.append((value, value.copy()))
            return []
        home = kind.__module__.partition(".")[0]
        if home in _STANDARD or home in ("torch", "numpy") or isinstance(value, type | types.FunctionType):
            return []
        held = getattr(value, "__dict__", None)
        if not isinstance(held, dict):
            return []
        self._holders.append((held, dict(held)))
        return list(held.values())

    def _note_module(self, module: nn.Module) -> list[Any]:
        held = module.__dict__
        plain = {key: value for key, value in held.items() if key not in _INTERNAL}
        tables = [
            (table, dict(dict.items(table)))
            for name in ("_parameters", "_buffers", "_modules")
            if isinstance(table := held.get(name), dict)
        ]
        self._modules.append((module, plain, tables))
        inner = [value for _, kept in tables for value in kept.values()]
        return [*plain.values(), *inner]

    def _keep(self, t: Tensor, values: bool) -> None:
        if t.layout != torch.strided or t.is_inference():
            self._tensors.append((t, -1, None))
            return
        kept = t.detach().clone() if values and t.device.type != "meta" else None
        self._tensors.append((t, t._version, kept))

    def changes(self) -> list[str]:
        """What differs from the state that was taken, for a person: ``attribute last``, ``buffer count``."""
        found: list[str] = []
        for module, plain, tables in self._modules:
            now = {key: value for key, value in module.__dict__.items() if key not in _INTERNAL}
            found += [f"attribute {key}" for key in now if key not in plain or not _is(now[key], plain[key])]
            found += [f"attribute {key}" for key in plain if key not in now]
            for table, kept in tables:
                current = dict(dict.items(table))
                for key in {**kept, **current}:
                    if kept.get(key) is None and key in kept and key in current:
                        continue  # packed before, unpacked since: the same values
                    if current.get(key) is not kept.get(key) or (key in current) != (key in kept):
                        found.append(f"{key}, replaced")
        found += ["a container that it holds" for holder, kept in self._holders if _differs(holder, kept)]
        found += ["a tensor that it holds" for t, version, _ in self._tensors if version >= 0 and t._version != version]
        return found

    def signature(self) -> tuple[Any, ...]:
        """Changes whenever :meth:`changes` would; cheap enough to be taken between any two calls."""
        return tuple(self.changes()), tuple(t._version for t, version, _ in self._tensors if version >= 0)

    def written_parameters(self) -> list[Tensor]:
        """Parameters that were written in place: their values are not kept."""
        return [t for t, version, kept in self._tensors if version >= 0 and kept is None and t._version != version]

    def restore(self) -> None:
        """Put everything back but the values of parameters."""
        for module, plain, tables in self._modules:
            held = module.__dict__
            for key in [key for key in held if key not in _INTERNAL and key not in plain]:
                del held[key]
            held.update({key: value for key, value in plain.items() if held.get(key) is not value or key not in held})
            for table, kept in tables:
                for key in [key for key in dict.keys(table) if key not in kept]:
                    dict.__delitem__(table, key)
                for key, value in kept.items():
                    if (value is not None or key not in table) and dict.get(table, key) is not value:
                        dict.__setitem__(table, key, value)
        for holder, contents in self._holders:
            if _differs(holder, contents):
                _refill(holder, contents)
        with torch.no_grad():
            for t, version, values in self._tensors:
                if values is not None and t._version != version:
                    if t.shape != values.shape:
                        t.resize_(values.shape)
                    t.copy_(values)


_ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def _is(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, _ATOMS) and type(a) is type(b) and a == b)


def _differs(holder: Any, kept: Any) -> bool:
    if isinstance(holder, dict):
        return len(holder) != len(kept) or any(k not in kept or not _is(v, kept[k]) for k, v in holder.items())
    if hasattr(holder, "flags"):  # an array of NumPy
        return bool(holder.shape != kept.shape or holder.tobytes() != kept.tobytes())
    if isinstance(holder, set):
        return bool(holder != kept)
    return len(holder) != len(kept) or not all(map(_is, holder, kept))


def _refill(holder: Any, kept: Any) -> None:
    if hasattr(holder, "flags"):
        holder[...] = kept
    elif isinstance(holder, list):
        holder[:] = kept
    elif isinstance(holder, dict | set):
        holder.clear()
        holder.update(kept)
    else:
        holder.clear()
        holder.extend(kept)


@contextmanager
def state_kept(model: nn.Module) -> Iterator[State]:
    """A trial run of a model that is ours: attributes, buffers and random numbers are afterwards as before."""
    state = State(model)
    try:
        with random_state_kept():
            yield state
    finally:
        state.restore()


@contextmanager
def hooks_off(model: nn.Module) -> Iterator[None]:
    """A trial run of a model that is ours: the caller's forward hooks, which belong to the result, do not fire."""
    kept: list[tuple[Any, dict[Any, Any]]] = []
    for module in every_module(model).values():
        for table in (module._forward_hooks, module._forward_pre_hooks):
            if any(not is_torchs(hook) for hook in table.values()):
                kept.append((table, dict(table)))
                for key in [key for key, hook in table.items() if not is_torchs(hook)]:
                    del table[key]
    try:
        yield
    finally:
        for table, hooks in kept:
            now = dict(table)
            table.clear()
            table.update({**hooks, **now})


@contextmanager
def flags_kept(model: nn.Module) -> Iterator[None]:
    """Puts back what ``eval()`` and an overridden ``train`` change: modes, and which parameters want gradients."""
    modes = [(module, module.training) for module in every_module(model).values()]
    wanting = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    finally:
        for module, mode in modes:
            if module.training != mode:
                module.training = mode
        for p, wants in wanting:
            if p.requires_grad != wants:
                p.requires_grad_(wants)


__all__ = ["State", "flags_kept", "hooks_off", "random_state_kept", "state_kept"]
