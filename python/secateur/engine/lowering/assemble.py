"""From recognised segments to the graph that runs: each segment one call, torch's own operations between them."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..backends.program import Backend
from ..recognise.movement import is_movement
from ..recognise.nodes import interior
from ..recognise.steps import Context
from .partition import Part
from .segment import Segment, SegmentIO, build


@dataclass
class Assembled:
    """The graph that runs, its segments, and which of torch's operations are left in it (name -> why)."""

    module: fx.GraphModule
    segments: dict[str, Segment]
    torch_nodes: dict[str, fx.Node]  # name in the new graph -> node of the traced one


def assemble(
    ctx: Context, parts: list[Part], backend: Backend, path: str, opaque: Callable[[str], nn.Module]
) -> Assembled:
    """``opaque`` gives the module that stands for a target which is a graph of its own."""
    nodes = list(ctx.traced.graph.nodes)
    plans, needed, raw = _connect(ctx, parts, nodes)
    graph = fx.Graph()
    roots: dict[str, Any] = {}
    segments: dict[str, Segment] = {}
    torch_nodes: dict[str, fx.Node] = {}
    made: dict[fx.Node, fx.Node] = {}
    for group in _in_order(ctx, nodes, plans, needed):
        if isinstance(group, fx.Node):
            made[group] = graph.node_copy(group, lambda n: made[n])
            if group.op == "call_module" and str(group.target) in ctx.traced.opaque:
                roots[str(group.target)] = opaque(str(group.target))
            elif group.op in ("call_module", "get_attr"):
                roots[str(group.target)] = _attribute(ctx.traced.module, str(group.target))
            if group.op not in ("placeholder", "output", "get_attr"):
                torch_nodes[made[group].name] = group
            continue
        form = _torch_form(ctx, group, [n for n in nodes if n in raw[id(group)]])
        name = f"segment_{len(segments)}"
        segments[name] = roots[name] = build(ctx, group, form, backend, path)
        call = graph.call_module(name, tuple(made[n] for n in group.externals))
        if len(group.outputs) == 1:
            made[group.outputs[0]] = call
            continue
        for i, node in enumerate(group.outputs):
            made[node] = graph.call_function(_item, (call, i))
    # Names of a dict with dots become modules within modules.
    return Assembled(fx.GraphModule(roots, graph), segments, torch_nodes)


def _item(values: tuple[Any, ...], index: int) -> Any:
    return values[index]


def _attribute(module: nn.Module, target: str) -> Any:
    *path, last = target.split(".")
    owner: Any = module
    for name in path:
        owner = getattr(owner, name)
    return getattr(owner, last)


def _has_effect(ctx: Context, node: fx.Node) -> bool:
    """Whether a node is needed for an effect: it writes in place, draws random numbers, is a module that writes or that
    has hooks, or nothing reads its result."""
    if node.op in ("placeholder", "get_attr", "output") or node in ctx.steps:
        return False
    meta = ctx.meta(node)
    if meta.writes or ctx.traced.has_effects(node):
        return True
    return not node.users and meta.number is None and meta.constant is None and not is_movement(ctx, node)


def _connect(
    ctx: Context, parts: list[Part], nodes: list[fx.Node]
) -> tuple[list[SegmentIO], set[fx.Node], dict[int, set[fx.Node]]]:
    """Backwards from the output: the nodes that are needed, each segment's inputs and outputs, and the nodes of its
    torch form (its steps, and the nodes between them that only this form has)."""
    plans = [SegmentIO(part) for part in parts]
    plan_of = {step.node: plan for plan in plans for step in plan.part.steps}
    operands = {id(plan): {node for step in plan.part.steps for node, _ in step.inputs} for plan in plans}
    raw: dict[int, set[fx.Node]] = {id(plan): set() for plan in plans}
    needed: set[fx.Node] = set()

    def need(plan: SegmentIO, node: fx.Node) -> None:
        if node not in plan.externals:
            plan.externals.append(node)
        needed.add(node)

    for node in reversed(nodes):
        plan = plan_of.get(node)
        if node.op in ("output", "placeholder") or _has_effect(ctx, node):
            needed.add(node)
        if node in needed:
            if plan is None:
                needed.update(node.all_input_nodes)
            else:
                plan.outputs.append(node)
                plan.live.add(node)
        if plan is not None and node in plan.live:
            raw[id(plan)].add(node)
            for source, _ in ctx.steps[node].inputs:
                if plan_of.get(source) is plan:
                    plan.live.add(source)
                else:
                    need(plan, source)
        for each in plans:
            if node not in raw[id(each)]:
                continue
            for source in node.all_input_nodes:
                mine = plan_of.get(source) is each
                if mine or (source not in operands[id(each)] and interior(ctx, source)):
                    raw[id(each)].add(source)
                else:
                    need(each, source)
    for plan in plans:
        plan.outputs.reverse()
        plan.externals.sort(key=nodes.index)
    return [plan for plan in plans if plan.outputs], needed, raw


def _in_order(
    ctx: Context, nodes: list[fx.Node], plans: list[SegmentIO], needed: set[fx.Node]
) -> list[fx.Node | SegmentIO]:
    """Segments and torch's operations, each after what it needs, else as the program had them."""
    plan_of = {step.node: plan for plan in plans for step in plan.part.steps if step.node in plan.live}
    groups: dict[int, fx.Node | SegmentIO] = {}
    places: dict[int, int] = {}
    members: dict[fx.Node, int] = {}
    for place, node in enumerate(nodes):
        group: fx.Node | SegmentIO | None = plan_of.get(node, node if node in needed else None)
        if group is None:
            continue
        groups[id(group)], members[node] = group, id(group)
        places[id(group)] = place  # a segment's place is its last step's
    waits: dict[int, set[int]] = {key: set() for key in groups}
    for node, key in members.items():
        group = groups[key]
        sources = group.externals if isinstance(group, SegmentIO) else node.all_input_nodes
        for source in [*sources, *ctx.order.after.get(node, ())]:
            if source in members and members[source] != key:
                waits[key].add(members[source])
    readers: dict[int, set[int]] = {key: set() for key in groups}
    for key, sources_of in waits.items():
        for source_key in sources_of:
            readers[source_key].add(key)
    ready = [(places[key], key) for key, sources_of in waits.items() if not sources_of]
    heapq.heapify(ready)
    result: list[fx.Node | SegmentIO] = []
    while ready:
        _, key = heapq.heappop(ready)
        result.append(groups[key])
        for reader in readers[key]:
            waits[reader].discard(key)
            if not waits[reader]:
                heapq.heappush(ready, (places[reader], reader))
    assert len(result) == len(groups), "segments wait for each other"
    return result


def _torch_form(ctx: Context, plan: SegmentIO, raw: list[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {node: graph.placeholder(f"x{i}") for i, node in enumerate(plan.externals)}
    for node in raw:
        if node not in made:
            made[node] = graph.node_copy(node, lambda n: made[n])
    results = [made[node] for node in plan.outputs]
    graph.output(results[0] if len(results) == 1 else tuple(results))
    return fx.GraphModule(ctx.traced.module, graph)


__all__ = ["Assembled", "assemble"]
