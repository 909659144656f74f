"""Tensors that must hold more than numbers of the right shape: scales, zero points, thresholds.

The layer that owns a tensor sets its rules. Without a model, the file names the layers and their classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from .._base.errors import Error
from .format.description import FLOATS, INTEGERS


def _scale(value: Tensor) -> bool:
    return value.dtype in FLOATS and bool((torch.isfinite(value) & (value > 0)).all())


def _zero_point(value: Tensor) -> bool:
    return value.dtype == torch.int32 and bool(((value >= 0) & (value <= 255)).all())


def _theta(value: Tensor) -> bool:
    return value.dtype in (*FLOATS, *INTEGERS) and bool((torch.isfinite(value) & (value >= 0)).all())


Rule = tuple[Callable[[Tensor], bool], str]
_SCALE: Rule = (_scale, "finite and > 0")
_ZERO_POINT: Rule = (_zero_point, "int32 in [0, 255]")
_THETA: Rule = (_theta, "finite and >= 0")
_LAYER = {"weight_scale": _SCALE, "input_scale": _SCALE, "input_zero_point": _ZERO_POINT}
_IN_TRAINING = {"weight_share": _SCALE, "input_scale": _SCALE, "input_zero_point": _ZERO_POINT}

_RULES: dict[str, dict[str, Rule]] = {
    "QuantizedConv2d": _LAYER,
    "QuantizedLinear": _LAYER,
    "Quantize": {"scale": _SCALE, "zero_point": _ZERO_POINT},
    "QATConv2d": _IN_TRAINING,
    "QATLinear": _IN_TRAINING,
    "ThresholdReLU": {"theta": _THETA},
}

#: Classes whose weight is integers and a scale for each row.
QUANTIZED = ("QuantizedConv2d", "QuantizedLinear")


def joined(module: str, name: str) -> str:
    """A state_dict key."""
    return f"{module}.{name}" if module else name


def layers_of(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, str]:
    """Those of the modules, given by name, that are of this package and have rules, and their classes."""
    return {
        name: kind.__name__
        for name, module in modules
        for kind in type(module).__mro__ if kind.__name__ in _RULES and kind.__module__.startswith("secateur.")
    }  # fmt: skip


def check(layers: Mapping[str, str], value_of: Callable[[str], Tensor | None], caller: str) -> None:
    """Check the tensors of ``layers``; ``value_of`` gives one by its key, or None where there is none.

    Raises:
        Error: one of them breaks its rule.
    """
    for module, kind in layers.items():
        for name, (holds, words) in _RULES.get(kind, {}).items():
            key = joined(module, name)
            value = value_of(key)
            if value is not None and not holds(value):
                raise Error(f"{caller}: {key} must be {words}, got {value.reshape(-1)[:4].tolist()} ({value.dtype})")
