"""Markdown from the JSON: ``python -m benchmarks.networks render out/bench/table.json --into benchmarks/README.md``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .engines import BEST_DENSE, ENGINES, INT8
from .plans import COMPILE_GOALS_S, GOALS, INT8_DENSE_TAKES, INT8_GOALS

Case = dict[str, Any]
TORCH = ("eager", "channels-last", "inductor")


def read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def ms(case: Case, engine: str) -> float | None:
    """The median; None where the engine has none in this case."""
    row = case["engines"].get(engine, {})
    return row["median_ms"] if row.get("status") == "ok" and "median_ms" in row else None


def fastest(case: Case, engines: Sequence[str]) -> tuple[str, float] | None:
    found = [(name, value) for name in engines if (value := ms(case, name)) is not None]
    return min(found, key=lambda item: item[1], default=None)


def times_as_fast(case: Case, engine: str, over: Sequence[str]) -> float | None:
    ours, best = ms(case, engine), fastest(case, over)
    return None if ours is None or best is None else best[1] / ours


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _cell(case: Case, engine: str) -> str:
    """Median and interquartile range."""
    value = ms(case, engine)
    if value is None:
        return "-"
    row = case["engines"][engine]
    return f"{_ms(value)} ± {_ms(row['iqr_ms'] / 2)}"


def _ratio(value: float | None, goal: float | None = None) -> str:
    if value is None:
        return "-" if goal is None else f"- ({goal:g})"
    text = f"**{value:.2f}x**"
    return text if goal is None else f"{text} ({goal:.3g}{'' if value >= goal else ', missed'})"


def _rows(headings: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, rule, *lines])


def one_line(case: Case) -> str:
    """What the run says after each case."""
    parts = [f"{name} {_cell(case, name)} ms" for name in case["engines"] if ms(case, name) is not None]
    best, sparse = times_as_fast(case, "compile", BEST_DENSE), times_as_fast(case, "compile", ["deepsparse"])
    if best is not None:
        parts.append(f"{best:.2f}x the best dense")
    if sparse is not None:
        parts.append(f"{sparse:.2f}x DeepSparse")
    if (over := times_as_fast(case, "secateur-int8", ["openvino-int8"])) is not None:
        parts.append(f"int8 {over:.2f}x OpenVINO's")
    return "  = " + "; ".join(parts)


def _sorted(data: dict[str, Any]) -> list[Case]:
    networks = list(dict.fromkeys(case["network"] for case in data["cases"]))
    return sorted(data["cases"], key=lambda c: (networks.index(c["network"]), c["batch"], c["zeros"]))


def _percent(case: Case) -> str:
    return f"{100 * case['zeros']:g} %"


# ---- one function a plan --------------------------------------------------------------------------------------------


def table(data: dict[str, Any]) -> str:
    lines = []
    for case in _sorted(data):
        goal = GOALS.get((case["network"], case["zeros"], case["batch"]), (None, None))
        best = fastest(case, BEST_DENSE)
        lines.append([
            case["network"], str(case["batch"]), _percent(case),
            *(_cell(case, name) for name in ("compile", "convert", "inductor")),
            "-" if best is None else f"{_cell(case, best[0])} ({ENGINES[best[0]].title})",
            _cell(case, "deepsparse"),
            _ratio(times_as_fast(case, "compile", BEST_DENSE), goal[0]),
            _ratio(times_as_fast(case, "compile", ["deepsparse"]), goal[1]),
        ])  # fmt: skip
    headings = ["network", "batch", "zeros", "compile ms", "convert ms", "torch.compile ms", "best dense ms",
                "DeepSparse ms", "over best dense (goal)", "over DeepSparse (goal)"]  # fmt: skip
    return _rows(headings, lines) + "\n\n" + costs(data)


def costs(data: dict[str, Any]) -> str:
    """Compile time, memory, and error beside torch's own."""
    lines = []
    for case in _sorted(data):
        engines = case["engines"]

        def value(name: str, key: str, form: str = ".0f", rows: dict[str, Any] = engines) -> str:
            row = rows.get(name, {})
            return format(row[key], form) if row.get("status") == "ok" and row.get(key) is not None else "-"

        goal = COMPILE_GOALS_S.get(case["network"])
        lines.append([
            case["network"], str(case["batch"]), _percent(case),
            value("compile", "ready_s", ".1f") + (f" ({goal:g})" if goal else ""), value("inductor", "ready_s", ".1f"),
            *(value(name, "run_peak_mb") for name in ("compile", "eager", "channels-last")),
            value("compile", "load_peak_mb"),
            value("compile", "error", ".1e"), format(case["torch_error"], ".1e"),
        ])  # fmt: skip
    headings = ["network", "batch", "zeros", "compile s (at most)", "torch.compile s", "compile peak MB",
                "eager peak MB", "channels_last peak MB", "while compiling MB", "compile error",
                "torch's error"]  # fmt: skip
    return _rows(headings, lines)


