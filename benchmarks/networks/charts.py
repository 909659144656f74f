"""Pictures from the JSON: ``python -m benchmarks.networks charts out/bench/table.json`` (PNG and SVG beside it)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import render
from .engines import BEST_DENSE, ENGINES
from .plans import GOALS

# One colour an engine, in every chart: ours is the dark one; torch's are greys, the peers' warm and cold.
COLOURS = {
    "compile": "#0f766e", "convert": "#7cc4bb", "eager": "#b9c2cc", "channels-last": "#8592a0", "inductor": "#4b5966",
    "ort": "#e0a458", "openvino": "#c2410c", "deepsparse": "#5b5bd6",
    "secateur-int8": "#064e3b", "openvino-int8": "#7f1d1d", "ort-int8": "#92620f",
}  # fmt: skip
INK, FAINT = "#1f2933", "#6b7785"
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": FAINT, "axes.labelcolor": INK, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlecolor": INK, "text.color": INK, "xtick.color": FAINT,
    "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "legend.frameon": False,
    "svg.hashsalt": "secateur",
}  # fmt: skip
NAMES = {"resnet50": "ResNet-50", "resnet18": "ResNet-18", "vgg16": "VGG-16", "mobilenet_v2": "MobileNetV2"}


def draw(data: dict[str, Any], stem: Path) -> list[Path]:
    """Write ``stem``.png and .svg; gives their paths. Nothing is drawn of a run that measured nothing."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    charts: dict[str, Callable[[Any, dict[str, Any]], None]] = {
        "table": _table, "zeros": _zeros, "layers": _layers, "batches": _batches, "never-slower": _never_slower,
        "int8": _int8,
    }  # fmt: skip
    if not any(render.ms(case, name) is not None for case in data["cases"] for name in ENGINES):
        return []
    with matplotlib.rc_context(STYLE):
        figure = Figure(dpi=140, layout="constrained")
        FigureCanvasAgg(figure)
        charts[data["plan"]](figure, data)
        figure.supxlabel(_source(data), fontsize=7.5, color=FAINT, x=0.01, ha="left")
        paths = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
        for path in paths:
            figure.savefig(str(path))
    return paths


def _source(data: dict[str, Any]) -> str:
    versions = data["versions"]
    names = {"torch": "torch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "deepsparse": "DeepSparse"}
    told = [f"{names[name]} {versions[name].split('-')[0].split('+')[0]}" for name in names if name in versions]
    commit = data["cases"][-1]["commit"]
    precision = "float32 and int8" if data["plan"] == "int8" else "float32"
    return ", ".join([f"{data['machine']['cpu']}, {data['threads']} threads, {precision}", *told, f"commit {commit}"])


def _name(network: str) -> str:
    return NAMES.get(network, network)


def _present(data: dict[str, Any], names: list[str]) -> list[str]:
    return [name for name in names if any(render.ms(case, name) is not None for case in data["cases"])]


def _table(figure: Any, data: dict[str, Any]) -> None:
    """Speed over the best dense engine; a goal is a tick."""
    cases = render._sorted(data)
    names = _present(data, ["compile", "deepsparse", "convert", "ort", "openvino", "inductor", "channels-last"])
    batches = sorted({case["batch"] for case in cases})
    figure.set_size_inches(12, 3.6 * len(batches) + 0.6)
    for axes, batch in zip(figure.subplots(len(batches), 1, squeeze=False)[:, 0], batches, strict=True):
        own = [case for case in cases if case["batch"] == batch]
        width = 0.84 / max(1, len(names))
        for i, name in enumerate(names):
            heights = [render.times_as_fast(case, name, BEST_DENSE) or 0 for case in own]
            places = [x + (i - (len(names) - 1) / 2) * width for x in range(len(own))]
            axes.bar(places, heights, width, color=COLOURS[name], label=ENGINES[name].title)
            if name == "compile":
                for x, height in zip(places, heights, strict=True):
                    if height:
                        axes.text(x, height, f"{height:.1f}", ha="center", va="bottom", fontsize=8.5, weight="bold")
        for x, case in enumerate(own):
            goal = GOALS.get((case["network"], case["zeros"], case["batch"]))
            if goal:
                axes.plot([x - 0.44, x + 0.44], [goal[0]] * 2, color=INK, lw=1, ls=(0, (3, 2)))
        axes.plot([], [], color=INK, lw=1, ls=(0, (3, 2)), label="goal")
        axes.axhline(1, color=FAINT, lw=0.8)
        axes.set_xticks(range(len(own)), [f"{_name(c['network'])}\n{100 * c['zeros']:g} % zeros" for c in own])
        axes.set_title(f"Batch {batch}")
        axes.set_ylabel("times the best dense engine")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="outside upper left", fontsize=8.5, columnspacing=1.2)


def _int8(figure: Any, data: dict[str, Any]) -> None:
    """Speed over the best dense engine in fp32."""
    cases = render._sorted(data)
    names = _present(data, ["secateur-int8", "openvino-int8", "ort-int8", "compile", *BEST_DENSE])
    width = 0.84 / max(1, len(names))
    figure.set_size_inches(max(8.0, 1.6 * len(cases)), 4.4)
    axes = figure.subplots()
    for i, name in enumerate(names):
        heights = [render.times_as_fast(case, name, BEST_DENSE) or 0 for case in cases]
        places = [x + (i - (len(names) - 1) / 2) * width for x in range(len(cases))]
        axes.bar(places, heights, width, color=COLOURS[name], label=ENGINES[name].title)
    axes.axhline(1, color=FAINT, lw=0.8)
    ticks = [f"{_name(c['network'])}\nbatch {c['batch']}, {100 * c['zeros']:g} %" for c in cases]
    axes.set_xticks(range(len(cases)), ticks, fontsize=8.5)
    axes.set_ylabel("times the best dense engine in fp32")
    figure.legend(ncols=len(names) or 1, loc="outside upper left", fontsize=8.5, columnspacing=1.2)


