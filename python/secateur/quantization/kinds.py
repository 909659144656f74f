"""How the nodes of a traced network treat values that lie on a grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.fx.node import map_arg

from ..graph import operators
from ..graph.tracing import Meta

#: How a node's output comes from its inputs. "layer": a sum of products; "unary": one value from one value; "add" and
#: "binary": one from two; "average": a mean of several; "move": the same values in another place; "pool": the largest
#: of several; "concat"; "input"; "output"; "size": no tensor; "real": anything else.
Kind = str

#: How the operations of the table treat values on a grid, where this does not depend on their arguments.
_KINDS: dict[operators.Kind, Kind] = {
    "unary": "unary", "norm": "unary", "average": "average", "view": "move", "move": "move", "copy": "move",
    "dropout": "move", "pool": "pool", "concat": "concat", "add": "add", "binary": "binary",
}  # fmt: skip


def kind_of(node: fx.Node, meta: Mapping[fx.Node, Meta], modules: Mapping[str, nn.Module], layers: Any) -> Kind:
    """The kind of one node; ``layers`` are the nodes that are convolutions and linear layers."""
    if node.op == "placeholder":
        return "input"
    if node.op == "output":
        return "output"
    seen = meta.get(node, Meta())
    if node.op == "get_attr" or seen.constant is not None or (seen.shape is None and seen.number is not None):
        return "size"
    if node in layers:
        return "layer"
    if seen.dtype is not None and not seen.dtype.is_floating_point:
        return "real"
    return _module_kind(modules[str(node.target)]) if node.op == "call_module" else _call_kind(node, meta)


def _module_kind(module: nn.Module) -> Kind:
    known = operators.of_module(module)
    if known is None or getattr(module, "return_indices", False):
        return "real"
    if known is operators.PAD:
        return _pad_kind("constant", module.value)
    return _KINDS.get(known.kind, "real")


def _call_kind(node: fx.Node, meta: Mapping[fx.Node, Meta]) -> Kind:
    known = operators.of(node)
    if known is None:
        return "real"
    kind = _KINDS.get(known.kind, "real")
    operands = tensors_of(node, meta)
    if kind in ("add", "binary"):
        if node.kwargs.get("alpha", 1) != 1 or "rounding_mode" in node.kwargs:
            return "real"
        return kind if len(operands) == 2 else "unary" if len(operands) == 1 else "real"
    if kind == "pool":
        return "real" if node.kwargs.get("return_indices") else "pool"
    if known is operators.PAD:
        return _pad_kind(known.read(node, "mode", "constant"), known.read(node, "value"))
    if kind == "move":
        return kind if len([o for o in operands if _may_be_real(meta.get(o, Meta()))]) == 1 else "real"
    # A mean or a square root without a value of the network as its input is not ours.
    return kind if operands or kind == "concat" else "real"


def _pad_kind(mode: Any, value: Any) -> Kind:
    return "move" if mode == "constant" and not value else "real"


def _may_be_real(seen: Meta) -> bool:
    """Whether a moved value may be floats: indices are not; a list of tensors has no one dtype."""
    return seen.dtype is None or seen.dtype.is_floating_point


def is_value(node: fx.Node, meta: Mapping[fx.Node, Meta]) -> bool:
    """Whether a node gives tensors made from the network's input (not sizes, not constants)."""
    if node.op == "placeholder":
        return True
    seen = meta.get(node, Meta())
    return node.op != "get_attr" and seen.constant is None and not (seen.shape is None and seen.number is not None)


def tensors_of(node: fx.Node, meta: Mapping[fx.Node, Meta]) -> list[fx.Node]:
    """The values that a node reads, each as often as it is read."""
    found: list[fx.Node] = []

    def take(each: fx.Node) -> fx.Node:
        if is_value(each, meta):
            found.append(each)
        return each

    map_arg((node.args, node.kwargs), take)
    return found