def details(data: dict[str, Any]) -> str:
    names = list(dict.fromkeys(name for case in data["cases"] for name in case["engines"]))
    lines = [
        [case["network"], str(case["batch"]), _percent(case), *(_cell(case, name) for name in names)]
        for case in _sorted(data)
    ]
    return _rows(["network", "batch", "zeros", *(ENGINES[name].title + " ms" for name in names)], lines)


def zeros(data: dict[str, Any]) -> str:
    names = [n for n in ENGINES if any(ms(case, n) is not None for case in data["cases"])]
    lines = [
        [case["network"], str(case["batch"]), _percent(case), *(_cell(case, name) for name in names),
         _ratio(times_as_fast(case, "compile", BEST_DENSE))]
        for case in _sorted(data)
    ]  # fmt: skip
    return _rows(["network", "batch", "zeros", *(f"{ENGINES[n].title} ms" for n in names), "over best dense"], lines)


def layers(data: dict[str, Any]) -> str:
    lines = [
        [case["network"], _percent(case), *(_cell(case, n) for n in ("compile", "convert")),
            _ms(engine_step_ms(case)), *(_cell(case, n) for n in ("channels-last", *BEST_DENSE, "deepsparse")),
            _ratio(times_as_fast(case, "compile", ["channels-last", *BEST_DENSE])),
        ]
        for case in _sorted(data)
    ]  # fmt: skip
    headings = ["layer", "zeros", "compile ms", "convert ms", "its kernel alone ms", "channels_last ms",
                "ONNX Runtime ms", "OpenVINO ms", "DeepSparse ms", "over best dense"]  # fmt: skip
    return _rows(headings, lines)


def engine_step_ms(case: Case) -> float | None:
    """What the engine's profile says of the layer: without laying the input out and the output back.

    None where compile left the layer to torch."""
    rows = (case["engines"].get("compile", {}).get("profile") or {}).get("rows", [])
    found = [row["ms"] for row in rows if row.get("ms") is not None and row.get("kernel", "torch") != "torch"]
    return max(found, default=None)


def batches(data: dict[str, Any]) -> str:
    names = [n for n in ENGINES if any(ms(case, n) is not None for case in data["cases"])]
    best = {
        name: min(value / case["batch"] for case in data["cases"] if (value := ms(case, name)) is not None)
        for name in names
    }
    lines = []
    for case in _sorted(data):
        cells = []
        for name in names:
            value = ms(case, name)
            cells.append(
                "-" if value is None else f"{_ms(value / case['batch'])} ({value / case['batch'] / best[name]:.2f})"
            )
        lines.append([case["network"], _percent(case), str(case["batch"]), *cells])
    return _rows(["network", "zeros", "batch", *(f"{ENGINES[n].title}: ms an image (over its best)" for n in names)],
                 lines)  # fmt: skip


