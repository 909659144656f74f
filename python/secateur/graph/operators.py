"""torch's names for operations: one row for each operation that any part of this package knows by name.

The engine's front, quantization, the translation of PT2E's graphs and the search for ReLUs look operations up here. A
row lists the functions, methods, module classes and ATen overloads of one operation, and how its result comes from its
inputs. In-place forms (``relu_``, ``operator.iadd``) follow from the others.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .._base.modules import has_stock_forward
from ..nn import MaskedConv2d, MaskedLinear, SparseConv2d, SparseLinear, ThresholdReLU

#: How a result comes from the inputs. "layer": sums of products with weights; "norm": scaled and shifted by channel;
#: "unary": one value from one value; "add" and "binary": one from two; "average": a mean of several; "pool": the
#: largest of several; "concat"; "pad"; "view": the same values in another shape, or some of them; "move": the same
#: values in another place, or repeated; "copy": the same values; "dropout": the same in evaluation; "convert": another
#: dtype or device; "math": arithmetic that matters for constants alone.
Kind = Literal[
    "layer", "norm", "unary", "add", "binary", "average", "pool", "concat", "pad", "view", "move", "copy", "dropout",
    "convert", "math",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Operator:
    """One operation, under all of its names."""

    name: str
    kind: Kind
    arguments: str = "input"  # in order, for operations whose arguments are read
    functions: tuple[Callable[..., Any], ...] = ()  # the first takes what the ATen overloads take
    methods: tuple[str, ...] = ()  # of Tensor
    modules: tuple[type[nn.Module], ...] = ()
    aten: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()  # functions of libraries that are not imported here, by their ``__name__``
    folds: bool = False  # constant folding: of constants it is computed once

    def read(self, node: fx.Node, argument: str, default: Any = None) -> Any:
        """The value of one argument in a call of this operation."""
        place = self.arguments.split().index(argument)
        return node.args[place] if len(node.args) > place else node.kwargs.get(argument, default)


_WINDOW = "input kernel_size stride padding"

# ---- layers ----
CONV2D = Operator(
    "conv2d", "layer", "input weight bias stride padding dilation groups", (F.conv2d, torch.conv2d),
    modules=(nn.Conv2d, MaskedConv2d, SparseConv2d), aten=("conv2d.default", "conv2d.padding"),
)  # fmt: skip
LINEAR = Operator(
    "linear", "layer", "input weight bias", (F.linear,), modules=(nn.Linear, MaskedLinear, SparseLinear),
    aten=("linear.default",),
)  # fmt: skip
BATCH_NORM = Operator(
    "batch_norm", "norm", "input running_mean running_var weight bias training momentum eps", (F.batch_norm,),
    modules=(nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm),
)  # fmt: skip
ATEN_BATCH_NORM = Operator("aten_batch_norm", "norm", functions=(torch.batch_norm,))  # arguments in another order

# ---- one value from one value ----
RELU = Operator(
    "relu", "unary", "input inplace", (F.relu, torch.relu), ("relu",), (nn.ReLU,), aten=("relu.default",)
)  # fmt: skip
RELU6 = Operator("relu6", "unary", "input inplace", (F.relu6,), modules=(nn.ReLU6,), aten=("relu6.default",))
THRESHOLD_RELU = Operator("threshold_relu", "unary", modules=(ThresholdReLU,))
HARDTANH = Operator(
    "hardtanh", "unary", "input min_val max_val inplace", (F.hardtanh,), modules=(nn.Hardtanh,),
    aten=("hardtanh.default",),
)  # fmt: skip
LEAKY_RELU = Operator(
    "leaky_relu", "unary", "input negative_slope inplace", (F.leaky_relu,), modules=(nn.LeakyReLU,),
    aten=("leaky_relu.default",),
)  # fmt: skip
HARDSWISH = Operator(
    "hardswish", "unary", "input inplace", (F.hardswish,), modules=(nn.Hardswish,), aten=("hardswish.default",)
)
HARDSIGMOID = Operator(
    "hardsigmoid", "unary", "input inplace", (F.hardsigmoid,), modules=(nn.Hardsigmoid,), aten=("hardsigmoid.default",)
)
SIGMOID = Operator(
    "sigmoid", "unary", "input inplace", (torch.sigmoid, F.sigmoid), ("sigmoid",), (nn.Sigmoid,),
    aten=("sigmoid.default",), folds=True,
)  # fmt: skip
TANH = Operator(
    "tanh", "unary", "input inplace", (torch.tanh, F.tanh), ("tanh",), (nn.Tanh,), aten=("tanh.default",), folds=True
)
SILU = Operator("silu", "unary", "input inplace", (F.silu,), modules=(nn.SiLU,), aten=("silu.default",))
GELU = Operator("gelu", "unary", "input approximate", (F.gelu,), modules=(nn.GELU,), aten=("gelu.default",))
PRELU = Operator("prelu", "unary", "input weight", (F.prelu, torch.prelu), ("prelu",), (nn.PReLU,))
ELU = Operator("elu", "unary", functions=(F.elu,), modules=(nn.ELU,))
SOFTPLUS = Operator("softplus", "unary", functions=(F.softplus,), modules=(nn.Softplus,), folds=True)
MISH = Operator("mish", "unary", functions=(F.mish,), modules=(nn.Mish,))
CLAMP = Operator(
    "clamp", "unary", "input min max", (torch.clamp, torch.clip), ("clamp", "clip"), aten=("clamp.default",)
)
CLAMP_MIN = Operator(
    "clamp_min", "unary", "input min", (torch.clamp_min,), ("clamp_min",), aten=("clamp_min.default",)
)  # fmt: skip
CLAMP_MAX = Operator(
    "clamp_max", "unary", "input max", (torch.clamp_max,), ("clamp_max",), aten=("clamp_max.default",)
)  # fmt: skip
NEG = Operator("neg", "unary", "input", (torch.neg, torch.negative, operator.neg), ("neg", "negative"), folds=True)
ABS = Operator("abs", "unary", "input", (torch.abs, torch.absolute, operator.abs), ("abs", "absolute"), folds=True)
SQUARE = Operator("square", "unary", "input", (torch.square,), ("square",))

# ---- one value from two ----
_SUM = "input other alpha out"
ADD = Operator(
    "add", "add", _SUM, (torch.add, operator.add), ("add",), aten=("add.Tensor", "add.Scalar"), folds=True
)  # fmt: skip
SUB = Operator(
    "sub", "binary", _SUM, (torch.sub, torch.subtract, operator.sub), ("sub", "subtract"),
    aten=("sub.Tensor", "sub.Scalar"), folds=True,
)  # fmt: skip
RSUB = Operator("rsub", "binary", "input other alpha", (torch.rsub,))
MUL = Operator(
    "mul", "binary", "input other", (torch.mul, torch.multiply, operator.mul), ("mul", "multiply"),
    aten=("mul.Tensor", "mul.Scalar"), folds=True,
)  # fmt: skip
DIV = Operator(
    "div", "binary", "input other rounding_mode", (torch.div, torch.divide, operator.truediv), ("div", "divide"),
    aten=("div.Tensor", "div.Scalar"), folds=True,
)  # fmt: skip
MAXIMUM = Operator("maximum", "binary", "input other", (torch.maximum,), ("maximum",))
MINIMUM = Operator("minimum", "binary", "input other", (torch.minimum,), ("minimum",))

# ---- windows ----
MAX_POOL2D = Operator(
    "max_pool2d", "pool", f"{_WINDOW} dilation ceil_mode return_indices",
    (F.max_pool2d, torch.max_pool2d, F.max_pool2d_with_indices), modules=(nn.MaxPool2d,), aten=("max_pool2d.default",),
)  # fmt: skip
ADAPTIVE_MAX_POOL2D = Operator(
    "adaptive_max_pool2d", "pool", "input output_size return_indices", (F.adaptive_max_pool2d,),
    modules=(nn.AdaptiveMaxPool2d,),
)  # fmt: skip
AVG_POOL2D = Operator(
    "avg_pool2d", "average", f"{_WINDOW} ceil_mode count_include_pad divisor_override", (F.avg_pool2d,),
    modules=(nn.AvgPool2d,), aten=("avg_pool2d.default",),
)  # fmt: skip
ADAPTIVE_AVG_POOL2D = Operator(
    "adaptive_avg_pool2d", "average", "input output_size", (F.adaptive_avg_pool2d,), modules=(nn.AdaptiveAvgPool2d,),
    aten=("adaptive_avg_pool2d.default",),
)  # fmt: skip
MEAN = Operator("mean", "average", "input dim keepdim dtype", (torch.mean,), ("mean",), aten=("mean.dim",))
PAD = Operator(
    "pad", "pad", "input pad mode value", (F.pad,), modules=(nn.ZeroPad2d, nn.ConstantPad2d), aten=("pad.default",)
)  # fmt: skip

# ---- the same values in another shape or order ----
CONCAT = Operator(
    "cat", "concat", "tensors dim", (torch.cat, torch.concat, torch.concatenate), aten=("cat.default",)
)  # fmt: skip
FLATTEN = Operator(
    "flatten", "view", functions=(torch.flatten,), methods=("flatten",), modules=(nn.Flatten,),
    aten=("flatten.using_ints",), folds=True,
)  # fmt: skip
UNFLATTEN = Operator("unflatten", "view", "input", (torch.unflatten,), ("unflatten",), (nn.Unflatten,))
RESHAPE = Operator(
    "reshape", "view", functions=(torch.reshape,), methods=("reshape", "view"),
    aten=("reshape.default", "view.default"), folds=True,
)  # fmt: skip
RESHAPE_AS = Operator("reshape_as", "view", methods=("reshape_as", "view_as"))
PERMUTE = Operator(
    "permute", "view", functions=(torch.permute,), methods=("permute",), aten=("permute.default",), folds=True
)  # fmt: skip
TRANSPOSE = Operator(
    "transpose", "view", functions=(torch.transpose,), methods=("transpose",), aten=("transpose.int",), folds=True
)  # fmt: skip
SWAPAXES = Operator("swapaxes", "view", functions=(torch.swapaxes,), methods=("swapaxes",))
T = Operator("t", "view", methods=("t",))
MOVEDIM = Operator("movedim", "view", functions=(torch.movedim,), methods=("movedim",))
SQUEEZE = Operator(
    "squeeze", "view", functions=(torch.squeeze,), methods=("squeeze",), aten=("squeeze.dim", "squeeze.dims"),
    folds=True,
)  # fmt: skip
UNSQUEEZE = Operator(
    "unsqueeze", "view", functions=(torch.unsqueeze,), methods=("unsqueeze",), aten=("unsqueeze.default",), folds=True
)
CHUNK = Operator("chunk", "view", functions=(torch.chunk,), methods=("chunk",), aten=("chunk.default",))
SPLIT = Operator(
    "split", "view", functions=(torch.split,), methods=("split",), aten=("split.Tensor", "split_with_sizes.default")
)  # fmt: skip
TENSOR_SPLIT = Operator("tensor_split", "view", functions=(torch.tensor_split,), methods=("tensor_split",))
NARROW = Operator("narrow", "view", functions=(torch.narrow,), methods=("narrow",))
INDEX_SELECT = Operator("index_select", "view", functions=(torch.index_select,), methods=("index_select",))
GETITEM = Operator("getitem", "view", functions=(operator.getitem,), folds=True)
CHANNEL_SHUFFLE = Operator(
    "channel_shuffle", "view", "input groups", (torch.channel_shuffle, F.channel_shuffle, torch.native_channel_shuffle),
    modules=(nn.ChannelShuffle,),
)  # fmt: skip
PIXEL_SHUFFLE = Operator(
    "pixel_shuffle", "move", functions=(torch.pixel_shuffle, F.pixel_shuffle), modules=(nn.PixelShuffle,)
)  # fmt: skip
PIXEL_UNSHUFFLE = Operator(
    "pixel_unshuffle", "move", functions=(torch.pixel_unshuffle, F.pixel_unshuffle), modules=(nn.PixelUnshuffle,)
)  # fmt: skip
UNBIND = Operator("unbind", "move", functions=(torch.unbind,), methods=("unbind",))
EXPAND = Operator("expand", "move", methods=("expand",), folds=True)
EXPAND_AS = Operator("expand_as", "move", methods=("expand_as",))
TILE = Operator("tile", "move", functions=(torch.tile,), methods=("tile",))

# ---- the same values ----
CLONE = Operator("clone", "copy", functions=(torch.clone,), methods=("clone",), aten=("clone.default",))
CONTIGUOUS = Operator("contiguous", "copy", methods=("contiguous",), folds=True)
DETACH = Operator("detach", "copy", functions=(torch.detach,), methods=("detach",))
IDENTITY = Operator("identity", "dropout", modules=(nn.Identity,))
TO = Operator("to", "convert", methods=("to", "float", "type_as"), folds=True)

_DROP = "input p training inplace"
DROPOUT = Operator(
    "dropout", "dropout", _DROP, (F.dropout, torch.dropout), modules=(nn.Dropout,), aten=("dropout.default",)
)  # fmt: skip
DROPOUT1D = Operator("dropout1d", "dropout", _DROP, (F.dropout1d,), modules=(nn.Dropout1d,))
DROPOUT2D = Operator("dropout2d", "dropout", _DROP, (F.dropout2d,), modules=(nn.Dropout2d,))
DROPOUT3D = Operator("dropout3d", "dropout", _DROP, (F.dropout3d,), modules=(nn.Dropout3d,))
ALPHA_DROPOUT = Operator("alpha_dropout", "dropout", _DROP, (F.alpha_dropout,), modules=(nn.AlphaDropout,))
FEATURE_ALPHA_DROPOUT = Operator(
    "feature_alpha_dropout", "dropout", _DROP, (F.feature_alpha_dropout,), modules=(nn.FeatureAlphaDropout,)
)
STOCHASTIC_DEPTH = Operator(
    "stochastic_depth", "dropout", "input p mode training", elsewhere=("stochastic_depth",)  # torchvision's
)  # fmt: skip

# ---- arithmetic on constants ----
EXP = Operator("exp", "math", functions=(torch.exp,), methods=("exp",), folds=True)
LOG = Operator("log", "math", functions=(torch.log,), methods=("log",), folds=True)
POW = Operator("pow", "math", functions=(torch.pow, operator.pow), methods=("pow",), folds=True)
RECIPROCAL = Operator("reciprocal", "math", functions=(torch.reciprocal,), methods=("reciprocal",), folds=True)
SQRT = Operator("sqrt", "math", functions=(torch.sqrt,), methods=("sqrt",), folds=True)
RSQRT = Operator("rsqrt", "math", functions=(torch.rsqrt,), methods=("rsqrt",), folds=True)

TABLE: tuple[Operator, ...] = tuple(row for row in list(globals().values()) if isinstance(row, Operator))


# ---- looking up ----


def _in_place_function(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function that writes the same into its first argument: ``torch.relu_``, ``operator.iadd``."""
    name = function.__name__
    if getattr(operator, name, None) is function:
        found = getattr(operator, f"i{name}", None)
    else:
        found = getattr(F, f"{name}_", None) or getattr(torch, f"{name}_", None)
    return found if callable(found) else None


