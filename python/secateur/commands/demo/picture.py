"""``report.png``: weights with their thresholds, zeros and time per layer, time of a whole call, what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..._base.drawing import FAINT, INK, RUST, STYLE, TEAL
from ..._base.errors import Error
from . import measuring

if TYPE_CHECKING:
    from .result import Result

# Each with one meaning in every panel.
_DENSE, _PRUNED, _BLOCKS = "#b9c2cc", TEAL, "#5b4a9e"
_THETA, _INK, _FAINT = RUST, INK, FAINT


def require() -> None:
    """Raise an Error that has the pip command where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as missing:
        raise Error("demo: the picture needs matplotlib, which is not installed: pip install matplotlib") from missing


def draw(result: Result, path: Path) -> None:
    """Draw a result whose ``report`` is complete.

    Raises:
        Error: matplotlib is missing.
    """
    require()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    report = result.report
    style = STYLE | {
        "font.size": 9.5,
        "axes.labelcolor": _INK,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlecolor": _INK,
        "xtick.color": _FAINT,
        "ytick.color": _FAINT,
    }
    with matplotlib.rc_context(style):  # type: ignore[arg-type,unused-ignore]
        figure = Figure(figsize=(15, 8.4), dpi=140)
        FigureCanvasAgg(figure)
        top = figure.add_gridspec(1, 4, left=0.05, right=0.985, top=0.80, bottom=0.535, wspace=0.22)
        for place, row in enumerate(report["weights"]):
            _weights(figure.add_subplot(top[0, place]), result, row, place == 0)
        bottom = figure.add_gridspec(
            2,
            4,
            left=0.07,
            right=0.985,
            top=0.435,
            bottom=0.07,
            wspace=0.48,
            hspace=0.5,
            width_ratios=(1, 0.95, 1.1, 1),
        )
        _zeros(figure.add_subplot(bottom[:, 0]), report)
        _times(figure.add_subplot(bottom[:, 1]), report)
        for place, batch in enumerate((1, 64)):
            _calls(figure.add_subplot(bottom[place, 2]), report, batch)
        _outcome(figure.add_subplot(bottom[:, 3]), report)
        title, below = _headline(report)
        figure.text(0.02, 0.955, title, fontsize=16, fontweight="bold")
        figure.text(0.02, 0.918, below, fontsize=11.5, color=_FAINT)
        figure.text(0.985, 0.875, _where(report), fontsize=9, color=_FAINT, ha="right")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="upper left", bbox_to_anchor=(0.014, 0.898), ncols=3, frameon=False, handlelength=1.4
        )
        figure.savefig(str(path))


def _headline(report: Mapping[str, Any]) -> tuple[str, str]:
    gain = 100 * (report["pruned_accuracy"] - report["dense_accuracy"])
    title = (
        f"{100 * report['weight_sparsity']:.1f} % of the weights and {100 * report['activation_sparsity']:.0f} % of "
        f"the activations are zero, accuracy {gain:+.1f} points"
    )
    smaller = [f"{report['dense_bytes'] / report[key]:.1f}x" for key in ("pruned_bytes", "int8_bytes")]
    fast = {key: [_times_as_fast(report, key, batch) for batch in (1, 64)] for key in ("compiled", "int8")}
    below = (
        f"compiled {fast['compiled'][0]} as fast at batch 1, {fast['compiled'][1]} at batch 64, the file {smaller[0]} "
        f"smaller; in int8 {fast['int8'][0]} and {fast['int8'][1]}, the file {smaller[1]} smaller"
    )
    return title, below


def _where(report: Mapping[str, Any]) -> str:
    busy = "; the machine was busy, see report.json" if report["busy"] else ""
    return f"{report['machine']['threads']} threads, {report['machine']['cpu']}{busy}"


def _times_as_fast(report: Mapping[str, Any], key: str, batch: int) -> str:
    """As dense eager: one figure, or where the rounds do not agree on one, the range that they leave."""
    faster = measuring.gained(report["latency"][f"b{batch}"][key])
    return f"{faster.ratio:.1f}x" if faster.sure else f"{faster.low:.1f}x to {faster.high:.1f}x"


