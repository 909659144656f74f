"""Trial runs of a model that is ours: what belongs to its result is not touched by them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .copies import is_ours, is_torchs
from .held import every_module
from .state import MODE, State, state_kept


class TrialHooks(OrderedDict[int, Any]):
    """A module's forward hooks, of which trial runs see those alone that compute (torch's) or watch (this package's).

    ``dict.__len__`` counts the others all the same.
    """

    def _seen(self) -> dict[int, Any]:
        return {key: hook for key, hook in super().items() if MODE.trials == 0 or is_torchs(hook) or is_ours(hook)}

    def __len__(self) -> int:
        return super().__len__() if MODE.trials == 0 else len(self._seen())

    def items(self) -> Any:
        return super().items() if MODE.trials == 0 else self._seen().items()

    def values(self) -> Any:
        return super().values() if MODE.trials == 0 else self._seen().values()


@contextmanager
def hooks_off(model: nn.Module) -> Iterator[None]:
    """The caller's forward hooks, which belong to the result, do not fire in trial runs."""
    kept: list[tuple[nn.Module, str, Any]] = []
    for module in every_module(model).values():
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            table = vars(module).get(name)
            if isinstance(table, dict) and table:
                kept.append((module, name, table))
                module.__dict__[name] = TrialHooks(dict.items(table))
    try:
        yield
    finally:
        for module, name, table in kept:
            module.__dict__[name] = table


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


__all__ = ["TrialHooks", "flags_kept", "hooks_off", "trial"]
