"""Part 6: the CPU beside that GPU. ResNet-50 with 90 % zeros, float32 and int8, at 1 to 16 threads, beside ONNX Runtime
at the same threads: engines, models and their validation are those of benchmarks/networks."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..networks.contest import Case as Network
from ..networks.contest import Contest, Failed, Process, Settings
from ..networks.engines import ENGINES, Engine
from .record import Record, reason

ZEROS = 0.9
FLOAT, INTEGER = ("compile", "ort"), ("secateur-int8", "ort-int8")
THREADS, BATCHES = (1, 2, 4, 8, 16), (1, 16)
TURN_S, ROUNDS = 0.25, 4
_TRAFFIC = re.compile("traffic|cross.?thread|lines_moved|coheren", re.IGNORECASE)


@dataclass(frozen=True)
class Point:
    """What is run side by side."""

    threads: int
    batch: int
    engines: Sequence[str]

    def __str__(self) -> str:
        return f"{' and '.join(self.engines)}, {self.threads} threads, batch {self.batch}"


def points(cores: int, dry: bool) -> Iterator[Point]:
    """All of them, in order of worth."""
    if dry:
        yield from (Point(1, 1, FLOAT), Point(2, 2, FLOAT[:1]))
        return
    # An int8 model takes ONNX Runtime's tool half a minute to make, a batch of 16 longer to compile.
    first = [(16, 1, FLOAT), (1, 1, FLOAT), (4, 1, FLOAT), (16, 1, INTEGER), (8, 1, FLOAT), (2, 1, FLOAT),
             (1, 1, INTEGER), (16, 16, FLOAT), (4, 1, INTEGER), (16, 16, INTEGER)]  # fmt: skip
    rest = itertools.product(reversed(THREADS), BATCHES, (FLOAT, INTEGER))
    for threads, batch, engines in dict.fromkeys([*first, *rest]):
        if threads <= cores:
            yield Point(threads, batch, engines)


def main(record: Record) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    network = "conv-8-16-10-3" if record.dry else "resnet50"
    for threads in [] if record.dry else [t for t in THREADS if t > cores]:
        record.skip(f"{threads} threads", f"this machine has {cores} cores")
    todo = list(points(cores, record.dry))
    absent: dict[str, str] = {}
    counted = False
    with tempfile.TemporaryDirectory() as folder, _Preparer(cores, Path(folder)) as preparer:
        for number, point in enumerate(todo):
            if record.left() < (3.0 if record.dry else 10.0):
                for other in todo[number:]:
                    record.cut(str(other))
                break
            record.waiting([str(other) for other in todo[number:]])
            try:
                row = _run_even_alone(point, network, preparer, absent)
            except Exception as error:  # this point; the others go on
                record.fail(str(point), reason(error))
                continue
            counted |= any(one.get("traffic") for one in row.values())
            for name, one in row.items():
                if one["status"] == "failed":
                    record.fail(f"{name}, {point.threads} threads, batch {point.batch}", one["why"])
            record.add("networks", {"network": network, "zeros": ZEROS, "threads": point.threads, "batch": point.batch,
                                    "engines": row})  # fmt: skip
    for name, why in absent.items():
        record.skip(name, why)
    if not counted:
        record.skip("traffic between threads", "secateur.profile counts none in this version")


class _Preparer:
    """Makes the models, in a process of its own; those of one group and batch lie in one folder."""

    def __init__(self, threads: int, folder: Path) -> None:
        self.folder = folder
        self.process = Process(Engine("Preparer", "", "", "", ""), threads, folder / "prepare.log")
        self.prepared: dict[str, dict[tuple[str, float, str], dict[str, Any]]] = {}

    def __enter__(self) -> _Preparer:
        self.process.hello()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.close()


class _Contest(Contest):
    """A contest at some number of threads, on models that other contests use as well."""

    def __init__(self, point: Point, preparer: _Preparer, absent: dict[str, str]) -> None:
        kind = f"{'int8' if point.engines[0] in INTEGER else 'float'}-{point.batch}"
        settings = Settings(point.threads, ROUNDS, TURN_S, fresh=True, profile=True, calm=True)
        super().__init__(point.engines, settings, preparer.folder / kind, lambda text: print(text, flush=True))
        self.preparer, self.absent = preparer.process, absent
        self.prepared = preparer.prepared.setdefault(kind, {})

    def _forget(self, network: str) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for name in list(self.processes):
            self._drop(name)


def _run(point: Point, network: str, preparer: _Preparer, absent: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Each engine's row: loaded, validated, timed in turn; ours with what its profile counts as traffic."""
    with _Contest(point, preparer, absent) as contest:
        print(point, flush=True)
        rows: dict[str, dict[str, Any]] = contest.run(Network(network, point.batch, ZEROS))["engines"]
    for row in rows.values():
        if "profile" in row:
            row["traffic"] = traffic(row.pop("profile"))
    return {name: row for name, row in rows.items() if row["status"] != "absent"}


def _run_even_alone(
    point: Point, network: str, preparer: _Preparer, absent: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """:func:`_run`; where no model could be made for the peer, without it from then on."""
    try:
        return _run(point, network, preparer, absent)
    except Failed as error:
        peers = [name for name in point.engines if ENGINES[name].group != "ours" and name not in absent]
        if not peers:
            raise
        absent |= dict.fromkeys(peers, f"no model was made for it: {error}")
        return _run(point, network, preparer, absent)


def traffic(profile: Any) -> dict[str, Any]:
    """What a profile says of data that threads pass to one another, wherever it says it; empty where it does not."""
    found: dict[str, Any] = {}
    if not isinstance(profile, dict):
        return found
    for row in [*profile.get("rows", ()), profile.get("total") or {}]:
        for key, value in row.items():
            if _TRAFFIC.search(key) and isinstance(value, int | float):
                found[key] = found.get(key, 0) + value if row is not profile.get("total") else value
    notes = [note for note in profile.get("notes", ()) if _TRAFFIC.search(note)]
    return {**found, **({"notes": notes} if notes else {})}
