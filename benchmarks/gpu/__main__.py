"""``benchmarks/gpu/run``: build, test, time and compare on one GPU; one JSON, one log. See README.md beside this."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from .machine import without_torch
from .parts import PARTS, ROOT, chosen
from .runner import Runner, summary

SECONDS, DRY_SECONDS = 480.0, 660.0


def main() -> int:
    names = ", ".join(f"{part.number} {part.name}" for part in PARTS)
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/run", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "out" / "gpu", help="folder of gpu.json and gpu.log (out/gpu)"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help=f"names or numbers: {names}")
    parser.add_argument("--seconds", type=float, help=f"for everything ({SECONDS:.0f}; --dry: {DRY_SECONDS:.0f})")
    parser.add_argument(
        "--dry", action="store_true", help="no GPU: build, collect, emulated grid, tiny timings on the CPU"
    )
    arguments = parser.parse_args()
    parts = chosen(arguments.only)
    facts = {
        "command": shlex.join(["benchmarks/gpu/run", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": without_torch(),
    }
    seconds = arguments.seconds or (DRY_SECONDS if arguments.dry else SECONDS)
    data = Runner(parts, seconds, arguments.out.resolve(), facts, arguments.dry).run()
    print(summary(data))
    return 1 if any(row["status"] == "failed" for row in data["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
