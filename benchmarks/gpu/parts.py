"""Which parts there are, in order of worth, and each one's own process: ``python -m benchmarks.gpu.parts NAME``."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .record import Record, reason

ROOT = Path(__file__).resolve().parents[2]


def process(name: str, file: Path, seconds: float, dry: bool) -> list[str]:
    """The command of a part that stands in this folder."""
    command = [sys.executable, "-m", "benchmarks.gpu.parts", name, "--file", str(file), "--seconds", f"{seconds:.1f}"]
    return [*command, *(["--dry"] if dry else [])]


@dataclass(frozen=True)
class Part:
    """number: as CONTRIBUTING and README count them. share: of the time, beside the other parts' shares; what a part
    leaves over goes to those after it. command: what runs it, given its name, its record's file, its seconds, dry."""

    number: int
    name: str
    title: str
    share: float
    dry_share: float
    command: Callable[[str, Path, float, bool], Sequence[str]] = process


PARTS = (
    Part(1, "build", "the package, built here", 120, 400),
    Part(2, "tests", "tests/cuda", 110, 180),
    Part(5, "timings", "operators, masks of ResNet-50 in training, pruning", 130, 60),
    Part(4, "bits", "the same bits as the CPU", 20, 30),
    Part(6, "cpu", "the CPU of this machine", 75, 60),
    Part(3, "sanitize", "compute-sanitizer", 25, 10),
)


def chosen(only: Sequence[str]) -> list[Part]:
    """The parts of these names or numbers, in order of worth; the build, which all others stand on, always."""
    if unknown := [one for one in only if one not in {str(p.number) for p in PARTS} | {p.name for p in PARTS}]:
        there = ", ".join(f"{p.number} {p.name}" for p in sorted(PARTS, key=lambda p: p.number))
        raise SystemExit(f"benchmarks/gpu/run: no part is {', '.join(unknown)}; there are {there}")
    return [p for p in PARTS if not only or p.name in only or str(p.number) in only or p.name == "build"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.parts", description=__doc__)
    parser.add_argument("name", choices=[part.name for part in PARTS])
    parser.add_argument("--file", type=Path, required=True, help="of the record")
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    # Told to end: temporary folders (models of hundreds of MB) go, workers are closed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    record = Record(arguments.file, arguments.seconds, arguments.dry)
    try:
        importlib.import_module(f"benchmarks.gpu.{arguments.name}").main(record)
    except Exception as error:  # said in the JSON: the other parts go on
        traceback.print_exc()
        record.fail(arguments.name, reason(error))
    return 1 if record.data["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
