"""The report of a compiled model: a row a layer, with its kernel, its times, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .._base.library import host
from .._base.timing import Spread
from ..pt2e import FP32
from ..report import Column, Report
from .lowering.assemble import Assembled
from .lowering.segment import Segment
from .unit import CompiledForward, Specialization

COLUMNS = (
    Column("layer", "layer", "text"),
    Column("kind", "kind", "text"),
    Column("shape", "shape", "shape"),
    Column("zeros", "zeros %", "percent"),
    Column("input_zeros", "of its input %", "percent"),
    Column("kernel", "kernel", "text"),
    Column("tile", "tile", "text"),
    Column("ms", "ms", "ms"),
    Column("dense_ms", "dense ms", "ms"),
    Column("roofline", "roofline %", "percent"),
    Column("why", "why", "text"),
)


Row = dict[str, Any]


ROUNDS = 7


def compile_report(unit: CompiledForward) -> Report:
    """The report of :func:`secateur.compile`: what runs each layer, and the times that decided it."""
    rows = [row for state in unit.states.values() for row in _state_rows(unit, state)]
    segments = list(segments_of(unit))
    notes = [summary_of(segments, rows)]
    for name, segment in segments:
        if segment.decision is not None and segment.decision.ms is not None:
            times = f"{segment.decision.ms:.3f} ms in the engine, {segment.decision.torch_ms:.3f} ms in torch"
            notes.append(f"{name}, {_extent(segment)}: {times}, {'engine' if segment.engine else 'torch'} it is")
    if isinstance(unit.module, fx.GraphModule):
        notes += [f"{name} computes with real values: {why}" for name, why in unit.module.meta.get(FP32, {}).items()]
    return Report("compiled", COLUMNS, rows, notes)


def report_row(name: str, kind: str, taken: Spread | None = None, why: str = "", **more: Any) -> Row:
    return {
        "layer": name, "kind": kind, "shape": None, "zeros": None, "input_zeros": None, "kernel": "torch",
        "tile": None, **milliseconds(taken), "dense_ms": None, "roofline": None, "why": why, "segment": None, **more,
    }  # fmt: skip


def milliseconds(taken: Spread | None) -> dict[str, float | None]:
    """What a row says of its times; None: it was not timed."""
    if taken is None:
        return dict.fromkeys(("ms", "ms_min", "ms_p25", "ms_p75"))
    return {
        "ms": 1e3 * taken.median, "ms_min": 1e3 * taken.least, "ms_p25": 1e3 * taken.low, "ms_p75": 1e3 * taken.high,
    }  # fmt: skip


def _state_rows(unit: CompiledForward, state: Specialization) -> Iterator[Row]:
    if state.assembled is None:
        yield report_row(state.path or type(unit.module).__name__, "python", why=state.why)
        for child in state.children:
            for each in child.states.values():
                yield from _state_rows(child, each)
            if not child.states:
                yield report_row(child.path, type(child.module).__name__, why="the example never reached it")
        return
    for node in state.assembled.module.graph.nodes:
        if node.target in state.assembled.segments and node.op == "call_module":
            yield from segment_rows(state, str(node.target))
        elif (unit_there := child_unit(state, node)) is not None:
            for each in unit_there.states.values():
                yield from _state_rows(unit_there, each)
        elif (row := torch_row(state, node)) is not None:
            yield row


def child_unit(state: Specialization, node: fx.Node) -> CompiledForward | None:
    if node.op != "call_module":
        return None
    wanted = f"{state.path}.{node.target}" if state.path else str(node.target)
    return next((child for child in state.children if child.path == wanted), None)


def segment_rows(
    state: Specialization, name: str, taken: Spread | None = None, inputs: Sequence[Tensor] | None = None
) -> Iterator[Row]:
    """``inputs``: time the steps on them, on the threads that run them. None: the times are those of the choice."""
    assert state.assembled is not None
    segment = state.assembled.segments[name]
    label = f"{state.path}.{name}" if state.path else name
    if segment.engine and segment.program is not None:
        steps = segment.program.describe(segment.example)
        if inputs is not None:
            steps = _timed_steps(segment.program, steps, inputs)
        for made in steps:
            if made["kind"] in ("halo", "nonzeros"):  # a convolution's end and beginning, where threads share it
                continue
            row = report_row(made["name"], made["kind"], segment=label)
            row.update({key: made[key] for key in ("shape", "zeros", "kernel", "why")})
            row.update({key: made[key] or None for key in ("ms", "dense_ms", "roofline")})  # 0: it was not timed
            row.update({key: made[key] for key in ("ms_min", "ms_p25", "ms_p75", "images") if key in made})
            row["tile"] = _text(made.get("tile"))
            known = made.get("input_zeros", -1.0)
            row["input_zeros"] = known if known >= 0 else None
            yield row
        return
    why = segment.decision.why if segment.decision is not None else ""
    heavy = [step for step in segment.steps if step.heavy]
    for i, step in enumerate(heavy):
        shape, zeros = step.weighed()
        yield report_row(
            f"{state.path}.{step.name}" if state.path else step.name, step.kind, why=why, segment=label,
            shape=shape, zeros=zeros,
            taken=taken if i == 0 and len(heavy) == 1 else None,
        )  # fmt: skip
    if taken is not None and len(heavy) != 1:
        yield report_row(label, "segment", taken, f"{len(heavy)} layers in torch's form: {why}", segment=label)


def _timed_steps(program: Any, steps: list[Row], inputs: Sequence[Tensor]) -> list[Row]:
    if not hasattr(torch.ops.secateur, "engine_step_times") or not isinstance(program, host.Program) or not inputs:
        return steps
    first = [x[:1].contiguous() for x in inputs]
    if first[0].shape[0] == 0:
        return steps
    rounds = [torch.ops.secateur.engine_step_times.default(first, program.id).tolist() for _ in range(ROUNDS)]
    taken = [list(times) for times in zip(*rounds, strict=True)]  # [steps][rounds] of ms
    for i, step in enumerate(steps):
        if step["kind"] == "halo" and i:
            taken[i - 1] = [ms + more for ms, more in zip(taken[i - 1], taken[i], strict=True)]
    for i, step in enumerate(steps):
        if step["kind"] == "nonzeros":
            taken[i + 1] = [ms + more for ms, more in zip(taken[i + 1], taken[i], strict=True)]
    for step, times in zip(steps, taken, strict=True):
        step.update(milliseconds(Spread.of([ms / 1e3 for ms in times])), images=inputs[0].shape[0])
    for step in steps:
        ms = step["ms"]
        step["roofline"] = step["floor_ms"] / torch.get_num_threads() / ms if step["floor_ms"] and ms else None
    return steps


def torch_row(state: Specialization, node: fx.Node, taken: Spread | None = None) -> Row | None:
    assert state.assembled is not None
    assert state.ctx is not None
    traced = state.assembled.torch_nodes.get(node.name)
    if traced is None or traced not in state.reasons:
        return None
    name = state.ctx.traced.names[traced]
    kind = str(getattr(traced.target, "__name__", traced.target))
    if traced.op == "call_module":
        kind = type(state.ctx.module(traced)).__name__
    return report_row(f"{state.path}.{name}" if state.path else name, kind, taken, state.reasons[traced])


def _text(tile: Any) -> str | None:
    if isinstance(tile, tuple | list):
        return "x".join(str(t) for t in tile)
    return None if tile is None else str(tile)


def segments_of(unit: CompiledForward) -> Iterator[tuple[str, Segment]]:
    for each in unit.settings.units.values() if unit.path == "" else [unit]:
        for state in each.states.values():
            assembled: Assembled | None = state.assembled
            for name, segment in (assembled.segments if assembled is not None else {}).items():
                yield (f"{state.path}.{name}" if state.path else name), segment


def _extent(segment: Segment) -> str:
    steps = [step.name for step in segment.steps]
    return steps[0] if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"


def summary_of(segments: Sequence[tuple[str, Segment]], rows: Sequence[Row]) -> str:
    running = sum(segment.engine for _, segment in segments)
    inside = sum(row["kernel"] != "torch" for row in rows)
    return f"{running} of {len(segments)} segments run in the engine; {inside} of {len(rows)} rows, the rest is torch"


def total_zeros(rows: Sequence[Row]) -> float | None:
    weights = zeros = 0.0
    for row in rows:
        if row["shape"] is not None and row["zeros"] is not None:
            count = 1
            for size in row["shape"]:
                count *= size
            weights += count
            zeros += count * row["zeros"]
    return zeros / weights if weights else None
