"""Models that PyTorch's own flow has quantized (PT2E, ``torchao.quantization.pt2e``), translated to `secateur.nn`.

After ``convert_pt2e`` a model is a graph of ATen operators on real values, with pairs of quantize and dequantize
around them and weights as int8 constants that are dequantized. Here each pair becomes a :class:`~secateur.nn.Quantize`,
each layer between such values a :class:`~secateur.nn.QuantizedConv2d` or :class:`~secateur.nn.QuantizedLinear`, and the
rest ordinary torch functions. :func:`secateur.compile` takes the result.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ._base.errors import Error
from .graph import aten as functions
from .graph.operators import CONV2D, DROPOUT, LINEAR, MAX_POOL2D
from .nn.quantized import Quantize, QuantizedConv2d, QuantizedLinear

_OPS = "quantized_decomposed."
#: ``model.meta[FP32]``: names of quantized operations that could not be mapped -> why; they compute as they did.
FP32 = "secateur.fp32"


class _Grid(NamedTuple):
    """Bytes from ``low`` to ``high``; ``real = (q - zero_point) * scale``."""

    scale: float
    zero_point: int
    low: int
    high: int


@dataclass
class _Weight:
    values: Tensor  # int8 [K, ...]
    scale: Tensor  # [K]


class _Unfit(Exception):
    """The reason why an operation stays as it is."""


def is_pt2e(model: Any) -> bool:
    """Whether a model is a graph with PT2E's operators: what ``convert_pt2e`` gives."""
    return isinstance(model, fx.GraphModule) and any(
        functions.name_of(node).startswith(_OPS) for node in model.graph.nodes
    )


def from_pt2e(model: fx.GraphModule) -> fx.GraphModule:
    """The same model of :mod:`secateur.nn`'s integer layers and torch's functions; the given one is left alone.

    It computes what ``model`` does, up to one step of each rounding: PT2E adds biases in float32, here they are
    integers as the sums are. Activations may be 8 bits of any range (signed ones are moved up by 128, narrower ones
    clamped), weights int8, symmetric, per output channel or per tensor. All other operations stay as they are and still
    compute; ``result.meta["secateur.fp32"]`` names them and says why. Guards on the example's shapes are
    left out.

    Args:
        model: what ``torchao.quantization.pt2e``'s ``convert_pt2e`` gave.

    Raises:
        Error: model is no such graph; it writes in place into a view of what is read elsewhere.
    """
    if not is_pt2e(model):
        raise Error(f"from_pt2e: model must be what convert_pt2e gives, got {type(model).__name__}")
    return _Translation(model).result()


