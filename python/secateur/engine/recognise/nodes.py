"""Node by node: what the engine can run, and why it can't run the others."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..._base.modules import forward_replaced
from ...graph import operators
from ...graph.operators import Operator
from ...graph.tracing import Traced
from ...graph.value_order import Order
from . import convolution, elementwise, linear, movement, normalization, pooling, quantized
from .steps import BATCHED_ROWS, PLANES, POOLED, ROWS, Context, Step, Unsupported, bind


def recognise(traced: Traced, order: Order, dtypes: tuple[torch.dtype, ...]) -> tuple[Context, dict[fx.Node, str]]:
    """The steps of all nodes that the engine can run, and for the other operations the reason."""
    ctx = Context(traced, order, dtypes)
    reasons: dict[fx.Node, str] = {}
    for place, node in enumerate(traced.graph.nodes):
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        if node in order.pinned:
            reasons[node] = order.pinned[node]
            continue
        meta = ctx.meta(node)
        if meta.constant is not None or (meta.shape is None and meta.number is not None):
            continue  # computed once, or no tensor: costs nothing
        if node.target is torch._assert:
            continue
        bound, ctx.size_bound = ctx.size_bound, False
        try:
            ctx.check(meta)
            step = _step(ctx, node)
        except Unsupported as reason:
            reasons[node] = str(reason)
            ctx.size_bound |= bound
            continue
        ctx.size_bound |= bound
        step.place, step.name = place, traced.names[node]
        step.sizes_of = _sizes_of(ctx, step)
        ctx.steps[node] = step
    _settle(ctx, reasons)
    return ctx, reasons


def interior(ctx: Context, node: fx.Node) -> bool:
    """Whether a node without a step only serves its readers: numbers, constants, links of a chain."""
    if node in ctx.steps or node.op == "placeholder":
        return False
    meta = ctx.meta(node)
    if node.op == "get_attr" or meta.constant is not None or meta.number is not None:
        return True
    return movement.is_movement(ctx, node) and node not in ctx.order.pinned


def _sizes_of(ctx: Context, step: Step) -> list[fx.Node]:
    """Tensors that torch's form of a step reads besides its operands: only their sizes matter."""
    operands = {node for node, _ in step.inputs}
    found: dict[fx.Node, None] = {}
    pending = list(step.node.all_input_nodes)
    while pending:
        node = pending.pop()
        if node in operands:
            continue
        if interior(ctx, node):
            pending.extend(node.all_input_nodes)
        else:
            found[node] = None
    return list(found)


def _step(ctx: Context, node: fx.Node) -> Step:
    if node.op == "call_module":
        if str(node.target) in ctx.traced.opaque:
            raise Unsupported(ctx.traced.opaque[str(node.target)])
        return _module_step(ctx, node, ctx.module(node))
    first = node.args[0] if node.args else None
    if node.target is operator.getitem and isinstance(first, fx.Node) and first.target in elementwise.THRESHOLD:
        return elementwise.threshold_function(ctx, node)
    called = operators.of(node)
    if called is not None and called in CALLS:
        return CALLS[called](ctx, node)
    if movement.is_movement(ctx, node):
        return movement.movement(ctx, node)
    raise Unsupported(f"the engine has no {_title(node)}")


