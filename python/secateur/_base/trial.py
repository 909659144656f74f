"""Trial runs of a model that is ours: what belongs to its result is not touched by them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .copies import is_torchs
from .held import every_module
from .state import State, state_kept


@contextmanager
def hooks_off(model: nn.Module) -> Iterator[None]:
    """The caller's forward hooks, which belong to the result, do not fire."""
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


@contextmanager
def trial(model: nn.Module) -> Iterator[State]:
    """In evaluation mode, without gradients and without the caller's hooks; afterwards the model is as before."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(hooks_off(model))
        stack.enter_context(flags_kept(model))
        stack.enter_context(state_kept(model))  # of the mode that it was given in
        model.eval()
        yield stack.enter_context(state_kept(model))


__all__ = ["flags_kept", "hooks_off", "trial"]
