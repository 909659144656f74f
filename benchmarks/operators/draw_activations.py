"""A chart of the activations' zeros: ``python benchmarks/operators/draw_activations.py JSON [OUT.svg]``.

The JSON is what ``pytest benchmarks/operators/bench_sparse_activations.py`` leaves in .benchmarks/. A line a
chain of layers: how many times as fast as torch's dense layers, contiguous or channels_last, whichever is
faster.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

COLOURS = ("#1f4e79", "#2f7fb5", "#6fb1d6", "#2a9d8f", "#8a94a0", "#b5651d", "#d9a441", "#a23b3b")


def speedups(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Chain -> (zeros, times as fast)."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for benchmark in json.loads(path.read_text())["benchmarks"]:
        info = benchmark["extra_info"]
        found = re.fullmatch(r"test_chain\[(.+)-(0\.\d+)\]", info["name"])
        if not found:
            continue
        ms = {name: row["median_ms"] for name, row in info["contenders"].items()}
        ours = ms.pop("secateur.compile")
        lines.setdefault(found[1], []).append((float(found[2]), min(ms.values()) / ours))
    return {name: sorted(points) for name, points in lines.items()}


def main() -> None:
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("draw_activations: needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    lines = speedups(Path(sys.argv[1]))
    if not lines:
        raise SystemExit(f"draw_activations: {sys.argv[1]} holds no test_chain results")
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), constrained_layout=True)
    for (name, points), colour in zip(lines.items(), COLOURS, strict=False):
        zeros, times = zip(*points, strict=True)
        style = "o-" if name.startswith("3x3") else "s--"
        axes.plot([100 * z for z in zeros], times, style, color=colour, linewidth=1.8, markersize=4, label=name)
    axes.axhline(1, color="#8a94a0", linewidth=1)
    axes.text(50, 1.03, "torch, dense", color="#8a94a0", fontsize=8)
    axes.set_xlabel("zeros in the activations (%)")
    axes.set_ylabel("times as fast as torch, dense")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, title="kernel, channels, size", title_fontsize=8, loc="upper left")
    out = sys.argv[2] if len(sys.argv) == 3 else "out/bench/activations.svg"
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=160)
    print(f"written: {out}")


if __name__ == "__main__":
    main()
