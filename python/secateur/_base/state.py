"""What a model's forward could change, so that a trial run of a model that is ours leaves no trace."""

from __future__ import annotations

import copy
import random
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary


class _Mode(threading.local):
    """What this thread is in: trial runs (so many), runs that must be torch's own, calls of a compiled model's Python,
    and trial runs of a model into which other threads may load weights."""

    trials = 0
    plain = 0
    running = 0
    live = 0


MODE = _Mode()


@contextmanager
def in_torch() -> Iterator[None]:
    """Modules run their own forward here, also those that have a faster one."""
    MODE.plain += 1
    try:
        yield
    finally:
        MODE.plain -= 1


@contextmanager
def live(condition: bool = True) -> Iterator[None]:
    """Trial runs here undo writes into those tensors alone that forwards were seen to write: others may be loaded."""
    MODE.live += condition
    try:
        yield
    finally:
        MODE.live -= condition


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restores the random state of torch (the CPU's, and the GPUs' in use), Python, and NumPy where it is loaded."""
    numpy = sys.modules.get("numpy.random")
    python, array = random.getstate(), numpy.get_state() if numpy is not None else None
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    on_cpu = torch.default_generator.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(on_cpu)
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
        random.setstate(python)
        if numpy is not None:
            numpy.set_state(array)


def random_state() -> tuple[Any, ...]:
    """Where the sequences of random numbers stand: torch's on the CPU, Python's, NumPy's."""
    numpy = sys.modules.get("numpy.random")
    return torch.random.get_rng_state(), random.getstate(), numpy.get_state() if numpy is not None else None


