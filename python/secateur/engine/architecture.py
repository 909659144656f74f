"""Whether another model has the architecture that was compiled: only the values of parameters may differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import masks
from .._base.errors import Error
from ..nn import QuantizedConv2d, QuantizedLinear


def check_alike(old: nn.Module, new: nn.Module) -> None:
    def refuse(what: str) -> None:
        raise Error(f"refresh: model must have the architecture of the one that was compiled, but {what}")

    ours, theirs = dict(old.named_modules()), dict(new.named_modules())
    for name in [*ours, *theirs]:
        label = name or "the model"
        if name not in theirs or name not in ours:
            refuse(f"{label} is only in the {'compiled one' if name in ours else 'new one'}")
        a, b = ours[name], theirs[name]
        if isinstance(a, fx.GraphModule) and isinstance(b, fx.GraphModule):  # each has a class of its own
            if a.code != b.code:
                refuse(f"{label} computes something else")
        elif type(a) is not type(b):
            refuse(f"{label} was a {type(a).__name__} and is a {type(b).__name__}")
        elif _geometry(a) != _geometry(b):
            refuse(f"{label} was {type(a).__name__}({_geometry(a)}) and is {type(b).__name__}({_geometry(b)})")
    before, after = old.state_dict(), new.state_dict()
    hidden = _masks_of(old) | _masks_of(new)
    for key in [key for key in (*before, *after) if key not in hidden]:
        if key not in after or key not in before:
            refuse(f"{key} is only in the {'compiled one' if key in before else 'new one'}")
        a, b = before[key], after[key]
        free = key.rpartition(".")[2] in ("weight_values", "theta")  # as many as the pruning left
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            continue
        if a.dtype != b.dtype or (a.shape != b.shape and not free):
            refuse(f"{key} was {_tensor_words(a)} and is {_tensor_words(b)}")


def _geometry(module: nn.Module) -> str:
    """A layer's settings that no state_dict holds."""
    if hasattr(module, "weight_values") or hasattr(module, "theta") or isinstance(module, QuantizedLinear):
        return ""
    if isinstance(module, QuantizedConv2d):
        return f"stride={module.stride}, padding={module.padding}, dilation={module.dilation}, groups={module.groups}"
    return module.extra_repr()


def _tensor_words(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"


def _masks_of(model: nn.Module) -> set[str]:
    """The keys of its masks: pruned or not, the architecture is the same."""
    return {
        masks.buffer_name(f"{name}.{parameter}" if name else parameter)
        for name, module in model.named_modules(remove_duplicate=False)
        for parameter in masks.masked_parameters(module)
    }  # fmt: skip


def words(key: Any) -> str:
    """An input's kind for an error message."""
    if isinstance(key, tuple) and len(key) == 6 and isinstance(key[0], torch.dtype):
        dtype, device, _, rank, fixed, _ = key
        sizes = ["N", *"ABCDEFG"][:rank]
        if rank == 4:
            sizes = ["N", str(fixed), "H", "W"]
        elif rank == 2:
            sizes = ["N", "L" if fixed is None else str(fixed)]
        return f"{str(dtype).removeprefix('torch.')} [{', '.join(sizes)}] on {device}"
    if isinstance(key, tuple) and key and isinstance(key[0], str):
        return f"{key[0]} {key[1]!r}" if len(key) == 2 else key[0]
    return getattr(key, "__name__", str(key))
