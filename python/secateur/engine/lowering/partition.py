"""Which steps run together: segments as large as can be, without a path that leaves one and comes back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ..recognise.steps import BATCHED_ROWS, Context, Step


@dataclass
class Part:
    """One segment: its steps in the order of the graph."""

    steps: list[Step]

    @property
    def nodes(self) -> set[fx.Node]:
        return {step.node for step in self.steps}


def partition(ctx: Context, reasons: dict[fx.Node, str]) -> list[Part]:
    """The segments that are worth it; all other steps go back to torch, with a reason."""
    while True:
        parts = _components(ctx, _levels(ctx))
        dropped = False
        for part in parts:
            layouts = {layout for step in part.steps for layout in (step.out, *(layout for _, layout in step.inputs))}
            if not any(step.heavy for step in part.steps):
                idle = [step for step in part.steps if step.kind == "alias"]
                busy = [step for step in part.steps if step.kind != "alias"]
                dropped |= _give_back(ctx, idle, reasons, "it hands its input on")
                dropped |= _give_back(ctx, busy, reasons, "alone between torch operations, not worth a detour")
            elif BATCHED_ROWS in layouts and len(layouts) > 1:
                wrong = [
                    s
                    for s in part.steps
                    if s.out == BATCHED_ROWS or any(layout == BATCHED_ROWS for _, layout in s.inputs)
                ]
                dropped |= _give_back(ctx, wrong, reasons, "it is tied to operations on images")
            else:
                dropped |= _give_back(ctx, _outer_aliases(part), reasons, "it hands its input on")
        if not dropped:
            return parts


def _give_back(ctx: Context, steps: list[Step], reasons: dict[fx.Node, str], why: str) -> bool:
    for step in steps:
        del ctx.steps[step.node]
        reasons[step.node] = why
    return bool(steps)


def _outer_aliases(part: Part) -> list[Step]:
    """Steps that only hand an input of the segment on: there is nothing to compute."""
    nodes = part.nodes
    return [s for s in part.steps if s.kind == "alias" and s.inputs[0][0] not in nodes]


def _needs(ctx: Context, node: fx.Node) -> list[fx.Node]:
    """The nodes that must come before a node: its operands, and those that the order of writes demands."""
    step = ctx.steps.get(node)
    if step is not None:
        operands = [*(source for source, _ in step.inputs), *step.sizes_of]
    else:
        operands = list(node.all_input_nodes)
    return [*operands, *ctx.order.after.get(node, ())]


def _levels(ctx: Context) -> dict[fx.Node, int]:
    """The most changes from torch into the engine on any path to a node. A path that leaves a segment and comes back
    raises the level, so steps of one level never depend on each other through torch."""
    levels: dict[fx.Node, int] = {}
    for node in ctx.traced.graph.nodes:
        level = 0 if node in ctx.steps else -1
        for need in _needs(ctx, node):
            if need in levels:
                level = max(level, levels[need] + (node in ctx.steps and need not in ctx.steps))
        levels[node] = level
    return levels


def _components(ctx: Context, levels: dict[fx.Node, int]) -> list[Part]:
    """The steps of one level that are connected."""
    group: dict[fx.Node, list[fx.Node]] = {node: [node] for node in ctx.steps}
    for node in ctx.steps:
        for need in _needs(ctx, node):
            if need in group and levels[need] == levels[node] and group[need] is not group[node]:
                one, two = group[need], group[node]
                one.extend(two)
                for member in two:
                    group[member] = one
    parts: list[Part] = []
    seen: set[int] = set()
    for node in ctx.steps:
        members = group[node]
        if id(members) not in seen:
            seen.add(id(members))
            parts.append(Part(sorted((ctx.steps[m] for m in members), key=lambda s: s.place)))
    return parts


__all__ = ["Part", "partition"]