def _weights(axes: Any, result: Result, row: Mapping[str, Any], first: bool) -> None:
    import numpy as np

    name = row["layer"]
    before = _values(result.dense, name)
    after = _values(result.thin, name)
    after = after[after != 0]
    reach = float(np.quantile(np.abs(before), 0.999)) * 1.25
    reach = max(reach, float(np.quantile(np.abs(after), 0.98)))
    edges = np.linspace(-reach, reach, 61)
    axes.hist(before, edges, color=_DENSE, label="weights before pruning", zorder=1)
    # Above all else: what is kept is what the panel is for.
    axes.hist(after, edges, color=_PRUNED, label="weights kept, after fine-tuning", zorder=3)
    axes.set_yscale("log")
    axes.set_ylim(0.7, 3 * axes.get_ylim()[1])  # room for the brackets
    if row["theta_mean"] is not None:
        across = axes.get_xaxis_transform()  # x as data, y as a share of the panel
        for sign in (-1, 1):
            low, high = sorted((sign * row["theta_min"], sign * row["theta_max"]))
            label = "threshold theta: mean, and range over the neurons" if sign == 1 else None
            mean = sign * row["theta_mean"]
            axes.plot([mean, mean], [0, 0.95], transform=across, color=_THETA, linewidth=1.1, linestyle="--", zorder=2)
            ends = max(low, -reach), min(high, reach)
            axes.plot(ends, [0.95, 0.95], transform=across, color=_THETA, linewidth=5, alpha=0.45, zorder=4,
                      solid_capstyle="butt")  # fmt: skip
            axes.plot([mean], [0.95], "|", transform=across, color=_THETA, markersize=11, markeredgewidth=2, zorder=5,
                      label=label)  # fmt: skip
    axes.set_xlim(-reach, reach)
    axes.set_title(f"{name}: {100 * row['sparsity']:.1f} % of {row['weights']:,} zero")
    axes.tick_params(axis="y", which="both", labelsize=8)
    if first:
        axes.set_ylabel("weights (log)")


def _values(model: nn.Module, name: str) -> Any:
    weight = model.get_submodule(name).weight
    return weight.detach().float().flatten().numpy()  # type: ignore[operator,union-attr,unused-ignore]


