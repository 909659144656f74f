"""The report of ``activation_sensitivity``: a row a layer and level, and its picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from .._base.drawing import RUST, TEAL, written_figure
from ..report import Column, Report

COLUMNS = (
    Column("layer", "layer", "text"),
    Column("zeros", "zeros %", "percent"),
    Column("accuracy", "accuracy %", "percent"),
    Column("points", "drop (points)", "text"),
)


class SensitivityReport(Report):
    """Rows ``layer``, ``zeros``, ``accuracy`` and ``drop`` (shares, 0 to 1), several a layer: from the zeros that its
    ReLU makes by itself upwards.

    ``baseline`` is the accuracy of the network without thresholds. ``chosen`` has, after a search, the zeros that it
    gave each layer.
    """

    def __init__(
        self, title: str, rows: Sequence[Mapping[str, Any]], baseline: float, notes: Sequence[str] = ()
    ) -> None:
        written = [{**row, "points": f"{100 * row['drop']:+.2f}"} for row in rows]
        super().__init__(title, COLUMNS, written, notes)
        self.baseline = baseline
        self.chosen: dict[str, float] = {}

    @property
    def layers(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each layer, by rising zeros."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            found.setdefault(str(row["layer"]), []).append(row)
        return found

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "baseline": self.baseline, "chosen": dict(self.chosen)}

    def picture(self, path: str | PathLike[str]) -> None:
        """Draw accuracy against zeros, a panel a layer, to a file: PNG, SVG or PDF, by its name.

        Raises:
            Error: matplotlib is missing; a name that ends otherwise.
            OSError: the file cannot be written.
        """
        draw(self, path)


_LINE, _CHOSEN = TEAL, RUST


def draw(report: SensitivityReport, path: str | PathLike[str]) -> None:
    """Write the picture; see :meth:`SensitivityReport.picture`."""
    layers = report.layers
    columns = min(6, math.ceil(math.sqrt(len(layers) * 1.5)))
    lines = math.ceil(len(layers) / columns)
    size = (max(2.3 * columns, 5.5), 1.75 * lines + 1.1)
    with written_figure(path, size, font_size=8.5, axes_titlesize=9) as figure:
        grid: Any = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        every = [row["accuracy"] for row in report.rows] + [report.baseline]
        spread = max(max(every) - min(every), 0.005)
        for axes, (layer, rows) in zip(grid.flat, layers.items(), strict=False):
            _panel(axes, layer, rows, report)
            axes.set_ylim(100 * (min(every) - 0.06 * spread), 100 * (max(every) + 0.06 * spread))
            axes.set_xlim(0, 101)
            axes.set_xticks([0, 25, 50, 75, 100])
        for place, axes in list(enumerate(grid.flat))[len(layers) :]:
            axes.set_axis_off()
            if place >= columns:  # a shared axis is labelled in the last line only, which is empty here
                grid.flat[place - columns].tick_params(labelbottom=True)
        marked = "; the bar is what the search chose" if report.chosen else ""
        figure.suptitle(
            f"{report.title}: accuracy with the thresholds of one layer alone\n"
            f"(all others plain ReLU; grey: without thresholds{marked})",
            fontsize=10,
            x=0.01,
            ha="left",
        )
        figure.supxlabel("zeros (%), from those that ReLU makes by itself", fontsize=9)
        figure.supylabel("accuracy (%)", fontsize=9)


def _panel(axes: Any, layer: str, rows: list[dict[str, Any]], report: SensitivityReport) -> None:
    axes.axhline(100 * report.baseline, color="#c9d0d8", linewidth=1)
    if layer in report.chosen:
        axes.axvline(100 * report.chosen[layer], color=_CHOSEN, linewidth=1.3)
    axes.plot(
        [100 * row["zeros"] for row in rows],
        [100 * row["accuracy"] for row in rows],
        "o-",
        color=_LINE,
        linewidth=1.4,
        markersize=3.5,
    )
    axes.set_title(layer if len(layer) <= 26 else "…" + layer[-25:])
