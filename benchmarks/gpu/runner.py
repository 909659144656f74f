"""Parts one after another, each in processes of its own and with its share of the time; the JSON after each of them.

The time is a wall: GPUs are rented by the minute. A part gets the time that is left, by its share among the
parts that are left. It is told how much that is and should end by itself; one that does not is killed with all its
children, and what it had recorded until then counts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

from .parts import ROOT, Part
from .record import replace
from .scrub import scrubbed

#: Between being told to end and being killed.
GRACE_S = 3.0
#: Kept back for the last JSON.
RESERVE_S = 4.0


class Stopped(Exception):
    """Somebody wants the whole run to end."""


class Runner:
    """Args:
    parts: in the order in which they run. seconds: for all of them. out: a folder, for gpu.json and gpu.log.
    facts: what the JSON says of machine and command."""

    def __init__(self, parts: Sequence[Part], seconds: float, out: Path, facts: dict[str, Any], dry: bool = False):
        self.parts, self.out, self.dry = list(parts), out, dry
        self._end = time.monotonic() + seconds - min(RESERVE_S, 0.1 * seconds)
        self.environment = dict(os.environ)
        out.mkdir(parents=True, exist_ok=True)
        self.data: dict[str, Any] = {**facts, "seconds": seconds, "dry": dry, "parts": {}}

    def run(self) -> dict[str, Any]:
        """All parts. Gives what gpu.json holds; the file is there whatever happens."""
        before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
        waiting = list(self.parts)
        try:
            with (self.out / "gpu.log").open("w") as log:
                while waiting:
                    part = waiting.pop(0)
                    self._one(part, waiting, log)
        except Stopped:
            for part in waiting:
                self._put(part, {"status": "cut", "seconds": 0.0, "why": "the run was stopped"})
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._write()
        return self.data

    def _one(self, part: Part, after: Sequence[Part], log: IO[str]) -> None:
        left = self._end - time.monotonic()
        allotted = left * self._share(part) / sum(self._share(p) for p in [part, *after])
        if allotted < 1.0:
            self._put(part, {"status": "cut", "seconds": 0.0, "why": f"{max(0.0, left):.0f} s were left"})
            return
        if part.name != "build" and self.data["parts"].get("build", {"status": "passed"})["status"] != "passed":
            self._put(part, {"status": "skipped", "seconds": 0.0, "why": "there is no build to run it on"})
            return
        file = self.out / f".{part.name}.json"
        log.write(f"\n======== {part.number} {part.name}: {part.title} ({allotted:.0f} s)\n")
        log.flush()
        begin = time.monotonic()
        self._put(part, {"status": "running"})
        stopped: Stopped | None = None
        try:
            code = self._watch(part.command(part.name, file, max(0.5, allotted - GRACE_S), self.dry), allotted, log)
        except Stopped as wish:
            code, stopped = None, wish
        found = _read(file)
        private = found.pop("private", {})
        self.environment |= private.get("environment", {})
        self.data |= private.get("facts", {})
        if code is None:
            found["cut"] += private.get("waiting", [])
        row = {"seconds": round(time.monotonic() - begin, 1), "allotted_s": round(allotted, 1), **found}
        self._put(part, {"status": _status(row, code), **_ending(code, allotted, stopped is not None), **row})
        file.unlink(missing_ok=True)
        if stopped is not None:
            raise stopped

    def _share(self, part: Part) -> float:
        return part.dry_share if self.dry else part.share

    def _watch(self, command: Sequence[str], seconds: float, log: IO[str]) -> int | None:
        """The command's exit status; None where its time ran out. Nothing of its process group is alive afterwards."""
        running = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            return running.wait(seconds)
        except subprocess.TimeoutExpired:
            _signal(running.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                running.wait(GRACE_S)
            return None
        finally:
            _signal(running.pid, signal.SIGKILL)  # the group: children that it left behind, too
            running.wait()

    def _put(self, part: Part, row: dict[str, Any]) -> None:
        self.data["parts"][part.name] = {"part": part.number, "title": part.title, **row}
        self._write()
        if row["status"] != "running":
            print(line(part.name, self.data["parts"][part.name]), file=sys.stderr, flush=True)

    def _write(self) -> None:
        replace(self.out / "gpu.json", scrubbed(self.data))


def _stop(number: int, _frame: FrameType | None) -> None:
    raise Stopped(signal.Signals(number).name)


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        return {"results": {}, "skipped": [], "cut": [], "failed": [{"what": "record", "why": f"no record: {error}"}]}
    return found


def _status(row: dict[str, Any], code: int | None) -> str:
    if row["failed"] or code not in (0, None):
        return "failed"
    if row["cut"] or code is None:
        return "cut"
    return "passed" if row["results"] or not row["skipped"] else "skipped"


def _ending(code: int | None, allotted: float, stopped: bool) -> dict[str, str]:
    if stopped:
        return {"why": "the run was stopped"}
    if code is None:
        return {"why": f"killed when its {allotted:.0f} s were over"}
    return {"why": f"its process ended by signal {-code}"} if code < 0 else {}


def line(name: str, row: dict[str, Any]) -> str:
    """One part in a few words."""
    parts = [f"{name} {row['status']}"]
    if row.get("seconds"):
        parts.append(f"{row['seconds']:.0f} s")
    parts += [f"{len(row[key])} {key}" for key in ("failed", "cut", "skipped") if row.get(key)]
    if row.get("why"):
        parts.append(row["why"])
    return ", ".join(parts)


def summary(data: dict[str, Any]) -> str:
    """All of a run in one line."""
    rows = [line(name, row) for name, row in data["parts"].items()]
    return f"gpu{' --dry' if data['dry'] else ''}: " + "; ".join(rows)
