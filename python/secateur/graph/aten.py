"""ATen operators, as exported programs hold them, translated to ordinary torch functions, which the engine knows."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from . import operators
from .operators import Operator


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


def operator_of(node: fx.Node) -> Operator | None:
    return operators.of_aten(name_of(node))


def is_view(node: fx.Node) -> bool:
    """Whether a node's result may alias its input, by the schema. A dropout without effect returns its input."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem
    aliases = (argument.alias_info for argument in node.target._schema.arguments)
    known = operator_of(node)
    return any(a is not None and not a.is_write for a in aliases) or (known is not None and known.kind == "dropout")


def keeps_grid(node: fx.Node) -> bool:
    """Whether the values of a node of ordinary torch code stay on the grid of its inputs.

    They do if it moves values, picks them or leaves them out. relu is one of these because 0 lies on every grid.
    """
    known = operators.of(node)
    return known is not None and (known is operators.RELU or known.kind in ("view", "move", "copy", "concat", "pool"))


def emit(graph: fx.Graph, node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
    """The call as an ordinary torch function; an operator that has none stays as it is.

    Args:
        node: of the exported graph; args, kwargs: its arguments in the new graph.
    """
    name, known = name_of(node), operator_of(node)
    if known is not None:
        return graph.call_function(known.functions[0], args, kwargs)
    if writes(node):
        args = (graph.call_function(torch.clone, args[:1]), *args[1:])
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