def never_slower(data: dict[str, Any]) -> str:
    lines = []
    for case in _sorted(data):
        ratio, best = times_as_fast(case, "compile", TORCH), fastest(case, TORCH)
        verdict = "-" if ratio is None else "holds" if 1 / ratio <= 1.05 else "**SLOWER**"
        lines.append([
            case["network"], str(case["batch"]), _percent(case), _cell(case, "compile"),
            *(_cell(case, name) for name in TORCH), "-" if best is None else ENGINES[best[0]].title,
            "-" if ratio is None else f"{1 / ratio:.2f}", verdict,
        ])  # fmt: skip
    headings = ["network", "batch", "zeros", "compile ms", *(f"{ENGINES[n].title} ms" for n in TORCH), "fastest torch",
                "compile takes (of it)", "at most 1.05"]  # fmt: skip
    return _rows(headings, lines)


def int8(data: dict[str, Any]) -> str:
    """One table a case: the contenders below each other, with both ratios."""
    return "\n\n".join(_int8_case(case) for case in _sorted(data))


def _int8_case(case: Case) -> str:
    goal: tuple[float | None, float | None] = (None, None)
    if case["zeros"] == 0:
        goal = (None, 1 / INT8_DENSE_TAKES)
    elif case["zeros"] == 0.9:
        goal = INT8_GOALS.get((case["network"], case["batch"]), goal)
    best = fastest(case, BEST_DENSE)
    lines = []
    for name in dict.fromkeys([*INT8, *case["engines"]]):
        row = case["engines"].get(name)
        if row is None:
            continue
        engine, settings = ENGINES[name], row.get("settings", {})
        own = goal if name == "secateur-int8" else (None, None)
        sqnr = row.get("sqnr_db")
        lines.append([
            engine.title + (" (best dense fp32)" if best is not None and best[0] == name else ""),
            f"{_percent(case)}, {engine.pattern}" if engine.given == "pruned" and case["zeros"] else "-",
            _cell(case, name),
            f"{settings['int8_layers']} of {settings['layers']}" if "int8_layers" in settings else "-",
            f"{sqnr:.1f} dB" if engine.precision == "int8" and sqnr is not None else "-",
            _ratio(times_as_fast(case, name, BEST_DENSE), own[0]),
            _ratio(times_as_fast(case, name, ["openvino-int8"]), own[1]),
        ])  # fmt: skip
    headings = ["engine", "zeros", "ms", "int8 layers", "SQNR", "over best dense fp32", "over OpenVINO dense int8"]
    title = f"{case['network']}, batch {case['batch']}, {_percent(case)} zeros (goals in brackets)"
    return f"{title}\n\n" + _rows(headings, lines)


PLANS = {
    "table": table,
    "zeros": zeros,
    "layers": layers,
    "batches": batches,
    "never-slower": never_slower,
    "int8": int8,
}


def source(data: dict[str, Any]) -> str:
    """Where the figures come from, and who was not there."""
    machine, cases = data["machine"], data["cases"]
    commits = ", ".join(dict.fromkeys(case["commit"] for case in cases))
    versions = ", ".join(f"{name} {version}" for name, version in sorted(data["versions"].items()))
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {data.get('threads')} threads, Python {machine['python']}, "
        f"{versions}; commit {commits}; {data['date']}.",
        f"`{data['command']}`",
    ]
    stolen = max((case["stolen"] or 0 for case in cases), default=0)
    if stolen > 0.01:
        lines.append(f"The hypervisor gave up to {stolen:.1%} of the time to others.")
    out = {(n, r["status"], r["why"]) for case in cases for n, r in case["engines"].items() if r["status"] != "ok"}
    lines += [f"{name}: {status} ({why})." for name, status, why in sorted(out)]
    return "\n".join(lines)


def markdown(data: dict[str, Any], with_details: bool = False) -> str:
    parts = [PLANS[data["plan"]](data)]
    if with_details:
        parts.append(details(data))
    return "\n\n".join([*parts, source(data)])


def into(text: str, texts: dict[str, str]) -> str:
    """``text`` with what stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->`` replaced."""
    for name, new in texts.items():
        pattern = re.compile(rf"(<!-- bench:{name} -->\n).*?(<!-- /bench:{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"render: the file must hold <!-- bench:{name} --> and <!-- /bench:{name} -->")
        text = pattern.sub(lambda match, new=new: f"{match[1]}{new}\n{match[2]}", text)
    return text
