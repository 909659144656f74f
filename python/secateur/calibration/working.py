"""The copy of a caller's model that is run in its place."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .._base.copies import drop_hooks, own_copy
from .._base.errors import Error
from .._base.wrappers import unwrapped


def working_copy(model: Any, caller: str, argument: str = "model") -> nn.Module:
    """A copy without the caller's hooks, which shares nothing with ``model``; an Error for what cannot be run."""
    model = unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise Error(f"{caller}: {argument} must be the module itself, got what TorchScript made of it")
    if not isinstance(model, nn.Module):
        raise Error(f"{caller}: {argument} must be a torch.nn.Module, got {type(model).__name__}")
    if hasattr(type(model), "_weights_changed"):
        raise Error(
            f"{caller}: {argument} must be the module itself, got what compile made of it (give the model that was "
            "compiled, then compile again)"
        )
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if t.is_meta:
            raise Error(f"{caller}: {argument} must have values, but {name} is on the meta device")
    return drop_hooks(own_copy(model, caller))
