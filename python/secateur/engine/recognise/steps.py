"""A node that the engine can run, as a step: the operation, its inputs, and the layout of its value."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...graph.tracing import Meta, Traced
from ...graph.value_order import Order
from ..backends.program import NONE, Act, Grid, Size

# How a value lies in the engine, and what torch sees of it.
PLANES = "planes"  # [N, C, H, W]
ROWS = "rows"  # [N, F]
POOLED = "rows4"  # rows in the engine, [N, F, 1, 1] in torch: what a global average pool leaves
BATCHED_ROWS = "lead"  # rows in the engine, [..., F] in torch, three dimensions or more

Input = tuple[fx.Node, str]  # a node, and the layout in which it is wanted


class Unsupported(Exception):
    """The node stays torch; the message says why."""


class Step:
    """One operation for the builder: its kind, and its attributes by the names that the engine declares for the kind
    (``secateur._host.kinds()``), with tensors of torch and float64 where something was folded.

    ``pad``, ``alias`` and ``expand`` are no kinds of the engine: their readers take them over.
    """

    def __init__(
        self, kind: str, node: fx.Node, inputs: list[Input], out: str, *, weight_scale: Tensor | None = None,
        grid_in: Grid | None = None, **attributes: Any,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.node = node
        self.inputs = inputs
        self.out = out
        self.attributes = attributes
        self.name = ""
        self.row_scale: Tensor | None = (
            None  # [K], folded into the weight only while it is handed over: no copy is kept
        )
        self.weight_scale = weight_scale  # [K], of int8 weights
        self.grid_in = grid_in  # the input's grid, for int8 weights
        self.sizes_of: list[fx.Node] = []  # tensors of which only the size is read
        self.place = 0  # in the order of the graph
        self._weighed: tuple[tuple[int, ...], float] | None = None

    def copy(self) -> Step:
        """The same step, to be changed alone."""
        made = copy.copy(self)
        made.attributes = dict(self.attributes)
        return made

    @property
    def weight(self) -> Tensor | None:
        return self.attributes.get("weight")

    @property
    def act(self) -> Act:
        return self.attributes.get("act", NONE)  # type: ignore[no-any-return]

    @property
    def join(self) -> str:
        return self.attributes.get("join", "none")  # type: ignore[no-any-return]

    @property
    def grid(self) -> Grid | None:
        """Set: the result is bytes."""
        return self.attributes.get("grid")

    @property
    def affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Scale and shift of a map."""
        return self.attributes.get("scale"), self.attributes.get("shift")

    @property
    def is_affine(self) -> bool:
        return any(t is not None for t in self.affine)

    @property
    def heavy(self) -> bool:
        return self.kind in ("conv2d", "linear")

    def weighed(self) -> tuple[tuple[int, ...] | None, float | None]:
        """The weight's shape, and its share of zeros."""
        weight = self.weight
        if weight is not None and self._weighed is None:
            zeros = 1 - int(torch.count_nonzero(weight)) / max(weight.numel(), 1)
            self._weighed = tuple(weight.shape), zeros
        return self._weighed or (None, None)

    def forget_weight(self) -> None:
        self.weighed()
        self.attributes.pop("weight", None)


class Context:
    """The state of recognition: the graph, the example's values in it, and the steps found so far."""

    def __init__(self, traced: Traced, order: Order, dtypes: tuple[torch.dtype, ...]) -> None:
        self.traced = traced
        self.order = order
        self.dtypes = dtypes
        self.steps: dict[fx.Node, Step] = {}
        self.size_bound = False  # the steps hold for this image size alone

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
        """A number, or a sequence of them; a number computed from sizes binds the result to this image size."""
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
            return BATCHED_ROWS
        raise Unsupported(f"an operand is [{', '.join(map(str, meta.shape))}]")

    def check(self, meta: Meta) -> None:
        """Raise unless the engine computes with such a value."""
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
        if layout not in wanted and node not in self.steps and POOLED in wanted and self.is_pooled(node):
            layout = POOLED
        if layout not in wanted and node not in self.steps and BATCHED_ROWS in wanted and layout == PLANES:
            layout = BATCHED_ROWS  # torch's own value: four dimensions can be read either way
        if layout not in wanted:
            raise Unsupported(f"its input is {layout}, not {' or '.join(wanted)}")
        return node, layout

    def is_pooled(self, node: fx.Node) -> bool:
        shape = self.meta(node).shape or ()
        return len(shape) == 4 and shape[2:] == (1, 1)

    def channels(self, node: fx.Node, layout: str) -> int:
        shape = self.meta(node).shape or ()
        return shape[-1] if layout in (ROWS, BATCHED_ROWS) else shape[1]


def bind(node: fx.Node, names: str, **defaults: Any) -> dict[str, Any]:
    """A call's arguments by name; ``names`` are needed because signatures of torch's functions are not always true."""
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
