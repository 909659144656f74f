"""What the nodes of a traced network do to values that lie on a grid."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import map_arg

from ..graph.tracing import Meta
from ..nn import ThresholdReLU

#: How a node's output comes from its inputs. "layer": a sum of products; "unary": one value from one value; "add" and
#: "binary": one from two; "average": a mean of several; "move": the same values in another place; "pool": the largest
#: of several; "concat"; "input"; "output"; "size": no tensor; "real": anything else.
Kind = str

_UNARY_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.GELU, nn.ELU,
    nn.LeakyReLU, nn.PReLU, nn.Softplus, nn.Mish, nn.BatchNorm1d, nn.BatchNorm2d, ThresholdReLU,
)  # fmt: skip
_MOVE_MODULES = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity, nn.Flatten, nn.Unflatten,
    nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad2d,
)  # fmt: skip
_POOL_MODULES = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)
_AVERAGE_MODULES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)

_UNARY = {
    "relu", "relu6", "hardtanh", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "gelu", "elu", "leaky_relu",
    "prelu", "softplus", "mish", "batch_norm", "clamp", "neg", "abs", "square",
}  # fmt: skip
_MOVE = {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "stochastic_depth", "flatten", "reshape", "view",
    "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "getitem", "chunk", "split", "unbind", "expand",
    "clone", "detach", "movedim", "narrow", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "swapaxes", "tile",
}  # fmt: skip
_POOL = {"max_pool2d", "max_pool2d_with_indices", "boolean_dispatch", "adaptive_max_pool2d"}
_AVERAGE = {"avg_pool2d", "adaptive_avg_pool2d", "mean"}
_ADD: set[Any] = {operator.add, operator.iadd, torch.add, "add"}
_BINARY: set[Any] = {
    operator.mul, operator.imul, torch.mul, "mul", operator.sub, operator.isub, torch.sub, "sub",
    operator.truediv, torch.div, "div", torch.maximum, torch.minimum, *_ADD,
}  # fmt: skip
_CONCAT: set[Any] = {torch.cat, torch.concat, torch.concatenate}
_MAX_POOLS = {F.max_pool2d, torch.max_pool2d, F.adaptive_max_pool2d}


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
    if "forward" in vars(module):
        return "real"
    for kind, classes in (
        ("unary", _UNARY_MODULES),
        ("move", _MOVE_MODULES),
        ("pool", _POOL_MODULES),
        ("average", _AVERAGE_MODULES),
    ):
        if type(module) in classes:
            return "real" if getattr(module, "return_indices", False) else kind
    return "real"


def _call_kind(node: fx.Node, meta: Mapping[fx.Node, Meta]) -> Kind:
    name = str(getattr(node.target, "__name__", node.target)).rstrip("_")
    target = node.target if node.op == "call_function" else name
    if target in _CONCAT:
        return "concat"
    if target in _BINARY:
        if node.kwargs.get("alpha", 1) != 1 or "rounding_mode" in node.kwargs:
            return "real"
        operands = tensors_of(node, meta)
        if len(operands) == 2:
            return "add" if target in _ADD else "binary"
        return "unary" if len(operands) == 1 else "real"
    if target in _MAX_POOLS or (node.op == "call_function" and name in _POOL):
        return "real" if node.kwargs.get("return_indices") else "pool"
    if name == "pad":
        mode, value = _argument(node, 2, "mode", "constant"), _argument(node, 3, "value", None)
        return "move" if mode == "constant" and not value else "real"
    for kind, names in (("unary", _UNARY), ("move", _MOVE), ("average", _AVERAGE)):
        if name in names:
            # A mean, a split or a square root of what is no value on its way through the network is not ours.
            return kind if tensors_of(node, meta) else "real"
    return "real"


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


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
