"""The demo's second network: the same CNN pruned in blocks of four, with thresholds, computing in 8-bit integers.

A block of four input channels is what one integer instruction takes. Blocks cost more accuracy than single weights, so
the dense network is their teacher (:class:`secateur.DistillationLoss`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from ... import compile, quantize
from ...nn import QuantizedConv2d, QuantizedLinear
from ...report import Report
from . import measuring
from .data import Digits, Split
from .training import accuracy

PATTERN = "1x4"
#: The distillation temperature (Hinton et al., 2015); the teacher's answers and the labels count half each.
TEMPERATURE = 4.0


@dataclass
class Int8:
    """The network at its stages: with thresholds in float32, in integers, and those compiled."""

    thin: nn.Module
    quantized: nn.Module
    compiled: nn.Module
    k: float  # of the activations
    report: dict[str, Any]


def quantized(thin: nn.Module, k: float, digits: Digits, judge: Split, x: Tensor) -> Int8:
    """``thin`` in integers: calibrated on training digits, by what ``judge`` finds most accurate.

    Raises:
        Error: the compiled network computes something else.
    """

    def evaluate(model: nn.Module) -> float:
        return accuracy(model, judge)

    q = quantize(thin, digits.train.images[:1024].split(256), evaluate=evaluate, progress=False)
    fast = compile(q, x)
    rows = cast(Report, q.report).rows
    total = cast("dict[str, Any]", cast(Report, q.report).total)
    report = {
        "calibration": cast(Report, q.report).calibration,  # type: ignore[attr-defined]
        "layers": f"{sum(isinstance(m, QuantizedConv2d | QuantizedLinear) for m in q.modules())} of {len(rows)}",
        "weight_sparsity": total["sparsity"],
        "blocks": total["blocks"],
        "fill": total["fill"],
        "k_activations": k,
        "compiled_difference": measuring.check_same(q, fast, digits.validation),
    }
    return Int8(thin, q, fast, k, report)