class _Translation:
    """``env`` maps nodes of the exported graph to those of the new one."""

    def __init__(self, model: fx.GraphModule) -> None:
        self.model = model
        self.graph = fx.Graph()
        self.root: dict[str, Any] = {}
        self.env: dict[fx.Node, fx.Node] = {}
        self.constants: dict[fx.Node, Tensor] = {}
        self.weights: dict[fx.Node, _Weight | str] = {}  # a reason where it can't be one
        self.quantized: dict[fx.Node, _Grid] = {}  # quantize operators
        self.modules: dict[fx.Node, fx.Node] = {}  # quantize operators -> the new graph's Quantize
        self.grids: dict[fx.Node, _Grid] = {}  # of values in the new graph
        self.fp32: dict[str, str] = {}

    def result(self) -> fx.GraphModule:
        for node in self.model.graph.nodes:
            self._translate(node)
        self.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or _acts(n))
        self.graph.lint()
        made = fx.GraphModule(self.root, self.graph)
        made.meta[FP32] = self.fp32
        return made.eval()

    def _translate(self, node: fx.Node) -> None:
        name = functions.name_of(node)
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.model)
            if isinstance(value, Tensor):
                self.constants[node] = value.detach()
            else:
                self.root[str(node.target)] = value
                self.env[node] = self.graph.get_attr(str(node.target))
        elif node.op == "output":
            self._output(node)
        elif node.op == "call_module" and not node.users:
            pass  # _guards_fn: it only looks whether the shapes are the example's
        elif name.startswith(_OPS) and node.args[0] in self.constants:
            self._constant(node)
        elif name.startswith(_OPS + "quantize_per_tensor"):
            self._quantize(node)
        elif name.startswith(_OPS + "dequantize_per_tensor") and node.args[0] in self.quantized:
            self._dequantize(node)
        elif _is_layer(node):
            self._layer(node)
        else:
            self._other(node)

    # ---- values ----

    def _value(self, node: fx.Node) -> fx.Node:
        """The new graph's node for it; a constant becomes a buffer when it is read."""
        if node not in self.env and node in self.constants:
            name = self._free(node.name)
            self.root[name] = self.constants[node].clone()
            self.env[node] = self.graph.get_attr(name)
        return self.env[node]

    def _free(self, wanted: str) -> str:
        """A name for a module or buffer that is neither taken nor lies inside of another."""
        parts = wanted.split(".")
        inside = any(".".join(parts[:i]) in self.root for i in range(1, len(parts)))
        if not all(part.isidentifier() or part.isdigit() for part in parts) or inside:
            wanted = "_".join(part for part in wanted.replace("-", "_").split(".") if part)
        name, count = wanted, 0
        while any(taken == name or taken.startswith(name + ".") for taken in self.root):
            count += 1
            name = f"{wanted}_{count}"
        return name

    def _call(self, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
        name = self._free(name)
        self.root[name] = module
        return self.graph.call_module(name, (x,))

    def _other(self, node: fx.Node) -> None:
        if node.op == "call_module":
            self.root[str(node.target)] = self.model.get_submodule(str(node.target))
        arguments: Any = fx.node.map_arg((node.args, node.kwargs), self._value)
        args, kwargs = arguments
        if any(read in self.weights for read in node.all_input_nodes):
            self.fp32.setdefault(node.name, f"there is no integer form of {functions.name_of(node) or node.target}")
        if node.op == "placeholder" or node.op == "call_module":
            self.env[node] = self.graph.create_node(node.op, node.target, args, kwargs, name=node.name)
            return
        made = self.env[node] = functions.emit(self.graph, node, args, kwargs)
        if functions.keeps_grid(made):
            grids = {self.grids.get(read) for read in made.all_input_nodes}
            if len(grids) == 1 and (grid := grids.pop()) is not None:
                self.grids[made] = grid
        if functions.operator_of(node) is DROPOUT and functions.bind(node)["train"] is False:
            self.env[node] = args[0]
        if functions.writes(node):
            self._written(node)

    def _written(self, node: fx.Node) -> None:
        """Make an in-place write functional: later readers of the input read the result."""
        target = node.args[0]
        assert isinstance(target, fx.Node)
        source = target
        while functions.is_view(source) and isinstance(source.args[0], fx.Node):
            if len(source.users) > 1 or len(source.args[0].users) > 1:
                raise Error(f"from_pt2e: model must not write into views of what is read elsewhere, {node} does")
            source = source.args[0]
        if any(functions.is_view(user) and user in self.env for user in target.users if user is not node):
            raise Error(f"from_pt2e: model must not write into what it has views of, {node} does")
        self.env[target] = self.env[node]

    # ---- quantize and dequantize ----

    def _number(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            if value not in self.constants or self.constants[value].numel() != 1:
                raise _Unfit("its scale or zero point is computed from the input")
            return self.constants[value].item()
        return value

    def _grid(self, node: fx.Node) -> _Grid:
        a = functions.bind(node)
        scale, zero_point, low, high = (self._number(a[k]) for k in ("scale", "zero_point", "quant_min", "quant_max"))
        if a["dtype"] not in (torch.uint8, torch.int8) or a.get("out_dtype") not in (None, torch.float32):
            raise _Unfit(f"it rounds to {str(a['dtype']).removeprefix('torch.')}, not to bytes")
        shift = 128 if a["dtype"] == torch.int8 else 0
        grid = _Grid(float(scale), int(zero_point) + shift, int(low) + shift, int(high) + shift)
        if not (0 <= grid.zero_point <= 255 and grid.scale > 0):
            raise _Unfit(f"its zero point, {zero_point}, is no byte, or its scale, {scale:g}, is not above 0")
        return grid

    def _quantize(self, node: fx.Node) -> None:
        self._other(node)  # for readers of the bytes themselves; removed if there are none
        try:
            self.quantized[node] = self._grid(node)
        except _Unfit as reason:
            self.fp32[node.name] = str(reason)

    def _dequantize(self, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        try:
            fits = self._grid(node) == self.quantized[source]
        except _Unfit:
            fits = False
        if not fits:
            self.fp32[node.name] = "it reads bytes otherwise than they were written"
            self._other(node)
            return
        if source not in self.modules:
            self.modules[source] = self._rounded(source, self.quantized[source])
        self.env[node] = self.modules[source]

    def _rounded(self, node: fx.Node, grid: _Grid) -> fx.Node:
        """The values that a quantize operator's bytes stand for, in the new graph."""
        x: Any = self.env[node].args[0]
        if self.grids.get(x) == grid:  # already rounded to this grid
            return x  # type: ignore[no-any-return]
        if not _is_lone_max_pool(node.args[0]):
            return self._round(x, grid)
        # Rounding commutes with a max pool, and before the pool it can be part of a layer.
        inner = self._round(x.args[0], grid)
        pooled = self.graph.call_function(x.target, (inner, *x.args[1:]), x.kwargs)
        self.grids[pooled] = grid
        return pooled

    def _round(self, x: fx.Node, grid: _Grid) -> fx.Node:
        name = f"{x.name}_quantize"
        if (grid.low, grid.high) != (0, 255):
            bounds = ((q - grid.zero_point) * grid.scale for q in (grid.low, grid.high))
            x = self.graph.call_function(torch.clamp, (x, *bounds))
        rounded = self._call(name, Quantize(grid.scale, grid.zero_point), x)
        self.grids[rounded] = grid
        return rounded

    def _constant(self, node: fx.Node) -> None:
        """A weight or bias; quantize is one of the operators where the constants were not folded."""
        arguments: Any = fx.node.map_arg((node.args, node.kwargs), self.constants.__getitem__)
        args, kwargs = arguments
        self.constants[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        if not functions.name_of(node).startswith(_OPS + "dequantize"):
            return
        values = args[0]
        a = {name: self.constants.get(v, v) for name, v in functions.bind(node).items() if name != "input"}
        scale = torch.as_tensor(a.get("scales", a.get("scale")), dtype=torch.float32)
        zero_points = a.get("zero_points", a.get("zero_point"))
        if values.dtype != torch.int8:
            self.weights[node] = f"its weight is {str(values.dtype).removeprefix('torch.')}, not int8"
        elif zero_points is not None and bool(torch.as_tensor(zero_points).any()):
            self.weights[node] = "its weight is not symmetric"
        elif a.get("axis", 0) != 0:
            self.weights[node] = f"its weight has scales along dim {a['axis']}, not along its output channels"
        else:
            self.weights[node] = _Weight(values, scale.reshape(-1).expand(values.shape[0]))

    # ---- layers ----

    def _layer(self, node: fx.Node) -> None:
        a = functions.bind(node)
        try:
            module = self._module(node, a)
        except _Unfit as reason:
            if a["weight"] in self.weights or self._value(a["input"]) in self.grids:
                self.fp32[node.name] = str(reason)
            self._other(node)
            return
        stack = list((node.meta.get("nn_module_stack") or {"": ("",)}).values())
        self.env[node] = self._call(str(stack[-1][0]) or node.name, module, self._value(a["input"]))

    def _module(self, node: fx.Node, a: dict[str, Any]) -> nn.Module:
        weight = self.weights.get(a["weight"])
        if not isinstance(weight, _Weight):
            raise _Unfit(weight or "its weight is not quantized")
        grid = self.grids.get(self._value(a["input"]))
        if grid is None:
            raise _Unfit("its input is not quantized")
        bias = None if a["bias"] is None else self.constants.get(a["bias"])
        if a["bias"] is not None and bias is None:
            raise _Unfit("its bias is computed from the input")
        held = (weight.values, weight.scale, bias, grid.scale, grid.zero_point)
        shown = node.meta.get("val")
        try:
            made: QuantizedConv2d | QuantizedLinear
            if functions.operator_of(node) is LINEAR:
                made = QuantizedLinear(*held)
            elif isinstance(shown, Tensor) and shown.dim() != 4:
                raise _Unfit("its input is one image without a batch")
            else:
                stride, padding, dilation = (_pair(a[name]) for name in ("stride", "padding", "dilation"))
                made = QuantizedConv2d(*held, stride, padding, dilation, a["groups"])
            made.bias_int32()  # sums must fit 32 bits
        except Error as reason:
            raise _Unfit(str(reason)) from reason
        return made

    # ---- inputs and outputs ----

    def _output(self, node: fx.Node) -> None:
        """Called like the original. Without pytrees where the arguments are plain and the result is a tensor or a
        sequence of them: this form can be traced again."""
        values: Any = fx.node.map_arg(node.args[0], self._value)
        codegen = self.model.graph._codegen
        info = getattr(codegen, "pytree_info", None)
        if info is not None:
            inputs, outputs = (_numbered(spec) for spec in (info.in_spec, info.out_spec))
            plain = [n for n in self.graph.nodes if n.op == "placeholder"]
            alone = outputs == 0
            flat = isinstance(outputs, tuple | list) and list(outputs) == list(range(len(outputs)))
            if inputs == (tuple(range(len(plain))), {}) and (alone or flat):
                values = values[0] if alone else type(outputs)(values)
            else:
                self.graph.set_codegen(codegen)
        self.graph.output(values)


def _is_layer(node: fx.Node) -> bool:
    """A convolution or linear layer with its padding in numbers, which ATen's other overload gives as a word."""
    return functions.operator_of(node) in (CONV2D, LINEAR) and functions.name_of(node).endswith(".default")


def _is_lone_max_pool(node: Any) -> bool:
    """A max pool in the exported graph that has one reader, and is the only reader of its input."""
    return (
        isinstance(node, fx.Node)
        and functions.operator_of(node) is MAX_POOL2D
        and len(node.users) == 1
        and len(node.all_input_nodes[0].users) == 1
    )


def _acts(node: fx.Node) -> bool:
    """Whether it has side effects; modules here have none."""
    return node.op == "call_function" and node.is_impure()


def _pair(value: Any) -> tuple[int, int]:
    """Lists of one stand for both directions in ATen."""
    numbers = [value] if isinstance(value, int) else list(value)
    return (numbers[0], numbers[-1])


def _numbered(spec: Any) -> Any:
    """What the structure looks like with its leaves numbered."""
    return pytree.tree_unflatten(list(range(spec.num_leaves)), spec)


__all__ = ["FP32", "from_pt2e", "is_pt2e"]
