"""Post-training quantization: a trained network, some of its data, and a network of integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from torch import nn

from .._base.errors import Error
from .._base.evaluator import Evaluator, checked_budget, log
from .._base.wrappers import unwrapped
from ..engine.compiled import CompiledModel
from .build import Built
from .calibrate import Calibrated, calibrate
from .freeze import freeze
from .frozen import checked_method, excluded, finished, frozen, meets
from .grids import METHODS, Method
from .report import QuantizationReport


def quantize(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    calibration: str = "auto",
    exclude: Sequence[str] = (),
    evaluate: Callable[[nn.Module], Any] | None = None,
    max_accuracy_drop: float | None = None,
    progress: bool = True,
) -> nn.Module:
    """A new model that computes with 8-bit integers: activations uint8, weights int8.

    Post-training static quantization (Jacob et al., CVPR 2018): one grid ``(q - zero_point) * scale`` a tensor of
    activations, symmetric weights with one scale an output channel, in [-127, 127]; zero weights stay exactly zero.
    The given model is left as it is. BatchNorm is folded into the layers before it, and biases take back what rounding
    the weights shifts on average (Nagel et al., ICCV 2019). The result is ordinary torch code
    on real values that lie on the grids, with :class:`secateur.nn.Quantize` after each value that becomes bytes and
    :class:`secateur.nn.QuantizedConv2d` / :class:`~secateur.nn.QuantizedLinear` for the layers; ``compile`` keeps the
    bytes between them.

    Values become bytes if int8 layers read them, or if int8 layers made them and something other than their own
    activation or residual sum reads them. Values joined by a concatenation share one grid. A ``ThresholdReLU``'s
    thresholds are applied on the integer scale. Values that only the network's output reads stay real. Modules
    that cannot be traced (torch.fx) stay modules, and each layer inside rounds its own input; the report says so.

    Args:
        model: any module, pruned or dense; float32 serves best. The result of :func:`secateur.prepare_qat` has its
            grids already and is the only argument.
        batches: an iterable of inputs (the model's one argument), or of ``(input, target)`` tuples or lists whose first
            item is the input; gone through once. A few hundred examples like the real ones serve.
        calibration: how the ends of a grid are found. ``"min-max"``: all that was seen. ``"percentile"``: all but one
            in 10,000 at each end. ``"mse"``: the least squared error over a histogram; weight scales alike.
            ``"auto"``: each in turn, and what ``evaluate`` finds most accurate; ``"mse"`` without it.
        exclude: names or patterns (``*``) of layers to leave in fp32, as the report prints them.
        evaluate: given a model in evaluation mode, returns its accuracy, 0 to 1.
        max_accuracy_drop: how much accuracy quantization may cost, 0 to 1, against the given model. Where it costs
            more, the layers that add most noise by themselves (:func:`secateur.quantization_sensitivity`) stay in
            fp32, as few of them as it takes; with L layers ``evaluate`` is called at most 2 log2(L) + 5 times.
        progress: show a progress bar.

    Returns:
        The new model, in evaluation mode. ``.report`` has a row for each layer: shape, int8 or fp32 and why, zeros,
        the share of 1x4 blocks that hold a nonzero and how full they are, nonzero weights that became zero, scales,
        and the weights' error (root mean square, relative).

    Raises:
        Error: no layer can be quantized, no batch came, a batch is no tensor or not what the model takes, an
            activation is NaN or infinite, an argument of another kind, an ``exclude`` that matches nothing,
            ``max_accuracy_drop`` without ``evaluate``, or one that only fp32 would keep.
    """
    caller = "quantize"
    model = unwrapped(model)
    if isinstance(model, nn.Module) and (student := freeze(model)) is not None:
        given = {
            "batches": batches is not None, "calibration": calibration != "auto", "exclude": bool(exclude),
            "evaluate": evaluate is not None, "max_accuracy_drop": max_accuracy_drop is not None,
        }  # fmt: skip
        if any(given.values()):
            named = ", ".join(name for name, is_given in given.items() if is_given)
            raise Error(f"{caller}: a model of prepare_qat has its grids already and takes no {named}")
        return student
    methods = _methods(caller, calibration, evaluate is not None)
    judge = None if evaluate is None and max_accuracy_drop is None else Evaluator(caller, evaluate)
    allowed = None if max_accuracy_drop is None else checked_budget(caller, max_accuracy_drop)
    calibrated = calibrate(model, batches, progress, caller)
    fp32 = excluded(caller, calibrated, exclude)
    if judge is None:
        built = frozen(calibrated, methods[0], fp32)
        return finished(calibrated, built, methods[0])
    baseline = judge.of_given(model.source if isinstance(model, CompiledModel) else model)
    built, chosen, tried = _most_accurate(calibrated, methods, fp32, judge)
    accuracy = tried[chosen]
    steps: list[dict[str, Any]] = []
    if allowed is not None and not meets(accuracy, baseline - allowed):
        from .sensitivity import leave_out

        built, accuracy, steps = leave_out(calibrated, chosen, fp32, judge, baseline, allowed, progress)
    result = finished(calibrated, built, chosen)
    cast(QuantizationReport, result.report).judged(baseline, accuracy, tried, steps)
    return result


def _methods(caller: str, calibration: Any, judged: bool) -> tuple[Method, ...]:
    if calibration == "auto":
        return METHODS if judged else METHODS[:1]
    return (checked_method(caller, calibration),)


def _most_accurate(
    calibrated: Calibrated, methods: Sequence[Method], fp32: Mapping[str, str], judge: Evaluator
) -> tuple[Built, Method, dict[str, float]]:
    """The first of the most accurate."""
    tried: dict[str, float] = {}
    best: tuple[Built, Method] | None = None
    for method in methods:
        built = frozen(calibrated, method, fp32)
        accuracy = judge(built.model)
        log.info("quantize: calibration %s, accuracy %.4f", method, accuracy)
        if best is None or accuracy > tried[best[1]]:
            best = built, method
        tried[method] = accuracy
    assert best is not None
    return *best, tried
