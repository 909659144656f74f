"""All that the owner of a model could notice of it, to be compared with itself later."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import trees

_HOOKS = "hooks"
_SKIPPED = ("_c", "_concrete_type", "_is_full_backward_hook")


@dataclass(frozen=True)
class Change:
    what: str
    where: str
    before: str
    after: str


class Snapshot:
    """Of a model, of the example that it is given with, and of the state of the process."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        self._given = model, example
        self._found = dict(_seen(model, example))

    def changes(self) -> Iterator[Change]:
        """What differs now: the first of each kind."""
        now, kinds = dict(_seen(*self._given)), set()
        for key in [*self._found, *(key for key in now if key not in self._found)]:
            before, after = self._found.get(key, "not there"), now.get(key, "gone")
            if before != after and key[0] not in kinds:
                kinds.add(key[0])
                yield Change(*key, _words(before), _words(after))


@dataclass(frozen=True)
class _TensorState:
    """A tensor to the bit, and to the version of its memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    version: int | None
    has_grad: bool
    first: str
    raw: bytes = field(repr=False)
    identity: int = field(default=0, repr=False)


def _words(value: Any) -> str:
    return repr(value)[:160]


Key = tuple[str, str]


def _seen(model: nn.Module, example: Any) -> Iterator[tuple[Key, Any]]:
    yield from _module(model, "model", set())
    for where, tensor in _tensors(example, "example"):
        yield ("example", where), _tensor(tensor)
    yield ("random state", "torch"), _digest(torch.get_rng_state().numpy().tobytes())
    yield ("random state", "random"), _digest(repr(random.getstate()).encode())
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  (what a careless call would draw from)
    yield ("random state", "numpy"), (name, _digest(np.asarray(keys).tobytes()), *rest)
    yield ("process", "gradients"), torch.is_grad_enabled()
    yield ("process", "dtype"), torch.get_default_dtype()
    yield ("process", "threads"), torch.get_num_threads()
    yield ("process", "autocast"), torch.is_autocast_enabled("cpu")


def _digest(raw: bytes) -> str:
    return hashlib.sha1(raw).hexdigest()[:12]


def _module(module: nn.Module, where: str, visited: set[int]) -> Iterator[tuple[Key, Any]]:
    if id(module) in visited:
        return
    visited.add(id(module))
    yield ("training flag", where), module.training
    if isinstance(module, torch.jit.ScriptModule):
        for name, t in [*module.named_parameters(), *module.named_buffers()]:
            yield ("parameter", f"{where}.{name}"), _tensor(t)
        return
    for name, value in vars(module).items():
        here = f"{where}.{name}"
        if name in ("_parameters", "_buffers"):
            for key, t in value.items():
                yield (name[1:-1], f"{where}.{key}"), None if t is None else _tensor(t, id(t))
        elif name == "_modules":
            yield ("children", where), [(key, id(child)) for key, child in value.items()]
            for key, child in value.items():
                if child is not None:
                    yield from _module(child, f"{where}.{key}", visited)
        elif _HOOKS in name:
            yield (_HOOKS, here), [(key, id(hook)) for key, hook in value.items()] if value else None
        elif name not in ("training", *_SKIPPED):
            yield ("attribute", here), _frozen(value)
            for part, child in _modules_in(value, here):
                yield from _module(child, part, visited)


def _tensor(t: Tensor, identity: int = 0) -> _TensorState:
    raw = t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
    first = str([round(float(x), 4) for x in t.detach().flatten()[:3]])
    version = None if t.is_inference() else t._version
    return _TensorState(
        tuple(t.shape),
        t.stride(),
        t.dtype,
        t.requires_grad,
        version,
        t.is_leaf and t.grad is not None,
        first,
        raw,
        identity,
    )


def _tensors(value: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield where, value
    for name, part in trees.children(value) or []:
        yield from _tensors(part, where + name)


def _modules_in(value: Any, where: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield where, value
    for name, part in trees.children(value) or []:
        yield from _modules_in(part, where + name)


def _frozen(value: Any) -> Any:
    """What can be compared: the values of plain data, the identity of everything else."""
    if isinstance(value, Tensor):
        return _tensor(value, id(value))
    if isinstance(value, bool | int | float | str | bytes | None):
        return value
    parts = trees.children(value)
    if parts is not None:
        return type(value).__name__, [(name, _frozen(part)) for name, part in parts]
    if callable(value) and hasattr(value, "__func__"):
        return id(value.__func__)
    return type(value).__name__, id(value)
