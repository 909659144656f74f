"""State_dict keys as the model would have them that no wrapper holds: one file fits both.

``torch.compile``, ``DataParallel``, ``DistributedDataParallel``, FSDP and activation checkpointing put a name of their
own between a module and its name. They are left out wherever they stand, also around a part of a model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import nn

from .rules import joined

_RESERVED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module, under each of its names; the wrappers themselves are left out."""
    for _, name, module in _modules(model):
        if _wrapped(module) is None:
            yield name, module


def tensor_names(module: nn.Module) -> list[str]:
    """The names of a module's own parameters and buffers."""
    if isinstance(module, torch.jit.ScriptModule):  # whose tables are no dicts
        tensors = (module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        return [name for each in tensors for name, _ in each]
    return [*module._parameters, *module._buffers]


class Names:
    """The keys of a model's state_dict without its wrappers' names."""

    def __init__(self, model: nn.Module) -> None:
        self._plain = {name: plain for name, plain, _ in _modules(model)}

    def plain(self, key: str) -> str:
        path, _, name = key.rpartition(".")
        while path and path not in self._plain:
            path, _, more = path.rpartition(".")
            name = f"{more}.{name}"
        return joined(self._plain.get(path, ""), name)

    def matched(self, keys: Collection[str], known: Mapping[str, object]) -> dict[str, str]:
        """The model's name for each key of a checkpoint, which may have been written from within a wrapper, or into
        one."""
        taken = {key for key in keys if key in known}
        found: dict[str, str] = {}
        for key in keys:
            found[key] = key
            if key in known:
                continue
            bare = ".".join(part for part in key.split(".") if part not in _RESERVED)
            none = ".".join(part for part in bare.split(".") if part != "module")
            for other in (self.plain(key), bare, bare.removeprefix("module."), none):
                if other in known and other not in taken:
                    taken.add(other)
                    found[key] = other
                    break
        return found


def _modules(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Name, name without wrappers, and module."""
    found: dict[str, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        plain, own = "", ""
        if name:
            above, _, own = name.rpartition(".")
            plain, parent = found[above]
            if own != _wrapped(parent):
                plain = joined(plain, own)
        found[name] = plain, module
        yield name, plain, module


def _wrapped(module: nn.Module) -> str | None:
    """The name of the one child that a wrapper holds; None for other modules."""
    if isinstance(module, _PARALLEL):
        return "module"
    if isinstance(module, torch.jit.ScriptModule) or len(module._modules) != 1 or module._parameters:
        return None
    return next((name for name in _RESERVED if name in module._modules), None)
