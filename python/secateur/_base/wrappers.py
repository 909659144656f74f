"""What torch wraps around a model: torch.compile, DataParallel, DistributedDataParallel."""

from __future__ import annotations

from typing import Any

from torch import nn


def _inside(model: nn.Module) -> tuple[str, nn.Module] | None:
    """What torch.compile, DataParallel or DistributedDataParallel has wrapped, and the wrapper's name for it."""
    inner = model.__dict__.get("_orig_mod")
    if inner is None and "_orig_mod" in model._modules:  # a scripted module's _modules has no get
        inner = model._modules["_orig_mod"]
    if isinstance(inner, nn.Module):
        return "_orig_mod", inner
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module", model.module
    return None


def unwrapped(model: Any) -> Any:
    """The model inside torch.compile's, DataParallel's and DistributedDataParallel's wrappers; any other as it is."""
    while isinstance(model, nn.Module) and (inside := _inside(model)) is not None:
        _, model = inside
    return model


def wrapping(model: nn.Module) -> str:
    """What the wrappers put before the names in the state_dict of the model inside: "module.", "module._orig_mod."."""
    prefix = ""
    while (inside := _inside(model)) is not None:
        name, model = inside
        prefix += f"{name}."
    return prefix


__all__ = ["unwrapped", "wrapping"]
