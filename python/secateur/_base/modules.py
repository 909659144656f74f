"""The parts of a module beyond its class: hooks, the parametrizations of torch.nn.utils.prune, a forward of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

M = TypeVar("M", bound=nn.Module)


class StandIn:
    """A forward, put on a module, that computes what its class's forward does."""


def forward_replaced(module: nn.Module) -> bool:
    """Whether somebody gave a module (the object, not its class) another forward."""
    forward = vars(module).get("forward")
    return forward is not None and not isinstance(forward, StandIn)


def pruning_hooks(module: nn.Module) -> list[Any]:
    """The hooks of torch.nn.utils.prune, which compute ``weight`` as ``weight_orig * weight_mask`` in each forward."""
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, BasePruningMethod)]


def why_not_replaceable(module: nn.Module) -> str:
    """Why no other layer can take a layer's place: it computes more than its class's forward. Empty: one can."""
    if forward_replaced(module):
        return "its forward was replaced, and another layer in its place would lose that"
    # The old spectral_norm and weight_norm are such hooks: they make the weight that the forward uses.
    if len(module._forward_hooks) + len(module._forward_pre_hooks) > len(pruning_hooks(module)):
        return "it has forward hooks, and another layer in its place would lose them"
    return ""


def with_current_weight(module: M) -> M:
    """torch.nn.utils.prune recomputes ``weight`` in forward; returns a copy with the current one (else the layer)."""
    pruners = pruning_hooks(module)
    if pruners:
        module = copy.copy(module)  # shallow: the pruners write to the copy alone
        for pruner in pruners:
            pruner(module, ())
    return module


def hooks_of(module: nn.Module) -> bool:
    """Whether forward hooks hang on a module (those of torch.nn.utils.prune aside, which only make its weight)."""
    tables = (module._forward_hooks, module._forward_pre_hooks)
    # Not len(table): in trial runs a table may hide hooks.
    return sum(dict.__len__(table) for table in tables) > len(pruning_hooks(module))


@contextmanager
def calls_watched(
    modules: Iterable[nn.Module], enter: Callable[..., None], leave: Callable[..., None]
) -> Iterator[None]:
    """While open, ``enter(module, args)`` and ``leave(module, args, output)`` are called around each module's forward,
    in calls that raise too. TorchScript takes no hooks."""
    handles = []
    try:
        for module in modules:
            if not isinstance(module, torch.jit.ScriptModule):
                handles.append(module.register_forward_pre_hook(enter, prepend=True))
                handles.append(module.register_forward_hook(leave, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def has_stock_forward(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes what ``kind`` does, whatever its class."""
    if not isinstance(module, kind) or forward_replaced(module):
        return False
    names = [name for name in ("forward", "_conv_forward", "_check_input_dim") if hasattr(kind, name)]
    return all(getattr(type(module), name) is getattr(kind, name) for name in names)


def version_of(t: Tensor) -> int:
    """How often a tensor was written in place (inference tensors do not count: they cannot be written outside)."""
    return -1 if t.is_inference() else t._version
