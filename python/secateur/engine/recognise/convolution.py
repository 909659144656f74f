"""Convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..._base.modules import with_current_weight
from ...graph.operators import CONV2D
from ..backends.program import Size
from .linear import check_weight, detached
from .steps import PLANES, POOLED, Context, Step, Unsupported, bind, pair


def conv2d_module(ctx: Context, node: fx.Node, module: Any) -> Step:
    if module.padding_mode != "zeros":
        raise Unsupported(f"it pads by {module.padding_mode}")
    left, right, top, bottom = module._reversed_padding_repeated_twice
    fresh: Any = with_current_weight(module)
    return _conv2d(
        ctx, node, bind(node, "input")["input"], fresh.weight, fresh.bias, pair(module.stride),
        (top, left, bottom, right), pair(module.dilation), module.groups,
    )  # fmt: skip


def conv2d_function(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, CONV2D.arguments, stride=1, padding=0, dilation=1, groups=1)
    weight, bias = ctx.constant(a["weight"], "weight"), ctx.constant(a["bias"], "bias")
    assert weight is not None
    dilation = pair(ctx.number(a["dilation"]))
    padding = a["padding"]
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        sides = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        sides = (*pair(ctx.number(padding)), *pair(ctx.number(padding)))
    return _conv2d(
        ctx, node, a["input"], weight, bias, pair(ctx.number(a["stride"])), sides, dilation, ctx.number(a["groups"])
    )


def _conv2d(
    ctx: Context, node: fx.Node, x: Any, weight: Tensor, bias: Tensor | None, stride: Size,
    padding: tuple[int, int, int, int], dilation: Size, groups: int,
) -> Step:  # fmt: skip
    source = ctx.source(x, PLANES, POOLED)
    check_weight(ctx, weight)
    if source[1] == PLANES:
        return Step(
            "conv2d", node, [source], PLANES, weight=weight.detach(), bias=detached(bias), stride=stride,
            padding=padding, dilation=dilation, groups=groups,
        )  # fmt: skip
    # A 1x1 map meets one tap of the kernel.
    if ctx.meta(node).shape[2:] != (1, 1) or any(p % d for p, d in zip(padding[:2], dilation, strict=True)):  # type: ignore[index]
        raise Unsupported("its input is a pooled map, which it pads")
    dense = _ungrouped(weight.detach()[:, :, padding[0] // dilation[0], padding[1] // dilation[1]], groups)
    return Step("linear", node, [source], POOLED, weight=dense, bias=detached(bias))


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """[K, C / groups] -> [K, C], zeros outside of each group's block."""
    if groups == 1:
        return weight
    return torch.block_diag(*weight.chunk(groups))  # type: ignore[no-untyped-call,no-any-return,unused-ignore]