_FUNCTIONS = {function: row for row in TABLE for function in row.functions}
#: in-place function -> the one that leaves its input alone
_OUT_OF_PLACE = {
    written: function for function in reversed(_FUNCTIONS) if (written := _in_place_function(function)) is not None
}
_METHODS = {method: row for row in TABLE for method in row.methods}
_IN_PLACE_METHODS = {f"{method}_": row for method, row in _METHODS.items() if hasattr(Tensor, f"{method}_")}
_MODULES = {kind: row for row in TABLE for kind in row.modules}
_ATEN = {f"aten.{overload}": row for row in TABLE for overload in row.aten}
_ELSEWHERE = {name: row for row in TABLE for name in row.elsewhere}


def of(node: fx.Node) -> Operator | None:
    """The operation that a function or method node calls, in place or not."""
    if node.op == "call_method":
        name = str(node.target)
        return _METHODS.get(name) or _IN_PLACE_METHODS.get(name)
    if node.op != "call_function":
        return None
    target: Any = node.target
    return _FUNCTIONS.get(_OUT_OF_PLACE.get(target, target)) or _ELSEWHERE.get(getattr(target, "__name__", ""))


def of_module(module: nn.Module) -> Operator | None:
    """The operation that a module computes: of its class, or of the base class whose forward it has."""
    for kind in type(module).__mro__:
        row = _MODULES.get(kind)
        if row is not None and has_stock_forward(module, kind):
            return row
    return None


def of_aten(name: str) -> Operator | None:
    """The operation of an ATen overload, named as in ``aten.relu.default``."""
    return _ATEN.get(name)


def in_place(node: fx.Node) -> bool:
    """Whether a node calls an operation's in-place form; an argument ``inplace`` does not count."""
    return str(node.target) in _IN_PLACE_METHODS if node.op == "call_method" else node.target in _OUT_OF_PLACE


def out_of_place(function: Any) -> Callable[..., Any] | None:
    """The function that leaves its input alone, for one that writes into it."""
    return _OUT_OF_PLACE.get(function)


def callables(row: Operator) -> dict[Callable[..., Any], bool]:
    """Every function and method of an operation -> whether it is its in-place form."""
    found = dict.fromkeys([*row.functions, *(getattr(Tensor, name) for name in row.methods)], False)
    found |= {written: True for written, plain in _OUT_OF_PLACE.items() if plain in row.functions}
    found |= {getattr(Tensor, name): True for name, owner in _IN_PLACE_METHODS.items() if owner is row}
    return found
