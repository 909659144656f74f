"""What a part has found, on disk after every entry: a part that is killed loses the entry that it was at, no more."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any


class Record:
    """Entries of one part.

    Args:
        path: the JSON file; replaced whole with each entry.
        seconds: how long the part may take. It looks at :meth:`left` and names with :meth:`cut` what it leaves out.
        dry: tiny sizes on the CPU, so that the code runs.

    In the file: ``results``, a list of rows for each name; ``skipped`` (what, why: the machine lacks something),
    ``failed`` (what, why), ``cut`` (what: for lack of time).
    """

    def __init__(self, path: Path, seconds: float, dry: bool = False) -> None:
        self.path, self.dry = path, dry
        self._end = time.monotonic() + seconds
        self.data: dict[str, Any] = {"results": {}, "skipped": [], "failed": [], "cut": []}
        self._write()

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def add(self, name: str, row: Any) -> None:
        self.data["results"].setdefault(name, []).append(row)
        self._write()

    def skip(self, what: str, why: str) -> None:
        print(f"skipped: {what}: {why}", flush=True)
        self.data["skipped"].append({"what": what, "why": why})
        self._write()

    def fail(self, what: str, why: str) -> None:
        print(f"FAILED: {what}: {why}", flush=True)
        self.data["failed"].append({"what": what, "why": why})
        self._write()

    def cut(self, what: str) -> None:
        print(f"cut: {what}", flush=True)
        self.data["cut"].append(what)
        self._write()

    def out_of_time(self, what: str, need: float = 0.0) -> bool:
        """Whether less than ``need`` seconds are left; then ``what`` is named as cut."""
        if self.left() > need:
            return False
        self.cut(what)
        return True

    def waiting(self, names: list[str]) -> None:
        """What is not done: named as cut if the part is killed."""
        self.keep("waiting", names)

    def keep(self, name: str, value: Any) -> None:
        """For the runner alone: it does not reach the result."""
        self.data.setdefault("private", {})[name] = value
        self._write()

    def _write(self) -> None:
        replace(self.path, self.data)


def replace(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a half."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(json.dumps(_plain(data), indent=1, allow_nan=False, default=str) + "\n")
    new.replace(path)


def _plain(value: Any) -> Any:
    """NaN and infinities, which JSON has no word for, become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def reason(error: BaseException) -> str:
    """The kind of an exception and the first lines of what it says."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()][:3]
    return f"{type(error).__name__}: {' | '.join(lines)}"[:600]
