"""Activations, sums, products, and arithmetic with constants: all of it is `map` in the engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ... import ops
from ...graph import operators as op
from ...graph.operators import Operator
from ..backends.program import RELU, Act
from .steps import BATCHED_ROWS, PLANES, POOLED, ROWS, Context, Step, Unsupported, bind

ANY = (PLANES, ROWS, POOLED, BATCHED_ROWS)


def activation(ctx: Context, node: fx.Node, x: Any, act: Act) -> Step:
    source = ctx.source(x, *ANY)
    if act.theta is not None:
        channels = ctx.channels(*source)
        if source[1] == BATCHED_ROWS and act.theta.numel() > 1:
            raise Unsupported("its channels are not the last dimension")
        theta = act.theta.detach().reshape(-1)
        act = act._replace(theta=theta.expand(channels) if theta.numel() == 1 else theta)
    return Step("map", node, [source], source[1], act=act)


def _hardtanh(m: Any) -> Act:
    return Act("clamp", float(m.min_val), float(m.max_val))


def _prelu(m: Any) -> Act:
    if m.weight.numel() != 1:
        raise Unsupported("it has a slope per channel")
    return Act("leaky", float(m.weight), 0.0)


def _gelu(approximate: str) -> Act:
    if approximate != "none":
        raise Unsupported(f"it is GELU's {approximate} form")
    return Act("gelu")


def _clamp(ctx: Context, node: fx.Node, lo: Any, hi: Any) -> Act:
    bounds = [ctx.number(bound) for bound in (lo, hi)]
    if not all(bound is None or isinstance(bound, int | float) for bound in bounds) or bounds == [None, None]:
        raise Unsupported("its bounds are tensors")
    return Act("clamp", float(-math.inf if bounds[0] is None else bounds[0]),
               float(math.inf if bounds[1] is None else bounds[1]))  # fmt: skip


def _plain(known: Operator, act: Act) -> Callable[[Context, fx.Node], Step]:
    return lambda ctx, node: activation(ctx, node, bind(node, known.arguments)["input"], act)


def _bounded(known: Operator, lo: str, hi: str, **defaults: Any) -> Callable[[Context, fx.Node], Step]:
    def handle(ctx: Context, node: fx.Node) -> Step:
        a = bind(node, known.arguments, **defaults)
        return activation(ctx, node, a["input"], _clamp(ctx, node, a.get(lo), a.get(hi)))

    return handle


def _leaky(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, op.LEAKY_RELU.arguments, negative_slope=0.01)
    return activation(ctx, node, a["input"], Act("leaky", float(ctx.number(a["negative_slope"])), 0.0))


def _gelu_function(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, op.GELU.arguments, approximate="none")
    return activation(ctx, node, a["input"], _gelu(a["approximate"]))


def _threshold_function(ctx: Context, node: fx.Node) -> Step:
    call = node.args[0]
    if node.args[1] != 0 or not isinstance(call, fx.Node):
        raise Unsupported("it reads the mask of threshold_relu")
    a = bind(call, "x theta max")
    limit = ctx.number(a["max"])
    theta = ctx.constant(a["theta"], "theta")
    return activation(ctx, node, a["x"], Act("threshold", 0.0, math.inf if limit is None else float(limit), theta))


# ---- arithmetic ----


def _scalar(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _per_channel(ctx: Context, source: tuple[fx.Node, str], value: Any) -> Tensor | None:
    """A number, or a constant that is one value a channel, as float64 [C]."""
    channels = ctx.channels(*source)
    number = _scalar(value)
    if number is not None:
        return torch.full((channels,), number, dtype=torch.float64)
    constant = ctx.find_constant(value)
    if constant is None:
        return None
    dims = len(ctx.meta(source[0]).shape or ())
    shape = (1,) * (dims - constant.dim()) + tuple(constant.shape)
    axis = dims - 1 if source[1] in (ROWS, BATCHED_ROWS) else 1
    if len(shape) != dims or any(s != 1 for i, s in enumerate(shape) if i != axis) or shape[axis] not in (1, channels):
        raise Unsupported(f"its constant is {list(constant.shape)}, not one value a channel")
    return constant.detach().double().reshape(-1).expand(channels)


def _is_constant(ctx: Context, value: Any) -> bool:
    return _scalar(value) is not None or ctx.find_constant(value) is not None


def add(ctx: Context, node: fx.Node, a: Any, b: Any, alpha: float = 1.0, sign: float = 1.0) -> Step:
    """a + sign * alpha * b."""
    factor = sign * alpha
    if _is_constant(ctx, a) and not _is_constant(ctx, b):  # constant + factor * b
        source = ctx.source(b, *ANY)
        scale = None if factor == 1 else torch.full((ctx.channels(*source),), factor, dtype=torch.float64)
        return Step("map", node, [source], source[1], scale=scale, shift=_per_channel(ctx, source, a))
    if _is_constant(ctx, b):
        source = ctx.source(a, *ANY)
        shift = _per_channel(ctx, source, b)
        assert shift is not None
        return Step("map", node, [source], source[1], shift=factor * shift)
    first, second = _operands(ctx, node, a, b)
    if factor == 1:
        return Step("map", node, [first, second], first[1], join="add")
    if _scalar(factor) is None or (first[0] is a and first[1] != second[1]):
        raise Unsupported("it subtracts rows from planes")
    if first[0] is b and first[1] == second[1]:
        first, second = second, first
    scaled, other = (second, first) if second[0] is b else (first, second)
    scale = torch.full((ctx.channels(*scaled),), factor, dtype=torch.float64)
    return Step("map", node, [scaled, other], scaled[1], scale=scale, join="add")


def multiply(ctx: Context, node: fx.Node, a: Any, b: Any) -> Step:
    if _is_constant(ctx, a):
        a, b = b, a
    if _is_constant(ctx, b):
        source = ctx.source(a, *ANY)
        return Step("map", node, [source], source[1], scale=_per_channel(ctx, source, b))
    first, second = _operands(ctx, node, a, b)
    return Step("map", node, [first, second], first[1], join="multiply")


def divide(ctx: Context, node: fx.Node, a: Any, b: Any) -> Step:
    if not _is_constant(ctx, b):
        raise Unsupported("it divides by a tensor")
    source = ctx.source(a, *ANY)
    scale = _per_channel(ctx, source, b)
    assert scale is not None
    return Step("map", node, [source], source[1], scale=1 / scale)


def _operands(ctx: Context, node: fx.Node, a: Any, b: Any) -> tuple[tuple[fx.Node, str], tuple[fx.Node, str]]:
    """Two tensors of one shape, or planes and the rows that are broadcast over their pixels, planes first."""
    first, second = ctx.source(a, *ANY), ctx.source(b, *ANY)
    if first[1] != PLANES and second[1] == PLANES:
        first, second = second, first
    one, two = (ctx.meta(source[0]).shape or () for source in (first, second))
    if first[1] == PLANES and second[1] == PLANES and one != two and second[0] not in ctx.steps:
        if one[:2] == two[:2] and two[2:] == (1, 1):
            second = (second[0], POOLED)
        elif one[:2] == two[:2] and one[2:] == (1, 1) and first[0] not in ctx.steps:
            first, second = second, (first[0], POOLED)
            one, two = two, one
    if first[1] == PLANES and second[1] == POOLED and one[:2] == two[:2]:
        return first, second
    # Torch's own value takes the layout of the one beside it.
    if first[1] != second[1] and one == two:
        if second[0] not in ctx.steps:
            second = (second[0], first[1])
        elif first[0] not in ctx.steps:
            first = (first[0], second[1])
    if one == two and first[1] != second[1]:
        raise Unsupported("it joins images with features in the last dimension")
    if one != two:
        raise Unsupported(f"it joins {list(one)} with {list(two)}")
    return first, second


def _sum(known: Operator, sign: float) -> Callable[[Context, fx.Node], Step]:
    def handle(ctx: Context, node: fx.Node) -> Step:
        a = bind(node, known.arguments, alpha=1)
        if a.get("out") is not None:
            raise Unsupported("it writes to out=")
        return add(ctx, node, a["input"], a["other"], float(ctx.number(a["alpha"])), sign)

    return handle


def _reversed_difference(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, op.RSUB.arguments, alpha=1)
    return add(ctx, node, a["other"], a["input"], float(ctx.number(a["alpha"])), -1.0)


def _product(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, op.MUL.arguments)
    return multiply(ctx, node, a["input"], a["other"])


def _quotient(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, op.DIV.arguments)
    if a["rounding_mode"] is not None:
        raise Unsupported("it rounds")
    return divide(ctx, node, a["input"], a["other"])


def _negative(ctx: Context, node: fx.Node) -> Step:
    return multiply(ctx, node, bind(node, op.NEG.arguments)["input"], -1.0)


Handler = Callable[[Context, fx.Node], Step]

#: operation -> what a call of its function or method is
CALLS: dict[Operator, Handler] = {
    op.RELU: _plain(op.RELU, RELU),
    op.RELU6: _plain(op.RELU6, Act("clamp", 0.0, 6.0)),
    op.HARDTANH: _bounded(op.HARDTANH, "min_val", "max_val", min_val=-1.0, max_val=1.0),
    op.LEAKY_RELU: _leaky,
    op.HARDSWISH: _plain(op.HARDSWISH, Act("hardswish")),
    op.HARDSIGMOID: _plain(op.HARDSIGMOID, Act("hardsigmoid")),
    op.SIGMOID: _plain(op.SIGMOID, Act("sigmoid")),
    op.TANH: _plain(op.TANH, Act("tanh")),
    op.SILU: _plain(op.SILU, Act("silu")),
    op.GELU: _gelu_function,
    op.CLAMP: _bounded(op.CLAMP, "min", "max"),
    op.CLAMP_MIN: _bounded(op.CLAMP_MIN, "min", "max"),
    op.CLAMP_MAX: _bounded(op.CLAMP_MAX, "min", "max"),
    op.NEG: _negative,
    op.ADD: _sum(op.ADD, 1.0),
    op.SUB: _sum(op.SUB, -1.0),
    op.RSUB: _reversed_difference,
    op.MUL: _product,
    op.DIV: _quotient,
}

#: operation -> what a module of its classes computes
MODULES: dict[Operator, Callable[[Any], Act]] = {
    op.RELU: lambda m: RELU,
    op.RELU6: _hardtanh,
    op.HARDTANH: _hardtanh,
    op.THRESHOLD_RELU: lambda m: Act("threshold", 0.0, math.inf if m.max is None else m.max, m.theta),
    op.LEAKY_RELU: lambda m: Act("leaky", float(m.negative_slope), 0.0),
    op.HARDSWISH: lambda m: Act("hardswish"),
    op.HARDSIGMOID: lambda m: Act("hardsigmoid"),
    op.SIGMOID: lambda m: Act("sigmoid"),
    op.TANH: lambda m: Act("tanh"),
    op.SILU: lambda m: Act("silu"),
    op.GELU: lambda m: _gelu(m.approximate),
    op.PRELU: _prelu,
}


def activation_module(ctx: Context, node: fx.Node, module: Any) -> Step:
    known = op.of_module(module)
    assert known is not None
    return activation(ctx, node, bind(node, "input")["input"], MODULES[known](module))


THRESHOLD = {ops.threshold_relu, torch.ops.secateur.threshold_relu, torch.ops.secateur.threshold_relu.default}
threshold_function = _threshold_function
