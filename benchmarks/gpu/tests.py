"""Part 2: tests/cuda on the GPU, which must be there. Dry: collected, tried on the CPU, and the emulated grid."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from .parts import ROOT
from .record import Record

#: pytest ends by itself this long before the part would be killed.
MARGIN_S = 4.0


def main(record: Record) -> None:
    if not record.dry:
        _judge(record, "tests/cuda", ["-m", "not slow", "tests/cuda"], {"SECATEUR_REQUIRE_GPU": "1"}, side_by_side=6)
        return
    collected = _run(record, ["--collect-only", "-q", "tests/cuda"], {}, 0)[1]
    names = [name for entry in collected for name in entry.get("collected", [])]
    record.add("collected", {"tests": len(names)})
    if not any("test_cuda_gpu" in name for name in names):
        record.fail("collect", "tests/cuda was not collected: gpu.log says why")
    _judge(record, "emulated grid", ["tests/cuda/test_cuda_emulated.py"], {}, side_by_side=0)
    if not record.out_of_time("tests/cuda on the CPU", 20):
        _judge(record, "tests/cuda on the CPU", ["-m", "not slow", "tests/cuda"], {"SECATEUR_TEST_DEVICE": "cpu"}, 2)


def _run(record: Record, arguments: list[str], environment: dict[str, str], workers: int) -> tuple[int | None, Any]:
    """pytest's exit status (None: cut), and the entries of :mod:`outcomes`."""
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu.outcomes", "-p", "no:cacheprovider", "-q",
               "-W", "default", "-o", "faulthandler_timeout=120", "--durations=15"]  # fmt: skip
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(workers), *(["--dist", "worksteal"] if workers else [])]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes"
        file.touch()
        # The tests' own warnings are errors elsewhere; here another torch's may not hide what a test says.
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
        full = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE", "SECATEUR_OUTCOMES": str(file)}
        try:
            code: int | None = subprocess.run(
                [*command, *arguments], cwd=ROOT, env={**full, **environment}, check=False,
                timeout=max(1.0, record.left() - MARGIN_S),
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = None
        return code, [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]


def _judge(record: Record, what: str, arguments: list[str], environment: dict[str, str], side_by_side: int) -> None:
    code, entries = _run(record, arguments, environment, side_by_side)
    tests = [entry for entry in entries if "test" in entry]
    counts = Counter(entry["outcome"] for entry in tests)
    reasons = Counter(entry["said"].removeprefix("Skipped: ") for entry in tests if entry["outcome"] == "skipped")
    slowest = sorted(tests, key=lambda entry: -entry["seconds"])[:8]
    record.add(what, {"outcomes": dict(counts), "slowest_s": {e["test"]: e["seconds"] for e in slowest}})
    for why, count in reasons.items():
        record.skip(f"{what}: {count} tests", why)
    for entry in tests:
        if entry["outcome"] == "failed":
            record.fail(entry["test"], entry["said"])
    ended = {entry["test"] for entry in tests}
    begun = [entry["begun"] for entry in entries if "begun" in entry]
    if code is None:
        waiting = {name for entry in entries for name in entry.get("collected", [])} - ended
        at = [name for name in begun if name not in ended]
        record.cut(f"{what}: {len(waiting) or 'some'} tests; at that time it was at {', '.join(at) or 'none'}")
    elif code not in (0, 1, 5) or (code and not counts["failed"]) or not tests:
        lost = [name for name in begun if name not in ended]
        record.fail(what, f"pytest ended with code {code}; not finished: {', '.join(lost) or 'none'}; gpu.log says why")
