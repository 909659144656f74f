"""What :func:`secateur.quantize` reports of each layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..nn import QuantizedConv2d, QuantizedLinear
from ..nn.int8_weights import block_fill
from ..report import Column, Report

COLUMNS = (
    Column("layer", "layer", "text"),
    Column("shape", "shape", "shape"),
    Column("form", "form", "text"),
    Column("sparsity", "zeros %", "percent"),
    Column("blocks", "1x4 blocks %", "percent"),
    Column("fill", "full %", "percent"),
    Column("rounded_to_zero", "to zero", "count"),
    Column("input_scale", "input scale", "number"),
    Column("input_zero_point", "zero point", "count"),
    Column("weight_scale", "weight scale", "number"),
    Column("weight_error", "weight error %", "percent"),
    Column("why", "why", "text"),
)

BLOCKS = (
    "1x4 blocks: the share of blocks of 4 input channels that hold a nonzero weight; full: how much of these is "
    "nonzero; the total is of the layers in int8"
)


@dataclass
class Entry:
    """A layer for the report: its real weights, and the integers that took their place, or why none did."""

    name: str
    weight: Any  # Tensor, or None
    made: nn.Module | None
    why: str = ""


class QuantizationReport(Report):
    """One row a layer; the total is of the layers in int8.

    ``calibration`` is the method that was used, ``tried`` the accuracy of each that was tried, ``accuracy`` the
    result's and ``baseline`` the given model's (None without ``evaluate``), ``steps`` how accuracy rose as layers were
    left in fp32: ``{"fp32": [names], "accuracy": share}`` in the order in which they were tried.
    """

    def __init__(
        self,
        title: str,
        rows: Sequence[Mapping[str, Any]],
        notes: Sequence[str],
        total: Mapping[str, Any],
        calibration: str,
    ) -> None:
        super().__init__(title, COLUMNS, rows, notes, total)
        self.calibration = calibration
        self.tried: dict[str, float] = {}
        self.accuracy: float | None = None
        self.baseline: float | None = None
        self.steps: list[dict[str, Any]] = []

    def judged(
        self, baseline: float, accuracy: float, tried: Mapping[str, float], steps: Sequence[dict[str, Any]]
    ) -> None:
        """Take what ``evaluate`` said, and say it in the notes."""
        self.baseline, self.accuracy, self.tried, self.steps = baseline, accuracy, dict(tried), list(steps)
        if len(tried) > 1:
            said = ", ".join(f"{name} {100 * value:.2f} %" for name, value in tried.items())
            self.notes.append(f"accuracy by calibration: {said}")
        self.notes.append(f"accuracy {100 * accuracy:.2f} %, of the given model {100 * baseline:.2f} %")

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
            "calibration": self.calibration,
            "tried": dict(self.tried),
            "accuracy": self.accuracy,
            "baseline": self.baseline,
            "steps": list(self.steps),
        }


def report_of(entries: Iterable[Entry], calibration: str, notes: Sequence[str]) -> QuantizationReport:
    entries = list(entries)
    rows = [_row(entry) for entry in entries]
    counted = [row for entry, row in zip(entries, rows, strict=True) if _is_int8(entry)]
    total: dict[str, Any] = {key: sum(row[key] for row in counted) for key in ("weights", "zeros", "rounded_to_zero")}
    full, blocks = (sum(row[key] for row in counted) for key in ("nonzero_blocks", "all_blocks"))
    nonzero = total["weights"] - total["zeros"]
    total |= {"sparsity": total["zeros"] / max(total["weights"], 1), "blocks": full / max(blocks, 1)}
    total |= {"fill": nonzero / (4 * full) if full else None}
    total |= {"layer": "total", "form": f"int8: {len(counted)} of {len(rows)}"}
    notes = [*(note for note in notes if note != BLOCKS), BLOCKS]
    return QuantizationReport(f"quantized: calibration {calibration}", rows, notes, total, calibration)


def _has_weight(entry: Entry) -> bool:
    weight = entry.weight
    return isinstance(weight, Tensor) and weight.dim() >= 2 and not nn.parameter.is_lazy(weight)


def _is_int8(entry: Entry) -> bool:
    return isinstance(entry.made, QuantizedConv2d | QuantizedLinear) and _has_weight(entry)


def _row(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": entry.name, "form": "fp32", "why": entry.why}
    if not _has_weight(entry):
        return row
    kept = weight = entry.weight.detach()
    if isinstance(entry.made, QuantizedConv2d | QuantizedLinear):
        kept = entry.made.weight_int8
        row.update(_of_layer(weight, entry.made))
    full, blocks, nonzero = block_fill(kept)
    row.update(
        shape=tuple(weight.shape),
        weights=weight.numel(),
        zeros=kept.numel() - nonzero,
        sparsity=1 - nonzero / max(kept.numel(), 1),
        blocks=full / max(blocks, 1),
        fill=nonzero / (4 * full) if full else None,
        nonzero_blocks=full,
        all_blocks=blocks,
    )
    return row


def _of_layer(weight: Tensor, made: QuantizedConv2d | QuantizedLinear) -> dict[str, Any]:
    size = float(weight.double().square().sum())
    error = float((made.weight.double() - weight.double()).square().sum())
    return {
        "form": "int8",
        "rounded_to_zero": int(((made.weight_int8 == 0) & (weight != 0)).sum()),
        "input_scale": float(made.input_scale),
        "input_zero_point": int(made.input_zero_point),
        "weight_scale": float(made.weight_scale.mean()),
        "weight_scale_min": float(made.weight_scale.min()),
        "weight_scale_max": float(made.weight_scale.max()),
        "weight_error": (error / size) ** 0.5 if size else 0.0,
    }
