"""A calibrated network as a quantized one: which layers stay in float32, and the model that comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import Tensor, nn

from .._base.errors import Error
from .bias import correct_bias
from .build import Built, build
from .calibrate import Calibrated
from .freeze import freeze_layer, trainable
from .grids import METHODS, Grid, Method
from .layers import Layer
from .report import Entry, report_of


def meets(accuracy: float, wanted: float) -> bool:
    """Whether ``accuracy`` is not below ``wanted``, up to the rounding of ``baseline - allowed``."""
    return accuracy >= wanted - 1e-12


def checked_method(caller: str, calibration: Any) -> Method:
    """``calibration``, or METHODS' first for "auto"."""
    if calibration == "auto":
        return METHODS[0]
    if calibration not in METHODS:
        raise Error(f'{caller}: calibration must be "auto", "min-max", "percentile" or "mse", got {calibration!r}')
    return cast(Method, calibration)


def excluded(caller: str, calibrated: Calibrated, exclude: Any) -> dict[str, str]:
    """The layers that ``exclude`` names -> why they are in fp32."""
    if not isinstance(exclude, Sequence) or isinstance(exclude, str) or not all(isinstance(p, str) for p in exclude):
        raise Error(f"{caller}: exclude must be a sequence of names or patterns, got {exclude!r}")
    layers = calibrated.network.all_layers
    unmatched = [p for p in exclude if not any(fnmatchcase(name, p) for name in layers)]
    if unmatched:
        raise Error(f"{caller}: exclude must match a layer, got {unmatched}")
    found = {name: "excluded" for name in layers if any(fnmatchcase(name, p) for p in exclude)}
    if all(name in found or layer.why for name, layer in layers.items()):
        raise Error(f"{caller}: exclude must leave a layer that can be quantized, got {list(exclude)}")
    return found


def frozen(calibrated: Calibrated, method: Method, fp32: Mapping[str, str]) -> Built:
    """The quantized network, for inference."""

    def layer(at: Layer, grid: Grid, memo: dict[int, Any]) -> nn.Module:
        return freeze_layer(trainable(at.module, grid, method))

    built = build(calibrated, method, fp32, layer)
    weights = {name: at.module.weight for name, at in calibrated.network.all_layers.items() if name in built.made}
    correct_bias(built.model, built.made, cast("dict[str, Tensor]", weights), calibrated.example)
    built.restore()
    return built


def finished(calibrated: Calibrated, built: Built, method: str) -> nn.Module:
    """The built model with its report."""
    entries = [
        Entry(name, getattr(layer.module, "weight", None), built.made.get(name), built.why.get(name, ""))
        for name, layer in calibrated.network.all_layers.items()
    ]
    built.restore()
    built.model.report = report_of(entries, method, calibrated.network.notes)  # type: ignore[assignment]
    return built.model
