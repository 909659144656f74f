"""libsecateur_cuda.so as it was built: what it needs, what it holds, and that it loads where there is no GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_cases import OPERATORS
from secateur._base import library

LIBRARY = library.LIBRARY_DIR / "libsecateur_cuda.so"
built = pytest.mark.skipif(not LIBRARY.exists(), reason="not built: no nvcc, or SECATEUR_CUDA=OFF")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _tool(name: str) -> str | None:
    """From the CUDA toolkit, or as triton brings it along."""
    if found := shutil.which(name):
        return found
    triton = importlib.util.find_spec("triton")
    for folder in (triton.submodule_search_locations or []) if triton else []:
        if (path := Path(folder) / "backends/nvidia/bin" / name).exists():
            return str(path)
    return None


@built
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA: the library is not loaded")
def test_it_is_loaded() -> None:
    assert library.HAS_CUDA


@built
@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_what_it_needs() -> None:
    """libtorch_cpu and the C and C++ libraries: nothing of CUDA, neither torch's nor NVIDIA's."""
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", _output("readelf", "-d", str(LIBRARY)))
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if re.search("cuda|c10|nv|python", name)]


@built
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_it_exports_nothing_of_the_cuda_runtime() -> None:
    symbols = _output("nm", "-D", "--defined-only", str(LIBRARY))
    assert not re.findall(r"\b(?:cuda|cu|__cuda)[A-Z]\w+", symbols)


@built
def test_its_abi_is_stable() -> None:
    audit = shutil.which("torch-abi-audit", path=str(Path(sys.executable).parent)) or shutil.which("torch-abi-audit")
    if audit is None:
        pytest.skip("torch-abi-audit is not installed")
    report = _output(audit, "--check", "torch", str(LIBRARY))
    assert re.search(r"Torch ABI:\s+STABLE", report)
    assert re.search(r"Min torch:\s+2\.10\.", report)


@built
def test_it_holds_code_for_sm_80_sm_90_and_ptx() -> None:
    tool = _tool("cuobjdump")
    if tool is None:
        pytest.skip("no cuobjdump")
    machine = set(re.findall(r"\.(sm_\w+)\.cubin", _output(tool, "--list-elf", str(LIBRARY))))
    ptx = set(re.findall(r"\.(sm_\w+)\.ptx", _output(tool, "--list-ptx", str(LIBRARY))))
    assert {"sm_80", "sm_90"} <= machine
    assert ptx, "no PTX: GPUs newer than sm_90 could not run it"


@built
@pytest.mark.parametrize("machine", ["sm_80", "sm_90"])
def test_no_kernel_keeps_arrays_in_local_memory(machine: str) -> None:
    """Registers that are indexed by a loop which was not unrolled, or that do not suffice, lie in memory."""
    tool = _tool("cuobjdump")
    if tool is None:
        pytest.skip("no cuobjdump")
    usage = _output(tool, "-res-usage", "-arch", machine, str(LIBRARY))
    kernels = re.findall(r"Function (\S+):\s+REG:\d+ STACK:(\d+)", usage)
    assert len(kernels) >= 22
    assert [name for name, stack in kernels if stack != "0"] == []


@built
@pytest.mark.parametrize(
    ("kernel", "accesses"),
    [
        ("9MaskApplyI", "(read ){4}(write ){4}"),
        ("13MaskApplyManyI", "(read ){4}(write ){4}"),
        ("13ThresholdReluI", "(read ){4}(write )"),  # two groups, and thresholds
    ],
)
def test_reads_of_16_bytes_are_on_their_way_together(kernel: str, accesses: str) -> None:
    """In each element type, before the write of what the first has read."""
    tool = _tool("cuobjdump")
    if tool is None:
        pytest.skip("no cuobjdump")
    functions = _output(tool, "-sass", "-arch", "sm_90", str(LIBRARY)).split("Function : ")[1:]
    found = [text for text in functions if kernel in text.partition("\n")[0]]
    assert len(found) >= 3
    for text in found:
        order = ["read" if kind == "LD" else "write" for kind in re.findall(r"\b(LD|ST)G\.E\.128", text)]
        assert re.search(accesses, " ".join([*order, ""])), f"{text.splitlines()[0]}: {order}"


@built
def test_it_loads_where_no_gpu_can_be_seen() -> None:
    """In a process of its own with all GPUs hidden; CPU tensors then still go to the CPU kernels."""
    program = (
        "import torch, secateur.ops\n"
        f"torch.ops.load_library({str(LIBRARY)!r})\n"
        "print(secateur.ops.mask_apply(torch.ones(1, 8), torch.tensor([[5]], dtype=torch.uint8)).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]"


@built
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA: the library is not loaded")
def test_torch_has_the_function_that_gives_the_stream() -> None:
    """device/stream.cpp asks the loaded libtorch_cuda for it by name: no linker would notice that it is gone."""
    torch_cuda = ctypes.CDLL("libtorch_cuda.so", mode=os.RTLD_LAZY | os.RTLD_NOLOAD)
    assert torch_cuda.aoti_torch_get_current_cuda_stream


@built
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA: the library is not loaded")
@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_registered(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"secateur::{name}", "CUDA")


def test_a_library_that_does_not_load_is_no_secret(tmp_path: Path) -> None:
    """import secateur warns and goes on without CUDA."""
    broken = tmp_path / "libsecateur_cuda.so"
    broken.write_bytes(b"not a library")
    with pytest.warns(UserWarning, match=r"secateur: .*libsecateur_cuda.so does not load .*CUDA tensors"):
        assert not library.load_cuda(broken)
    assert not library.load_cuda(tmp_path / "absent.so")
