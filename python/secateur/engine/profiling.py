"""What a compiled model consists of, and where its time goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import _host
from .._errors import Error
from ..pt2e import FP32
from ..report import Column, Report
from .assemble import Assembled
from .segment import Segment
from .unit import State, Unit

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
_ROUNDS = 7

Row = dict[str, Any]


def compile_report(unit: Unit) -> Report:
    """The report of :func:`secateur.compile`: what runs what, with the times that the choices were made by."""
    rows = [row for state in unit.states.values() for row in _state_rows(unit, state)]
    segments = list(_segments(unit))
    notes = [_summary(segments, rows)]
    for name, segment in segments:
        if segment.decision is not None and segment.decision.ms is not None:
            times = f"{segment.decision.ms:.3f} ms in the engine, {segment.decision.torch_ms:.3f} ms in torch"
            notes.append(f"{name}, {_extent(segment)}: {times}, {'engine' if segment.engine else 'torch'} it is")
    if isinstance(unit.module, fx.GraphModule):
        notes += [f"{name} computes with real values: {why}" for name, why in unit.module.meta.get(FP32, {}).items()]
    return Report("compiled", COLUMNS, rows, notes)


def profile(fast: Any, example_input: Any) -> Report:
    """Where a compiled model's time goes: one row a layer, the total, and why each layer runs as it does.

    Args:
        fast: what :func:`secateur.compile` gave (:func:`secateur.convert`'s result carries its times in ``report``).
        example_input: a tensor, or a tuple of positional arguments, as the model takes them.

    Returns:
        A :class:`secateur.Report`. A row has ``layer``, ``kind``, ``shape`` of the weight, ``zeros`` (0 to 1),
        ``input_zeros`` (of the example that the choice was made on, where convolutions could skip them), ``kernel``
        ("sparse": zeros of the weights are skipped, "active": those of the input, "dense": none; "torch" for what runs
        there), ``tile``, ``ms``, ``dense_ms`` (the same layer with dense weights in
        the engine), ``roofline`` (share of the speed at which this machine loads what the layer must load), ``why``,
        and ``segment``. The total is the time of a whole call.

    Raises:
        Error: fast is not compiled, or the inputs are not what it takes.
    """
    from .compiled import CompiledModel

    if not isinstance(fast, CompiledModel):
        hint = "; secateur.convert's result has its times in .report" if isinstance(fast, nn.Module) else ""
        raise Error(f"profile: fast must come from secateur.compile, got {type(fast).__name__}{hint}")
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    with torch.no_grad():
        fast(*args)  # refuses what it does not take, builds what is not built
        unit: Unit = fast.__dict__["_built"].unit
        whole = _median_ms(lambda: fast(*args))
        rows = list(_profile_unit(unit, args))
    segments = list(_segments(unit))
    spent = sum(row["ms"] or 0.0 for row in rows)
    engine_ms = sum(row["ms"] or 0.0 for row in rows if row["kernel"] != "torch")
    notes = [
        _summary(segments, rows),
        f"{engine_ms:.3f} ms in the engine's layers, {spent - engine_ms:.3f} ms in torch, "
        f"{whole - spent:.3f} ms between them (layers are timed one by one)",
    ]
    total = {"layer": "total", "ms": whole, "zeros": _total_zeros(rows)}
    return Report("profile", COLUMNS, rows, notes, total)


# ---- rows ----


def _row(name: str, kind: str, ms: float | None = None, why: str = "", **more: Any) -> Row:
    return {
        "layer": name, "kind": kind, "shape": None, "zeros": None, "input_zeros": None, "kernel": "torch",
        "tile": None, "ms": ms, "dense_ms": None, "roofline": None, "why": why, "segment": None, **more,
    }  # fmt: skip


def _state_rows(unit: Unit, state: State) -> Iterator[Row]:
    if state.assembled is None:
        yield _row(state.path or type(unit.module).__name__, "python", why=state.why)
        for child in state.children:
            for each in child.states.values():
                yield from _state_rows(child, each)
            if not child.states:
                yield _row(child.path, type(child.module).__name__, why="the example never reached it")
        return
    for node in state.assembled.module.graph.nodes:
        if node.target in state.assembled.segments and node.op == "call_module":
            yield from _segment_rows(state, str(node.target))
        elif (child_unit := _child(state, node)) is not None:
            for each in child_unit.states.values():
                yield from _state_rows(child_unit, each)
        elif (row := _torch_row(state, node)) is not None:
            yield row


def _child(state: State, node: fx.Node) -> Unit | None:
    if node.op != "call_module":
        return None
    wanted = f"{state.path}.{node.target}" if state.path else str(node.target)
    return next((child for child in state.children if child.path == wanted), None)


def _segment_rows(
    state: State, name: str, ms: float | None = None, inputs: Sequence[Tensor] | None = None
) -> Iterator[Row]:
    """``inputs``: time the steps on them, under the threads that run them; otherwise the times are the choice's."""
    assert state.assembled is not None
    segment = state.assembled.segments[name]
    label = f"{state.path}.{name}" if state.path else name
    if segment.engine and segment.program is not None:
        steps = segment.program.describe(*segment.example)
        if inputs is not None:
            steps = _timed_steps(segment.program, steps, inputs)
        for made in steps:
            if made["kind"] in ("frame", "nonzeros"):  # a convolution's end and beginning, where threads share it
                continue
            row = _row(made["name"], made["kind"], segment=label)
            row.update({key: made[key] for key in ("shape", "zeros", "kernel", "why")})
            row.update({key: made[key] or None for key in ("ms", "dense_ms", "roofline")})  # 0: it was not timed
            row["tile"] = _text(made.get("tile"))
            known = made.get("input_zeros", -1.0)
            row["input_zeros"] = known if known >= 0 else None
            yield row
        return
    why = segment.decision.why if segment.decision is not None else ""
    heavy = [step for step in segment.steps if step.heavy]
    for i, step in enumerate(heavy):
        shape, zeros = step.weighed()
        yield _row(
            f"{state.path}.{step.name}" if state.path else step.name, step.kind, why=why, segment=label,
            shape=shape, zeros=zeros,
            ms=ms if i == 0 and len(heavy) == 1 else None,
        )  # fmt: skip
    if ms is not None and len(heavy) != 1:
        yield _row(label, "segment", ms, f"{len(heavy)} layers in torch's form: {why}", segment=label)


def _timed_steps(program: Any, steps: list[Row], inputs: Sequence[Tensor]) -> list[Row]:
    if not hasattr(torch.ops.secateur, "engine_step_times") or not isinstance(program, _host.Program) or not inputs:
        return steps
    first = [x[:1].contiguous() for x in inputs]
    if first[0].shape[0] == 0:
        return steps
    rounds = torch.stack([torch.ops.secateur.engine_step_times.default(first, program.id) for _ in range(_ROUNDS)])
    for i, (step, ms) in enumerate(zip(steps, rounds.median(0).values.tolist(), strict=True)):
        step["ms"] = ms
        if step["kind"] == "frame" and i:
            steps[i - 1]["ms"] += ms
    for i, step in enumerate(steps):
        if step["kind"] == "nonzeros":
            steps[i + 1]["ms"] += step["ms"]
    for step in steps:
        ms = step["ms"]
        step["roofline"] = step["floor_ms"] / torch.get_num_threads() / ms if step["floor_ms"] and ms else None
    return steps


def _torch_row(state: State, node: fx.Node, ms: float | None = None) -> Row | None:
    assert state.assembled is not None
    assert state.ctx is not None
    traced = state.assembled.torch_nodes.get(node.name)
    if traced is None or traced not in state.reasons:
        return None
    name = state.ctx.traced.names[traced]
    kind = str(getattr(traced.target, "__name__", traced.target))
    if traced.op == "call_module":
        kind = type(state.ctx.module(traced)).__name__
    return _row(f"{state.path}.{name}" if state.path else name, kind, ms, state.reasons[traced])


def _text(tile: Any) -> str | None:
    if isinstance(tile, tuple | list):
        return "x".join(str(t) for t in tile)
    return None if tile is None else str(tile)


def _segments(unit: Unit) -> Iterator[tuple[str, Segment]]:
    for each in unit.settings.units.values() if unit.path == "" else [unit]:
        for state in each.states.values():
            assembled: Assembled | None = state.assembled
            for name, segment in (assembled.segments if assembled is not None else {}).items():
                yield (f"{state.path}.{name}" if state.path else name), segment


def _extent(segment: Segment) -> str:
    steps = [step.name for step in segment.steps]
    return steps[0] if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"


def _summary(segments: Sequence[tuple[str, Segment]], rows: Sequence[Row]) -> str:
    running = sum(segment.engine for _, segment in segments)
    inside = sum(row["kernel"] != "torch" for row in rows)
    return f"{running} of {len(segments)} segments run in the engine; {inside} of {len(rows)} rows, the rest is torch"


def _total_zeros(rows: Sequence[Row]) -> float | None:
    weights = zeros = 0.0
    for row in rows:
        if row["shape"] is not None and row["zeros"] is not None:
            count = 1
            for size in row["shape"]:
                count *= size
            weights += count
            zeros += count * row["zeros"]
    return zeros / weights if weights else None


# ---- times ----


def _median_ms(run: Callable[[], Any], rounds: int = _ROUNDS) -> float:
    run()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


class _Timed(fx.Interpreter):
    """Runs the graph and keeps how long each node took, and what it was given."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.times: dict[fx.Node, list[float]] = {}
        self.given: dict[fx.Node, tuple[Any, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_module":
            self.given[n] = self.fetch_args_kwargs_from_env(n)[0]
        begin = time.perf_counter()
        result = super().run_node(n)
        self.times.setdefault(n, []).append(time.perf_counter() - begin)
        return result


def _profile_unit(unit: Unit, args: Sequence[Any]) -> Iterator[Row]:
    state = unit.state(args)
    if state.assembled is None:
        yield from _profile_python(unit, state, args)
        return
    assembled = state.assembled
    timed = _Timed(assembled.module)
    for _ in range(_ROUNDS):
        timed.run(*[a.clone() if isinstance(a, Tensor) else a for a in args])
    for node in assembled.module.graph.nodes:
        ms = 1e3 * statistics.median(timed.times[node])
        if node.op == "call_module" and node.target in assembled.segments:
            segment = assembled.segments[str(node.target)]
            inputs = segment._inputs(timed.given[node]) or []
            if inputs:
                sizes = [(x.shape[2], x.shape[3]) for x in inputs if x.dim() == 4]
                segment.example = (inputs[0].shape[0], sizes)
            yield from _segment_rows(state, str(node.target), ms, inputs)
        elif (child := _child(state, node)) is not None:
            yield from _profile_unit(child, timed.given[node])
        elif (row := _torch_row(state, node, ms)) is not None:
            yield row


def _profile_python(unit: Unit, state: State, args: Sequence[Any]) -> Iterator[Row]:
    calls: list[tuple[Unit, tuple[Any, ...]]] = []
    whole = _median_ms(lambda: state.forward(*args))
    unit.settings.recorder = calls
    try:
        state.forward(*args)
    finally:
        unit.settings.recorder = None
    rows: list[Row] = []
    inside = 0.0
    for child, given in calls:
        if child in state.children:
            inside += _median_ms(lambda child=child, given=given: child(*given))  # type: ignore[misc]
            rows.extend(_profile_unit(child, given))
    yield _row(state.path or type(unit.module).__name__, "python", max(whole - inside, 0.0), state.why)
    yield from rows


__all__ = ["COLUMNS", "compile_report", "profile"]
