"""The demo's tables on the terminal: by rich where it is installed, else as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...report import Column, Report
from .measuring import gain


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _epochs(number: int) -> str:
    return f"{number} epoch" if number == 1 else f"{number} epochs"


def _ms(report: Mapping[str, Any], name: str, batch: int) -> str:
    row = report["latency"][f"b{batch}"][name]
    return f"{row['ms']:.3f} ({row['ms_p10']:.3f} to {row['ms_p90']:.3f})"


_FORMS = (
    ("dense_compiled", "dense, compiled"),
    ("pruned", "converted"),
    ("weights_compiled", "compiled, weights alone"),
    ("compiled", "compiled"),
)


def summary(report: Mapping[str, Any]) -> Report:
    """Dense beside pruned: the four figures that matter."""
    rows = _outcome(report, "pruned", report["weight_sparsity"], report["activation_sparsity"], _FORMS)
    machine = report["machine"]
    notes = [
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}; {report['test_digits']:,} test "
        f"digits, seed {report['seed']}; {report['seconds']:.0f} s in all; ms: median, 10 % to 90 %",
        *report["busy"],
    ]
    return Report("the tutorial's CNN, pruned", _columns("pruned"), rows, notes)


def integers(report: Mapping[str, Any]) -> Report:
    """The same for the network in integers."""
    int8 = report["int8"]
    forms = (("int8", "compiled"),)
    rows = _outcome(report, "int8", int8["weight_sparsity"], int8["activation_sparsity"], forms)
    notes = [
        f"{int8['layers']} layers in integers, calibration {int8['calibration']}; {_percent(int8['blocks'])} of the "
        f"1x4 blocks hold a nonzero, {_percent(int8['fill'])} of those is nonzero"
    ]
    return Report("the same in 1x4 blocks and int8", _columns("int8"), rows, notes)


def _columns(name: str) -> list[Column]:
    return [Column("what", " ", "text"), *(Column(c, c, "text") for c in ("dense", name, "gain"))]


def _outcome(
    report: Mapping[str, Any], name: str, weights: float, activations: float, forms: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """``forms``: how the network runs: the key of its latencies, and what to call it."""
    points = 100 * (report[f"{name}_accuracy"] - report["dense_accuracy"])
    smaller = report["dense_bytes"] / report[f"{name}_bytes"]
    rows = [
        {
            "what": "accuracy on the test digits",
            "dense": _percent(report["dense_accuracy"]),
            name: _percent(report[f"{name}_accuracy"]),
            "gain": f"{points:+.1f} points",
        },
        {"what": "zeros in weights", "dense": _percent(0.0), name: _percent(weights)},
        {"what": "zeros in activations", name: _percent(activations)},
        {
            "what": "bytes on disk",
            "dense": f"{report['dense_bytes']:,}",
            name: f"{report[f'{name}_bytes']:,}",
            "gain": f"{smaller:.1f}x smaller",
        },
    ]
    for batch in (1, 64):
        for key, how in forms:
            rows.append(
                {
                    "what": f"ms, batch {batch}, {how}",
                    "dense": _ms(report, "dense", batch),
                    name: _ms(report, key, batch),
                    "gain": gain(report["latency"][f"b{batch}"][key]),
                }
            )
    return rows


def accuracies(report: Mapping[str, Any]) -> Report:
    epochs = report["epochs"]
    stages = (
        ("dense", "dense", _epochs(epochs["dense"])),
        ("weights_pruned", "weights pruned", f"{_epochs(epochs['weights'])} more, gradually"),
        (
            "activations_pruned",
            "and activations",
            f"{_epochs(epochs['activations'])} more, k = {report['k_activations']:g}",
        ),
        ("converted", "and converted", "the same numbers through sparse layers"),
        ("compiled", "or compiled", "the same numbers in one call"),
        (
            "blocks",
            "1x4 blocks, thresholds",
            f"as the first three, taught by dense, k = {report['int8']['k_activations']:g}",
        ),
        ("int8", "and in int8", f"{report['int8']['layers']} layers, compiled"),
    )
    rows = [
        {
            "variant": title,
            "test": report[f"{key}_accuracy"],
            "validation": report[f"{key}_validation_accuracy"],
            "how": how,
        }
        for key, title, how in stages
    ]
    columns = [
        Column("variant", "accuracy of", "text"),
        Column("test", "test %", "percent"),
        Column("validation", "validation %", "percent"),
        Column("how", "how", "text"),
    ]
    return Report("accuracy", columns, rows)


def layers(report: Mapping[str, Any]) -> Report:
    thetas = [Column("theta_min", "theta min", "number"), Column("theta_mean", "mean", "number")]
    thetas.append(Column("theta_max", "max", "number"))
    times = report["layer_ms"]
    rows = [{**row, "dense_ms": times[row["layer"]].get("dense_b64")} for row in report["weights"]]
    for row in rows:
        row["pruned_ms"] = times[row["layer"]].get("pruned_b64")
    rows += [{**row, "shape": (row["channels"],)} for row in report["activations"]]
    columns = [
        Column("layer", "layer", "text"),
        Column("shape", "shape", "shape"),
        Column("sparsity", "zeros %", "percent"),
        *thetas,
        Column("dense_ms", "dense ms", "ms"),
        Column("pruned_ms", "pruned ms", "ms"),
    ]
    notes = ["ms inside the layer at batch 64; theta of a weight's last pruning, over its neurons"]
    return Report("layers and thresholds", columns, rows, notes)


def rules(report: Mapping[str, Any]) -> Report:
    columns = [
        Column("rule", "rule", "text"),
        Column("weight_sparsity", "zeros %", "percent"),
        Column("validation_accuracy_before_tuning", "untuned %", "percent"),
        Column("validation_accuracy", "validation %", "percent"),
        Column("test_accuracy", "test %", "percent"),
    ]
    epochs = _epochs(report["epochs"]["rules"])
    notes = [
        f"the dense network pruned at once (untuned: on the validation digits), then {epochs} of tuning for each",
        "fc2, whose neurons are the ten answers, is left out",
    ]
    return Report("rules at the same zeros in each layer", columns, report["rules"], notes)


def show(report: Mapping[str, Any]) -> None:
    """Print the tables."""
    tables = [layers(report), rules(report), accuracies(report), summary(report), integers(report)]
    try:
        import rich
        from rich.console import Console
    except ImportError:
        for table in tables:
            print(f"\n{table}")
        return
    # No cell is cut short: the terminal wraps long lines, and a log, which has no width, gets them whole.
    console = Console(width=max(rich.get_console().width, 112))
    for table in tables:
        console.print(table)
