"""Whether the quantized model of a file is one of a given float model: the same layers, by name and shape."""

from __future__ import annotations

import re
from typing import Any, cast

from torch import nn

from ...nn import Quantize, QuantizedConv2d, QuantizedLinear, ThresholdReLU
from . import kinds
from .building import state_of

#: What quantizing takes away: a norm is folded into the layer before it, thresholds go to where values become bytes.
_TAKEN_AWAY = (nn.BatchNorm1d, nn.BatchNorm2d, ThresholdReLU)


def why_not_of(quantized: nn.Module, model: nn.Module) -> str:
    """The first difference; empty: there is none."""
    given = dict(model.named_modules(remove_duplicate=False))
    used: set[nn.Module] = set()
    for path, layer in quantized.named_modules(remove_duplicate=False):
        if isinstance(layer, Quantize):
            continue
        if not isinstance(layer, QuantizedConv2d | QuantizedLinear):
            if any(True for _ in layer.parameters(recurse=False)) or any(True for _ in layer.buffers(recurse=False)):
                if why := _why_not_same(path, layer, given.get(path)):
                    return why
                used.add(given[path])
            continue
        own = given.get(path)
        if own is None:  # a layer that is called twice is two, fc and fc_1
            own = given.get(re.sub(r"_[0-9]+$", "", path))
        if own is None and path == "0" and not list(model.children()):
            own = model  # quantize puts a layer that is a model by itself into a Sequential
        if why := _why_not_layer(path, layer, own):
            return why
        used.add(cast(nn.Module, own))
    for path, module in given.items():
        if module in used or isinstance(module, _TAKEN_AWAY):
            continue
        if own_keys := [name for owner, name in state_of(module).values() if owner is module]:
            return f"the file has nothing for {path + '.' if path else ''}{own_keys[0]}"
    return ""


def _why_not_layer(path: str, layer: QuantizedConv2d | QuantizedLinear, own: nn.Module | None) -> str:
    kind = nn.Conv2d if isinstance(layer, QuantizedConv2d) else nn.Linear
    if not isinstance(own, kind):
        return f"{path} must be a {kind.__name__}, got {'nothing' if own is None else type(own).__name__}"
    shape, given = tuple(layer.weight_int8.shape), _shape(own)
    if shape != given:
        return f"the weight of {path} must be {list(given)} as in the model, got {list(shape)}"
    if isinstance(layer, QuantizedConv2d):
        for name in ("stride", "dilation", "groups"):
            if getattr(layer, name) != getattr(own, name):
                return f"{name} of {path} must be {getattr(own, name)} as in the model, got {getattr(layer, name)}"
        if not isinstance(own.padding, str) and layer.padding != own.padding:
            return f"padding of {path} must be {own.padding} as in the model, got {layer.padding}"
    return ""


def _shape(layer: nn.Module) -> tuple[int, ...]:
    held: Any = layer
    if isinstance(layer, nn.Conv2d):
        return (held.out_channels, held.in_channels // held.groups, *held.kernel_size)
    return (held.out_features, held.in_features)


def _why_not_same(path: str, layer: nn.Module, own: nn.Module | None) -> str:
    if own is None:
        return f"the model has no {path}"
    kind = kinds.kind_of(layer)
    plain = (nn.Conv2d, nn.Linear)
    if kind is not None and type(own) is not type(layer) and not (
        isinstance(layer, plain) and any(isinstance(own, one) and isinstance(layer, one) for one in plain)
    ):  # fmt: skip
        return f"{path} must be a {type(own).__name__} as in the model, got {type(layer).__name__}"
    theirs = {name: tuple(getattr(module, name).shape) for module, name in state_of(own).values() if module is own}
    ours = {name: tuple(getattr(module, name).shape) for module, name in state_of(layer).values() if module is layer}
    if kind is not None and isinstance(own, ThresholdReLU):
        return ""  # one theta, or one for each channel
    if ours != theirs:
        return f"the tensors of {path} must be {theirs} as in the model, got {ours}"
    return ""
