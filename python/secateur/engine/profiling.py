"""Profiling: where a compiled model's time goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn

from .._base import load, timing
from .._base.errors import Error
from .._base.tensors import clones
from .._base.timing import Spread
from ..report import Column, Report
from .reporting import (
    COLUMNS,
    ROUNDS,
    Row,
    child_unit,
    milliseconds,
    report_row,
    segment_rows,
    segments_of,
    summary_of,
    torch_row,
    total_zeros,
)
from .unit import CompiledForward, Specialization

#: The report of compile, and how far the times can be trusted.
_AFTER_MS = (Column("ms_min", "at best", "ms"), Column("ms_p25", "25 %", "ms"), Column("ms_p75", "75 %", "ms"))
_PLACE = 1 + next(i for i, column in enumerate(COLUMNS) if column.key == "ms")
_COLUMNS = (*COLUMNS[:_PLACE], *_AFTER_MS, *COLUMNS[_PLACE:])

#: Where the middle half of a call's runs is wider than this share of their median, another run may well say otherwise.
_WIDE = 0.25


def profile(fast: Any, example_input: Any) -> Report:
    """Where a compiled model's time goes: one row a layer, the total, and why each layer runs as it does.

    Args:
        fast: what :func:`secateur.compile` gave (:func:`secateur.convert`'s result carries its times in ``report``).
        example_input: a tensor, or a tuple of positional arguments, as the model takes them.

    Returns:
        A :class:`secateur.Report`. A row has ``layer``, ``kind``, ``shape`` of the weight, ``zeros`` (0 to 1),
        ``input_zeros`` (of the example that the choice was made on, where convolutions could skip them), ``kernel``
        ("sparse": zeros of the weights are skipped, "active": those of the input, "dense": none; "torch" for what runs
        there), ``tile``, ``ms`` (the median; ``ms_min`` is the shortest time, ``ms_p25`` and ``ms_p75`` hold the middle
        half of them; in the engine: of the first of the call's ``images``), ``dense_ms`` (the same layer with dense
        weights in the engine), ``roofline`` (share of the speed at which this machine loads what the layer must load),
        ``why``, and ``segment``. The total is the time of a whole call. A note warns where the machine was busy
        meanwhile, or where the times differ too much to be trusted.

    Raises:
        Error: fast is not compiled, or the inputs are not what it takes.
    """
    from .compiled import CompiledModel

    if not isinstance(fast, CompiledModel):
        hint = "; secateur.convert's result has its times in .report" if isinstance(fast, nn.Module) else ""
        raise Error(f"profile: fast must come from secateur.compile, got {type(fast).__name__}{hint}")
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    with torch.no_grad(), load.watched() as machine:
        fast(*args)  # refuses wrong inputs, builds missing programs
        unit: CompiledForward = fast.__dict__["_built"].unit
        # Before the layers and after them: a load that comes or goes meanwhile then shows in the spread.
        calls = _runs(lambda: fast(*args))
        rows = list(_profile_unit(unit, args))
        whole = Spread.of(calls + _runs(lambda: fast(*args)))
    total = {"layer": "total", **milliseconds(whole), "zeros": total_zeros(rows)}
    notes = [summary_of(list(segments_of(unit)), rows), *_said_of_times(rows, whole)]
    if machine.warning is not None:
        notes.append(machine.warning)
    return Report("profile", _COLUMNS, rows, notes, total)


# ---- times ----


def _said_of_times(rows: Sequence[Row], whole: Spread) -> Iterator[str]:
    engine_ms = sum(row["ms"] or 0.0 for row in rows if row["kernel"] != "torch")
    torch_ms = sum(row["ms"] or 0.0 for row in rows if row["kernel"] == "torch")
    images = max((row.get("images") or 1 for row in rows), default=1)
    if images > 1:  # the engine's clock knows one image: what a call takes between the layers cannot be told from that
        yield (
            f"{engine_ms:.3f} ms in the engine's layers for one image, {torch_ms:.3f} ms in torch and "
            f"{1e3 * whole.median:.3f} ms in a whole call for all {images} (layers are timed one by one)"
        )
    else:
        between_ms = 1e3 * whole.median - engine_ms - torch_ms
        yield (
            f"{engine_ms:.3f} ms in the engine's layers, {torch_ms:.3f} ms in torch, "
            f"{max(between_ms, 0.0):.3f} ms between them (layers are timed one by one)"
        )
        if between_ms < 0:
            yield (
                f"one by one the layers took {-between_ms:.3f} ms longer than a whole call: what is between them "
                "cannot be told"
            )
    if whole.share > _WIDE:
        yield (
            f"WARNING: calls took {1e3 * whole.low:.3f} to {1e3 * whole.high:.3f} ms (the middle half of {whole.runs}; "
            f"{1e3 * whole.least:.3f} at best): too far apart to trust a single figure"
        )


def _runs(run: Callable[[], Any]) -> list[float]:
    """Seconds of each run."""
    return timing.interleave([run], ROUNDS)[0]


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


def _profile_unit(unit: CompiledForward, args: Sequence[Any]) -> Iterator[Row]:
    state = unit.state(args)
    if state.assembled is None:
        yield from _profile_python(unit, state, args)
        return
    assembled = state.assembled
    timed = _Timed(assembled.module)
    for _ in range(ROUNDS):
        timed.run(*clones(args))
    for node in assembled.module.graph.nodes:
        taken = Spread.of(timed.times[node])
        if node.op == "call_module" and node.target in assembled.segments:
            segment = assembled.segments[str(node.target)]
            inputs = segment._inputs(timed.given[node]) or []
            if inputs:
                sizes = [(x.shape[2], x.shape[3]) for x in inputs if x.dim() == 4]
                segment.example = sizes
            yield from segment_rows(state, str(node.target), taken, inputs)
        elif (child := child_unit(state, node)) is not None:
            yield from _profile_unit(child, timed.given[node])
        elif (row := torch_row(state, node, taken)) is not None:
            yield row


def _rest(whole: Spread, inside: Sequence[Spread]) -> Spread:
    """What a forward takes by itself: at least nothing, whatever the clock said of its parts."""

    def rest(of: Callable[[Spread], float]) -> float:
        return max(of(whole) - sum(map(of, inside)), 0.0)

    median, least = rest(lambda taken: taken.median), rest(lambda taken: taken.least)
    ends = rest(lambda taken: taken.low), rest(lambda taken: taken.high)
    # Of differences the order is not given.
    return Spread(median, min(median, least), min(median, *ends), max(median, *ends), whole.runs)


def _profile_python(unit: CompiledForward, state: Specialization, args: Sequence[Any]) -> Iterator[Row]:
    calls: list[tuple[CompiledForward, tuple[Any, ...]]] = []
    whole = Spread.of(_runs(lambda: state.forward(*args)))
    unit.settings.recorder = calls
    try:
        state.forward(*args)
    finally:
        unit.settings.recorder = None
    rows: list[Row] = []
    inside: list[Spread] = []
    for child, given in calls:
        if child in state.children:
            inside.append(Spread.of(_runs(lambda child=child, given=given: child(*given))))  # type: ignore[misc]
            rows.extend(_profile_unit(child, given))
    yield report_row(state.path or type(unit.module).__name__, "python", _rest(whole, inside), state.why)
    yield from rows


__all__ = ["profile"]