def _title(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _module_step(ctx: Context, node: fx.Node, module: Any) -> Step:
    if forward_replaced(module):
        raise Unsupported("its forward was replaced")
    if type(module) in quantized.MODULES:
        return quantized.MODULES[type(module)](ctx, node, module)  # type: ignore[no-any-return]
    known = operators.of_module(module)
    if known is not None and known in MODULES:
        return MODULES[known](ctx, node, module)
    if movement.is_movement(ctx, node):
        return movement.movement(ctx, node)
    raise Unsupported(f"the engine has no {type(module).__name__}")


def _alias(ctx: Context, node: fx.Node, x: Any) -> Step:
    source = ctx.source(x, PLANES, ROWS, POOLED, BATCHED_ROWS)
    return Step("alias", node, [source], source[1])


def _nothing(ctx: Context, node: fx.Node, module: Any) -> Step:
    """A dropout in evaluation mode."""
    return _alias(ctx, node, bind(node, "input")["input"])


def _dropout(ctx: Context, node: fx.Node) -> Step:
    known = operators.of(node)
    assert known is not None
    a = bind(node, known.arguments, training=node.target is not torch.dropout)
    if a["training"] is not False:
        raise Unsupported("it drops values in evaluation too")
    return _alias(ctx, node, a["input"])


def _same_values(ctx: Context, node: fx.Node) -> Step:
    """clone, contiguous, float, .to(...): checked by dtype and device, which stayed."""
    if node.args[0] not in ctx.steps and movement.is_movement(ctx, node):
        return movement.movement(ctx, node)
    step = _alias(ctx, node, node.args[0])
    before, after = ctx.meta(step.inputs[0][0]), ctx.meta(node)
    if (before.dtype, before.device, before.shape) != (after.dtype, after.device, after.shape):
        raise Unsupported("it converts values")
    return step


_DROPOUTS = [known for known in operators.TABLE if known.kind == "dropout"]

#: operation -> the step that a call of its function or method is
CALLS: dict[Operator, Callable[[Context, fx.Node], Step]] = {
    operators.CONV2D: convolution.conv2d_function,
    operators.LINEAR: linear.linear_function,
    operators.BATCH_NORM: normalization.batch_norm_function,
    operators.MAX_POOL2D: pooling.max_pool_function,
    operators.AVG_POOL2D: pooling.avg_pool_function,
    operators.ADAPTIVE_AVG_POOL2D: pooling.adaptive_avg_pool_function,
    operators.MEAN: pooling.mean,
    operators.PAD: pooling.pad_function,
    operators.CONCAT: movement.concat,
    operators.EXPAND: movement.expand,
    operators.EXPAND_AS: movement.expand,
    operators.CLONE: _same_values,
    operators.CONTIGUOUS: _same_values,
    operators.DETACH: _same_values,
    operators.TO: _same_values,
    **dict.fromkeys(_DROPOUTS, _dropout),
    **elementwise.CALLS,
}

#: operation -> the step that a module of its classes is
MODULES: dict[Operator, Callable[[Context, fx.Node, Any], Step]] = {
    operators.CONV2D: convolution.conv2d_module,
    operators.LINEAR: linear.linear_module,
    operators.BATCH_NORM: normalization.batch_norm_module,
    operators.MAX_POOL2D: pooling.max_pool_module,
    operators.AVG_POOL2D: pooling.avg_pool_module,
    operators.ADAPTIVE_AVG_POOL2D: pooling.adaptive_avg_pool_module,
    operators.PAD: pooling.pad_module,
    **dict.fromkeys(_DROPOUTS, _nothing),
    **dict.fromkeys(elementwise.MODULES, elementwise.activation_module),
}


def _settle(ctx: Context, reasons: dict[fx.Node, str]) -> None:
    """Padding and expansion exist in the engine only as part of their readers: else they go back to torch."""
    for node, step in list(ctx.steps.items()):
        if step.kind == "pad" and not _all_users(ctx, node, lambda s: s.kind == "conv2d"):
            _drop(ctx, node, reasons, "the engine pads for convolutions only")
        elif step.kind == "expand":
            if _all_users(ctx, node, lambda s, n=node: s.join != "none" and s.inputs[1][0] is n):  # type: ignore[misc]
                step.kind = "alias"
            else:
                _drop(ctx, node, reasons, "the engine expands for products and sums only")


def _all_users(ctx: Context, node: fx.Node, accepts: Callable[[Step], bool]) -> bool:
    steps = [ctx.steps.get(user) for user in node.users if not _only_size(ctx, user)]
    return bool(steps) and all(step is not None and accepts(step) for step in steps)


def _only_size(ctx: Context, node: fx.Node) -> bool:
    return node.op != "output" and not isinstance(ctx.meta(node).shape, tuple) and ctx.meta(node).number is not None


def _drop(ctx: Context, node: fx.Node, reasons: dict[fx.Node, str], why: str) -> None:
    """A node goes back to torch, with the nodes that were recognised because it was pooled rows."""
    step = ctx.steps.pop(node)
    reasons[node] = why
    if step.out == POOLED:
        for user in list(node.users):
            if user in ctx.steps:
                _drop(ctx, user, reasons, "its input stays torch")


__all__ = ["interior", "recognise"]
