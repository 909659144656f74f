"""What the machine is: enough to read the figures by, and no name of a host or a folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
from contextlib import suppress
from typing import Any

from ..networks.store import commit, machine
from .parts import ROOT

_GPU = ("name", "driver_version", "memory.total", "power.limit", "clocks.sm", "clocks.mem", "clocks.max.sm",
        "clocks.max.mem", "temperature.gpu", "compute_mode", "mig.mode.current")  # fmt: skip
_PACKAGES = ("torch", "torchvision", "triton", "numpy", "onnx", "onnxruntime", "pytest", "pytest-xdist",
             "scikit-build-core", "pybind11", "cmake", "ninja")  # fmt: skip
SOURCES = ("CMakeLists.txt", "pyproject.toml", "cmake", "csrc", "python")


def without_torch() -> dict[str, Any]:
    """CPU, GPU, versions, commit: all that needs no import of torch."""
    return {**machine(), "gpus": gpus(), "versions": versions(), "nvcc": nvcc_version(), "commit": commit(),
            "sources": digest()}  # fmt: skip


def with_torch() -> dict[str, Any]:
    """What torch and the package say of it. For a process that has the package."""
    import torch
    from secateur import cpu

    found: dict[str, Any] = {
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "instruction_sets": list(cpu.available_isas()),
        "instruction_set": cpu.current_isa(),
        "devices": [],
    }
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            found["devices"].append(
                {
                    "name": about.name,
                    "capability": f"{about.major}.{about.minor}",
                    "multiprocessors": about.multi_processor_count,
                    "memory_bytes": about.total_memory,
                    "l2_bytes": about.L2_cache_size,
                }
            )
    return found


def gpus() -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU now, clocks too; none where it is not there."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", f"--query-gpu={','.join(_GPU)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [dict(zip(_GPU, map(str.strip, row.split(",")), strict=False)) for row in done.stdout.splitlines()]


def versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def nvcc() -> str | None:
    """The compiler that CMake would find."""
    for folder in (None, "/usr/local/cuda/bin"):
        if found := shutil.which("nvcc", path=folder):
            return found
    return None


def nvcc_version() -> str | None:
    tool = nvcc()
    if tool is None:
        return None
    done = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"release ([\d.]+)", done.stdout)
    return match[1] if match else None


def digest() -> str:
    """Of all that is built and installed: tells a build of this tree from another's, with no git at hand."""
    seen = hashlib.sha256()
    for name in SOURCES:
        top = ROOT / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.suffix in (".cpp", ".h", ".cu", ".cuh", ".py", ".pyi", ".txt", ".toml", ".cmake"):
                seen.update(f"{path.relative_to(ROOT)}\0".encode())
                seen.update(path.read_bytes())
    return seen.hexdigest()[:16]
