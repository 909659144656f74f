"""ATen operators, as exported programs hold them, in the words of ordinary torch code, which the engine knows."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

#: Same arguments in the same order; in-place forms are looked up without their underscore.
SAME: dict[str, Callable[..., Any]] = {
    "aten.conv2d.default": F.conv2d, "aten.conv2d.padding": F.conv2d, "aten.linear.default": F.linear,
    "aten.relu.default": F.relu, "aten.relu6.default": F.relu6, "aten.hardtanh.default": F.hardtanh,
    "aten.leaky_relu.default": F.leaky_relu, "aten.hardswish.default": F.hardswish,
    "aten.hardsigmoid.default": F.hardsigmoid, "aten.silu.default": F.silu, "aten.gelu.default": F.gelu,
    "aten.sigmoid.default": torch.sigmoid, "aten.tanh.default": torch.tanh, "aten.clamp.default": torch.clamp,
    "aten.clamp_min.default": torch.clamp_min, "aten.clamp_max.default": torch.clamp_max,
    "aten.add.Tensor": torch.add, "aten.add.Scalar": torch.add, "aten.sub.Tensor": torch.sub,
    "aten.sub.Scalar": torch.sub, "aten.mul.Tensor": torch.mul, "aten.mul.Scalar": torch.mul,
    "aten.div.Tensor": torch.div, "aten.div.Scalar": torch.div,
    "aten.max_pool2d.default": F.max_pool2d, "aten.avg_pool2d.default": F.avg_pool2d,
    "aten.adaptive_avg_pool2d.default": F.adaptive_avg_pool2d, "aten.mean.dim": torch.mean,
    "aten.flatten.using_ints": torch.flatten, "aten.view.default": torch.reshape,
    "aten.reshape.default": torch.reshape, "aten.permute.default": torch.permute,
    "aten.transpose.int": torch.transpose, "aten.unsqueeze.default": torch.unsqueeze,
    "aten.squeeze.dim": torch.squeeze, "aten.squeeze.dims": torch.squeeze, "aten.chunk.default": torch.chunk,
    "aten.split.Tensor": torch.split, "aten.split_with_sizes.default": torch.split, "aten.cat.default": torch.cat,
    "aten.dropout.default": F.dropout, "aten.clone.default": torch.clone, "aten.pad.default": F.pad,
}  # fmt: skip

#: What moves values, picks them or leaves them out: where its inputs lie on one grid, so does its result. The relu is
#: one of them because 0 lies on every grid.
KEEP_GRID = {
    F.relu, F.max_pool2d, torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.unsqueeze, torch.squeeze,
    torch.chunk, torch.split, torch.cat, torch.clone, operator.getitem,
}  # fmt: skip

#: Operators whose result may be memory of their input.
VIEWS = {
    "flatten", "view", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "chunk", "split", "slice", "select",
    "split_with_sizes", "detach", "expand", "t", "alias", "narrow", "contiguous", "unbind", "view_as", "dropout", "to",
}  # fmt: skip


def bind(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator by the names in its schema, defaults included."""
    schema: Any = getattr(node.target, "_schema", None)
    arguments = schema.arguments
    values = {a.name: a.default_value for a in arguments}
    return values | dict(zip((a.name for a in arguments), node.args, strict=False)) | node.kwargs


def name_of(node: fx.Node) -> str:
    """``aten.relu.default``; in-place operators by the name of the other form; "" for what is no operator."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    space, name, overload = str(node.target).split(".")
    return f"{space}.{name.removesuffix('_') if writes(node) else name}.{overload}"


def writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def is_view(node: fx.Node) -> bool:
    return node.target is operator.getitem or name_of(node).removeprefix("aten.").split(".")[0] in VIEWS


def emit(graph: fx.Graph, node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
    """The same in ordinary words; an operator without any stays what it is.

    Args:
        node: of the exported graph; args, kwargs: its arguments in the new graph.
    """
    name = name_of(node)
    if writes(node) and name not in SAME:
        args = (graph.call_function(torch.clone, args[:1]), *args[1:])
    if name in SAME:
        return graph.call_function(SAME[name], args, kwargs)
    if name == "aten.slice.Tensor" and not kwargs:
        x, dim, begin, end, step = list(args) + [0, None, None, 1][len(args) - 1 :]
        if isinstance(dim, int) and dim >= 0:
            end = None if isinstance(end, int) and end >= 2**62 else end
            return graph.call_function(operator.getitem, (x, (*[slice(None)] * dim, slice(begin, end, step))))
    if name == "aten.contiguous.default" and not kwargs:
        return graph.call_method("contiguous", args)
    if name == "aten.sym_size.int":
        return graph.call_method("size", args)
    if name == "aten.batch_norm.default" and len(args) >= 8:
        x, weight, bias, mean, var, training, momentum, eps = args[:8]
        return graph.call_function(F.batch_norm, (x, mean, var, weight, bias, training, momentum, eps))
    return graph.create_node(node.op, node.target, args, kwargs, name=node.name)
