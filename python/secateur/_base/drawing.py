"""How this package's pictures look: colours and matplotlib settings that they share."""

from __future__ import annotations

from typing import Any

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
