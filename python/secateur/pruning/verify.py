"""Does a pattern hold in the weights as they are? For those who give a pruned model to another engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from .. import ops
from .._base.checks import names_of
from .._base.errors import Error
from .._base.wrappers import unwrapped
from ..masks import sharding
from ..masks.layout import Layout
from ..masks.weights import Entry, Weight, check_entries, matches, unknown_weights, weights_of
from ..nn.masked import MaskedConv2d, MaskedLinear
from ..nn.quantized import QuantizedConv2d, QuantizedLinear
from ..report import Column, Report
from . import gpu
from .criteria import patterns
from .criteria.patterns import Pattern, SemiStructured

_COLUMNS = (
    Column("layer", "layer", "text"),
    Column("shape", "shape", "shape"),
    Column("holds", "holds", "text"),
    Column("violations", "violations", "count"),
    Column("why", "why", "text"),
)


class PatternReport(Report):
    """What :func:`verify` found: a :class:`~secateur.Report` that also says whether the pattern holds everywhere."""

    @property
    def holds(self) -> bool:
        """Whether every layer could be read, and holds the pattern."""
        return all(row["holds"] is True for row in self.rows)


def verify(
    model: nn.Module,
    pattern: str,
    *,
    exclude: Iterable[Entry] | Entry = (),
    include: Iterable[Entry] | Entry = (),
) -> PatternReport:
    """Look whether the zeros of a model's weights lie in a pattern, whoever put them there. Changes nothing.

    ``"N:M"``: at most N nonzeros in M consecutive input channels (of a group) of an output unit, at one kernel tap.
    These are the runs that TensorRT reads (weights [K, C, R, S], along C), and in a Linear [out, in] those of
    ``torch.sparse.to_sparse_semi_structured`` (along in). For ``"2:4"``, and what is 2:4 as well, such as ``"1:4"``,
    ``why`` also says which of these engines would not take the layer for its sizes, and whether it is too narrow to
    gain. ``"1xN"``: no block of N input channels has both zeros and nonzeros. ``"neuron"``: no output unit has.
    ``"1x1"`` always holds. A weight that happens to be 0 is a zero, also where int8 rounds it to 0.

    Args:
        model: any module: plain, masked, converted, quantized or compiled, on any device.
        pattern: as in :func:`secateur.prune`.
        exclude: layers to leave out, by name, glob pattern or type.
        include: layers to look at that are left out by default (embeddings), named alike.

    Returns:
        A report, one row a weight: ``layer``, ``shape``, ``holds`` (None: it cannot be read), ``violations`` (runs or
        blocks, of so many ``runs``), ``why``; for 2:4 also ``narrow``. ``report.holds`` says whether every row does.

    Raises:
        Error: a bad argument, an entry that names no layer, a model in which there is nothing to look at.
    """
    asked = patterns.parse(pattern, "verify")
    rows, wide = [], False
    for weight in _asked_for(model, exclude, include):
        with torch.no_grad():
            seen = _seen(weight)
        row = _row(seen, asked)
        if seen.weight is not None and isinstance(asked, SemiStructured) and asked.two_of_four:
            neurons, dtype = seen.layout.neurons(seen.weight).shape, seen.weight.dtype
            row["why"] = "; ".join(filter(None, [row["why"], *gpu.obstacles(seen.module, neurons, dtype)]))
            row["narrow"] = gpu.narrow(seen.module, neurons)
            wide |= dtype in (torch.float32, torch.float64)
        rows.append(row)
    total = {
        "layer": "total",
        "holds": all(row["holds"] is True for row in rows),
        **{key: sum(row[key] or 0 for row in rows) for key in ("violations", "runs")},
    }
    notes = gpu.notes_on(sum(row.get("narrow", False) for row in rows), wide) + _others(model)
    return PatternReport(f"verify: pattern {asked}", _COLUMNS, rows, notes, total)


@dataclass(frozen=True)
class _Seen:
    """A weight as forward sees it, or why it cannot be read."""

    label: str
    module: nn.Module
    shape: torch.Size
    layout: Layout
    weight: Tensor | None
    problem: str = ""


def _asked_for(model: Any, exclude: Any, include: Any) -> list[Weight]:
    found = weights_of(model, caller="verify") + _quantized(model)
    if not found:
        raise Error(f"verify: model must hold a layer that can be pruned, got a {type(model).__name__} without any")
    wanted = {id(w) for w in found if w.default or any(alias.default for alias in w.aliases)}
    for entry in check_entries(include, "include", "verify"):
        wanted |= {id(w) for w in matches(entry, found, "include", "verify")}
    for entry in check_entries(exclude, "exclude", "verify"):
        wanted -= {id(w) for w in matches(entry, found, "exclude", "verify")}
    if not wanted:
        raise Error("verify: exclude must leave a layer to look at, but none is left")
    return [w for w in found if id(w) in wanted]


def _quantized(model: nn.Module) -> list[Weight]:
    """The weights of int8 layers, which are no parameters and so not among those that can be pruned."""
    whole, found = unwrapped(model), []
    for name, module in whole.named_modules():
        if isinstance(module, QuantizedConv2d | QuantizedLinear) or _is_torchs_quantized(module):
            parts = name.split(".") if name else []
            owners = tuple(whole.get_submodule(".".join(parts[:i])) for i in range(len(parts) + 1))
            kind = type(module).__name__
            layout = Layout(module.groups) if kind.startswith("ConvTranspose") else Layout()
            found.append(Weight(name, module, "weight", layout, not kind.startswith("Embedding"), owners))
    return found


def _is_torchs_quantized(module: nn.Module) -> bool:
    kind = type(module).__module__
    return kind.startswith("torch.") and "quantized" in kind and callable(getattr(module, "weight", None))


def _seen(weight: Weight) -> _Seen:
    module = weight.module
    stored = module._parameters.get(weight.parameter)
    if isinstance(module, QuantizedConv2d | QuantizedLinear):
        value = module.weight_int8
    elif _is_torchs_quantized(module):
        packed: Any = module
        value = (packed.weight().dequantize() != 0).to(torch.int8)  # its zero point need not be 0
    elif weight.problem is None or weight.unpacked or _readable(stored):
        value = weight.value.detach()
    else:
        shape = torch.Size() if stored is None or isinstance(stored, UninitializedParameter) else stored.shape
        return _Seen(weight.label, module, shape, weight.layout, None, str(weight.problem))
    if isinstance(module, MaskedConv2d | MaskedLinear) and module.training and module.weight_mask is not None:
        value = ops.mask_apply(value, module.weight_mask.to(value.device))  # as their forward does
    if value.is_meta:
        return _Seen(weight.label, module, value.shape, weight.layout, None, "it is on the meta device")
    return _Seen(weight.label, module, value.shape, weight.layout, value)


def _readable(stored: Tensor | None) -> bool:
    """Ordinary tensors that cannot be pruned and can be compared with 0: other types, expanded views, empty ones."""
    return (
        stored is not None
        and not isinstance(stored, UninitializedParameter)
        and type(stored.data) is Tensor
        and not (stored.is_nested or stored.is_quantized or stored.is_meta)
        and stored.layout == torch.strided
        and sharding.problem_of(stored) is None
    )


def _row(seen: _Seen, pattern: Pattern) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": seen.label, "kind": type(seen.module).__name__, "shape": tuple(seen.shape)}
    if seen.weight is None:
        return row | {"holds": None, "violations": None, "runs": None, "why": f"not read: {seen.problem}"}
    if not seen.weight.numel():
        return row | {"holds": True, "violations": 0, "runs": 0, "why": ""}
    broken = pattern.broken(seen.layout.neurons(seen.weight != 0))
    count = int(broken.sum())
    why = _violation(pattern, count, broken.numel()) if count else ""
    return row | {"holds": not count, "violations": count, "runs": broken.numel(), "why": why}


def _violation(pattern: Pattern, count: int, runs: int) -> str:
    if isinstance(pattern, SemiStructured):
        return f"{count:,} of {runs:,} runs of {pattern.run} input channels hold more than {pattern.keep} nonzeros"
    what = f"blocks of {pattern.block} input channels" if pattern.block else "output units"
    return f"{count:,} of {runs:,} {what} hold both zeros and nonzeros"


def _others(model: nn.Module) -> list[str]:
    """Weights that were not looked at."""
    _, unknown = unknown_weights(model)
    return [f"not looked at, for their layer types are unknown here: {names_of(unknown)}"] if unknown else []
