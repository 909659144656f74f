"""The report that every call gives: rows, a total, notes; prints as an aligned table, turns into plain data.

One class serves weights, activations and conversion: the caller says which columns there are.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Row = Mapping[str, Any]
Kind = Literal["auto", "text", "count", "percent", "number", "bytes", "shape", "ms"]


@dataclass(frozen=True)
class Column:
    """One column: the key of the row's value, the heading printed over it, and how the value is written.

    ``percent`` values are fractions (0.9 prints as ``90.0``), ``bytes`` are integers (printed in B, KB, MB: powers of
    1000), ``shape`` is a sequence of sizes, ``ms`` milliseconds. ``None`` prints as ``-`` in every column.
    """

    key: str
    heading: str = ""
    kind: Kind = "auto"

    @property
    def title(self) -> str:
        return self.heading or self.key

    def text(self, value: Any) -> str:
        """``value`` as the table writes it."""
        if value is None:
            return "-"
        kind = self.kind
        if kind == "auto":
            kind = _guess(value)
        if kind == "percent":
            return _percent(float(value))
        if kind == "bytes":
            return _bytes(int(value))
        if kind == "count":
            return f"{int(value):,}"
        if kind == "number":
            return f"{float(value):.4g}"
        if kind == "ms":
            return f"{float(value):.3f}"
        if kind == "shape":
            return "x".join(str(int(size)) for size in value) or "scalar"
        return str(value)

    @property
    def left(self) -> bool:
        """Text is aligned left, numbers right."""
        return self.kind in ("text", "auto", "shape")


#: What the reports about weights show (:func:`secateur.prune`, :func:`secateur.sparsity`).
WEIGHT_COLUMNS: tuple[Column, ...] = (
    Column("layer", "layer", "text"),
    Column("shape", "shape", "shape"),
    Column("weights", "weights", "count"),
    Column("sparsity", "zeros %", "percent"),
    Column("theta_min", "theta min", "number"),
    Column("theta_mean", "mean", "number"),
    Column("theta_max", "max", "number"),
    Column("bytes_dense", "dense", "bytes"),
    Column("bytes_packed", "packed", "bytes"),
)


class Report:
    """Rows of a table, with an optional total and notes.

    ``rows`` are mappings; keys that no column names are kept for :meth:`to_dict` and not printed. Iterating gives the
    rows; ``report["fc1"]`` is the row whose first column is ``"fc1"``, ``report[0]`` the first row.

    Args:
        title: the line over the table.
        columns: :class:`Column` objects, or plain strings for columns whose heading is their key.
        rows: one mapping a line.
        notes: sentences printed under the table: what went other than one might think.
        total: a last row, set off by a rule.
    """

    def __init__(
        self,
        title: str,
        columns: Sequence[Column | str],
        rows: Sequence[Row],
        notes: Sequence[str] = (),
        total: Row | None = None,
    ) -> None:
        self.title = title
        self.columns: tuple[Column, ...] = tuple(Column(c) if isinstance(c, str) else c for c in columns)
        self.rows: list[dict[str, Any]] = [dict(row) for row in rows]
        self.notes: list[str] = list(notes)
        self.total: dict[str, Any] | None = None if total is None else dict(total)

    @property
    def sparsity(self) -> float:
        """The total's share of zeros, 0 to 1 (the reports that have no such total raise ``AttributeError``)."""
        if self.total is None or self.total.get("sparsity") is None:
            raise AttributeError(f'the report "{self.title}" has no total sparsity')
        return float(self.total["sparsity"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: int | str) -> dict[str, Any]:
        if isinstance(which, str):
            key = self.columns[0].key
            for row in self.rows:
                if row.get(key) == which:
                    return row
            raise KeyError(which)
        return self.rows[which]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``: ``{"title", "rows", "total", "notes"}``; NaN and infinities become None."""
        return {
            "title": self.title,
            "rows": [_plain(row) for row in self.rows],
            "total": None if self.total is None else _plain(self.total),
            "notes": list(self.notes),
        }

    def _cells(self) -> list[list[str]]:
        lines = [*self.rows, *([] if self.total is None else [self.total])]
        return [[column.text(line.get(column.key)) for column in self.columns] for line in lines]

    def __str__(self) -> str:
        cells = self._cells()
        headings = [column.title for column in self.columns]
        widths = [max(len(line[i]) for line in [headings, *cells]) for i in range(len(headings))]

        def line(values: Sequence[str]) -> str:
            cells = zip(values, widths, self.columns, strict=True)
            return "  ".join(v.ljust(w) if c.left else v.rjust(w) for v, w, c in cells).rstrip()

        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        body = [line(values) for values in cells]
        if self.total is not None:
            body.insert(len(body) - 1, rule)
        notes = [f"  note: {note}" for note in self.notes]
        return "\n".join([*([self.title] if self.title else []), line(headings), rule, *body, *notes])

    def __repr__(self) -> str:
        return str(self)

    def __rich__(self) -> Any:
        """What rich prints: the table, its total set off by a rule, and the notes."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        cells = self._cells()  # as Text: in a string rich takes brackets for markup
        total = [""] * len(self.columns) if self.total is None else cells.pop()
        table = Table(
            title=Text(self.title), title_justify="left", title_style="bold", pad_edge=False,
            box=box.SIMPLE_HEAD if self.total is None else box.SIMPLE, show_footer=self.total is not None,
        )  # fmt: skip
        for column, value in zip(self.columns, total, strict=True):
            side: Literal["left", "right"] = "left" if column.left else "right"
            table.add_column(Text(column.title), Text(value), justify=side, no_wrap=not column.left)
        for values in cells:
            table.add_row(*map(Text, values))
        return Group(table, *(Text(f"  {note}", style="dim") for note in self.notes))

    def _repr_html_(self) -> str:
        """What a notebook shows."""

        def tr(values: Sequence[str], tag: str) -> str:
            sides = ["left" if c.left else "right" for c in self.columns]
            cells = zip(values, sides, strict=True)
            return "".join(f'<{tag} style="text-align:{side}">{html.escape(v)}</{tag}>' for v, side in cells)

        body = "".join(f"<tr>{tr(values, 'td')}</tr>" for values in self._cells())
        head = tr([column.title for column in self.columns], "th")
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f"<table><caption>{html.escape(self.title)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>" + (f"<ul>{notes}</ul>" if notes else "")
        )


def _guess(value: Any) -> Kind:
    if isinstance(value, bool | str):
        return "text"
    if isinstance(value, int):
        return "count"
    if isinstance(value, float):
        return "number"
    return "text"


def _percent(fraction: float) -> str:
    """One decimal, but never "100.0" or "0.0" for what is not whole: 99.97 % zeros is not an empty layer."""
    if not math.isfinite(fraction):
        return "-"
    text = f"{100 * fraction:.1f}"
    if text == "100.0" and fraction < 1:
        return ">99.9"
    if text == "0.0" and fraction > 0:
        return "<0.1"
    return text


def _bytes(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("KB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int | bool) or value is None:
        return value
    if hasattr(value, "tolist"):  # tensors and numpy scalars
        return _plain(value.tolist())
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return str(value)
