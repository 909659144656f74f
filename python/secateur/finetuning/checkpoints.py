"""The file that a run goes on from: written whole or not at all, opened without running code, checked before use."""

from __future__ import annotations

import io
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._base.errors import Error
from ..checkpoint.format import atomic
from ..masks.agreement import digest
from .averages import live
from .example import CALLER
from .ranks import Ranks
from .student import masks_of

_FORMAT = "secateur finetune 1"
_KEYS = frozenset(("format", "student", "masks", "settings", "state", "values", "average", "best", "optimizer"))


class Checkpoint:
    """A path, and what a run must have in common with the file that lies there.

    Args:
        path: None for none. settings: what decides the run's course, plain values.
    """

    def __init__(
        self, path: str | PathLike[str] | None, net: nn.Module, settings: dict[str, Any], ranks: Ranks
    ) -> None:
        if path is not None and not isinstance(path, str | PathLike):
            raise Error(f"{CALLER}: checkpoint must be a path or None, got {type(path).__name__}")
        self.path = None if path is None else Path(fspath(path))
        if self.path is not None and self.path.is_dir():
            raise Error(f"{CALLER}: checkpoint must be a file or not be there yet, {self.path} is a folder")
        self.settings, self.ranks = settings, ranks
        self.student = {name: [str(t.dtype), list(t.shape)] for name, t in live(net).items()}
        self.masks = {name: digest(mask) for name, mask in masks_of(net).items()}

    def write(self, content: dict[str, Any]) -> None:
        """``content``: "state", "values", "average", "best", "optimizer". Rank 0 writes."""
        if self.path is None or self.ranks.rank > 0:
            return
        stored = {
            "format": _FORMAT, "student": self.student, "masks": self.masks, "settings": self.settings, **content
        }  # fmt: skip
        file = io.BytesIO()
        torch.save(stored, file)
        atomic.write(self.path, [file.getbuffer()])

    def read(self) -> dict[str, Any] | None:
        """The content of the file, which rank 0 reads; None where there is none.

        Raises:
            Error: it is no such file, damaged, of another student or of a run with other settings. OSError: it cannot
                be read.
        """
        if self.path is None:
            return None
        there = self.path.exists() and self.path.stat().st_size > 0
        data = self.ranks.send(self.path.read_bytes() if there and self.ranks.rank == 0 else None)
        if data is None:
            return None
        try:
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as reason:
            raise self.refused(f"it does not open ({type(reason).__name__})") from reason
        if not isinstance(found, dict) or found.get("format") != _FORMAT or not found.keys() >= _KEYS:
            raise self.refused("it is another kind of file")
        self._compare(found)
        return found

    def _compare(self, found: dict[str, Any]) -> None:
        theirs = found["student"]
        if theirs != self.student:
            names = sorted(set(theirs) ^ set(self.student)) or sorted(n for n in theirs if theirs[n] != self.student[n])
            raise self.refused(f"it is of another student (they differ in {names[0]})")
        if found["masks"] != self.masks:
            names = [n for n in {**found["masks"], **self.masks} if found["masks"].get(n) != self.masks.get(n)]
            raise self.refused(f"it is of a student with other zeros (they differ in {names[0]})")
        for name, value in self.settings.items():
            if found["settings"].get(name) != value:
                raise self.refused(
                    f"it is of a run with {name}={found['settings'].get(name)!r}, this one has {value!r}"
                )
        for part in ("values", "average", "best"):
            for name, value in found[part].items():
                known = self.student.get(name)
                if not isinstance(value, Tensor) or known is None or known[0] != str(value.dtype):
                    raise self.refused(f"it is damaged ({part} of {name})")

    def refused(self, why: str) -> Error:
        return Error(
            f"{CALLER}: checkpoint must be one that this run can go on from, but of {self.path} {why}: remove it, or "
            "give another path"
        )


__all__ = ["Checkpoint"]