def same_random_state(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether nothing was drawn between the two."""
    return torch.equal(a[0], b[0]) and a[1] == b[1] and _same_numpy(a[2], b[2])


def _same_numpy(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return bool(a[0] == b[0] and a[2:] == b[2:] and (a[1] == b[1]).all())


_INTERNAL = (frozenset(vars(nn.Module())) | {"forward"}) - {"training"}
_STANDARD = frozenset(sys.stdlib_module_names) - {"collections"}


class State:
    """What a model's forward could change: its tables, attributes, buffers, and what these hold, by identity.

    Taken by a walk over the modules and all that can be reached from their attributes (lists, dicts, sets, tensors,
    modules that hang in plain attributes, objects of the model's own classes).
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules: list[tuple[nn.Module, dict[str, Any] | None, list[tuple[Any, dict[str, Any]]]]] = []
        self._holders: list[tuple[Any, Any]] = []  # container, a shallow copy of its contents
        self._tensors: list[list[Any]] = []  # tensor, version, its values
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
                self._keep(t)
            return []
        if isinstance(value, nn.Module):
            return self._note_module(value)
        if isinstance(value, Tensor):
            self._keep(value)
            return []
        kind = type(value)
        if isinstance(value, tuple):
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
        if home in _STANDARD or home in ("torch", "numpy", "secateur") or isinstance(value, type | types.FunctionType):
            return []
        held = getattr(value, "__dict__", None)
        if not isinstance(held, dict):
            return []
        self._holders.append((held, dict(held)))
        return list(held.values())

    def _note_module(self, module: nn.Module) -> list[Any]:
        held = module.__dict__
        ours = type(module).__module__.startswith("secateur.")  # what they keep is how they run, no result
        plain = {} if ours else {key: value for key, value in held.items() if key not in _INTERNAL}
        tables = [
            (table, dict(dict.items(table)))
            for name in ("_parameters", "_buffers", "_modules")
            if isinstance(table := held.get(name), dict)
        ]
        self._modules.append((module, None if ours else plain, tables))
        inner = [value for _, kept in tables for value in kept.values()]
        return [*plain.values(), *inner]

    def _keep(self, t: Tensor) -> None:
        if t.layout != torch.strided or t.is_inference():
            self._tensors.append([t, -1, None])
            return
        values = not isinstance(t, nn.Parameter) or was_written(t)
        kept = t.detach().clone() if values and t.device.type != "meta" else None
        self._tensors.append([t, t._version, kept])

    def changes(self) -> list[str]:
        """What differs from the state that was taken, for a person: ``last``, ``the buffer count``."""
        found: dict[str, None] = {}
        for module, plain, tables in self._modules:
            now = {key: value for key, value in module.__dict__.items() if key not in _INTERNAL}
            before = now if plain is None else plain
            for key in {**before, **now}:
                if key not in before or key not in now or not _is(now[key], before[key]):
                    found[key] = None
            for table, kept in tables:
                current = dict(dict.items(table))
                for key in {**kept, **current}:
                    if key in kept and key in current and kept[key] is None and isinstance(current[key], nn.Parameter):
                        continue  # packed before, unpacked since: the same values
                    if key not in kept or key not in current or current[key] is not kept[key]:
                        found[key] = None
        if any(_differs(holder, kept) for holder, kept in self._holders):
            found["a list or dict that it holds"] = None
        for t, version, _ in self._tensors:
            if version >= 0 and t._version != version:
                found[self._name_of(t)] = None
        return list(found)

    def _name_of(self, t: Tensor) -> str:
        for _, plain, tables in self._modules:
            for held in (plain or {}, *(kept for _, kept in tables)):
                for key, value in held.items():
                    if value is t:
                        return key
        return "a tensor that it holds"

    def signature(self) -> tuple[Any, ...]:
        """Changes whenever the state does; for comparing moments of one run."""
        modules = tuple(
            tuple((k, id(v)) for k, v in module.__dict__.items() if plain is not None and k not in _INTERNAL)
            + tuple((k, id(v)) for table, _ in tables for k, v in dict.items(table) if v is not None)
            for module, plain, tables in self._modules
        )
        holders = tuple(
            tuple(map(id, holder.values() if isinstance(holder, dict) else holder))
            if not hasattr(holder, "flags") else holder.tobytes()
            for holder, _ in self._holders
        )  # fmt: skip
        return modules, holders, tuple(t._version for t, version, _ in self._tensors if version >= 0)

    def restore(self) -> None:
        """Put everything back, parameters that were written included as long as their model is alive."""
        for module, plain, tables in self._modules:
            held = module.__dict__ if plain is not None else {}
            for key in [key for key in held if key not in _INTERNAL and key not in (plain or {})]:
                del held[key]
            for key, value in (plain or {}).items():
                if key not in held or held[key] is not value:
                    held[key] = value
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
            for entry in self._tensors:
                t, version, values = entry
                if version < 0 or t._version == version or (MODE.live and not was_written(t)):
                    continue
                _WRITTEN[t] = True  # from now on a parameter's values are kept, too
                if values is None:
                    values = original_of(t)
                if values is not None:
                    if t.shape != values.shape:
                        t.resize_(values.shape)
                    t.copy_(values)
                entry[1] = t._version


# Parameters are large and hardly ever written by a forward, so their values are not kept beforehand: those of a copy
# can be had again from the model that it was made of.
_ORIGINALS = WeakTensorKeyDictionary()
_WRITTEN = WeakTensorKeyDictionary()


def was_written(t: Tensor) -> bool:
    """Whether a forward was seen to write a tensor in place."""
    return t in _WRITTEN


def remember_original(made: Tensor, original: Tensor) -> None:
    """Note whose copy a parameter is."""
    version = -1 if original.is_inference() else original._version
    _ORIGINALS[made] = (weakref.ref(original), version)


def original_of(t: Tensor) -> Tensor | None:
    """The parameter that ``t`` is a copy of, while it has the values that it had then."""
    reference, version = _ORIGINALS.get(t, (None, 0))
    original = None if reference is None else reference()
    if original is None or (version >= 0 and original._version != version):
        return None
    values: Tensor = original.detach()
    return values


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
    """A trial run of a model that is ours: attributes, tensors and random numbers are afterwards as before."""
    with trial_from(State(model)) as state:
        yield state


@contextmanager
def trial_from(state: State) -> Iterator[State]:
    """A trial run from a state that was taken; it may be the first of several."""
    MODE.trials += 1
    try:
        with random_state_kept():
            yield state
    finally:
        MODE.trials -= 1
        state.restore()


__all__ = [
    "MODE",
    "State",
    "in_torch",
    "live",
    "original_of",
    "random_state",
    "random_state_kept",
    "remember_original",
    "same_random_state",
    "state_kept",
    "trial_from",
    "was_written",
]
