"""What the compiled files may contain.

The linker merges weak symbols of equal name, so one inline function compiled with AVX-512 flags could end up serving a
CPU without it: kernel files define none. Needs binutils and the build folder that ``make`` leaves.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from secateur._base.library import LIBRARY_DIR

ROOT = Path(__file__).resolve().parents[2]


def run(tool: str, *args: object) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed (Debian: binutils)")
    return subprocess.run([tool, *map(str, args)], check=True, capture_output=True, text=True).stdout


def kernel_objects() -> list[Path]:
    tag = sysconfig.get_config_var("SOABI").split("-")[1]  # "311"
    folder = f"build/cp{tag}-*/CMakeFiles/secateur_kernels.dir/csrc/cpu"
    return sorted(path for table in ("isa", "int8") for path in ROOT.glob(f"{folder}/{table}_*.o"))


def form(path: Path) -> str:
    """avx512, avx512_vnni, ..."""
    return path.name.removesuffix(".cpp.o").split("_", 1)[1]


objects = kernel_objects()
each_object = pytest.mark.parametrize(
    "path", objects or [pytest.param(None, marks=pytest.mark.skip("no build folder: the package was not built here"))],
    ids=lambda path: path.name.removesuffix(".cpp.o") if path else "none",
)  # fmt: skip


@each_object
def test_kernel_object_defines_its_table_and_nothing_else(path: Path) -> None:
    symbols = [line.split() for line in run("nm", path).splitlines()]
    weak = [" ".join(symbol) for symbol in symbols if symbol[-2] in "WwVvu"]
    assert weak == []
    visible = [symbol[-1] for symbol in symbols if symbol[-2].isupper() and symbol[-2] != "U"]
    table = f"{'int8' if path.name.startswith('int8_') else 'kernels'}_{form(path)}"
    assert visible == [f"_ZN8secateur3cpu{len(table)}{table}E"]


@each_object
def test_kernel_object_needs_nothing_but_libc(path: Path) -> None:
    symbols = [line.split() for line in run("nm", "--undefined-only", path).splitlines()]
    assert {symbol[-1] for symbol in symbols} <= {"memcpy", "memset", "memmove", "_GLOBAL_OFFSET_TABLE_"}


@each_object
def test_kernel_object_uses_only_its_registers(path: Path) -> None:
    """AVX-512 has zmm and mask registers, AVX has ymm; whoever lacks them would die of an illegal instruction."""
    code = run("objdump", "-d", "--no-show-raw-insn", path)
    found = {name for name in ("zmm", "ymm") if f"%{name}" in code}
    if re.search(r"%k[0-7]\b", code):
        found.add("k")
    expected = {"avx512": {"zmm", "ymm", "k"}, "avx2": {"ymm"}}
    assert found == expected.get(form(path).removesuffix("_vnni"), set())


@each_object
def test_kernel_object_multiplies_bytes_with_its_own_instruction_only(path: Path) -> None:
    """vpdpbusd where the CPU was asked for it; vpmaddubsw, whose sums saturate, where blocks are written for it."""
    code = run("objdump", "-d", "--no-show-raw-insn", path)
    assert ("vpdpbusd" in code) == form(path).endswith("_vnni")
    assert re.search(r"\b[su]dot\b", code) is None or form(path) == "neon_dot"
    assert ("pmaddubsw" in code) == (path.name in {"int8_avx2.cpp.o", "int8_avx512.cpp.o"})


def test_every_instruction_set_has_an_object() -> None:
    if not objects:
        pytest.skip("no build folder: the package was not built here")
    from secateur.cpu import available_isas

    names = {path.name.removesuffix(".cpp.o") for path in objects}
    assert {f"{table}_{isa}" for table in ("isa", "int8") for isa in available_isas()} <= names


def test_library_exports_only_the_host_interface() -> None:
    lines = run("nm", "-DC", "--defined-only", LIBRARY_DIR / "libsecateur.so").splitlines()
    symbols = [line.split(maxsplit=2)[1:] for line in lines]
    ours = {name.split("(")[0].removesuffix("[abi:cxx11]") for _, name in symbols if name.startswith("secateur::")}
    assert {f"secateur::cpu::{name}" for name in ("isa_available", "force_isa", "kernels")} <= ours
    weights = r"WeightsOf<(float|signed char)>::WeightsOf"  # the constructors alone
    tables = r"kinds|find_kind|operator==|name_of|act_named|binary_named|text_of"
    program = rf"engine::((Held)?Program::~?\w+|{weights}|(register|release)_program|{tables})"
    allowed = re.compile(rf"secateur::(cpu::\w+|(register|release|make)_layer|{program})$")
    assert [name for name in sorted(ours) if not allowed.match(name)] == []
    # The rest is the C++ library's own, which every program shares.
    assert [name for kind, name in symbols if not name.startswith("secateur::") and kind not in "WVu"] == []


@pytest.mark.parametrize("library", sorted(LIBRARY_DIR.glob("*.so")), ids=lambda path: path.name)
def test_library_links_to_libtorch_cpu_and_the_system_only(library: Path) -> None:
    needed = set(re.findall(r"NEEDED.*\[(.+?)\.so", run("readelf", "-d", library)))
    system = {"libtorch_cpu", "libstdc++", "libgcc_s", "libm", "libc", "libdl", "librt", "libpthread"}
    system |= {"ld-linux-x86-64", "ld-linux-aarch64"}
    assert "libtorch_cpu" in needed
    assert needed <= system, "Python or a CUDA library would have to be there to load it"
