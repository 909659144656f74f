"""Quantization-aware training: a network whose layers train with int8 rounding in their forward."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from .._base.held import every_module
from .._base.wrappers import unwrapped
from ..masks import attach
from .build import build
from .calibrate import calibrate
from .freeze import freeze_layer, trainable
from .frozen import checked_method, excluded
from .grids import Grid
from .layers import Layer
from .report import Entry, report_of


def prepare_qat(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    calibration: str = "auto",
    exclude: Sequence[str] = (),
    progress: bool = True,
) -> nn.Module:
    """A new model to be trained as any other, that computes as :func:`secateur.quantize`'s would::

        student = secateur.prepare_qat(model, batches)
        ...                                            # the usual loop, over student.parameters()
        q = secateur.quantize(student)

    Quantization-aware training (Jacob et al., CVPR 2018): activations and weights are rounded in the forward, and
    gradients pass the rounding as if it were not there. The graph is :func:`secateur.quantize`'s, with real parameters:
    BatchNorm is folded before, masks of :func:`secateur.prune` (and of ``torch.nn.utils.prune``) go along and hold, and
    a zero is zero in either form. The grids of activations are the calibration's and stay; those of weights follow
    the weights. Thresholds of a ``ThresholdReLU`` are applied on the integer scale and are not trained; weights that
    two layers share stay shared; a ``F.dropout`` in a forward is off,
    an ``nn.Dropout`` module trains as ever.

    Args:
        model, batches, exclude, progress: as for :func:`secateur.quantize`.
        calibration: ``"min-max"``, ``"percentile"`` or ``"mse"``; ``"auto"`` is ``"mse"``.

    Returns:
        The new model, training if ``model`` is; ``.report`` as :func:`secateur.quantize`'s, before any training.

    Raises:
        Error: as for :func:`secateur.quantize`.
    """
    caller = "prepare_qat"
    method = checked_method(caller, calibration)
    calibrated = calibrate(model, batches, progress, caller)

    def layer(at: Layer, grid: Grid, memo: dict[int, Any]) -> nn.Module:
        # By way of the memo: one module that is called twice trains one weight, and so do tied layers.
        made = trainable(copy.deepcopy(at.module, memo), grid, method)
        if at.mask is not None:
            attach(made, "weight", at.mask.clone())
        return made

    built = build(calibrated, method, excluded(caller, calibrated, exclude), layer, masked=True)
    entries = [
        Entry(name, getattr(at.module, "weight", None), built.made.get(name), built.why.get(name, ""))
        for name, at in calibrated.network.all_layers.items()
    ]
    for entry in entries:
        if entry.made is not None:
            entry.made = freeze_layer(entry.made)  # type: ignore[arg-type]
    report = report_of(entries, method, calibrated.network.notes)
    report.title = f"prepared to train for int8: calibration {method}"
    built.model.report = report  # type: ignore[assignment]
    modes = {name: module.training for name, module in every_module(unwrapped(model)).items()}
    for name, module in every_module(built.model).items():
        while name not in modes:
            name = name.rpartition(".")[0]
        module.training = modes[name]
    return built.model
