"""Which instruction set runs: the best by default, another by name or by environment, never an unknown one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import secateur
from secateur import cpu


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def test_scalar_is_always_there() -> None:
    assert "scalar" in cpu.available_isas()
    assert set(cpu.available_isas()) <= {"scalar", "avx2", "avx512", "neon"}


CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPUINFO.exists() or platform.machine() != "x86_64", reason="reads x86 Linux's /proc/cpuinfo")
def test_available_is_what_the_cpu_has() -> None:
    flags = set(next(line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")).split())
    assert ("avx2" in cpu.available_isas()) == ({"avx2", "fma", "f16c"} <= flags)
    assert ("avx512" in cpu.available_isas()) == (
        {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags
    )


def test_each_can_be_forced_and_is_the_one_that_runs(isa: str) -> None:
    assert cpu.current_isa() == isa


def test_use_isa_restores_what_was_there() -> None:
    before = cpu.current_isa()
    with cpu.use_isa("scalar"):
        assert cpu.current_isa() == "scalar"
    assert cpu.current_isa() == before
    with pytest.raises(RuntimeError, match="inside"), cpu.use_isa("scalar"):
        raise RuntimeError("inside")
    assert cpu.current_isa() == before


def test_an_unknown_one_is_an_error() -> None:
    with pytest.raises(secateur.Error, match=r"^force_isa: name must be one of scalar.* on this CPU, got 'sse9'$"):
        cpu.force_isa("sse9")


def test_the_environment_chooses() -> None:
    done = run("from secateur import cpu; print(cpu.current_isa())", SECATEUR_ISA="scalar")
    assert (done.returncode, done.stdout.strip()) == (0, "scalar"), done.stderr
    default = run("from secateur import cpu; print(cpu.current_isa())", SECATEUR_ISA="")
    assert default.stdout.strip() == cpu.available_isas()[-1]


def test_an_unknown_one_in_the_environment_is_an_error() -> None:
    done = run("from secateur import cpu", SECATEUR_ISA="sse9")
    assert done.returncode != 0
    assert "got 'sse9'" in done.stderr
