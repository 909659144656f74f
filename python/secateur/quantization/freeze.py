"""int8 layers from float layers: the last step of both ways to quantize."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from .._base.copies import evaluating, own_copy
from ..masks import strip
from ..nn import QATConv2d, QATLinear, QuantizedConv2d, QuantizedLinear
from ..nn.int8_weights import best_shares, to_bytes
from .grids import Grid, Method
from .layers import is_layer, refuse_not_finite
from .report import Entry, QuantizationReport, report_of


def trainable(layer: nn.Module, grid: Grid, method: Method) -> QATConv2d | QATLinear:
    """A layer that trains for int8, with the float parameters of ``layer``, a plain Conv2d or Linear."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    share = best_shares(layer.weight) if method == "mse" else None
    kind: Any = QATConv2d if isinstance(layer, nn.Conv2d) else QATLinear
    made = kind.from_dense(layer, grid.scale, grid.zero_point, share)
    return cast("QATConv2d | QATLinear", made.to(layer.weight.device))


def freeze_layer(layer: QATConv2d | QATLinear) -> QuantizedConv2d | QuantizedLinear:
    """The same layer in int8, for inference."""
    scale = layer.weight_scale()
    held = (to_bytes(layer.weight, scale), scale, layer.bias, layer.input_scale, layer.input_zero_point)
    if isinstance(layer, QATLinear):
        return QuantizedLinear(*held).to(scale.device)
    shape: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return QuantizedConv2d(*held, *shape).to(scale.device)


def freeze(student: nn.Module) -> nn.Module | None:
    """A copy in evaluation mode in which every layer that was trained for int8 is an int8 layer; None: there is none.

    ``student`` may also be a part of another module (a wrapper that trains it).
    """
    given = getattr(student, "report", None)
    told = given if isinstance(given, QuantizationReport) else None
    why = {row["layer"]: row["why"] for row in told.rows} if told is not None else {}
    entries: list[Entry] = []
    memo: dict[int, Any] = {}
    for name, module in student.named_modules(remove_duplicate=False):
        if isinstance(module, QATConv2d | QATLinear):
            if id(module) not in memo:
                refuse_not_finite("quantize", name, module)
                memo[id(module)] = freeze_layer(module)
            entries.append(Entry(name, module.weight, memo[id(module)]))
        elif is_layer(module):
            entries.append(Entry(name, getattr(module, "weight", None), None, why.get(name, "not prepared for it")))
    if not memo:
        return None
    kept = list(memo.values())  # keeps them alive while the memo goes by their ids
    result = memo[id(student)] if id(student) in memo else own_copy(student, "quantize", memo)
    del kept
    evaluating(strip(result))
    notes = () if told is None else told.notes
    result.report = report_of(entries, "of prepare_qat" if told is None else told.calibration, notes)
    return cast(nn.Module, result)
