"""The JSON file: what was measured, where, with what. Written after each case, so that a run can be taken up again."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .contest import Case
from .engines import ROOT


def commit() -> str:
    """Short hash, with ``+`` where tracked files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()  # fmt: skip

    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if git("diff", "HEAD", "--name-only") else "")


def machine() -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    memory = None
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        pass  # not Linux, or a CPU that has no name there
    return {
        "cpu": name,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


class Store:
    """``data["cases"]`` holds what :meth:`contest.Contest.run` gave, with the commit that gave it."""

    def __init__(self, path: Path, plan: str, resume: bool) -> None:
        self.path = path
        now = {
            "plan": plan,
            "command": "python -m benchmarks.networks " + " ".join(sys.argv[1:]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "versions": {},
            "cases": [],
        }
        self.data: dict[str, Any] = now
        if resume and path.exists():
            self.data = json.loads(path.read_text())
            if self.data["plan"] != plan:
                raise SystemExit(f"{path} holds the results of {self.data['plan']!r}, not of {plan!r}")
        self.commit = commit()

    def has(self, case: Case, engines: list[str]) -> bool:
        return any(
            (c["network"], c["batch"], c["zeros"]) == (case.network, case.batch, case.zeros)
            and all(c["engines"].get(name, {}).get("status") in ("ok", "absent") for name in engines)
            for c in self.data["cases"]
        )

    def add(self, result: dict[str, Any], versions: dict[str, str], threads: int) -> None:
        """Replaces an earlier result of the same case."""

        def key(c: dict[str, Any]) -> tuple[Any, ...]:
            return (c["network"], c["batch"], c["zeros"])

        self.data["versions"] |= versions
        self.data["threads"] = threads
        self.data["cases"] = [c for c in self.data["cases"] if key(c) != key(result)] + [
            {**result, "commit": self.commit}
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.data, indent=1) + "\n")
        part.replace(self.path)
