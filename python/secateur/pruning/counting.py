"""Zeros counted: a row a weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import masks
from .._base.wrappers import unwrapped
from ..masks.weights import Weight, weights_of
from ..nn.quantized import QuantizedConv2d, QuantizedLinear
from ..ops.packing import mask_shape, rows_and_columns
from ..report import WEIGHT_COLUMNS, Report
from .outcome import Pruned


def sparsity(model: nn.Module) -> Report:
    """Count the zeros of a model's weights, whatever made them.

    Returns:
        A report like :func:`prune`'s, one row a weight (embeddings too). theta is known where ``prune`` set it. The
        bytes of quantized layers count as they are: zeros are bytes of 0, one byte a weight.
    """
    rows = []
    notes = []
    for weight in weights_of(model, caller="sparsity"):
        if weight.problem is not None and not weight.unpacked:
            notes.append(f"{weight.label} is not counted: {weight.problem}")
            continue
        rows.append(row_of(weight))
        if weight.aliases:
            notes.append(f"{weight.label} is also {', '.join(w.label for w in weight.aliases)} (counted once)")
    for name, module in unwrapped(model).named_modules():
        if isinstance(module, QuantizedConv2d | QuantizedLinear):
            rows.append(counted(name or "weight_int8", module, module.weight_int8))
    return Report("zeros", WEIGHT_COLUMNS, rows, notes, total_of(rows))


def packed_bytes(shape: Sequence[int], kept: int, itemsize: int) -> int:
    """Bytes of a bit mask and the kept values; where that is more than dense, the weight is stored dense."""
    rows, columns = rows_and_columns(shape)
    return min(rows * columns * itemsize, math.prod(mask_shape(shape)) + kept * itemsize)


def row_of(weight: Weight, pruned: Pruned | None = None) -> dict[str, Any]:
    row = counted(weight.label, weight.module, weight.value, None if pruned is None else pruned.zeros)
    known = masks.masked_parameters(weight.module).get(weight.parameter)
    if known is not None:
        row |= {"theta_min": known[0], "theta_mean": known[1], "theta_max": known[2]}
    if pruned is not None:
        target = pruned.target
        row |= {
            "pruned": row["zeros"] - pruned.gone,
            "k": pruned.k,
            "criterion": repr(target.criterion),
            "pattern": str(target.pattern),
        }
    return row


def counted(label: str, module: nn.Module, value: Tensor, zeros: int | None = None) -> dict[str, Any]:
    count = value.numel()
    zeros = count - int(torch.count_nonzero(value)) if zeros is None else zeros
    return {
        "layer": label,
        "kind": type(module).__name__,
        "shape": tuple(value.shape),
        "weights": count,
        "zeros": zeros,
        "sparsity": zeros / count if count else 0.0,
        "theta_min": None,
        "theta_mean": None,
        "theta_max": None,
        "bytes_dense": count * value.element_size(),
        "bytes_packed": packed_bytes(value.shape, count - zeros, value.element_size()),
    }


def total_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sums = {key: sum(row[key] for row in rows) for key in ("weights", "zeros", "bytes_dense", "bytes_packed")}
    return {"layer": "total", **sums, "sparsity": sums["zeros"] / sums["weights"] if sums["weights"] else 0.0}
