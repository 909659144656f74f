"""Profiling: where a compiled model's time goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn

from .._base import timing
from .._base.errors import Error
from .._base.tensors import clones
from ..report import Report
from .reporting import (
    COLUMNS,
    ROUNDS,
    Row,
    child_unit,
    report_row,
    segment_rows,
    segments_of,
    summary_of,
    torch_row,
    total_zeros,
)
from .unit import CompiledForward, Specialization


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
        fast(*args)  # refuses wrong inputs, builds missing programs
        unit: CompiledForward = fast.__dict__["_built"].unit
        whole = _median_ms(lambda: fast(*args))
        rows = list(_profile_unit(unit, args))
    segments = list(segments_of(unit))
    spent = sum(row["ms"] or 0.0 for row in rows)
    engine_ms = sum(row["ms"] or 0.0 for row in rows if row["kernel"] != "torch")
    notes = [
        summary_of(segments, rows),
        f"{engine_ms:.3f} ms in the engine's layers, {spent - engine_ms:.3f} ms in torch, "
        f"{whole - spent:.3f} ms between them (layers are timed one by one)",
    ]
    total = {"layer": "total", "ms": whole, "zeros": total_zeros(rows)}
    return Report("profile", COLUMNS, rows, notes, total)


# ---- rows ----


# ---- times ----


def _median_ms(run: Callable[[], Any]) -> float:
    return 1e3 * timing.medians([run], ROUNDS)[0]


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
        ms = 1e3 * statistics.median(timed.times[node])
        if node.op == "call_module" and node.target in assembled.segments:
            segment = assembled.segments[str(node.target)]
            inputs = segment._inputs(timed.given[node]) or []
            if inputs:
                sizes = [(x.shape[2], x.shape[3]) for x in inputs if x.dim() == 4]
                segment.example = sizes
            yield from segment_rows(state, str(node.target), ms, inputs)
        elif (child := child_unit(state, node)) is not None:
            yield from _profile_unit(child, timed.given[node])
        elif (row := torch_row(state, node, ms)) is not None:
            yield row


def _profile_python(unit: CompiledForward, state: Specialization, args: Sequence[Any]) -> Iterator[Row]:
    calls: list[tuple[CompiledForward, tuple[Any, ...]]] = []
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
    yield report_row(state.path or type(unit.module).__name__, "python", max(whole - inside, 0.0), state.why)
    yield from rows


__all__ = ["profile"]
