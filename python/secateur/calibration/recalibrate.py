"""The call :func:`recalibrate`: normalization statistics anew, or channels' moments as a dense network has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .._base.checks import names_of
from .._base.signals import held_signals, keeps_grad_mode
from .._base.trial import trial
from .._base.wrappers import unwrapped
from ..masks.buffers import tell_written
from ..masks.weights import weights_of
from ..report import Column, Report
from .calls import Calls
from .moments import Matched, apply, match_moments
from .normalization import Statistics, fresh_statistics, normalization_layers, write
from .working import working_copy

COLUMNS = (
    Column("layer", "layer", "text"),
    Column("kind", "kind", "text"),
    Column("channels", "channels", "count"),
    Column("set", "set", "text"),
    Column("mean_shift", "mean shift", "number"),
    Column("std_ratio", "std ratio", "number"),
)


@keeps_grad_mode
def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    dense: nn.Module | None = None,
    *,
    inputs: int = 1,
    progress: bool = True,
) -> Report:
    """Take the statistics of normalization layers again, over all batches, in place.

    A pruned network's activations have other means and variances than its BatchNorm layers remember; to take these
    anew is worth tens of points of accuracy, and needs no labels. The statistics are the average over the batches, each
    counting alike (``momentum=None`` in torch), with these layers in training mode meanwhile and all else, dropout
    too, in evaluation mode. Nothing but ``running_mean``, ``running_var`` and ``num_batches_tracked`` changes.

    With ``dense``, each output channel of a layer that no BatchNorm follows gets the mean and the variance that it has
    in ``dense``, by its bias and by a factor on its weights (zeros stay zeros). A layer without a bias keeps its mean.
    Layers go in order, each on what those before it give now. Without BatchNorm and without ``dense`` nothing changes,
    and the report says so.

    Args:
        model: changed in place. It is never run: a copy of it is.
        batches: tensors; tuples or lists whose first ``inputs`` values are the model's arguments; or dicts of its
            keyword arguments. Use batches of 32 samples or more: a batch's own statistics stand for all.
        dense: the network before it was pruned, with layers of the same names; only read.
        inputs: how many values of a tuple the model takes.
        progress: show a progress bar.

    Returns:
        A report, one row a layer that changed: what was ``set`` ("statistics", or "scale and bias"), ``mean_shift``
        (the mean over the channels of \\|new - old mean\\| in old standard deviations) and ``std_ratio`` (of the new to
        the old standard deviation, the geometric mean over the channels).

    Raises:
        Error: no batch, batches that the model does not take, NaN or Inf in them or in what the layers see, one sample
            a batch where a layer needs several, a ``dense`` of other layers. The model is then as it was.

    Sources:
        Statistics: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021; for pruning, Frantar and Alistarh, "Optimal
        Brain Compression", NeurIPS 2022, and Li et al., "EagleEye", ECCV 2020. Moments: Nagel et al., "Data-Free
        Quantization Through Weight Equalization and Bias Correction", ICCV 2019; Jordan et al., "REPAIR", ICLR 2023.
    """
    caller = "recalibrate"
    work = working_copy(model, caller)
    twin = None if dense is None else working_copy(dense, caller, "dense")
    calls = Calls(batches, f"{caller}: batches", work, inputs, again=twin is not None)
    matched: dict[str, Matched] = {}
    notes: list[str] = []
    with trial(work):
        fresh = _fresh(work, calls, caller, progress)
        if twin is not None:
            with trial(twin):
                matched, notes = match_moments(work, twin, calls, progress)
            if matched and fresh:
                fresh = _fresh(work, calls, caller, progress)  # of layers behind the ones that changed
    rows = _written(unwrapped(model), fresh, matched)
    layers = normalization_layers(work)
    if missed := [name for name in layers if name not in fresh]:
        notes.append(f"{names_of(missed)}: never called on the batches, left as they were")
    if not layers and dense is None:
        notes.append("nothing changed: the model has no layer with running statistics (dense= matches other layers)")
    return Report("recalibrate", COLUMNS, rows, notes)


def _fresh(work: nn.Module, calls: Calls, caller: str, progress: bool) -> dict[str, Statistics]:
    shown = calls.shown("recalibrating", progress)
    if normalization_layers(work):
        return fresh_statistics(work, shown, calls.caller)
    for _ in shown:  # bad batches are an error all the same
        pass
    return {}


def _written(model: nn.Module, fresh: Mapping[str, Statistics], matched: Mapping[str, Matched]) -> list[dict[str, Any]]:
    """Write everything into the caller's model; the report's rows."""
    rows = []
    layers = normalization_layers(model)
    weights = {weight.module_name: weight for weight in weights_of(model, "recalibrate")}
    with torch.no_grad(), held_signals(repeated=True):
        for name, module in model.named_modules():
            row = {"layer": name or type(module).__name__, "kind": type(module).__name__}
            if name in fresh:
                rows.append(row | _moved(layers[name], fresh[name]))
                write(layers[name], fresh[name])
            elif name in matched:
                apply(weights[name], matched[name])
                one = matched[name]
                more = {"mean_shift": one.mean_shift, "std_ratio": one.std_ratio}
                what = "scale and bias" if one.bias is not None else "scale"
                rows.append(row | {"channels": len(one.scale), "set": what, **more})
        tell_written(model)
    return rows


def _moved(layer: _NormBase, made: Statistics) -> dict[str, Any]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    std = (layer.running_var.to(torch.float64) + layer.eps).sqrt()
    shift = ((made.mean.to(torch.float64) - layer.running_mean) / std).abs().mean()
    ratio = ((made.var.to(torch.float64) + layer.eps).sqrt() / std).log().mean().exp()
    count = len(made.mean)
    return {"channels": count, "set": "statistics", "mean_shift": float(shift), "std_ratio": float(ratio)}
