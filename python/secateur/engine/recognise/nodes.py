"""Node by node: what the engine can run, and why it can't run the others."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..._base.modules import keeps_forward
from ...graph.tracing import Traced
from ...graph.value_order import Order
from . import elementwise, movement, quantized
from .convolution import conv2d_function, conv2d_module
from .linear import linear_function, linear_module
from .normalization import batch_norm_function
from .pooling import MODULES, adaptive_avg_pool, avg_pool, max_pool, mean, pad
from .steps import LEAD, PLANES, ROWS, ROWS4, Context, Step, Unsupported, bind

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity)
_DROPOUT_FUNCTIONS = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout
}  # fmt: skip
_POOL = "kernel_size stride padding dilation ceil_mode return_indices"
_AVG = "kernel_size stride padding ceil_mode count_include_pad divisor_override"


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
            continue  # computed once, or no tensor: at no cost anywhere
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
    """Whether a node that no step stands for only serves those that read it: numbers, constants, links of a chain."""
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
    if movement.is_concat(node):
        return movement.concat(ctx, node)
    if node.op == "call_function" and node.target is not None:
        handler = _function(node)
        if handler is not None:
            return handler(ctx, node)
    if node.op == "call_method":
        method = METHODS.get(str(node.target))
        if method is not None:
            return method(ctx, node)
    if movement.is_movement(ctx, node):
        return movement.movement(ctx, node)
    raise Unsupported(f"the engine has no {_title(node)}")


def _title(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _function(node: fx.Node) -> Callable[[Context, fx.Node], Step] | None:
    target: Any = node.target
    if target in FUNCTIONS:
        return FUNCTIONS[target]
    if getattr(target, "__name__", "") == "stochastic_depth":
        return _stochastic_depth
    first = node.args[0] if node.args else None
    if target is operator.getitem and isinstance(first, fx.Node) and first.target in elementwise.THRESHOLD:
        return elementwise.threshold_function
    return None


def _module_step(ctx: Context, node: fx.Node, module: Any) -> Step:
    if "forward" in vars(module):
        raise Unsupported("its forward was replaced")
    if isinstance(module, _DROPOUTS) and any(keeps_forward(module, kind) for kind in _DROPOUTS):
        return _alias(ctx, node, node.args[0])
    step = elementwise.module_step(ctx, node, module)
    if step is not None:
        return step
    name = type(module).__name__
    if name in ("MaskedConv2d", "SparseConv2d", "MaskedLinear", "SparseLinear") and _is_ours(module):
        handler = conv2d_module if name.endswith("Conv2d") else linear_module
        return handler(ctx, node, module)
    if type(module) in quantized.MODULES:
        return quantized.MODULES[type(module)](ctx, node, module)  # type: ignore[no-any-return]
    for kind, make in MODULES.items():
        if keeps_forward(module, kind):
            return make(ctx, node, module)  # type: ignore[no-any-return]
    x = node.args[0] if node.args else None
    if keeps_forward(module, nn.MaxPool2d):
        return max_pool(ctx, node, x, {name: getattr(module, name) for name in _POOL.split()})
    if keeps_forward(module, nn.AvgPool2d):
        return avg_pool(ctx, node, x, {name: getattr(module, name) for name in _AVG.split()})
    if keeps_forward(module, nn.AdaptiveAvgPool2d):
        return adaptive_avg_pool(ctx, node, x, module.output_size)
    if type(module) in (nn.ZeroPad2d, nn.ConstantPad2d):
        return pad(ctx, node, x, module.padding, "constant", module.value)
    if movement.is_movement(ctx, node):
        return movement.movement(ctx, node)
    raise Unsupported(f"the engine has no {name}")


def _is_ours(module: nn.Module) -> bool:
    return type(module).__module__.startswith("secateur.nn.")


def _alias(ctx: Context, node: fx.Node, x: Any) -> Step:
    source = ctx.source(x, PLANES, ROWS, ROWS4, LEAD)
    return Step("alias", node, [source], source[1])


def _dropout(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, "input p training inplace", training=node.target is not torch.dropout)
    if a["training"] is not False:
        raise Unsupported("it drops values in evaluation too")
    return _alias(ctx, node, a["input"])


def _stochastic_depth(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, "input p mode training", training=True)
    if a["training"] is not False:
        raise Unsupported("it drops values in evaluation too")
    return _alias(ctx, node, a["input"])


def _max_pool(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, f"input {_POOL}", padding=0, dilation=1, ceil_mode=False)
    return max_pool(ctx, node, a["input"], a)


def _avg_pool(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, f"input {_AVG}", padding=0, ceil_mode=False, count_include_pad=True)
    return avg_pool(ctx, node, a["input"], a)


def _adaptive_avg_pool(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, "input output_size")
    return adaptive_avg_pool(ctx, node, a["input"], a["output_size"])


def _mean(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, "input dim keepdim dtype", keepdim=False)
    return mean(ctx, node, a["input"], a)


def _method_mean(ctx: Context, node: fx.Node) -> Step:
    if len(node.args) > 2 and all(isinstance(d, int) and not isinstance(d, bool) for d in node.args[1:3]):
        raise Unsupported("its dimensions are not a list")
    return _mean(ctx, node)


def _pad(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, "input pad mode value", mode="constant")
    return pad(ctx, node, a["input"], a["pad"], a["mode"], a["value"])


def _same_values(ctx: Context, node: fx.Node) -> Step:
    """clone, contiguous, float, .to(...): checked by dtype and device, which stayed."""
    if node.args[0] not in ctx.steps and movement.is_movement(ctx, node):
        return movement.movement(ctx, node)
    step = _alias(ctx, node, node.args[0])
    before, after = ctx.meta(step.inputs[0][0]), ctx.meta(node)
    if (before.dtype, before.device, before.shape) != (after.dtype, after.device, after.shape):
        raise Unsupported("it converts values")
    return step


FUNCTIONS: dict[Any, Callable[[Context, fx.Node], Step]] = {
    F.conv2d: conv2d_function,
    torch.conv2d: conv2d_function,
    F.linear: linear_function,
    F.batch_norm: batch_norm_function,
    F.max_pool2d: _max_pool,
    torch.max_pool2d: _max_pool,
    F.avg_pool2d: _avg_pool,
    F.adaptive_avg_pool2d: _adaptive_avg_pool,
    torch.mean: _mean,
    F.pad: _pad,
    torch.clone: _same_values,
    **dict.fromkeys(_DROPOUT_FUNCTIONS, _dropout),
    **elementwise.FUNCTIONS,
}

METHODS: dict[str, Callable[[Context, fx.Node], Step]] = {
    "mean": _method_mean,
    "contiguous": _same_values,
    "clone": _same_values,
    "detach": _same_values,
    "float": _same_values,
    "to": _same_values,
    "type_as": _same_values,
    "expand": movement.expand,
    "expand_as": movement.expand,
    **elementwise.METHODS,
}


def _settle(ctx: Context, reasons: dict[fx.Node, str]) -> None:
    """Padding and expansion exist in the engine only as part of what reads them."""
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
    """Back to torch; what was recognised because this node was pooled rows goes with it."""
    step = ctx.steps.pop(node)
    reasons[node] = why
    if step.out == ROWS4:
        for user in list(node.users):
            if user in ctx.steps:
                _drop(ctx, user, reasons, "its input stays torch")


__all__ = ["interior", "recognise"]
