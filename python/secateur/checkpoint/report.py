"""The report on a file of tensors: what is in it, layer by layer, without a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .._base.errors import Error
from ..ops.packing import mask_shape
from .format.description import FLOATS
from .ordinary import kind_of_tensor, stored
from .paths import path_of

_SMALL = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


def checkpoint_report(path: Path) -> Any:
    """The zeros of a checkpoint's tensors of two dims or more; one-dim ones (biases, norms, thresholds) in one note.

    Masks of torch.nn.utils.prune and torch.ao.pruning count as the zeros that they stand for.

    Raises:
        Error: the file holds no tensors by name. OSError: it cannot be opened.
    """
    from ..checkpoint import read
    from ..checkpoint.foreign import plain
    from ..checkpoint.tensor_files import kind_of, tensors_of
    from ..report import WEIGHT_COLUMNS, Report

    path = path_of(path, "report")
    tensors: Mapping[str, Any]
    thetas: Mapping[str, Any] = {}
    sizes: Mapping[str, int] = {}
    if kind_of(path, "report") == "packed":
        tensors, thetas, sizes = read(path, "report")
    else:
        tensors = plain(tensors_of(path, "report"), "report")
    rows: list[dict[str, Any]] = []
    other, other_bytes = 0, 0
    notes = [f"the file takes {path.stat().st_size:,} bytes"]
    for name, given in tensors.items():
        if (kind := kind_of_tensor(given)) is not None:
            notes.append(f"{name} is not in the table: it is {kind}")
            continue
        tensor = stored(given)
        if tensor is not given:
            said = f"{name} {list(given.shape)} is an expanded view of {tensor.numel():,} numbers: these are counted"
            notes.append(said)
        size = tensor.numel() * tensor.element_size()
        if given.dim() < 2 or tensor.dtype not in (*FLOATS, *_SMALL, torch.int8):
            other, other_bytes = other + 1, other_bytes + size
            continue
        kept = int((tensor.float() if tensor.dtype in _SMALL else tensor).count_nonzero())
        packed = math.prod(mask_shape(tensor.shape)) + kept * tensor.element_size()
        rows.append(
            {
                "layer": name,
                "shape": tuple(given.shape),
                "weights": tensor.numel(),
                "sparsity": 1 - kept / tensor.numel() if tensor.numel() else 0.0,
                **dict(zip(("theta_min", "theta_mean", "theta_max"), thetas.get(name) or (None,) * 3, strict=True)),
                "bytes_dense": size,
                "bytes_packed": sizes.get(name, min(packed, size)),
                "kept": kept,
            }
        )
    if not rows:
        raise Error(f"report: {path} must hold a tensor of two dims or more, found none")
    weights = sum(row["weights"] for row in rows)
    total = {
        "layer": "total",
        "weights": weights,
        "sparsity": 1 - sum(row["kept"] for row in rows) / max(weights, 1),
        "bytes_dense": sum(row["bytes_dense"] for row in rows),
        "bytes_packed": sum(row["bytes_packed"] for row in rows),
    }
    if other:
        notes.append(f"{other} tensors of one dim or of integers ({other_bytes:,} bytes) are not in the table")
    return Report(str(path), WEIGHT_COLUMNS, rows, notes, total)
