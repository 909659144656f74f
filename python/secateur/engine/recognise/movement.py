"""Chains of view, transpose, chunk, slice and the like that select channels, or flatten.

There are too many ways to write a channel shuffle to match them all. So a chain is run on numbered pixels, for three
batch sizes (one image is a case of its own: ``squeeze()``), and its output shows what it does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ...graph import operators
from .steps import BATCHED_ROWS, PLANES, POOLED, ROWS, Context, Input, Step, Unsupported

_MOST = 1 << 24  # numbered pixels that are tried at most


def is_movement(ctx: Context, node: fx.Node) -> bool:
    """Whether a node only picks values, copies them or shapes them anew, and leaves its input as it was."""
    known = operators.of_module(ctx.module(node)) if node.op == "call_module" else operators.of(node)
    return known is not None and known.kind in ("view", "copy", "concat") and not operators.in_place(node)


def movement(ctx: Context, node: fx.Node) -> Step:
    """The effect of the chain of movements that ends in ``node`` on the value that it starts from."""
    root, chain = _chain(ctx, node)
    layout = ctx.layout(root)
    if layout == BATCHED_ROWS:
        raise Unsupported("it moves values that are no image")
    made = [_probe(ctx, node, root, layout, chain, batch) for batch in (2, 3, 1)]
    if any(each != made[0] for each in made):
        raise Unsupported("what it moves depends on the batch size")
    kind, out, index = made[0]
    attributes: dict[str, Any] = {"index": index} if kind == "select_channels" else {}
    return Step(kind, node, [(root, layout)], out, **attributes)


def _chain(ctx: Context, node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """The value that is moved, and the movements in order, the last one being ``node``."""
    chain = [node]
    while True:
        source = chain[0].args[0] if chain[0].args else chain[0].kwargs.get("input")
        if not isinstance(source, fx.Node):
            raise Unsupported("it moves several tensors")
        if source in ctx.order.pinned:
            raise Unsupported(ctx.order.pinned[source])
        if source in ctx.steps or not is_movement(ctx, source):
            return source, chain
        chain.insert(0, source)


def _probe(
    ctx: Context, node: fx.Node, root: fx.Node, layout: str, chain: list[fx.Node], batch: int
) -> tuple[str, str, list[int]]:
    shape = ctx.meta(root).shape or ()
    x = torch.arange(batch * _count(shape[1:]), dtype=torch.float64).reshape(batch, *shape[1:])
    values: dict[fx.Node, Any] = {root: x}
    sizes = _Sizes(ctx, batch, shape[0], values)
    for each in chain:
        args, kwargs = fx.node.map_arg((each.args, each.kwargs), sizes.value)
        try:
            values[each] = _run(ctx, each, args, kwargs)
        except Exception as error:
            raise Unsupported("it holds for one batch size only") from error
    y = values[node]
    if not isinstance(y, Tensor):
        raise Unsupported("its result is no single tensor")
    return _what(x, y, layout)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    if count > _MOST:
        raise Unsupported("its input is too large to see what it moves")
    return count


def _run(ctx: Context, node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_module":
        return ctx.module(node)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _what(x: Tensor, y: Tensor, layout: str) -> tuple[str, str, list[int]]:
    batch = x.shape[0]
    if layout in (ROWS, POOLED):
        if y.dim() in (2, 4) and y.numel() == x.numel() and torch.equal(y.reshape(-1), x.reshape(-1)):
            if y.dim() == 2 and y.shape[0] == batch:
                return "alias", ROWS, []
            if y.dim() == 4 and y.shape[0] == batch and y.shape[2:] == (1, 1):
                return "alias", POOLED, []
        raise Unsupported("it moves features")
    if y.dim() == 2 and torch.equal(y, x.flatten(1)):
        return "flatten", ROWS, []
    if y.dim() == 4 and y.shape[0] == batch and y.shape[2:] == x.shape[2:] and y.shape[1]:
        pixels = x.shape[2] * x.shape[3]
        index = (y[0, :, 0, 0] / pixels).long()
        if int(index.max()) < x.shape[1] and torch.equal(y, x.index_select(1, index)):
            if index.tolist() == list(range(x.shape[1])):
                return "alias", PLANES, []
            return "select_channels", PLANES, index.tolist()
    raise Unsupported("it neither picks channels nor flattens")


class _Sizes:
    """Numbers that the chain takes from the shapes of tensors, as they would be for another batch size."""

    def __init__(self, ctx: Context, batch: int, example: int, values: dict[fx.Node, Any]) -> None:
        self.ctx = ctx
        self.batch = batch
        self.example = example
        self.values = values

    def value(self, node: fx.Node) -> Any:
        if node in self.values:
            return self.values[node]
        meta = self.ctx.meta(node)
        if meta.constant is not None and node not in self.ctx.order.pinned:
            return meta.constant
        self.values[node] = self._number(node)
        return self.values[node]

    def _number(self, node: fx.Node) -> Any:
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and self.ctx.meta(source).shape is not None:
            shape = self._shape(source)
            if node.op == "call_function" and node.target is getattr and node.args[1] == "shape":
                return shape
            if node.op == "call_method" and node.target in ("size", "numel", "dim"):
                like = torch.empty(shape, device="meta")
                return getattr(like, str(node.target))(*node.args[1:], **node.kwargs)
        if node.op == "call_function" and self.ctx.meta(node).number is not None:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.value)
            return node.target(*args, **kwargs)  # type: ignore[operator]
        raise Unsupported("a size is computed from values")

    def _shape(self, node: fx.Node) -> torch.Size:
        if isinstance(self.values.get(node), Tensor):
            return torch.Size(self.values[node].shape)
        shape = self.ctx.meta(node).shape or ()
        first = self.batch if shape and shape[0] == self.example else (shape or (0,))[0]
        return torch.Size((first, *shape[1:]))


def expand(ctx: Context, node: fx.Node) -> Step:
    """Pooled rows broadcast over the pixels of planes: the join does that by itself (nodes.py checks the readers)."""
    source = ctx.source(node.args[0], POOLED)
    have, want = ctx.meta(source[0]).shape or (), ctx.meta(node).shape or ()
    if len(want) != 4 or want[:2] != have[:2]:
        raise Unsupported("it repeats values")
    return Step("expand", node, [source], POOLED)


def concat(ctx: Context, node: fx.Node) -> Step:
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    if not isinstance(tensors, tuple | list) or not tensors or not isinstance(dim, int):
        raise Unsupported("its tensors are not a list")
    inputs = [ctx.source(t, PLANES, ROWS, POOLED) for t in tensors]
    if any(layout == PLANES for _, layout in inputs) and any(layout == POOLED for _, layout in inputs):
        inputs = _as_planes(ctx, inputs)
    layouts = {layout for _, layout in inputs}
    if len(layouts) != 1:
        raise Unsupported("it joins rows with planes")
    dims = len(ctx.meta(node).shape or ())
    if dim % dims != 1:
        raise Unsupported(f"it joins along dim {dim}")
    return Step("concat", node, inputs, inputs[0][1])


def _as_planes(ctx: Context, inputs: list[Input]) -> list[Input]:
    if any(node in ctx.steps and layout == POOLED for node, layout in inputs):
        raise Unsupported("it joins pooled maps with planes")
    return [(node, PLANES) for node, _ in inputs]
