"""Which values of a network become bytes.

The network's input, every value that an int8 layer reads, and every value that int8 layers made and that is stored. A
value is stored if an operation reads it that cannot be part of the layer's epilogue. A value that only an activation
reads, or the addend that stays in a convolution's accumulators, is never stored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import fx

from ..graph.tracing import Meta
from .kinds import Kind, is_value, tensors_of

#: The grid passes through: their own output never needs a Quantize.
_PASS = ("move", "pool", "concat")


@dataclass
class Values:
    """A graph's values, with their makers and readers."""

    kinds: dict[fx.Node, Kind]
    meta: Mapping[fx.Node, Meta]
    pinned: Collection[fx.Node] = ()  # values in memory that is written later: nothing may stand after them
    readers: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    inputs: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node, kind in self.kinds.items():
            among = any(source in self.pinned for source in tensors_of(node, self.meta))
            if kind in ("unary", "add", "binary", "average", *_PASS) and (node in self.pinned or among):
                self.kinds[node] = kind = "real"
            first = next(iter(tensors_of(node, self.meta)), None) if kind == "move" else None
            if first is not None and self.kinds[first] != "move" and self.meta.get(first, Meta()).shape is None:
                self.kinds[node] = "real"  # one of several outputs, of an LSTM for example: a value of its own
        for node in self.kinds:
            self.readers.setdefault(node, [])
            self.inputs[node] = [] if self.kinds[node] == "size" else tensors_of(node, self.meta)
            for source in dict.fromkeys(self.inputs[node]):
                self.readers.setdefault(source, []).append(node)

    def through_moves(self, node: fx.Node) -> list[fx.Node]:
        """The readers of a value; a move counts as its own readers."""
        found: list[fx.Node] = []
        for reader in self.readers[node]:
            found += self.through_moves(reader) if self.kinds[reader] == "move" else [reader]
        return found

    def roots(self, node: fx.Node) -> list[fx.Node]:
        """The values whose grids a value lies on: the node itself, or what it was moved, pooled or joined from."""
        if self.kinds[node] not in _PASS:
            return [node]
        return [root for source in self.inputs[node] for root in self.roots(source)]

    def groups(self) -> dict[fx.Node, fx.Node]:
        """Values that some concatenation joins share a grid: each value -> the first of its group."""
        first: dict[fx.Node, fx.Node] = {}

        def find(node: fx.Node) -> fx.Node:
            while first.get(node, node) is not node:
                node = first[node]
            return node

        for node, kind in self.kinds.items():
            if kind == "concat":
                together = self.roots(node)
                for other in together[1:]:
                    first[find(other)] = find(together[0])
        return {node: find(node) for node in self.kinds}

    def accumulated(self, node: fx.Node, int8: Collection[fx.Node]) -> fx.Node | None:
        """The operand of a sum or product that stays float: it was just computed, and has no other reader."""
        operands = self.inputs[node]
        alone = [o for o in operands if len(self.readers[o]) == 1 and operands.count(o) == 1]
        if self.kinds[node] == "add":
            # A layer's own sums. Of two layers the later one: its other operand exists by then.
            alone = [o for o in alone if o in int8]
        else:
            alone = [o for o in alone if self.kinds[o] in ("layer", "unary", "add", "binary")]
            # The gate of a squeeze-and-excitation is one number a channel: the larger operand is the one to store.
            alone.sort(key=lambda o: -_size(self.meta.get(o)))
            return alone[-1] if alone else None
        order = {n: i for i, n in enumerate(self.kinds)}
        return max(alone, key=lambda o: order[o], default=None)

    def stored(self, node: fx.Node, int8: Collection[fx.Node] | None) -> bool:
        """Whether something reads a value that wants it as bytes. ``int8=None``: whether anything might."""
        readers = self.through_moves(node)
        for reader in readers:
            kind = self.kinds[reader]
            if kind == "layer":
                if int8 is None or reader in int8:
                    return True
            elif kind in ("add", "binary"):
                if int8 is None or len(readers) > 1 or self.accumulated(reader, int8) is not node:
                    return True
            elif kind == "average" or (kind in ("pool", "concat") and self._goes_on(reader)):
                return True
        return sum(self.kinds[reader] == "unary" for reader in readers) > 1

    def _goes_on(self, node: fx.Node) -> bool:
        """Whether a pooled or joined value is computed with, not just handed out."""
        return any(
            self._goes_on(reader) if self.kinds[reader] in ("pool", "concat") else self.kinds[reader] not in _OUT
            for reader in self.through_moves(node)
        )

    def candidates(self) -> list[fx.Node]:
        """Every value that some choice of int8 layers would make bytes."""
        return [node for node in self.kinds if self._may(node) and self.stored(node, None)]

    def _may(self, node: fx.Node) -> bool:
        if self.kinds[node] in (*_PASS, "output", "size") or not is_value(node, self.meta) or node in self.pinned:
            return False
        seen = self.meta.get(node, Meta())
        return seen.shape is not None and seen.dtype is not None and seen.dtype.is_floating_point

    def sites(self, int8: Collection[fx.Node]) -> list[fx.Node]:
        """The values that become bytes where ``int8`` are the layers that compute with them, in the graph's order."""
        wanted: set[fx.Node] = set()
        for layer in int8:
            for source in self.inputs[layer]:
                wanted.update(self.roots(source))
        made: set[fx.Node] = set()  # values that int8 layers had a part in
        found: list[fx.Node] = []
        for node, kind in self.kinds.items():
            if kind == "layer":
                ours = node in int8
            elif kind in ("input", "real", "size", "output"):
                ours = False
            else:
                ours = any(source in made for source in self.inputs[node])
            if ours:
                made.add(node)
            if self._may(node) and (node in wanted or (ours and self.stored(node, int8))):
                found.append(node)
        return found


_OUT = ("output", "real", "size")


def _size(meta: Meta | None) -> int:
    size = 1
    for n in meta.shape if meta is not None and meta.shape is not None else ():
        size *= n
    return size