def _bars(axes: Any, names: list[str], title: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title(title)


def _zeros(axes: Any, report: Mapping[str, Any]) -> None:
    weights, activations = report["weights"], report["activations"]
    names = [row["layer"] for row in weights] + [row["layer"].replace("_", " ") for row in activations]
    shares = [100 * row["sparsity"] for row in (*weights, *activations)]
    by_relu = [None] * len(weights) + [100 * row["sparsity_relu"] for row in activations]
    axes.barh(range(len(names)), [100] * len(names), color="#eef1f4", height=0.62)
    axes.barh(range(len(names)), shares, color=_PRUNED, height=0.62)
    for place, (share, own) in enumerate(zip(shares, by_relu, strict=True)):
        if own is not None:
            axes.barh(place, own, color="#5fa8a1", height=0.62)
            axes.text(own / 2, place, "by ReLU alone", ha="center", va="center", color="white", fontsize=7.5)
        axes.text(101.5, place, f"{share:.1f}", va="center", fontsize=9)
    _bars(axes, names, "zeros: weights, then activations (%)")
    axes.axhline(len(weights) - 0.5, color=_FAINT, linewidth=0.8)
    axes.set_xlim(0, 111)
    axes.set_xticks([0, 25, 50, 75, 100])


def _times(axes: Any, report: Mapping[str, Any]) -> None:
    names = list(report["layer_ms"])
    for place, name in enumerate(names):
        row = report["layer_ms"][name]
        for offset, key, colour in ((-0.2, "dense_b64", _DENSE), (0.2, "pruned_b64", _PRUNED)):
            if key in row:
                axes.barh(place + offset, row[key], color=colour, height=0.36)
                axes.text(row[key], place + offset, f" {row[key]:.2f}", va="center", fontsize=8.5)
    _bars(axes, names, "ms in each layer, batch 64")
    axes.set_xlim(0, 1.2 * max(max(row.values()) for row in _batch64(report)))
    axes.barh([0], [0], color=_DENSE, label="dense (torch)")
    axes.barh([0], [0], color=_PRUNED, label="pruned, converted")
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")


#: What runs in a whole call: the key of its latencies, what to call it, its colour.
_FORMS = (
    ("dense", "dense, torch", _DENSE),
    ("dense_compiled", "dense, compiled", "#8a97a5"),
    ("pruned", "pruned, converted", "#5fa8a1"),
    ("compiled", "pruned, compiled", _PRUNED),
    ("int8", "int8, compiled", _BLOCKS),
)


def _calls(axes: Any, report: Mapping[str, Any], batch: int) -> None:
    """Median time of a whole call, in turn, with the middle four fifths of the runs."""
    taken = report["latency"][f"b{batch}"]
    reach = max(taken[key]["ms_p90"] for key, _, _ in _FORMS)
    for place, (key, _, colour) in enumerate(_FORMS):
        row = taken[key]
        axes.barh(place, row["ms"], color=colour, height=0.66)
        axes.plot([row["ms_p10"], row["ms_p90"]], [place, place], color=_INK, linewidth=1.1, zorder=3)
        said = f"{row['ms']:.3g} ms" if key == "dense" else f"{row['ms']:.3g} ms, {_times_as_fast(report, key, batch)}"
        axes.text(max(row["ms"], row["ms_p90"]) + 0.02 * reach, place, said, va="center", fontsize=8.5)
    _bars(axes, [name for _, name, _ in _FORMS], f"ms in a whole call, batch {batch}")
    axes.set_xlim(0, 1.6 * reach)
    if batch == 64:
        axes.set_xlabel("lines: 10 % to 90 % of the runs; x: as fast as dense, torch", color=_FAINT, fontsize=8.5)


def _batch64(report: Mapping[str, Any]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k.endswith("b64")} for row in report["layer_ms"].values()]


def _outcome(axes: Any, report: Mapping[str, Any]) -> None:
    """Accuracy of each variant and of each rule, on the test digits."""
    epochs = report["epochs"]["rules"]
    variants = [
        ("dense", report["dense_accuracy"], _DENSE),
        ("weights pruned", report["weights_pruned_accuracy"], _PRUNED),
        ("and activations", report["activations_pruned_accuracy"], _PRUNED),
        ("and converted", report["converted_accuracy"], _PRUNED),
        ("1x4 blocks", report["blocks_accuracy"], _BLOCKS),
        ("and int8", report["int8_accuracy"], _BLOCKS),
    ]
    colour = "#8a94a0"
    rules = [(row["rule"].split(" (")[0], row["test_accuracy"], colour) for row in report["rules"]]
    every = variants + rules
    low = min(value for _, value, _ in every)
    start = max(0.0, 100 * low - 2)
    room = 100.6 - start
    for place, (_, value, tint) in enumerate(every):
        axes.plot([start, 100 * value], [place, place], color=tint, linewidth=1.6, solid_capstyle="butt")
        axes.plot(100 * value, place, "o", color=tint, markersize=7)
        axes.text(100 * value + 0.03 * room, place, f"{100 * value:.1f}", va="center", fontsize=9)
    _bars(axes, [name for name, _, _ in every], f"accuracy on {report['test_digits']:,} test digits (%)")
    axes.axhline(len(variants) - 0.5, color=_FAINT, linewidth=0.8)
    plural = "epoch" if epochs == 1 else "epochs"
    axes.set_xlabel(f"lower four: pruned at once, {epochs} {plural} more each", color=_FAINT, fontsize=8.5)
    axes.set_xlim(start, 100.6 + 0.12 * room)
    axes.set_xticks([tick for tick in axes.get_xticks() if start <= tick <= 100])
    axes.set_ylim(len(every) - 0.4, -0.6)
