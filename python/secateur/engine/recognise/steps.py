"""What the front knows of a node that the engine can run: a step, its inputs, and how its value is laid out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...graph.tracing import Meta, Traced
from ...graph.value_order import Order
from ..backends.program import NONE, Act, Grid, Size

# How a value lies in the engine, and what torch sees of it.
PLANES = "planes"  # [N, C, H, W]
ROWS = "rows"  # [N, F]
ROWS4 = "rows4"  # rows in the engine, [N, F, 1, 1] in torch: what a global average pool leaves
LEAD = "lead"  # rows in the engine, [..., F] in torch, three dimensions or more

Input = tuple[fx.Node, str]  # a node, and the layout in which it is wanted


class Unsupported(Exception):
    """The node stays torch; the message says why."""


@dataclass
class Step:
    """One operation for the builder (:mod:`secateur.engine.program`), with float64 where something was folded."""

    kind: str  # conv2d linear max_pool avg_pool global_avg_pool map concat select flatten quantize alias pad
    node: fx.Node
    inputs: list[Input]
    out: str
    name: str = ""
    weight: Tensor | None = None
    row_scale: Tensor | None = None  # [K], folded into the weight only while it is handed over: no copy is kept
    bias: Tensor | None = None
    stride: Size = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: Size = (1, 1)
    groups: int = 1
    kernel: Size = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int = 0
    scale: Tensor | None = None  # [C], map
    shift: Tensor | None = None
    join: str = "none"
    act: Act = NONE
    index: list[int] = field(default_factory=list)  # select
    weight_scale: Tensor | None = None  # [K], of int8 weights
    grid_in: Grid | None = None  # the bytes that int8 weights are for
    grid: Grid | None = None  # the result is bytes
    theta: Tensor | None = None  # uint8 [C]: thresholds on those bytes
    sizes_of: list[fx.Node] = field(default_factory=list)  # tensors of which only the size is read
    place: int = 0  # in the order of the graph
    shape: tuple[int, ...] | None = None  # of the weight, and its share of zeros, once it is forgotten
    zeros: float | None = None

    @property
    def heavy(self) -> bool:
        return self.kind in ("conv2d", "linear")

    def weighed(self) -> tuple[tuple[int, ...] | None, float | None]:
        """The weight's shape, and its share of zeros."""
        if self.weight is not None and self.zeros is None:
            self.shape = tuple(self.weight.shape)
            self.zeros = 1 - int(torch.count_nonzero(self.weight)) / max(self.weight.numel(), 1)
        return self.shape, self.zeros

    def forget_weight(self) -> None:
        self.weighed()
        self.weight = None


class Context:
    """What recognition sees: the graph, the example's way through it, and what has been recognised so far."""

    def __init__(self, traced: Traced, order: Order, dtypes: tuple[torch.dtype, ...]) -> None:
        self.traced = traced
        self.order = order
        self.dtypes = dtypes
        self.steps: dict[fx.Node, Step] = {}
        self.size_bound = False  # what was recognised holds for this image size alone

    def meta(self, node: fx.Node) -> Meta:
        return self.traced.meta[node]

    def module(self, node: fx.Node) -> nn.Module:
        return self.traced.module.get_submodule(str(node.target))

    def constant(self, value: Any, what: str = "operand") -> Tensor | None:
        """The tensor that a node always has; None for None."""
        if value is None:
            return None
        found = self.find_constant(value)
        if found is None:
            raise Unsupported(f"its {what} is computed from the input")
        return found

    def find_constant(self, value: Any) -> Tensor | None:
        if isinstance(value, fx.Node) and value not in self.order.pinned:
            return self.meta(value).constant
        return None

    def number(self, value: Any) -> Any:
        """A number, or a sequence of them; what is computed from sizes binds the result to this image size."""
        if isinstance(value, fx.Node):
            meta = self.meta(value)
            if meta.number is None:
                raise Unsupported("an argument is computed in the graph")
            self.size_bound = True
            return meta.number
        if isinstance(value, tuple | list):
            return tuple(self.number(v) for v in value)
        return value

    def layout(self, node: Any) -> str:
        """How a node's value would reach the engine; raises where it cannot."""
        if not isinstance(node, fx.Node):
            raise Unsupported("an operand is no tensor")
        if node in self.steps:
            return self.steps[node].out
        meta = self.meta(node)
        if meta.shape is None:
            raise Unsupported("an operand is no single tensor")
        self.check(meta)
        if node.op == "get_attr" or meta.constant is not None:
            raise Unsupported("an operand is a constant")
        if len(meta.shape) == 4:
            return PLANES
        if len(meta.shape) == 2:
            return ROWS
        if len(meta.shape) >= 3:
            return LEAD
        raise Unsupported(f"an operand is [{', '.join(map(str, meta.shape))}]")

    def check(self, meta: Meta) -> None:
        """Only what the engine computes with."""
        if meta.shape is None:
            raise Unsupported("its result is no single tensor")
        if meta.device != "cpu":
            raise Unsupported(f"the engine runs on the CPU, this is on {meta.device}")
        if meta.dtype not in self.dtypes:
            raise Unsupported(f"the engine computes float32, this is {str(meta.dtype).removeprefix('torch.')}")
        if 0 in meta.shape:
            raise Unsupported(f"it is empty: {list(meta.shape)}")

    def source(self, node: Any, *wanted: str) -> Input:
        """The node as an input in one of the wanted layouts."""
        layout = self.layout(node)
        if layout not in wanted and node not in self.steps and ROWS4 in wanted and self.is_pooled(node):
            layout = ROWS4
        if layout not in wanted and node not in self.steps and LEAD in wanted and layout == PLANES:
            layout = LEAD  # torch's own value: four dimensions can be read either way
        if layout not in wanted:
            raise Unsupported(f"its input is {layout}, not {' or '.join(wanted)}")
        return node, layout

    def is_pooled(self, node: fx.Node) -> bool:
        shape = self.meta(node).shape or ()
        return len(shape) == 4 and shape[2:] == (1, 1)

    def channels(self, node: fx.Node, layout: str) -> int:
        shape = self.meta(node).shape or ()
        return shape[-1] if layout in (ROWS, LEAD) else shape[1]


def bind(node: fx.Node, names: str, **defaults: Any) -> dict[str, Any]:
    """A call's arguments by name: what torch's functions are called is not always what their signature says."""
    order = names.split()
    bound = dict.fromkeys(order)
    bound.update(defaults)
    if len(node.args) > len(order):
        raise Unsupported(f"it has {len(node.args)} arguments")
    bound.update(zip(order, node.args, strict=False))
    unknown = set(node.kwargs) - set(order)
    if unknown:
        raise Unsupported(f"its argument {min(unknown)} is not known")
    bound.update(node.kwargs)
    return bound


def pair(value: Any) -> Size:
    """2, (2,) or (2, 3) as (2, 2) or (2, 3)."""
    values = (value,) if isinstance(value, int) else tuple(value)
    if len(values) not in (1, 2) or not all(isinstance(v, int) for v in values):
        raise Unsupported(f"{value!r} is not one or two integers")
    return (values[0], values[-1])
