"""How long a run is, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Limits:
    """``steps`` or ``seconds``, whichever ends first; judged ``evaluations`` times on the way."""

    steps: int | None
    seconds: float | None
    evaluations: int


@dataclass
class State:
    """Where a run stands: plain values, as the checkpoint has them."""

    step: int = 0
    seconds: float = 0.0
    mark: int = 0  # how many of the judgements are done
    number: int = 0  # of the pass through the batches
    place: int = 0  # in that pass
    norm: float = 0.0  # running average of the gradient's length
    total: float = 0.0  # of the losses since the last row
    counted: int = 0
    skipped: int = 0
    best: int = 0  # the row of the best
    stopped: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)


__all__ = ["Limits", "State"]
