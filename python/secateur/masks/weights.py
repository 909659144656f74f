"""The weights of a model that can be pruned, their names, and the reasons why others cannot."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from .._base.errors import Error
from .._base.tensors import is_plain
from .._base.wrappers import unwrapped
from . import sharding
from .layout import Layout

#: An entry of ``exclude``, ``include`` or ``overrides``: a name, a glob pattern, or a module type.
Entry = str | type[nn.Module]

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass
class Weight:
    """One prunable parameter of a model.

    ``module_name`` is the module's path ("features.0"), ``parameter`` its attribute ("weight"), ``places`` every
    (module, attribute) that holds the very same Parameter, this one first.
    """

    module_name: str
    module: nn.Module
    parameter: str
    layout: Layout
    default: bool  # pruned unless excluded; False: only if included
    owners: tuple[nn.Module, ...]  # the modules on the path from the root down to this one
    problem: str | None = None  # why it cannot be pruned
    refuse: bool = False  # the problem is an error, not something to step around
    foreign: Tensor | None = None  # torch.nn.utils.prune's mask [shape of the weight], to be taken over
    unwritten: bool = False  # the problem is that it is on the meta device: a mask may come before its values
    unpacked: bool = False  # a sparse layer's: its weight is made from its nonzeros when it is read
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    aliases: list[Weight] = field(default_factory=list)  # the same Parameter under other names

    @property
    def key(self) -> str:
        """The parameter's key in the model's state_dict."""
        return f"{self.module_name}.{self.parameter}" if self.module_name else self.parameter

    @property
    def label(self) -> str:
        """What the report calls it: the layer where a layer has one weight, else the full key."""
        return self.module_name if self.module_name and self.parameter == "weight" else self.key

    @property
    def value(self) -> Tensor:
        """The weight as forward sees it."""
        stored = self.module._parameters.get(self.parameter)
        if self.unpacked:
            dense: Tensor = getattr(self.module, self.parameter)
            return dense.detach()
        if stored is None and self.foreign is not None:
            original = self.module._parameters[self.parameter + "_orig"]
            assert original is not None
            return torch.where(self.foreign.to(torch.bool), original, torch.zeros_like(original))
        if stored is None:
            raise Error(f"{self.label}: the weight is no plain Parameter")
        return stored


def weights_of(model: nn.Module, caller: str = "prune") -> list[Weight]:
    """Every weight of every layer type that this package knows, tied ones once (the others in ``aliases``)."""
    if not isinstance(model, nn.Module):
        raise Error(f"{caller}: model must be a torch.nn.Module, got {type(model).__name__}")
    first: dict[tuple[Any, ...] | None, Weight] = {}
    found: list[Weight] = []
    for name, module in unwrapped(model).named_modules():
        owners = tuple(_owners(unwrapped(model), name))
        for parameter in _parameters_of(module):
            weight = Weight(name, module, parameter, _layout(module), not isinstance(module, _EMBEDDINGS), owners)
            weight.places.append((module, parameter))
            _examine(weight)
            stored = module._parameters.get(parameter)
            place = None if stored is None else _place(stored)
            if place in first:
                tied = first[place]
                tied.places.append((module, parameter))
                tied.aliases.append(weight)
                continue
            if place is not None:
                first[place] = weight
            found.append(weight)
    return found


def _place(stored: Tensor) -> tuple[Any, ...]:
    """Equal for parameters that are one: the same object, or two Parameters over the same memory."""
    if isinstance(stored, UninitializedParameter) or stored.is_nested:
        return (id(stored),)
    if stored.device.type == "meta" or stored.numel() == 0:
        return (id(stored),)
    if type(stored.data) is not Tensor or stored.layout != torch.strided:
        return (id(stored),)
    return stored.device, stored.data_ptr(), tuple(stored.shape), stored.stride()


def _owners(model: nn.Module, name: str) -> Iterator[nn.Module]:
    yield model
    for part in name.split(".") if name else ():
        model = model._modules[part]  # type: ignore[assignment]
        yield model


def _parameters_of(module: nn.Module) -> list[str]:
    """The names of a module's own prunable weights, whatever stands at that name now."""
    if isinstance(module, nn.Linear | _ConvNd | nn.Embedding | nn.EmbeddingBag):
        return ["weight"]
    if isinstance(module, nn.RNNBase):
        return [name for layer in module._all_weights for name in layer if name.startswith("weight")]
    if isinstance(module, nn.RNNCellBase):
        return ["weight_ih", "weight_hh"]
    if isinstance(module, nn.MultiheadAttention):
        if module._qkv_same_embed_dim:
            return ["in_proj_weight"]
        return ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    return []


def _layout(module: nn.Module) -> Layout:
    return Layout(module.groups) if isinstance(module, _ConvTransposeNd) else Layout()


