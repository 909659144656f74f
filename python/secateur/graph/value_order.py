"""Value semantics for graphs that write in place: every reader is given the right value, and none is overwritten.

``relu_(x)``, ``x += y`` and the like give a new value in the engine. So later readers of x must read the writer's
result instead. A writer that stays in torch must come after all readers of the old x. Operations with effects besides
their results (modules that write, hooks, random numbers) stay in the order of the program.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from torch import fx

from .tracing import Traced


@dataclass
class Order:
    """The order that the graph's arguments do not express."""

    after: dict[fx.Node, set[fx.Node]] = field(default_factory=dict)  # node -> nodes that must come before it as well
    pinned: dict[fx.Node, str] = field(default_factory=dict)  # nodes that must stay torch, and why

    def add(self, first: fx.Node, second: fx.Node) -> None:
        if first is not second:
            self.after.setdefault(second, set()).add(first)


def make_functional(traced: Traced) -> Order:
    """Rewire the graph (in place) so that each value is read from where it was last written."""
    order = Order()
    nodes = list(traced.graph.nodes)
    effects = [node for node in nodes if node.op != "output" and traced.has_effects(node)]
    for first, second in itertools.pairwise(effects):  # what they write and draw is in no argument
        order.add(first, second)
    place = {node: i for i, node in enumerate(nodes)}
    families = _families(traced, nodes)
    for node in nodes:
        for target in traced.meta[node].writes if node.op != "output" else ():
            family = families[target]
            if not _redirect(traced, node, target, family, place, order):
                _pin(node, family, place, order)
    return order


def _families(traced: Traced, nodes: list[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Nodes whose values lie in the same memory."""
    families: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        families[node] = [node]
        if node.op == "output":
            continue
        for other in traced.meta[node].shares:
            ours, theirs = families[node], families[other]
            if ours is not theirs:
                theirs.extend(ours)
                for member in ours:
                    families[member] = theirs
    return families


def _redirect(
    traced: Traced, writer: fx.Node, target: fx.Node, family: list[fx.Node], place: dict[fx.Node, int], order: Order
) -> bool:
    """Let later readers of the written value read the writer's result; False where this is impossible."""
    where = traced.meta[target].geometry
    if traced.meta[writer].geometry != where or writer not in family:
        return False
    earlier = [member for member in family if place[member] < place[writer]]
    for member in earlier:
        if member.op in ("placeholder", "get_attr"):
            return False  # memory held elsewhere: it has to be written
        if traced.meta[member].constant is not None:
            return False
        if any(traced.is_opaque(n) and place[n] < place[writer] for n in (member, *member.users)):
            return False  # a hook, or a forward that keeps values, may hold it
        late = any(place[user] > place[writer] for user in member.users)
        if late and traced.is_opaque(writer):
            return False  # its hooks may hand it, or give, another tensor: then nothing is written here
        if late and traced.meta[member].geometry != where:
            return False  # a view of it shows the write too
    for member in earlier:
        for user in list(member.users):
            if place[user] > place[writer]:
                user.replace_input_with(member, writer)
            elif user is not writer:
                order.add(user, writer)
    return True


def _pin(writer: fx.Node, family: list[fx.Node], place: dict[fx.Node, int], order: Order) -> None:
    """All nodes that touch this memory stay in torch, in the order of the program."""
    why = "it shares memory that is written in place"
    touching = {writer, *family, *(user for member in family for user in member.users)}
    for member in family:
        order.pinned[member] = why
    order.pinned[writer] = "it writes into memory that other values show"
    ordered = sorted((n for n in touching if n.op != "output"), key=place.__getitem__)
    for first, second in itertools.pairwise(ordered):
        order.add(first, second)


__all__ = ["Order", "make_functional"]
