"""What a model's own forward does with its layers, from one run: who calls them, who else reads their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .._base.held import every_module, holders_of
from .._base.modules import calls_watched
from .layers import is_layer

#: Properties of a tensor that give its values; others (shape, dtype) may be read by anyone.
_VALUES = {"data", "T", "mT", "H", "mH", "real"}


@dataclass
class Seen:
    """What was seen; modules are those of the copy that ran."""

    parents: dict[nn.Module, set[nn.Module | None]] = field(default_factory=dict)  # in whose forward a module is called
    read: set[nn.Module] = field(default_factory=set)  # layers whose parameters something else reads
    written: set[nn.Module] = field(default_factory=set)  # layers whose parameters the forward changes
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # what it changes, and the values before
    holders: Counter[int] = field(default_factory=Counter)  # id of a parameter -> in how many places it hangs

    def why(self, layer: nn.Module) -> str:
        """Why a layer has to keep its real weights; empty: it need not."""
        if layer in self.written:
            return "the forward writes into its weights"
        return "its weights are read elsewhere in the forward too" if layer in self.read else ""

    def restore(self) -> None:
        """After another run: writes through ``data`` are seen by nobody else."""
        for p, values in self.kept:
            p.data = values.clone() if p.shape != values.shape else p.data.copy_(values)

    def tied(self, layer: nn.Module) -> bool:
        return any(self.holders[id(p)] > 1 for p in layer.parameters(recurse=False))


class _Reads(TorchFunctionMode):
    def __init__(self, seen: Seen, owners: dict[int, set[nn.Module]], running: list[nn.Module | None]) -> None:
        super().__init__()
        self.seen, self.owners, self.running = seen, owners, running

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        getter = getattr(func, "__name__", "") == "__get__"
        if not getter or getattr(getattr(func, "__self__", None), "__name__", "") in _VALUES:
            for leaf in pytree.tree_leaves((args, kwargs or {})):
                owners = self.owners.get(id(leaf)) if isinstance(leaf, Tensor) else None
                # torch's own modules compute with the layers inside them: those layers are told apart elsewhere.
                if owners and not any(module in owners for module in self.running if module is not None):
                    self.seen.read |= owners
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(model: nn.Module) -> Iterator[Seen]:
    """While open, note what the forward of ``model``, which is ours, does with its layers."""
    seen = Seen()
    modules = [m for m in every_module(model).values() if not isinstance(m, torch.jit.ScriptModule)]
    owners: dict[int, set[nn.Module]] = {}
    before: list[tuple[nn.Module, Tensor, Tensor]] = []
    for module in modules:
        for p in module._parameters.values():
            if p is None:
                continue
            seen.holders[id(p)] += 1
            if is_layer(module):
                owners.setdefault(id(p), set()).add(module)
                before.append((module, p, p.detach().clone()))
    seen.holders.update(holders_of(model))
    running: list[nn.Module | None] = [None]

    def enter(module: nn.Module, args: Any) -> None:
        seen.parents.setdefault(module, set()).add(running[-1])
        running.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    with calls_watched(modules, enter, leave):
        with _Reads(seen, owners, running):
            yield seen
        for module, given, values in before:
            if given.shape != values.shape or not torch.equal(given, values):
                seen.written.add(module)
                seen.kept.append((given, values))
        seen.restore()
