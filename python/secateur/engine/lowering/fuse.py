"""Within a segment: fewer steps for the same values.

BatchNorm and other scaling goes into the weights before it, sums into the convolution before them, activations into
the step before them. Only where nothing else reads the value in between.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx

from ..backends.program import NONE, Act, declares
from ..recognise.steps import BATCHED_ROWS, PLANES, Step
from .partition import Part


class Fuser:
    """Turns a part's steps into those that are built; ``value[node]`` is the node that carries a node's value."""

    def __init__(self, part: Part, outputs: list[fx.Node]) -> None:
        self.steps: dict[fx.Node, Step] = {}  # the node that carries the value -> how it is made
        self.value: dict[fx.Node, fx.Node] = {}
        for step in part.steps:
            self.value[step.node] = step.node
            if step.kind == "alias":
                self.value[step.node] = self.of(step.inputs[0][0])
            else:
                self.steps[step.node] = step.copy()
        for step in self.steps.values():
            step.inputs = [(self.of(node), layout) for node, layout in step.inputs]
        self.uses = Counter(node for step in self.steps.values() for node, _ in step.inputs)
        self.uses.update(self.of(node) for node in outputs)
        for node in self._of_kind("pad"):
            self._pad(node)
        for node in self._of_kind("map"):
            if node in self.steps and self.steps[node].join == "multiply":
                self._gate(node)
        for node in self._of_kind("map"):
            if node in self.steps:
                self._map(node)
        for node in self._of_kind("quantize"):
            self._quantize(node)

    def of(self, node: fx.Node) -> fx.Node:
        """The node that carries this node's value."""
        while node in self.value and self.value[node] is not node:
            node = self.value[node]
        return node

    def _of_kind(self, kind: str) -> list[fx.Node]:
        return [node for node, step in self.steps.items() if step.kind == kind]

    def ordered(self) -> list[Step]:
        return sorted(self.steps.values(), key=lambda s: s.place)

    def _alone(self, node: fx.Node, *kinds: str) -> Step | None:
        """The step that makes a value, if it is of these kinds, has no activation, and its value has one reader."""
        made = self.steps.get(node)
        if made is None or made.kind not in kinds or made.act != NONE or self.uses[node] != 1:
            return None
        return made

    def _absorb(self, gone: fx.Node, into: Step) -> None:
        """The step of ``gone`` is now part of ``into``, which is computed where ``gone`` was."""
        step = self.steps.pop(gone)
        self.steps.pop(into.node, None)
        self.value[into.node] = gone
        into.node, into.place = gone, step.place
        self.steps[gone] = into

    def _pad(self, node: fx.Node) -> None:
        pad = self.steps.pop(node)
        source = pad.inputs[0]
        for step in self.steps.values():
            if any(n is node for n, _ in step.inputs):
                step.inputs = [source if n is node else (n, layout) for n, layout in step.inputs]
                sides = zip(step.attributes["padding"], pad.attributes["padding"], strict=True)
                step.attributes["padding"] = tuple(a + b for a, b in sides)
                self.uses[source[0]] += 1
        self.uses[source[0]] -= 1
        del self.uses[node]

    def _gate(self, node: fx.Node) -> None:
        """x * sigmoid(x) is SiLU, x * hardsigmoid(x) is Hardswish."""
        step = self.steps[node]
        if step.is_affine or step.act != NONE:
            return
        (a, _), (b, _) = step.inputs
        for x, gate in ((a, b), (b, a)):
            made = self.steps.get(gate)
            if made is None or made.kind != "map" or made.join != "none" or made.is_affine:
                continue
            if self.uses[gate] == 1 and made.inputs[0][0] is x:
                kinds = {"sigmoid": Act("silu"), "hardsigmoid": Act("hardswish")}
                if made.act.kind in kinds:
                    step.inputs = [made.inputs[0]]
                    step.attributes.update(join="none", act=kinds[made.act.kind])
                    self.uses[x] -= 1
                    del self.steps[gate], self.uses[gate]
                    return

    def _quantize(self, node: fx.Node) -> None:
        """Fuse a quantize into the step that makes its input, if nothing else reads the floats."""
        step = self.steps[node]
        source, theta = step.inputs[0][0], step.attributes.get("theta")
        made = self.steps.get(source)
        if made is None or made.grid is not None or self.uses[source] != 1 or step.out == BATCHED_ROWS:
            return
        if made.kind in ("conv2d", "linear"):
            # A clamp becomes limits of bytes; other activations are computed on floats. A threshold is no such limit:
            # of two values that round to one byte it may keep one.
            fits = made.weight_scale is not None and made.act.kind in ("none", "clamp")
        else:  # kinds with a ``grid`` can end in bytes, on images: only layers and pools make rows of bytes
            fits = declares(made.kind, "grid") and (made.out == PLANES or made.kind == "global_avg_pool")
            fits = fits and (theta is None or declares(made.kind, "theta"))
        if fits:
            made.attributes["grid"], made.out = step.grid, step.out
            if theta is not None:
                made.attributes["theta"] = theta
            self._absorb(node, made)

    def _map(self, node: fx.Node) -> None:
        step = self.steps[node]
        if step.join == "none":
            self._unary(node, step)
        else:
            self._join(node, step)

    def _unary(self, node: fx.Node, step: Step) -> None:
        source = step.inputs[0][0]
        affine = step.is_affine
        made = self._alone(source, "conv2d", "linear", "map")
        if made is None or (affine and (made.join != "none" or len(made.inputs) > 1 or made.weight_scale is not None)):
            return
        if made.weight_scale is not None and made.kind == "linear" and step.act.theta is not None:
            return  # int8 rows have their thresholds in bytes
        if affine:
            if made.kind == "map":
                made.attributes.update(_compose(*made.affine, *step.affine))
            else:
                _fold(made, *step.affine)
        made.attributes["act"] = step.act
        made.out = step.out
        self._absorb(node, made)

    def _join(self, node: fx.Node, step: Step) -> None:
        plain = not step.is_affine
        (a, _), (b, _) = step.inputs
        if plain and step.join == "add" and all(layout == PLANES for _, layout in step.inputs) and a is not b:
            # The later of two convolutions takes the sum: its other operand exists by then.
            for x, other in sorted(((a, b), (b, a)), key=lambda pair: -self._place(pair[0])):
                made = self._alone(x, "conv2d")
                if made is not None and len(made.inputs) == 1:
                    made.inputs = [*made.inputs, (other, PLANES)]
                    made.attributes["act"] = step.act
                    self._absorb(node, made)
                    return
        if plain:
            same_layout = step.inputs[0][1] == step.inputs[1][1]
            for i in (0, 1) if same_layout else (0,):
                made = self._alone(step.inputs[i][0], "map")
                if made is not None and made.join == "none" and made.inputs[0][1] == step.inputs[i][1] and a is not b:
                    gone = step.inputs[i][0]
                    step.attributes.update({key: made.attributes.get(key) for key in ("scale", "shift")})
                    step.inputs = [made.inputs[0], step.inputs[1 - i]]
                    del self.steps[gone], self.uses[gone]
                    self.value.pop(gone, None)
                    return

    def _place(self, node: fx.Node) -> int:
        return self.steps[node].place if node in self.steps else -1


def _compose(
    scale: Tensor | None, shift: Tensor | None, then: Tensor | None, plus: Tensor | None
) -> dict[str, Tensor | None]:
    """then * (scale * x + shift) + plus."""
    both = scale if then is None else (then if scale is None else then * scale)
    moved = shift if then is None or shift is None else then * shift
    return {"scale": both, "shift": plus if moved is None else (moved if plus is None else moved + plus)}


def _fold(step: Step, scale: Tensor | None, shift: Tensor | None) -> None:
    """Fold scale and shift of each output channel into the weights, in float64."""
    assert step.weight is not None
    channels = step.weight.shape[0]
    bias = step.attributes.get("bias")
    bias = torch.zeros(channels, dtype=torch.float64) if bias is None else bias.double()
    if scale is not None:
        step.row_scale = scale if step.row_scale is None else step.row_scale * scale
        bias = bias * scale
    step.attributes["bias"] = bias if shift is None else bias + shift


__all__ = ["Fuser"]
