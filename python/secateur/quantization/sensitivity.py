"""How much each layer loses in int8: it alone quantized, everything else in fp32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from .._base.errors import Error
from .._base.evaluator import Evaluator, log
from .._base.trial import trial
from ..report import Column, Report
from .build import Built
from .calibrate import Calibrated, calibrate
from .frozen import checked_method, excluded, frozen, meets
from .grids import Method

COLUMNS = (
    Column("layer", "layer", "text"),
    Column("shape", "shape", "shape"),
    Column("decibels", "signal to noise (dB)", "text"),
    Column("accuracy", "accuracy %", "percent"),
    Column("points", "drop (points)", "text"),
)


class QuantizationSensitivityReport(Report):
    """Rows ``layer``, ``shape``, ``sqnr`` (dB, infinite where nothing changed), and with ``evaluate`` ``accuracy`` and
    ``drop`` (shares, 0 to 1; None without), in the order of the forward. ``baseline`` is the fp32 accuracy or None.
    """

    def __init__(self, title: str, rows: Sequence[Mapping[str, Any]], baseline: float | None) -> None:
        written = [
            {
                **row,
                "decibels": f"{row['sqnr']:.1f}",
                "points": None if row["drop"] is None else f"{100 * row['drop']:+.2f}",
            }
            for row in rows
        ]
        super().__init__(title, COLUMNS, written)
        self.baseline = baseline

    @property
    def worst(self) -> list[str]:
        """The layers, those that lose most first: by accuracy where it was measured, then by noise."""
        rows = sorted(self.rows, key=lambda row: (-(row["drop"] or 0.0), row["sqnr"]))
        return [str(row["layer"]) for row in rows]

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "baseline": self.baseline}


def quantization_sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    evaluate: Callable[[nn.Module], Any] | None = None,
    *,
    calibration: str = "auto",
    exclude: Sequence[str] = (),
    progress: bool = True,
) -> QuantizationSensitivityReport:
    """What each layer alone in int8 costs: noise at the network's output, and accuracy; the model is left as it is.

    Args:
        model, batches, exclude, progress: as for :func:`secateur.quantize`. The noise is measured on the first batch.
        evaluate: given a model in evaluation mode, returns its accuracy, 0 to 1; called once for the model and once
            for each layer. None: noise alone.
        calibration: ``"min-max"``, ``"percentile"`` or ``"mse"``; ``"auto"`` is ``"mse"``.

    Returns:
        The report; ``.worst`` names the layers from the worst to the best, for ``exclude``.

    Raises:
        Error: as for :func:`secateur.quantize`.
    """
    caller = "quantization_sensitivity"
    method = checked_method(caller, calibration)
    judge = None if evaluate is None else Evaluator(caller, evaluate)
    calibrated = calibrate(model, batches, progress, caller)
    return measure(calibrated, method, excluded(caller, calibrated, exclude), judge, progress)


def measure(
    calibrated: Calibrated, method: Method, fp32: Mapping[str, str], judge: Evaluator | None, progress: bool
) -> QuantizationSensitivityReport:
    """The report of all layers but those that ``fp32`` names."""
    layers = calibrated.network.all_layers
    real = frozen(calibrated, method, dict.fromkeys(layers, "all"))
    candidates = [name for name in layers if name not in fp32 and layers[name].why == ""]
    wanted = _outputs(real, calibrated.example)
    baseline = None if judge is None else judge(real.model)
    rows: list[dict[str, Any]] = []
    for name in tqdm(candidates, desc="sensitivity", disable=not progress, leave=False):
        built = frozen(calibrated, method, {other: "not this one" for other in layers if other != name})
        accuracy = None if judge is None else judge(built.model)
        sqnr = _decibels(wanted, _outputs(built, calibrated.example))
        log.info("quantization sensitivity of %s: %.1f dB, accuracy %s", name, sqnr, accuracy)
        drop = None if accuracy is None or baseline is None else baseline - accuracy
        shape = tuple(layers[name].module.get_parameter("weight").shape)
        rows.append({"layer": name, "shape": shape, "sqnr": sqnr, "accuracy": accuracy, "drop": drop})
    return QuantizationSensitivityReport(f"sensitivity to int8: calibration {method}", rows, baseline)


def leave_out(
    calibrated: Calibrated, method: Method, fp32: Mapping[str, str], judge: Evaluator, baseline: float, allowed: float,
    progress: bool,
) -> tuple[Built, float, list[dict[str, Any]]]:  # fmt: skip
    """The network in which as few of the noisiest layers are fp32 as keep the accuracy: doubling, then bisection.

    Layers are ranked by noise: one batch shows it more finely than the accuracy of a few thousand images, and without a
    call of ``evaluate``.
    """
    order = measure(calibrated, method, fp32, None, progress).worst
    steps: list[dict[str, Any]] = []

    def attempt(count: int) -> tuple[Built, float]:
        left = dict.fromkeys(order[:count], "left in fp32 for accuracy")
        built = frozen(calibrated, method, {**fp32, **left})
        accuracy = judge(built.model)
        steps.append({"fp32": order[:count], "accuracy": accuracy})
        log.info("quantize: %d layers in fp32, accuracy %.4f", count, accuracy)
        return built, accuracy

    few, many, best = 0, 0, None  # not enough; enough
    while best is None and many < len(order) - 1:
        many = min(max(2 * few, 1), len(order) - 1)
        built, accuracy = attempt(many)
        if meets(accuracy, baseline - allowed):
            best = built, accuracy
        else:
            few = many
    if best is None:
        raise Error(
            f"quantize: max_accuracy_drop must be one that int8 layers can keep, but with one of {len(order)} in int8 "
            f"accuracy is {steps[-1]['accuracy'] if steps else math.nan:.4f}, fp32 has {baseline:.4f}, allowed are "
            f"{allowed:g}"
        )
    while many - few > 1:
        middle = (few + many) // 2
        built, accuracy = attempt(middle)
        if meets(accuracy, baseline - allowed):
            many, best = middle, (built, accuracy)
        else:
            few = middle
    return *best, steps


def _outputs(built: Built, example: Any) -> list[Tensor]:
    with trial(built.model):
        leaves = pytree.tree_leaves(built.model(example.clone()))
    return [t.double() for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]


def _decibels(wanted: list[Tensor], got: list[Tensor]) -> float:
    """Signal to noise; infinite where there is no noise."""
    signal = sum(float(a.square().sum()) for a in wanted)
    noise = sum(float((a - b).square().sum()) for a, b in zip(wanted, got, strict=True))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
