"""The report of ``finetune``: a row each time the student was judged, and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from .._base.drawing import FAINT, RUST, TEAL, written_figure
from ..report import Column, Report

_MEASURES = (
    Column("evaluate", "evaluate", "number"),
    Column("kl", "held-out KL", "number"),
    Column("cross_entropy", "held-out cross-entropy", "number"),
    Column("held_out_loss", "held-out loss", "number"),
    Column("accuracy", "held-out accuracy %", "percent"),
)
#: What the measures are called in sentences.
WORDS = {
    "evaluate": "evaluate", "kl": "held-out KL", "cross_entropy": "held-out cross-entropy",
    "held_out_loss": "held-out loss",
}  # fmt: skip


class FinetuneReport(Report):
    """Rows ``step``, ``seconds``, ``lr``, ``loss`` (mean of the training loss since the row before), the measures that
    apply (``kl`` in nats, ``cross_entropy``, ``held_out_loss``, ``accuracy`` 0 to 1, ``evaluate``), ``weights``
    ("start", "average" or "last": which were judged) and ``best``.

    ``judged_by``: the measure that chose. ``improved``: whether the student is better than it was; if not, it is as it
    was. ``start``, ``best``: their rows. ``steps``, ``seconds``: of the run, with all that it was resumed from.
    ``stopped``: ``"steps"``, ``"minutes"`` or ``"not finite"``. ``mixed_precision``: whether products were bfloat16.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], judged_by: str, best: int, notes: Sequence[str], steps: int,
        seconds: float, stopped: str, mixed_precision: bool,
    ) -> None:  # fmt: skip
        marked = [{**row, "best": number == best} for number, row in enumerate(rows)]
        written = [{**row, "mark": "best" if row["best"] else ""} for row in marked]
        measures = [column for column in _MEASURES if any(column.key in row for row in rows)]
        columns = [
            Column("step", "step", "count"),
            Column("seconds", "seconds", "number"),
            Column("lr", "rate", "number"),
            Column("loss", "loss", "number"),
            *measures,
            Column("weights", "weights", "text"),
            Column("mark", "", "text"),
        ]
        self.judged_by, self.steps, self.seconds = judged_by, steps, seconds
        self.stopped, self.mixed_precision = stopped, mixed_precision
        self.start, self.best, self.improved = marked[0], marked[best], best > 0
        word, old, new = WORDS[judged_by], marked[0][judged_by], marked[best][judged_by]
        result = f"{word} {old:.4g} -> {new:.4g}" if best > 0 else f"not better than the start by {word} ({old:.4g})"
        super().__init__(f"finetune: {steps:,} steps in {seconds:.0f} s, {result}", columns, written, notes)

    def to_dict(self) -> dict[str, Any]:
        more = {
            "judged_by": self.judged_by, "improved": self.improved, "steps": self.steps, "seconds": self.seconds,
            "stopped": self.stopped, "mixed_precision": self.mixed_precision,
        }  # fmt: skip
        return {**super().to_dict(), **more}

    def picture(self, path: str | PathLike[str]) -> None:
        """Draw the training loss and the measure that chose against the steps, to a PNG, SVG or PDF by its name.

        Raises:
            Error: matplotlib is missing; a name that ends otherwise.
            OSError: the file cannot be written.
        """
        draw(self, path)


def draw(report: FinetuneReport, path: str | PathLike[str]) -> None:
    """Write the picture; see :meth:`FinetuneReport.picture`."""
    with written_figure(path, (6.4, 4.4), font_size=9) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        trained = [row for row in report.rows if row.get("loss") is not None]
        upper.plot([r["step"] for r in trained], [r["loss"] for r in trained], "o-", color=FAINT, markersize=3)
        upper.set_title("training loss", fontsize=9)
        judged = [row for row in report.rows if row.get(report.judged_by) is not None]
        lower.plot([r["step"] for r in judged], [r[report.judged_by] for r in judged], "o-", color=TEAL, markersize=3)
        lower.axhline(report.start[report.judged_by], color="#c9d0d8", linewidth=1)
        lower.plot([report.best["step"]], [report.best[report.judged_by]], "o", color=RUST, markersize=6)
        lower.set_title(f"{WORDS[report.judged_by]} (line: the start; the red one is kept)", fontsize=9)
        lower.set_xlabel("step")
        figure.suptitle(report.title, fontsize=10, x=0.01, ha="left")


__all__ = ["FinetuneReport"]
