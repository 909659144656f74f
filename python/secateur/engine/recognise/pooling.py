"""Pools and padding as operations of the engine."""

from __future__ import annotations

from typing import Any

from torch import fx

from ...graph.operators import ADAPTIVE_AVG_POOL2D, AVG_POOL2D, MAX_POOL2D, MEAN, PAD, Operator
from .steps import PLANES, POOLED, ROWS, Context, Step, Unsupported, bind, pair


def _attributes(operation: Operator, module: Any) -> dict[str, Any]:
    """The arguments of the function, from a module's attributes."""
    return {name: getattr(module, name) for name in operation.arguments.split()[1:]}


def max_pool_module(ctx: Context, node: fx.Node, module: Any) -> Step:
    return _max_pool(ctx, node, bind(node, "input")["input"], _attributes(MAX_POOL2D, module))


def max_pool_function(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, MAX_POOL2D.arguments, padding=0, dilation=1, ceil_mode=False)
    return _max_pool(ctx, node, a["input"], a)


def avg_pool_module(ctx: Context, node: fx.Node, module: Any) -> Step:
    return _avg_pool(ctx, node, bind(node, "input")["input"], _attributes(AVG_POOL2D, module))


def avg_pool_function(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, AVG_POOL2D.arguments, padding=0, ceil_mode=False, count_include_pad=True)
    return _avg_pool(ctx, node, a["input"], a)


def adaptive_avg_pool_module(ctx: Context, node: fx.Node, module: Any) -> Step:
    return _adaptive_avg_pool(ctx, node, bind(node, "input")["input"], module.output_size)


def adaptive_avg_pool_function(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, ADAPTIVE_AVG_POOL2D.arguments)
    return _adaptive_avg_pool(ctx, node, a["input"], a["output_size"])


def pad_module(ctx: Context, node: fx.Node, module: Any) -> Step:
    return _pad(ctx, node, bind(node, "input")["input"], module.padding, "constant", module.value)


def pad_function(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, PAD.arguments, mode="constant")
    return _pad(ctx, node, a["input"], a["pad"], a["mode"], a["value"])


def mean(ctx: Context, node: fx.Node) -> Step:
    if len(node.args) > 2 and all(isinstance(d, int) and not isinstance(d, bool) for d in node.args[1:3]):
        raise Unsupported("its dimensions are not a list")
    a = bind(node, MEAN.arguments, keepdim=False)
    source = ctx.source(a["input"], PLANES, POOLED)
    dims = ctx.number(a["dim"])
    axes = {d % 4 for d in ((dims,) if isinstance(dims, int) else dims or ())}
    if axes != {2, 3} or a["dtype"] is not None:
        raise Unsupported("it is no mean over height and width")
    out = POOLED if a["keepdim"] else ROWS
    if source[1] == POOLED:
        return Step("alias", node, [source], out)
    return Step("global_avg_pool", node, [source], out)


def _max_pool(ctx: Context, node: fx.Node, x: Any, a: dict[str, Any]) -> Step:
    if a.get("return_indices"):
        raise Unsupported("it returns indices")
    kernel = pair(ctx.number(a["kernel_size"]))
    stride = ctx.number(a["stride"])
    return Step(
        "max_pool", node, [ctx.source(x, PLANES)], PLANES, kernel=kernel,
        stride=pair(stride) if stride not in (None, (), []) else kernel,
        padding=2 * pair(ctx.number(a["padding"])), dilation=pair(ctx.number(a["dilation"])),
        ceil_mode=bool(a["ceil_mode"]),
    )  # fmt: skip


def _avg_pool(ctx: Context, node: fx.Node, x: Any, a: dict[str, Any]) -> Step:
    source = ctx.source(x, PLANES)
    kernel, padding = pair(ctx.number(a["kernel_size"])), pair(ctx.number(a["padding"]))
    stride = ctx.number(a["stride"])
    step = Step(
        "avg_pool", node, [source], PLANES, kernel=kernel,
        stride=pair(stride) if stride not in (None, (), []) else kernel, padding=2 * padding,
        ceil_mode=bool(a["ceil_mode"]), count_include_pad=bool(a["count_include_pad"]),
        divisor=int(a["divisor_override"] or 0),
    )  # fmt: skip
    shape = ctx.meta(source[0]).shape
    computed = isinstance(a["kernel_size"], fx.Node) or (
        isinstance(a["kernel_size"], tuple | list) and any(isinstance(k, fx.Node) for k in a["kernel_size"])
    )
    if computed and shape is not None and shape[2:] == kernel and padding == (0, 0) and not a["divisor_override"]:
        return Step("global_avg_pool", node, [source], POOLED)
    return step


def _adaptive_avg_pool(ctx: Context, node: fx.Node, x: Any, size: Any) -> Step:
    source = ctx.source(x, PLANES, POOLED)
    height, width = (ctx.meta(source[0]).shape or ())[2:]
    wanted = (size, size) if size is None or isinstance(size, int) else tuple(ctx.number(size))
    target = tuple(have if want is None else want for want, have in zip(wanted, (height, width), strict=True))
    if source[1] == POOLED:
        if target != (1, 1):
            raise Unsupported("it enlarges a pooled map")
        return Step("alias", node, [source], POOLED)
    if target == (1, 1) and None not in wanted:
        return Step("global_avg_pool", node, [source], POOLED)
    ctx.size_bound = True
    if target == (height, width):
        return Step("alias", node, [source], PLANES)
    if height % target[0] or width % target[1]:
        raise Unsupported(f"{height}x{width} does not divide evenly into {target[0]}x{target[1]}")
    kernel = (height // target[0], width // target[1])
    return Step("avg_pool", node, [source], PLANES, kernel=kernel, stride=kernel)


def _pad(ctx: Context, node: fx.Node, x: Any, sides: Any, mode: str, value: Any) -> Step:
    """Zeros around an image, for a convolution to take over."""
    source = ctx.source(x, PLANES)
    numbers = ctx.number(sides)
    if mode != "constant" or (value is not None and value != 0):
        raise Unsupported(f"it pads by {mode if mode != 'constant' else value}")
    if len(numbers) not in (2, 4) or min(numbers) < 0:
        raise Unsupported(f"it pads by {list(numbers)}")
    left, right, top, bottom = (*numbers, 0, 0)[:4]
    return Step("pad", node, [source], PLANES, padding=(top, left, bottom, right))