def _lines(axes: Any, cases: list[dict[str, Any]], names: list[str], x: Callable[[Any], float], y: Any) -> None:
    for name in names:
        points = [(x(case), y(case, name)) for case in cases if render.ms(case, name) is not None]
        if points:
            ours = name in ("compile", "convert")
            axes.plot(*zip(*points, strict=True), color=COLOURS[name], lw=2.2 if name == "compile" else 1.4,
                      marker="o" if ours else None, ms=3.5, label=ENGINES[name].title)  # fmt: skip


def _panels(
    figure: Any, data: dict[str, Any], key: Callable[[Any], Any]
) -> list[tuple[Any, Any, list[dict[str, Any]]]]:
    """An axes for each value of ``key``, side by side, with the cases that have it."""
    cases = render._sorted(data)
    keys = list(dict.fromkeys(map(key, cases)))
    figure.set_size_inches(max(7.0, 5.2 * len(keys)), 4.4)
    axes = figure.subplots(1, len(keys), squeeze=False)[0]
    return [(each, a, [c for c in cases if key(c) == each]) for each, a in zip(keys, axes, strict=True)]


def _zeros(figure: Any, data: dict[str, Any]) -> None:
    names = _present(data, list(COLOURS))
    panels = _panels(figure, data, lambda c: (c["network"], c["batch"]))
    for (network, batch), axes, cases in panels:
        _lines(axes, cases, names, lambda c: 100 * c["zeros"], render.ms)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if str(value)[0] in "25" else "")
        axes.set_xlabel("zeros in each layer, %")
        axes.set_ylabel("ms")
        axes.set_title(f"{_name(network)}, batch {batch}")
    panels[0][1].legend(loc="lower left", fontsize=8.5)


def _batches(figure: Any, data: dict[str, Any]) -> None:
    names = _present(data, list(COLOURS))
    panels = _panels(figure, data, lambda c: (c["network"], c["zeros"]))
    for (network, zeros), axes, cases in panels:
        _lines(axes, cases, names, lambda c: c["batch"], lambda c, name: render.ms(c, name) / c["batch"])
        ours = [value / c["batch"] for c in cases if (value := render.ms(c, "compile")) is not None]
        if ours:
            axes.axhspan(min(ours), 1.3 * min(ours), color=COLOURS["compile"], alpha=0.12, lw=0, label="1.3x its best")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("batch")
        axes.set_ylabel("ms an image")
        axes.set_title(f"{_name(network)}, {100 * zeros:g} % zeros")
    panels[0][1].legend(fontsize=8.5)


def _layers(figure: Any, data: dict[str, Any]) -> None:
    """One row a layer: speed over the best dense engine for that layer by itself."""
    dense = ["channels-last", *BEST_DENSE]
    cases = render._sorted(data)
    names = _present(data, ["compile", "convert", "deepsparse"])
    figure.set_size_inches(8.5, 0.26 * len(cases) + 1.6)
    axes = figure.subplots()
    for name in names:
        points = [(r, y) for y, c in enumerate(cases) if (r := render.times_as_fast(c, name, dense)) is not None]
        axes.scatter(*zip(*points, strict=True), s=34 if name == "compile" else 20, color=COLOURS[name],
                     label=ENGINES[name].title, zorder=3)  # fmt: skip
    axes.axvline(1, color=FAINT, lw=0.8)
    axes.set_yticks(range(len(cases)), [_layer(case) for case in cases], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="y", color="#e4e8ec", lw=0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("times the best dense engine, calls of the layer by itself")
    axes.set_title("Layers")
    axes.legend(loc="lower right", fontsize=8.5)


def _layer(case: dict[str, Any]) -> str:
    parts = case["network"].split("-")
    more = " ".join(f"stride {p[1:]}" if p[0] == "s" else f"{p[1:]} groups" for p in parts[5:])
    if parts[0] == "linear":
        shape = f"linear {parts[1]} to {parts[2]}"
    else:
        shape = f"{parts[4]}x{parts[4]}, {parts[1]} to {parts[2]}, {parts[3]}x{parts[3]} {more}".strip()
    return shape if case["batch"] == 1 else f"{shape}, batch {case['batch']}"


def _never_slower(figure: Any, data: dict[str, Any]) -> None:
    cases = render._sorted(data)
    figure.set_size_inches(9, 0.24 * len(cases) + 1.6)
    axes = figure.subplots()
    for name in _present(data, list(render.TORCH)):
        points = [(1 / r, y) for y, c in enumerate(cases) if (r := render.times_as_fast(c, "compile", [name]))]
        if points:
            axes.scatter(
                *zip(*points, strict=True), s=24, color=COLOURS[name], label=f"over {ENGINES[name].title}", zorder=3
            )
    axes.axvline(1.05, color=COLOURS["openvino"], lw=1)
    axes.text(1.05, -0.9, " 1.05", color=COLOURS["openvino"], fontsize=8)
    axes.set_yticks(
        range(len(cases)),
        [f"{_name(c['network'])}, batch {c['batch']}, {100 * c['zeros']:g} % zeros" for c in cases], fontsize=8,
    )  # fmt: skip
    axes.invert_yaxis()
    axes.grid(axis="y", color="#e4e8ec", lw=0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("time of secateur.compile over that of torch")
    axes.set_title("With few zeros")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", fontsize=8.5)
