"""Part 3: compute-sanitizer over operated.py. A tool that the machine refuses is skipped, with its own words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .operated import DONE
from .parts import ROOT
from .record import Record

TOOLS = ("memcheck", "racecheck", "initcheck")
#: Each tensor an allocation of its own, or an access past its end would stay inside torch's pool.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_MODULE_LOADING": "LAZY"}
_FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/nvidia/compute-sanitizer")
_COUNT = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
_FOUND = re.compile(r"={9,} +((?:Error|Warning|Invalid|Uninitialized|Potential|Race|Program hit|Out-of-range).*)")


def tool() -> str | None:
    """Where compute-sanitizer is."""
    for folder in (None, *_FOLDERS):
        if found := shutil.which("compute-sanitizer", path=folder):
            return found
    return None


def main(record: Record) -> None:
    if record.dry:
        done = subprocess.run(_program("cpu"), cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode or DONE not in done.stdout:
            record.fail("operated.py on the CPU", done.stderr.strip()[-400:])
        else:
            record.add("operated", {"on": "cpu", "said": done.stdout.strip()})
    binary = tool()
    if binary is None or record.dry:
        record.skip(", ".join(TOOLS), "compute-sanitizer was not found" if binary is None else "no GPU in a dry run")
        return
    for name in TOOLS:
        if not record.out_of_time(name, 8.0):
            _watch(record, binary, name)


def _program(device: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu.operated", device]


def _watch(record: Record, binary: str, name: str) -> None:
    command = [binary, "--tool", name, "--print-limit", "20", "--error-exitcode", "9", *_program("cuda")]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False,
            timeout=max(1.0, record.left() - 1.0),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        record.cut(f"{name}: it had not ended")
        return
    said = done.stdout + done.stderr
    print(f"$ {Path(command[0]).name} --tool {name}\n{said[-6000:]}", flush=True)
    judge(record, name, done.returncode, said)


def judge(record: Record, name: str, code: int, said: str) -> None:
    """What a tool's exit status and output mean."""
    counts = [int(number) for number in _COUNT.findall(said)]
    finds = [match.strip() for match in _FOUND.findall(said)]
    if DONE not in said and not counts:
        record.skip(name, f"the tool refused: {(finds or said.strip().splitlines() or ['it said nothing'])[0][:300]}")
    elif DONE not in said and re.search("not supported|unsupported|unable to|cannot attach", said, re.IGNORECASE):
        record.skip(name, f"the tool refused this machine: {(finds or ['see gpu.log'])[0][:300]}")
    elif any(counts) or DONE not in said or code:
        record.fail(name, f"{max(counts, default=0)} reports, code {code}: {'; '.join(dict.fromkeys(finds))[:500]}")
    else:
        record.add("tools", {"tool": name, "reports": 0, "said": next(t for t in said.splitlines() if DONE in t)})
