"""int8 layers as operations of the engine."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from ...nn import Quantize, QuantizedConv2d, QuantizedLinear
from ..backends.program import Grid
from .steps import BATCHED_ROWS, PLANES, POOLED, ROWS, Context, Step, Unsupported, bind


def grid_of(scale: Tensor, zero_point: Tensor) -> Grid:
    return float(scale), int(zero_point)


def quantize(ctx: Context, node: fx.Node, module: Any) -> Step:
    source = ctx.source(bind(node, "input")["input"], PLANES, ROWS, POOLED, BATCHED_ROWS)
    if module.theta is not None and source[1] == BATCHED_ROWS:
        raise Unsupported("its thresholds are for images and rows")
    return Step(
        "quantize", node, [source], source[1], grid=grid_of(module.scale, module.zero_point), theta=module.theta
    )


def conv2d(ctx: Context, node: fx.Node, module: Any) -> Step:
    source = ctx.source(bind(node, "input")["input"], PLANES)
    (rows, columns), (down, across) = module.padding, module.stride
    return Step(
        "conv2d", node, [source], PLANES, weight=module.weight_int8, weight_scale=module.weight_scale,
        bias=module.bias_int32(), grid_in=grid_of(module.input_scale, module.input_zero_point),
        stride=(down, across), padding=(rows, columns, rows, columns), dilation=module.dilation, groups=module.groups,
    )  # fmt: skip


def linear(ctx: Context, node: fx.Node, module: Any) -> Step:
    source = ctx.source(bind(node, "input")["input"], ROWS, BATCHED_ROWS)
    return Step(
        "linear", node, [source], source[1], weight=module.weight_int8, weight_scale=module.weight_scale,
        bias=module.bias_int32(), grid_in=grid_of(module.input_scale, module.input_zero_point),
    )  # fmt: skip


MODULES: dict[type[nn.Module], Any] = {Quantize: quantize, QuantizedConv2d: conv2d, QuantizedLinear: linear}
