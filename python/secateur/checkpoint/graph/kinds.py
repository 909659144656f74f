"""The modules that a file may name: their words, and the numbers that make one.

A module's sizes are those of its tensors in the file, so no number can claim a larger one. All others are arguments of
the constructor, plain numbers and words, each with the values that it may have. Modules are made on the meta device:
they take no memory yet.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ... import masks
from ...nn import (
    MaskedConv2d,
    MaskedLinear,
    Quantize,
    QuantizedConv2d,
    QuantizedLinear,
    SparseConv2d,
    SparseLinear,
    ThresholdReLU,
)
from ...nn.sparse import Trial

#: Whole numbers are below this.
MOST_NUMBER = 2**31

Sizes = tuple[int, ...]
#: A module's own tensors in the file: name -> shape
Own = Mapping[str, Sizes]
#: The value that an argument has in Python, of that in the file. Raises ValueError.
Check = Callable[[Any], Any]


# ---- values ----


def whole(low: int, high: int = MOST_NUMBER) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value < high:
            raise ValueError(f"must be a whole number from {low} to {high}, got {value!r:.60}")
        return value

    return check


def number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > 1e30:
        raise ValueError(f"must be a number, got {value!r:.60}")
    return value  # type: ignore[no-any-return]  # an int stays one, as in the module


def flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"must be true or false, got {value!r:.60}")
    return value


def choice(*allowed: str) -> Check:
    def check(value: Any) -> str:
        if type(value) is not str or value not in allowed:
            raise ValueError(f"must be {' or '.join(allowed)}, got {value!r:.60}")
        return value

    return check


def maybe(inner: Check) -> Check:
    return lambda value: None if value is None else inner(value)


def either(*checks: Check) -> Check:
    def check(value: Any) -> Any:
        for one in checks[:-1]:
            with contextlib.suppress(ValueError):
                return one(value)
        return checks[-1](value)

    return check


def several(inner: Check, low: int, high: int | None = None) -> Check:
    """A list of ``low`` to ``high`` values, as a tuple."""

    def check(value: Any) -> tuple[Any, ...]:
        most = low if high is None else high
        if type(value) is not list or not low <= len(value) <= most:
            raise ValueError(f"must be {low} to {most} values, got {value!r:.60}")
        return tuple(inner(one) for one in value)

    return check


# ---- kinds ----

_ABSENT = object()


@dataclass(frozen=True)
class Argument:
    """An argument of a constructor, which the module has as an attribute of that name."""

    name: str
    check: Check
    default: Any  # what is not written

    def checked(self, value: Any) -> Any:
        try:
            return self.check(value)
        except ValueError as error:
            raise ValueError(f"{self.name} {error}") from None


def _value(module: nn.Module, argument: Argument) -> Any:
    return getattr(module, argument.name)


@dataclass(frozen=True)
class Kind:
    """One class of modules."""

    word: str
    type: type[nn.Module]
    make: Callable[[Own, dict[str, Any]], nn.Module]
    arguments: tuple[Argument, ...] = ()
    value: Callable[[nn.Module, Argument], Any] = _value

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """The arguments of a module, those at their defaults left out. Raises ValueError: one has no such value."""
        found: dict[str, Any] = {}
        for argument in self.arguments:
            value = argument.checked(_plain(self.value(module, argument)))
            if value != argument.default or type(value) is not type(argument.default):
                found[argument.name] = _plain(value)
        return found

    def build(self, path: str, own: Own, given: Any) -> nn.Module:
        """The module of that name on the meta device. Raises ValueError: arguments or tensors of no such module."""
        try:
            return self._build(own, given)
        except KeyError as error:
            raise ValueError(f"{path}: a {self.word} must have {error}, but the file has none") from None
        except Exception as error:  # of the constructor
            raise ValueError(f"{path}: {self.word}: {(str(error).splitlines() or [''])[0]}") from None

    def _build(self, own: Own, given: Any) -> nn.Module:
        if type(given) is not dict or not given.keys() <= {argument.name for argument in self.arguments}:
            raise ValueError(f"there are no such arguments: {given!r:.100}")
        values: dict[str, Any] = {}
        for argument in self.arguments:
            values[argument.name] = argument.checked(given.get(argument.name, _plain(argument.default)))
        return self.make(own, values)


def _plain(value: Any) -> Any:
    """Tuples as lists, which JSON has."""
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


def _shape(own: Own, name: str, dims: int) -> Sizes:
    shape = own[name]
    if len(shape) != dims:
        raise ValueError(f"{name} must have {dims} dims, got {list(shape)}")
    return shape


_SIZE, _STEP = whole(0), whole(1)
_DIM = whole(-64, 64)
_INPLACE = Argument("inplace", flag, False)
_PADDING_MODES = choice("zeros", "reflect", "replicate", "circular")


def _steps(dims: int) -> Check:
    return several(_STEP, dims)


def _conv(kind: Any, dims: int) -> Callable[[Own, dict[str, Any]], nn.Module]:
    def make(own: Own, a: dict[str, Any]) -> nn.Module:
        first, second, *kernel = _shape(own, "weight", dims + 2)
        transposed = "output_padding" in a
        channels = (first, second * a["groups"]) if transposed else (second * a["groups"], first)
        made: nn.Module = kind(*channels, tuple(kernel), **a, bias="bias" in own, device="meta")
        return made

    return make


def _conv_arguments(dims: int, transposed: bool = False) -> tuple[Argument, ...]:
    zeros, ones = (0,) * dims, (1,) * dims
    padding = several(_SIZE, dims)
    return (
        Argument("stride", _steps(dims), ones),
        Argument("padding", padding if transposed else either(padding, choice("same", "valid")), zeros),
        *([Argument("output_padding", padding, zeros)] if transposed else ()),
        Argument("dilation", _steps(dims), ones),
        Argument("groups", _STEP, 1),
        Argument("padding_mode", choice("zeros") if transposed else _PADDING_MODES, "zeros"),
    )


def _linear(kind: Any) -> Callable[[Own, dict[str, Any]], nn.Module]:
    def make(own: Own, a: dict[str, Any]) -> nn.Module:
        rows, columns = _shape(own, "weight", 2)
        made: nn.Module = kind(columns, rows, bias="bias" in own, device="meta")
        return made

    return make


def _masked(make: Callable[[Own, dict[str, Any]], nn.Module]) -> Callable[[Own, dict[str, Any]], nn.Module]:
    def make_unmasked(own: Own, a: dict[str, Any]) -> nn.Module:
        made = make(own, a)
        masks.detach(made, "weight")  # it comes with the weight
        return made

    return make_unmasked


def _empty(shape: Sizes, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _sparse_value(module: nn.Module, argument: Argument) -> Any:
    if argument.name == "weight_shape":
        return module.weight_shape
    if argument.name == "undecided":  # or the dense form was faster: that is measured again, at the first call
        return module.trial is not None or module.dense_weight is not None
    return getattr(module, argument.name)


def _sparse(kind: Any, dims: int) -> Callable[[Own, dict[str, Any]], nn.Module]:
    def make(own: Own, a: dict[str, Any]) -> nn.Module:
        shape = a.pop("weight_shape")
        rows, size = _shape(own, "weight_mask", 2)
        (kept,) = _shape(own, "weight_values", 1)
        columns = math.prod(shape[1:])
        if len(shape) != dims or (rows, size) != (shape[0], -(-columns // 8)) or kept > rows * columns:
            raise ValueError(f"weight_shape {list(shape)} must fit weight_mask, {[rows, size]}")
        undecided, in_blocks = a.pop("undecided"), a.pop("in_blocks", False)
        made = kind(torch.zeros(1, *[1] * (dims - 1)))  # its constructor packs a weight; the sizes come afterwards
        if dims == 4:
            plain = nn.Conv2d(shape[1] * a["groups"], shape[0], shape[2:], **a, device="meta")
            for name in (*nn.Conv2d.__constants__, "_reversed_padding_repeated_twice", "transposed"):
                if name in plain.__dict__:
                    made.__dict__[name] = plain.__dict__[name]
            if in_blocks:
                made.in_blocks = True
        else:
            made.out_features, made.in_features = rows, columns
        if "bias" in own:
            made.bias = nn.Parameter(_empty((rows,)))
        made.weight_shape = shape
        made.weight_mask = _empty((rows, size), torch.uint8)
        made.weight_values = nn.Parameter(_empty((kept,)), requires_grad=False)
        made.trial = Trial({}) if undecided else None
        return made  # type: ignore[no-any-return]

    return make


def _norm(kind: Any) -> Callable[[Own, dict[str, Any]], nn.Module]:
    def make(own: Own, a: dict[str, Any]) -> nn.Module:
        features = a.pop("num_features")
        if any(shape != (features,) for name, shape in own.items() if name != "num_batches_tracked"):
            raise ValueError(f"num_features must be {features} in its tensors")
        made: nn.Module = kind(
            features, affine="weight" in own, track_running_stats="running_mean" in own, **a, device="meta"
        )
        return made

    return make


_NORM = (
    Argument("num_features", _SIZE, None),
    Argument("eps", number, 1e-5),
    Argument("momentum", maybe(number), 0.1),
)


def _layer_norm(own: Own, a: dict[str, Any]) -> nn.Module:
    return nn.LayerNorm(**a, elementwise_affine="weight" in own, bias="bias" in own, device="meta")


def _group_norm(own: Own, a: dict[str, Any]) -> nn.Module:
    return nn.GroupNorm(**a, affine="weight" in own, device="meta")


def _embedding(own: Own, a: dict[str, Any]) -> nn.Module:
    rows, columns = _shape(own, "weight", 2)
    return nn.Embedding(rows, columns, **a, device="meta")


def _prelu(own: Own, a: dict[str, Any]) -> nn.Module:
    (count,) = _shape(own, "weight", 1)
    return nn.PReLU(count, device="meta")


def _threshold_relu(own: Own, a: dict[str, Any]) -> nn.Module:
    return ThresholdReLU(_empty(own["theta"]), **a)


def _quantize(own: Own, a: dict[str, Any]) -> nn.Module:
    theta = _empty(_shape(own, "theta", 1), torch.uint8) if "theta" in own else None
    return Quantize(_empty(_shape(own, "scale", 0)), _empty(_shape(own, "zero_point", 0), torch.int32), theta)


def _held(own: Own, dims: int) -> tuple[Any, ...]:
    weight = _shape(own, "weight_int8", dims)
    return (
        _empty(weight, torch.int8), _empty(own["weight_scale"]), _empty(own["bias"]) if "bias" in own else None,
        _empty(own["input_scale"]), _empty(own["input_zero_point"], torch.int32),
    )  # fmt: skip


def _quantized_conv(own: Own, a: dict[str, Any]) -> nn.Module:
    held = _held(own, 4)
    if held[0].shape[0] % a["groups"]:
        raise ValueError(f"groups must divide {held[0].shape[0]}, got {a['groups']}")
    return QuantizedConv2d(*held, **a)


def _quantized_linear(own: Own, a: dict[str, Any]) -> nn.Module:
    return QuantizedLinear(*_held(own, 2))


def _plainly(kind: Any) -> Callable[[Own, dict[str, Any]], nn.Module]:
    def make(own: Own, a: dict[str, Any]) -> nn.Module:
        made: nn.Module = kind(**a)
        return made

    return make


def _simple(word: str, kind: Any, *arguments: Argument) -> Kind:
    return Kind(word, kind, _plainly(kind), arguments)


def _window(dims: int) -> Check:
    return either(_STEP, _steps(dims))


def _pads(dims: int) -> Check:
    return either(_SIZE, several(_SIZE, dims))


def _sized(dims: int) -> Check:
    return either(_STEP, several(maybe(_STEP), dims))


def _max_pool(word: str, kind: Any, dims: int) -> Kind:
    return _simple(
        word, kind, Argument("kernel_size", _window(dims), None), Argument("stride", _window(dims), None),
        Argument("padding", _pads(dims), 0), Argument("dilation", _window(dims), 1),
        Argument("return_indices", flag, False), Argument("ceil_mode", flag, False),
    )  # fmt: skip


def _avg_pool(word: str, kind: Any, dims: int) -> Kind:
    own = (Argument("divisor_override", maybe(_STEP), None),) if dims > 1 else ()
    return _simple(
        word, kind, Argument("kernel_size", _window(dims), None), Argument("stride", _window(dims), None),
        Argument("padding", _pads(dims), 0), Argument("ceil_mode", flag, False),
        Argument("count_include_pad", flag, True), *own,
    )  # fmt: skip


def _dropout(word: str, kind: Any) -> Kind:
    return _simple(word, kind, Argument("p", number, 0.5), _INPLACE)


_QUANTIZED_CONV = tuple(
    Argument(name, several(_SIZE if name == "padding" else _STEP, 2), (0, 0) if name == "padding" else (1, 1))
    for name in ("stride", "padding", "dilation")
)  # fmt: skip
_SPARSE = (Argument("weight_shape", several(_SIZE, 2, 4), None), Argument("undecided", flag, False))

TABLE: tuple[Kind, ...] = (
    *(Kind(f"conv{n}d", kind, _conv(kind, n), _conv_arguments(n))
      for n, kind in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d))),
    *(Kind(f"conv_transpose{n}d", kind, _conv(kind, n), _conv_arguments(n, True))
      for n, kind in ((1, nn.ConvTranspose1d), (2, nn.ConvTranspose2d), (3, nn.ConvTranspose3d))),
    Kind("linear", nn.Linear, _linear(nn.Linear)),
    Kind("masked_conv2d", MaskedConv2d, _masked(_conv(MaskedConv2d, 2)), _conv_arguments(2)),
    Kind("masked_linear", MaskedLinear, _masked(_linear(MaskedLinear))),
    Kind("sparse_conv2d", SparseConv2d, _sparse(SparseConv2d, 4),
         (*_SPARSE, Argument("in_blocks", flag, False), *_conv_arguments(2)), _sparse_value),
    Kind("sparse_linear", SparseLinear, _sparse(SparseLinear, 2), _SPARSE, _sparse_value),
    Kind("threshold_relu", ThresholdReLU, _threshold_relu, (Argument("max", maybe(number), None), _INPLACE)),
    Kind("quantize", Quantize, _quantize),
    Kind("quantized_conv2d", QuantizedConv2d, _quantized_conv, (*_QUANTIZED_CONV, Argument("groups", _STEP, 1))),
    Kind("quantized_linear", QuantizedLinear, _quantized_linear),
    *(Kind(f"batch_norm{n}d", kind, _norm(kind), _NORM)
      for n, kind in ((1, nn.BatchNorm1d), (2, nn.BatchNorm2d), (3, nn.BatchNorm3d))),
    *(Kind(f"instance_norm{n}d", kind, _norm(kind), _NORM)
      for n, kind in ((1, nn.InstanceNorm1d), (2, nn.InstanceNorm2d), (3, nn.InstanceNorm3d))),
    Kind("layer_norm", nn.LayerNorm, _layer_norm,
         (Argument("normalized_shape", several(_STEP, 1, 8), None), Argument("eps", number, 1e-5))),
    Kind("group_norm", nn.GroupNorm, _group_norm,
         (Argument("num_groups", _STEP, None), Argument("num_channels", _STEP, None), Argument("eps", number, 1e-5))),
    Kind("embedding", nn.Embedding, _embedding,
         (Argument("padding_idx", maybe(_SIZE), None), Argument("scale_grad_by_freq", flag, False),
          Argument("sparse", flag, False))),
    Kind("prelu", nn.PReLU, _prelu),
    _simple("relu", nn.ReLU, _INPLACE),
    _simple("relu6", nn.ReLU6, _INPLACE),
    _simple("hardtanh", nn.Hardtanh, Argument("min_val", number, -1.0), Argument("max_val", number, 1.0), _INPLACE),
    _simple("leaky_relu", nn.LeakyReLU, Argument("negative_slope", number, 0.01), _INPLACE),
    _simple("elu", nn.ELU, Argument("alpha", number, 1.0), _INPLACE),
    _simple("celu", nn.CELU, Argument("alpha", number, 1.0), _INPLACE),
    _simple("selu", nn.SELU, _INPLACE),
    _simple("hardswish", nn.Hardswish, _INPLACE),
    _simple("hardsigmoid", nn.Hardsigmoid, _INPLACE),
    _simple("silu", nn.SiLU, _INPLACE),
    _simple("mish", nn.Mish, _INPLACE),
    _simple("gelu", nn.GELU, Argument("approximate", choice("none", "tanh"), "none")),
    _simple("glu", nn.GLU, Argument("dim", _DIM, -1)),
    _simple("sigmoid", nn.Sigmoid),
    _simple("logsigmoid", nn.LogSigmoid),
    _simple("tanh", nn.Tanh),
    _simple("softsign", nn.Softsign),
    _simple("softplus", nn.Softplus, Argument("beta", number, 1.0), Argument("threshold", number, 20.0)),
    _simple("softmax", nn.Softmax, Argument("dim", maybe(_DIM), None)),
    _simple("log_softmax", nn.LogSoftmax, Argument("dim", maybe(_DIM), None)),
    _max_pool("max_pool1d", nn.MaxPool1d, 1),
    _max_pool("max_pool2d", nn.MaxPool2d, 2),
    _max_pool("max_pool3d", nn.MaxPool3d, 3),
    _avg_pool("avg_pool1d", nn.AvgPool1d, 1),
    _avg_pool("avg_pool2d", nn.AvgPool2d, 2),
    _avg_pool("avg_pool3d", nn.AvgPool3d, 3),
    *(_simple(f"adaptive_avg_pool{n}d", kind, Argument("output_size", _sized(n), None))
      for n, kind in ((1, nn.AdaptiveAvgPool1d), (2, nn.AdaptiveAvgPool2d), (3, nn.AdaptiveAvgPool3d))),
    *(_simple(f"adaptive_max_pool{n}d", kind, Argument("output_size", _sized(n), None),
              Argument("return_indices", flag, False))
      for n, kind in ((1, nn.AdaptiveMaxPool1d), (2, nn.AdaptiveMaxPool2d), (3, nn.AdaptiveMaxPool3d))),
    _simple("zero_pad2d", nn.ZeroPad2d, Argument("padding", several(whole(-MOST_NUMBER), 4), None)),
    _simple("constant_pad2d", nn.ConstantPad2d, Argument("padding", several(whole(-MOST_NUMBER), 4), None),
            Argument("value", number, 0.0)),
    _simple("reflection_pad2d", nn.ReflectionPad2d, Argument("padding", several(_SIZE, 4), None)),
    _simple("replication_pad2d", nn.ReplicationPad2d, Argument("padding", several(_SIZE, 4), None)),
    _simple("flatten", nn.Flatten, Argument("start_dim", _DIM, 1), Argument("end_dim", _DIM, -1)),
    _simple("unflatten", nn.Unflatten, Argument("dim", _DIM, None),
            Argument("unflattened_size", several(whole(-1), 1, 8), None)),
    _simple("channel_shuffle", nn.ChannelShuffle, Argument("groups", _STEP, None)),
    _simple("pixel_shuffle", nn.PixelShuffle, Argument("upscale_factor", _STEP, None)),
    _simple("pixel_unshuffle", nn.PixelUnshuffle, Argument("downscale_factor", _STEP, None)),
    _simple("upsample", nn.Upsample, Argument("size", maybe(either(_STEP, several(_STEP, 1, 3))), None),
            Argument("scale_factor", maybe(either(number, several(number, 1, 3))), None),
            Argument("mode", choice("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear"),
                     "nearest"),
            Argument("align_corners", maybe(flag), None), Argument("recompute_scale_factor", maybe(flag), None)),
    _simple("identity", nn.Identity),
    _dropout("dropout", nn.Dropout),
    _dropout("dropout1d", nn.Dropout1d),
    _dropout("dropout2d", nn.Dropout2d),
    _dropout("dropout3d", nn.Dropout3d),
    _dropout("alpha_dropout", nn.AlphaDropout),
    _dropout("feature_alpha_dropout", nn.FeatureAlphaDropout),
)  # fmt: skip

BY_WORD = {kind.word: kind for kind in TABLE}
#: By exact class: a subclass may compute something else.
BY_TYPE = {kind.type: kind for kind in TABLE}


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module; None: its class is none of the table's."""
    return BY_TYPE.get(type(module))


def why_not_alike(module: nn.Module, built: nn.Module) -> str:
    """The first difference between a module and what its description makes; empty: none."""
    own_masks = {masks.buffer_name(name) for name in masks.masked_parameters(module)}  # they come with the weights
    for name, value in vars(built).items():
        if name in own_masks:
            continue
        derived = name == "_reversed_padding_repeated_twice" and vars(built).get("padding_mode") != "zeros"
        if derived or not (name.startswith("_") or name in _NOT_COMPARED or isinstance(value, Tensor | nn.Module)):
            own = getattr(module, name, _ABSENT)
            if own is _ABSENT or _plain(own) != _plain(value):
                return f"{name} is {own!r:.60}, and would be {value!r:.60}"
    return ""


_NOT_COMPARED = ("training", "trial")
