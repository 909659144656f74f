"""Linear layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from ..._base.modules import with_current_weight
from ...graph.operators import LINEAR
from .steps import BATCHED_ROWS, ROWS, Context, Step, Unsupported, bind


def linear_module(ctx: Context, node: fx.Node, module: Any) -> Step:
    fresh: Any = with_current_weight(module)
    return _linear(ctx, node, bind(node, "input")["input"], fresh.weight, fresh.bias)


def linear_function(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, LINEAR.arguments)
    weight = ctx.constant(a["weight"], "weight")
    assert weight is not None
    return _linear(ctx, node, a["input"], weight, ctx.constant(a["bias"], "bias"))


def _linear(ctx: Context, node: fx.Node, x: Any, weight: Tensor, bias: Tensor | None) -> Step:
    if weight.dim() != 2:
        raise Unsupported("its weight is no matrix")
    source = ctx.source(x, ROWS, BATCHED_ROWS)
    check_weight(ctx, weight)
    return Step("linear", node, [source], source[1], weight=weight.detach(), bias=detached(bias))


def check_weight(ctx: Context, weight: Tensor) -> None:
    if weight.dtype not in ctx.dtypes or weight.device.type != "cpu":
        dtype = str(weight.dtype).removeprefix("torch.")
        raise Unsupported(f"the engine computes float32 on the CPU, its weight is {dtype} on {weight.device.type}")
    if weight.numel() == 0:
        raise Unsupported("it has no weights")


def detached(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach()
