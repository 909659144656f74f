"""How this package's pictures look: colours and matplotlib settings that they share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from typing import Any

from .errors import Error

# Hues that stay apart for colour-blind readers and in print.
TEAL, RUST, INK, FAINT = "#0f766e", "#c2410c", "#1f2933", "#6b7785"

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
_KINDS = (".png", ".svg", ".pdf")


@contextmanager
def written_figure(path: str | PathLike[str], size: tuple[float, float], **style: Any) -> Iterator[Any]:
    """An empty matplotlib figure of this ``size`` in inches, written to ``path`` at the end of the ``with`` statement.

    Args:
        style: matplotlib's settings besides :data:`STYLE`, with ``_`` for the dot (``font_size=9``).

    Raises:
        Error: matplotlib is missing; a name that ends otherwise.
        OSError: the file cannot be written.
    """
    name = fspath(path)
    if not name.lower().endswith(_KINDS):
        raise Error(f"picture: path must end in {', '.join(_KINDS)}, got {name!r}")
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise Error("picture: it needs matplotlib, which is not installed: pip install matplotlib") from missing

    settings = STYLE | {key.replace("_", "."): value for key, value in style.items()}
    settings["svg.fonttype"] = "none"  # text that can be searched
    settings["svg.hashsalt"] = "secateur"  # the same report, the same file
    with matplotlib.rc_context(settings):  # type: ignore[arg-type,unused-ignore]
        figure = Figure(figsize=size, dpi=140, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(name, metadata={"Date": None} if name.lower().endswith(".svg") else None)
