"""The CUDA code on the CPU: kernel bodies over an emulated grid with sanitizers, and the fronts over them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cuda_cases import OPERATORS, Target, each_case, each_dtype, packing
from secateur import ops  # (and the schemas, which the emulated operators share)

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks is run from the repository's root, not installed

from benchmarks.gpu import bits  # noqa: E402

CUDA = ROOT / "csrc" / "cuda"
SHIM = ROOT / "tests" / "cuda" / "shim"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "g++"
KERNELS = sorted(CUDA.glob("*.cu"))
# As nvcc is told (-fmad=false): no a*b+c is fused.
FLAGS = ["-std=c++20", "-ffp-contract=off", "-Wall", "-Wextra", f"-I{SHIM}", f"-I{ROOT / 'csrc'}"]
pytestmark = pytest.mark.slow  # compilers at work
GROUPS = ["mask_apply", "mask_apply_many", "mask_bits", "transpose_bits", "threshold_relu", "statistics_threshold",
          "bad_rows", "at_the_threshold", "deterministic", "elements", "empty"]  # fmt: skip


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"


def _build(sources: list[Path], flags: list[str], link: list[str], result: Path) -> Path:
    objects = [result.with_name(f"{source.parent.name}_{source.name}.o") for source in sources]

    def compile_one(source: Path, out: Path) -> None:
        _run([COMPILER, *FLAGS, *flags, "-x", "c++", "-c", str(source), "-o", str(out)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    _run([COMPILER, *flags, *map(str, objects), *link, "-o", str(result)])
    return result


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernel bodies, emulated grid and checks, watched by the address and undefined-behaviour sanitizers."""
    flags = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return _build([*sorted(SHIM.glob("*.cpp")), *KERNELS], flags, [], tmp_path_factory.mktemp("shim") / "checks")


@pytest.mark.parametrize("group", GROUPS)
def test_kernel_bodies(program: Path, group: str) -> None:
    # Leaks are not the question, and their detector does not run under a tracer.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([str(program), group], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[0]) > 0
    assert done.stdout.endswith("checks passed\n")


def test_a_misspelt_group_is_no_success(program: Path) -> None:
    assert subprocess.run([str(program), "mask_aply"], capture_output=True, check=False).returncode == 2


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """The fronts of csrc/cuda/ops over emulated kernels, as operators on CPU tensors: torch.ops.secateur_emulated."""
    package = Path(torch.__file__).parent
    shared = [ROOT / "csrc" / "ops" / name for name in ("common.cpp", "threads.cpp", "transpose_bits.cpp")]
    sources = [*KERNELS, *sorted((CUDA / "ops").glob("*.cpp")), *shared]
    flags = ["-O1", "-fPIC", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    flags += ["-isystem", str(package / "include")]
    link = ["-shared", str(package / "lib" / "libtorch_cpu.so")]
    library = _build(sources, flags, link, tmp_path_factory.mktemp("fronts") / "libemulated.so")
    define = torch.library.Library("secateur_emulated", "DEF")
    for name in OPERATORS:
        schema = str(getattr(torch.ops.secateur, name).default._schema)
        define.define(schema.removeprefix("secateur::"))
    torch.ops.load_library(library)
    _alive.append(define)
    return Target(torch.ops.secateur_emulated, torch.device("cpu"))


_alive: list[torch.library.Library] = []  # a library's definitions go with it


@each_dtype
@each_case
def test_fronts(emulated: Target, case: Callable[[Target, torch.dtype], None], dtype: torch.dtype) -> None:
    case(emulated, dtype)


def test_packing(emulated: Target) -> None:
    packing(emulated, torch.bool)


@pytest.mark.parametrize("columns", [5, 2048, 2049, 100_003])
@each_dtype
def test_theta_in_the_gpus_order_of_summation(emulated: Target, dtype: torch.dtype, columns: int) -> None:
    """Within the bound that benchmarks/gpu states of theta beside the CPU's; the two orders do differ."""
    centers = torch.tensor([0, 0.1, 3, 100, -5]).double().unsqueeze(1)
    weight = (torch.randn(5, columns, dtype=torch.float64) + centers).to(dtype)
    for k, signed in [(-1.0, False), (0.7, True)]:
        there, here = (
            f(weight, k, signed)[2].double() for f in (emulated.statistics_threshold, ops.statistics_threshold)
        )
        assert bool(((there - here).abs() <= bits.bound(weight, k, signed)).all())
    if dtype == torch.float64 and columns > 1000:
        assert not torch.equal(there, here)
