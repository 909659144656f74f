"""The containers of a network that became one graph: their classes, methods and plain attributes, around its layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from .._base.copies import is_ours, is_torchs, own_copy
from .._base.errors import Error
from .._base.held import attributes_of
from .._base.refused_hooks import refuse_hooks
from .calibrate import place
from .layers import is_layer
from .network import Network

_HOOKS = [key for key in vars(nn.Module()) if "hook" in key]


def shells(network: Network, held: Mapping[str, Any], memo: dict[int, Any]) -> nn.Module:
    """The model's own root, and the containers on the way to ``held`` (modules and tensors by path), around them.

    Args:
        memo: replacements of the model's modules, as for ``copy.deepcopy``; grows.
    """
    template = network.template
    given = dict(template.named_modules(remove_duplicate=False))
    inside = {path for path in held if "." in path} | {path for path in network.folded if "." in path}
    prefixes = {".".join(path.split(".")[:n]) for path in inside for n in range(1, path.count(".") + 1)}
    prefixes |= {path for path, module in given.items() if path and _is_plain(module)}
    made = {"": _empty(template)}
    for path in sorted(prefixes, key=lambda p: p.count(".")):
        if path in given and path not in held and not any(path.startswith(f"{outer}.") for outer in held):
            parent, _, name = path.rpartition(".")
            if parent in made:
                made[path] = memo[id(given[path])] = made[parent]._modules[name] = _empty(given[path])
    memo[id(template)] = made[""]
    for path in sorted(held, key=lambda p: p.count(".")):
        place(made[""], path, held[path])
        if path in given and isinstance(held[path], nn.Module):
            memo.setdefault(id(given[path]), held[path])
    for path in network.folded:
        if path not in held:
            gone = nn.Identity().eval()
            place(made[""], path, gone)
            memo.setdefault(id(given[path]), gone)
            _refuse_hooks(gone, path, "it is a part of the layer before it now")
    for module in given.values():
        if id(module) not in memo:  # never called
            memo[id(module)] = LeftOut().eval()
    for path, shell in made.items():
        _furnish(shell, given[path], memo)
        _in_order(shell, given[path])
        if path and given[path] in network.seen.parents:  # it was called, and its forward is in the graph now
            _refuse_hooks(shell, path, "its forward is a part of one graph now")
    return made[""]


def _refuse_hooks(module: nn.Module, path: str, why: str) -> None:
    refuse_hooks(
        module,
        f"quantize: a hook of {path} would never be called, for {why}: register it on the model, then quantize (what "
        "has hooks stays a module)",
    )


class LeftOut(nn.Module):
    """In plain lists and attributes, where a module stood that calibration never called."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise Error("quantize: a module that no batch of the calibration reached was left out, and is called now")


def _is_plain(module: nn.Module) -> bool:
    """Whether it is a module of the model's own, without parameters: it stays, with its attributes, although it is not
    called, or all that it computes is in the graph."""
    return not (is_torchs(module) or is_ours(module) or module._parameters)


def _empty(module: nn.Module) -> nn.Module:
    """A module of the same class that has nothing yet."""
    kind: Any = type(module)
    if isinstance(module, fx.GraphModule | torch.jit.ScriptModule) or is_layer(module):
        kind = nn.Module
    shell: nn.Module = kind.__new__(kind)
    nn.Module.__init__(shell)
    shell.training = False
    return shell


def _furnish(shell: nn.Module, module: nn.Module, memo: dict[int, Any]) -> None:
    holder = nn.Module()
    names = [key for key in attributes_of(module) if key not in vars(shell)]
    if isinstance(module, fx.GraphModule):
        names = [key for key in names if key not in ("_code", "_tracer_cls", "_tracer_extras", "shape_env")]
    holder.__dict__.update({key: vars(module)[key] for key in names})
    kept = own_copy(holder, "quantize", memo)
    shell.__dict__.update({key: vars(kept)[key] for key in names})
    if isinstance(module, torch.jit.ScriptModule):
        return
    for name, buffer in module._buffers.items():
        if name not in shell._buffers:
            shell._buffers[name] = copy.deepcopy(buffer, memo)
    shell._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    for key in _HOOKS:
        shell.__dict__[key] = vars(module)[key]


def _in_order(shell: nn.Module, module: nn.Module) -> None:
    """The children in the order in which the model has them: a Sequential is called in it."""
    order = [name for name, _ in module.named_children() if name in shell._modules]
    order += [name for name in shell._modules if name not in order]
    shell._modules = {name: shell._modules[name] for name in order}
