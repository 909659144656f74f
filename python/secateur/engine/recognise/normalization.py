"""Batch normalization."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from ...graph.operators import BATCH_NORM
from .steps import PLANES, POOLED, ROWS, Context, Step, Unsupported, bind


def batch_norm_module(ctx: Context, node: fx.Node, module: Any) -> Step:
    x = bind(node, "input")["input"]
    if module.running_mean is None or module.running_var is None:
        raise Unsupported("it keeps no running statistics and takes each batch's own")
    return _batch_norm(ctx, node, x, module.running_mean, module.running_var, module.weight, module.bias, module.eps)


def batch_norm_function(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, BATCH_NORM.arguments, training=False, momentum=0.1, eps=1e-5)
    if a["training"] is not False:
        raise Unsupported("it takes each batch's own statistics")
    mean, var = ctx.constant(a["running_mean"], "mean"), ctx.constant(a["running_var"], "variance")
    if mean is None or var is None:
        raise Unsupported("it keeps no running statistics and takes each batch's own")
    weight, bias = ctx.constant(a["weight"], "weight"), ctx.constant(a["bias"], "bias")
    return _batch_norm(ctx, node, a["input"], mean, var, weight, bias, ctx.number(a["eps"]))


def _batch_norm(
    ctx: Context, node: fx.Node, x: Any, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None,
    eps: float,
) -> Step:  # fmt: skip
    source = ctx.source(x, PLANES, ROWS, POOLED)
    scale = (var.detach().double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -mean.detach().double() * scale
    if bias is not None:
        shift = shift + bias.detach().double()
    return Step("map", node, [source], source[1], scale=scale, shift=shift)
