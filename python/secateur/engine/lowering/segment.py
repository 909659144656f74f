"""A segment at run time: its program, torch's form of the same, and the choice of the faster one."""

from __future__ import annotations

import hashlib
import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..._base import timing
from ..._base.state import MODE
from ..._base.tensors import clones, close
from ..backends.program import Backend, ProgramLike, Size, Unplannable
from ..recognise.steps import BATCHED_ROWS, PLANES, POOLED, ROWS, Context, Step
from .fuse import Fuser
from .partition import Part
from .writer import Feed, Writer

_ROUNDS = 9


@dataclass
class Decision:
    """Whether a segment runs in the engine, and why; kept with the model, so that a copy need not measure again."""

    engine: bool
    why: str
    ms: float | None = None
    torch_ms: float | None = None


class Segment(nn.Module):
    """Takes the values that it needs (``inputs``), returns those that others need (``outputs``): one tensor, or a
    tuple. Made by :func:`build`; holds no parameters of its own (torch's form refers to the model's)."""

    def __init__(
        self, backend: Backend, program: ProgramLike | None, feeds: list[Feed], gives: list[tuple[int, str]],
        torch_form: fx.GraphModule, steps: list[Step], flops: float, why: str, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backend = backend
        self.program = program
        self.feeds = feeds  # (which argument, layout, channels or features), in the order of the program's inputs
        self.gives = gives  # (which output of the program, layout), in the order of this module's
        self.torch_form = torch_form.forward
        self._held = torch_form  # keeps its modules alive
        self.steps = steps
        self.flops = flops
        self.decision = Decision(False, why) if program is None else None
        self.engine = program is not None
        self.example: list[Size] = []
        self.dtype = dtype

    def forward(self, *args: Tensor) -> Any:
        if self.engine:
            inputs = self._inputs(args)
            if inputs is not None:
                try:
                    return self._outputs(self.backend.run(inputs, self.program), args)
                except Unplannable as refusal:  # any other error is a bug: no fallback
                    return self._unplanned(args, refusal)
        return self.torch_form(*args)

    def _unplanned(self, args: Sequence[Tensor], refusal: Exception) -> Any:
        """The fallback to torch, where the engine has no plan for this image size (say, offsets beyond 16 bits). If the
        size is wrong, torch raises."""
        result = self.torch_form(*args)
        shapes = ", ".join(str(list(x.shape)) for x in args)
        if MODE.trials == 0:
            warnings.warn(f"compile: {self.steps[0].name}: torch computes {shapes}, for {refusal}", stacklevel=2)
        return result

    def _inputs(self, args: Sequence[Tensor]) -> list[Tensor] | None:
        """The program's inputs; None where it was not built for these arguments."""
        inputs: list[Tensor] = []
        lead = None
        for which, layout, size in self.feeds:
            x = args[which]
            shape = x.shape
            if type(x) is not Tensor and type(x) is not nn.Parameter:
                return None  # subclasses of tensors (torch.export's and others) are for torch
            if x.dtype != self.dtype or x.device.type != "cpu" or x.layout != torch.strided:
                return None
            if layout == PLANES:
                if len(shape) != 4 or shape[1] != size:
                    return None
            elif layout == ROWS:
                if len(shape) != 2 or shape[1] != size:
                    return None
            elif layout == POOLED:
                if len(shape) != 4 or shape[1] != size or shape[2] != 1 or shape[3] != 1:
                    return None
                x = x.reshape(shape[0], size)
            else:
                if len(shape) < 3 or shape[-1] != size or (lead is not None and lead != shape[:-1]):
                    return None
                lead = shape[:-1]
                x = x.reshape(-1, size)
            if inputs and x.shape[0] != inputs[0].shape[0]:
                return None
            inputs.append(x)
        return inputs

    def _outputs(self, made: list[Tensor], args: Sequence[Tensor]) -> Any:
        results = []
        for which, layout in self.gives:
            y = made[which]
            if layout == POOLED:
                y = y[:, :, None, None]
            elif layout == BATCHED_ROWS:
                y = y.reshape(*args[self.feeds[0][0]].shape[:-1], y.shape[1])
            results.append(y)
        return results[0] if len(results) == 1 else tuple(results)

    # ---- which form ----

    def key(self, path: str) -> str:
        """Names the decision: the steps, and how sparse they are to a twentieth."""
        text = path + ";".join(
            f"{s.kind}:{s.name}:{'' if (zeros := s.weighed()[1]) is None else round(20 * zeros)}" for s in self.steps
        )
        return hashlib.sha1(text.encode()).hexdigest()

    def decide(self, args: Sequence[Tensor], path: str, decisions: dict[str, Decision], budget_s: float) -> None:
        """Measure both forms on these arguments, side by side, unless it is known which one is faster."""
        inputs = self._inputs(args)
        if self.program is None or inputs is None:
            self.engine = False
            self.decision = self.decision or Decision(False, "it cannot take what it was built for")
            return
        batch = inputs[0].shape[0]
        sizes = [(x.shape[2], x.shape[3]) for x in inputs if x.dim() == 4]
        self.example = sizes
        key = self.key(path)
        known = decisions.get(key)
        if known is None or known.engine:
            try:
                # The example's first image decides the zeros of activations.
                example = [self.backend.array(x[:1]) for x in inputs] if batch else []
                self.program.prepare(sizes, budget_s, example)
            except Unplannable as refusal:
                known = decisions[key] = Decision(False, f"the engine refuses it: {refusal}")
        if known is None:
            known = decisions[key] = self._measure(args, budget_s)
        self.decision, self.engine = known, known.engine

    def _measure(self, args: Sequence[Tensor], budget_s: float) -> Decision:
        self.engine = True
        # forward, not a call: this runs inside a hook of the call.
        ours, theirs = _as_tuple(self.forward(*clones(args))), _as_tuple(self.torch_form(*clones(args)))
        for a, b in zip(ours, theirs, strict=True):
            agree = _close_bytes if any(step.grid is not None for step in self.steps) else close
            if bool(torch.isfinite(b).all()) and not agree(a, b):
                return Decision(False, "its result differs from torch's on the example")
        forms = [lambda: self.forward(*args), lambda: self.torch_form(*args)]
        times = timing.interleave(forms, _ROUNDS, min(3.0, max(0.3, budget_s / 8)), until_clear=True)
        ms, torch_ms = (1e3 * statistics.median(t) for t in times)
        if ms < torch_ms:
            return Decision(True, f"{torch_ms / ms:.2f}x as fast as torch", ms, torch_ms)
        return Decision(False, f"the engine would take {ms / torch_ms:.2f}x as long", ms, torch_ms)


def _close_bytes(a: Tensor, b: Tensor) -> bool:
    """Equal but for bytes that are one step off now and then, where floats round the other way."""
    return a.shape == b.shape and float((a - b).norm()) <= 0.05 * float(b.norm()) + 1e-6


def _as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


@dataclass
class SegmentIO:
    """A segment's steps, inputs and outputs, found by :mod:`secateur.engine.lowering.assemble`."""

    part: Part
    outputs: list[fx.Node] = field(default_factory=list)
    externals: list[fx.Node] = field(default_factory=list)  # the arguments of the module
    live: set[fx.Node] = field(default_factory=set)  # steps that are needed


def build(ctx: Context, plan: SegmentIO, torch_form: fx.GraphModule, backend: Backend, path: str) -> Segment:
    """The module of one segment. If the engine refuses it, it stays torch, with the refusal as its reason."""
    steps = [step for step in plan.part.steps if step.node in plan.live]
    fuser = Fuser(Part(steps), plan.outputs)
    fused = fuser.ordered()
    flops = sum(_flops(ctx, step) for step in fused)
    writer = Writer(ctx, plan, backend, path)
    program: ProgramLike | None = None
    feeds: list[Feed] = []
    gives: list[tuple[int, str]] = []
    why = ""
    try:
        program = writer.write(fused)
        carried = list(dict.fromkeys(fuser.of(node) for node in plan.outputs))
        for node in carried:
            program.output(writer.real(node))
        program.finish()
        feeds = writer.feeds
        gives = [(carried.index(fuser.of(node)), ctx.steps[node].out) for node in plan.outputs]
    except ValueError as error:
        program, why = None, f"the engine refuses it: {error}"
    return Segment(backend, program, feeds, gives, torch_form, fused, flops, why, writer.dtype)


def _flops(ctx: Context, step: Step) -> float:
    if step.weight is None:
        return 0.0
    shape = ctx.meta(step.node).shape or ()
    pixels = (
        math.prod(shape[2:]) if step.kind == "conv2d" else math.prod(shape[1:-1]) if step.out == BATCHED_ROWS else 1
    )
    return float(step.weight.numel() * pixels * (shape[0] if shape else 1))


__all__ = ["Decision", "Segment", "SegmentIO", "build"]