def _examine(weight: Weight) -> None:
    """Fill in ``problem``, ``refuse`` and ``foreign``."""
    module, name = weight.module, weight.parameter
    stored = module._parameters.get(name)
    if stored is None:
        if module._parameters.get(name + "_values") is not None and hasattr(module, name):
            weight.unpacked = True
            weight.problem = f"it is a {type(module).__name__} and holds only its nonzeros; prune before converting"
            return
        weight.refuse = True
        weight.foreign = _foreign_mask(module, name)
        if weight.foreign is not None:
            weight.refuse = False
        elif parametrize.is_parametrized(module, name):
            kinds = ", ".join(type(p).__name__ for p in module.parametrizations[name])  # type: ignore[index]
            weight.problem = (
                f"its {name} is parametrized ({kinds}) and computed anew in each forward, so a mask would be lost; "
                "call torch.nn.utils.parametrize.remove_parametrizations first"
            )
        else:
            weight.problem = (
                f"its {name} is no Parameter (weight_norm, spectral_norm or another library computes it in each "
                "forward), so a mask would be lost; remove that first"
            )
        return
    if isinstance(stored, UninitializedParameter):
        weight.problem = "it is not initialized yet (a lazy layer): run one batch through the model first"
        weight.refuse = True
    elif stored.device.type == "meta":
        weight.problem, weight.refuse = "its weights are on the meta device, so they have no values", True
        weight.unwritten = True
    elif stored.is_nested:
        weight.problem = f"its {name} is a nested tensor, not an ordinary one"
    elif (spread := sharding.problem_of(stored)) is not None:
        weight.problem, weight.refuse = spread, True
    elif stored.layout != torch.strided or stored.is_quantized or not is_plain(stored):
        weight.problem = f"its {name} is a {type(stored.data).__name__} ({stored.layout}), not an ordinary tensor"
    elif any(stride == 0 and size > 1 for stride, size in zip(stored.stride(), stored.shape, strict=True)):
        weight.problem = f"its {name} is an expanded view, in which one number stands for many weights"
    elif stored.dtype not in _FLOATS:
        dtype = str(stored.dtype).removeprefix("torch.")
        weight.problem = f"its {name} is {dtype}, not float32, float64, float16 or bfloat16"
    elif stored.numel() == 0:
        weight.problem = f"its {name} {list(stored.shape)} holds no weights"


def _foreign_mask(module: nn.Module, name: str) -> Tensor | None:
    """The mask that torch.nn.utils.prune keeps for this parameter, if it does."""
    if module._parameters.get(name + "_orig") is None:
        return None
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, torch_prune.BasePruningMethod) and hook._tensor_name == name:
            return module._buffers.get(name + "_mask")
    return None


def take_over(weight: Weight) -> None:
    """Make torch.nn.utils.prune's pruning permanent: ``weight`` is a plain Parameter again, with its zeros."""
    torch_prune.remove(weight.module, weight.parameter)
    weight.foreign = None


def unknown_weights(model: nn.Module) -> tuple[list[str], list[str]]:
    """What :func:`weights_of` leaves out: quantized layers, and "name [shape]" of other weights of two dims or more."""
    quantized, other = [], []
    for name, module in unwrapped(model).named_modules():
        kind = type(module)
        if "quantized" in kind.__module__ and kind.__module__.startswith("torch") and hasattr(module, "weight"):
            quantized.append(f"{name or kind.__name__} ({kind.__name__})")
            continue
        known = {n for p in _parameters_of(module) for n in (p, p + "_orig")}
        for parameter, value in module._parameters.items():
            if value is None or parameter in known or isinstance(value, UninitializedParameter):
                continue
            if value.is_nested:
                other.append(f"{name}.{parameter}".lstrip(".") + " (nested)")
            elif sum(size > 1 for size in value.shape) >= 2:
                other.append(f"{name}.{parameter}".lstrip(".") + f" {list(value.shape)}")
    return quantized, other


# Precedence of an entry: the more exactly it names a weight, the more it counts.
_TYPE, _GLOB, _NAME = 1, 2, 3


def match(entry: Entry, weight: Weight) -> int:
    """How exactly ``entry`` names ``weight``: 0 not at all, then type, glob pattern, name.

    A name or a type of a containing module names what is inside it.
    """
    if isinstance(entry, str):
        names = {weight.module_name, weight.key, weight.label}
        if entry in names or (entry and weight.key.startswith(entry + ".")):
            return _NAME
        return _GLOB if any(fnmatch.fnmatchcase(name, entry) for name in names) else 0
    return _TYPE if any(isinstance(owner, entry) for owner in weight.owners) else 0


def check_entries(entries: Any, argument: str, caller: str = "prune") -> list[Entry]:
    """``exclude``, ``include`` as a list; a single name or type stands for a list of one."""
    if isinstance(entries, str | type):
        entries = [entries]
    if not isinstance(entries, Iterable):
        raise Error(f"{caller}: {argument} must be names, glob patterns or module types, got {entries!r}")
    checked: list[Entry] = []
    for entry in entries:
        if not (isinstance(entry, str) or (isinstance(entry, type) and issubclass(entry, nn.Module))):
            raise Error(f"{caller}: {argument} must hold names, glob patterns or module types, got {entry!r}")
        checked.append(entry)
    return checked


def matches(entry: Entry, weights: Iterable[Weight], argument: str, caller: str = "prune") -> list[Weight]:
    """The weights that an entry names (under any of their names); none is an Error, for it is a typing mistake."""
    weights = list(weights)
    hits = [w for w in weights if any(match(entry, each) for each in (w, *w.aliases))]
    if not hits:
        shown = entry if isinstance(entry, type) else repr(entry)
        have = ", ".join(w.label for w in weights[:8]) + (", ..." if len(weights) > 8 else "")
        raise Error(f"{caller}: {argument} must name layers of the model, but {shown} matches none of: {have}")
    return hits
