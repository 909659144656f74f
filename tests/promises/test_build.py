"""The build's promises that a reader can break without noticing: one version, one torch floor, no torch in kernels."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
pyproject = (ROOT / "pyproject.toml").read_text()


def tracked(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def test_version_is_written_once() -> None:
    version = re.search(r'^version = "(.+)"$', pyproject, re.M)
    assert version
    assert importlib.metadata.version("secateur") == version[1]
    holders = [
        path for path in tracked("python/**/*.py", "csrc/**/*.cpp", "csrc/**/*.h") if version[1] in path.read_text()
    ]
    assert holders == []


def test_torch_floor_is_one_number() -> None:
    floors = set(re.findall(r'"torch>=([\d.]+)"', pyproject))
    target = re.search(r"TORCH_TARGET_VERSION=0x(\w\w)(\w\w)0{12}", (ROOT / "cmake/torch.cmake").read_text())
    assert target
    assert floors == {f"{int(target[1], 16)}.{int(target[2], 16)}"}


def test_kernels_include_neither_torch_nor_the_standard_containers() -> None:
    allowed = {"cstdint", "cstring", "cmath", "limits", "atomic", "immintrin.h", "arm_neon.h"}
    asks_the_cpu = {"cpuid.h", "asm/hwcap.h", "sys/auxv.h"}
    sources = tracked("csrc/cpu/**/*.h", "csrc/cpu/**/*.cpp")
    assert len(sources) > 10
    for path in sources:
        text = path.read_text()
        extra = asks_the_cpu if path.name == "dispatch.cpp" else set()
        assert set(re.findall(r"#include <(.+?)>", text)) <= allowed | extra, path
        for name in re.findall(r'#include "(.+?)"', text):
            assert not re.search(r"\b(ops|cuda|formats)/", name), f"{path}: an arrow points up"


def test_nothing_is_compiled_for_this_machine_only() -> None:
    sources = tracked("cmake/*.cmake", "CMakeLists.txt", "pyproject.toml", "Makefile")
    assert [path for path in sources if re.search(r"-m(arch|cpu|tune)=native", path.read_text())] == []


def test_vocabularies_speak_the_same_words() -> None:
    """One instruction set's word that another lacks would compile until somebody uses it there."""

    def words(path: Path) -> set[str]:
        return set(re.findall(r"^inline [\w<>: ]+?[ &*](\w+)\(", path.read_text(), re.M))

    for vocabulary in ("vec", "int8"):
        spoken = words(ROOT / f"csrc/cpu/{vocabulary}_scalar.h") - {"to_float", "nearest"}  # its own
        assert len(spoken) > 15
        for path in tracked(f"csrc/cpu/{vocabulary}_*.h"):
            assert spoken <= words(path), path


def test_import_needs_no_extra() -> None:
    hide = "import sys; sys.modules.update(dict.fromkeys(['mlxtend', 'matplotlib', 'rich', 'torchvision', 'sklearn']))"
    subprocess.run([sys.executable, "-c", f"{hide}; import secateur, secateur.nn, secateur.ops"], check=True)


def test_a_broken_library_is_an_import_error_that_says_what_to_do() -> None:
    code = (
        "import sys, types; sys.modules['secateur._host'] = None\n"
        "try:\n    import secateur.ops\nexcept ImportError as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "needs torch >= 2.10" in run.stdout


def test_stub_names_what_the_host_module_has() -> None:
    from secateur import _host

    stub = set(re.findall(r"^(?:def|class) (\w+)", (ROOT / "python/secateur/_host.pyi").read_text(), re.M))
    assert stub == {name for name in vars(_host) if not name.startswith("_")}


def test_the_two_commands_have_threads_that_sleep_and_say_how_long_they_take() -> None:
    def recipe(target: str) -> str:
        found = re.search(rf"^{target}: .*\n((?:\t.*\n)+)", makefile, re.M)
        assert found
        return found[1]

    makefile = (ROOT / "Makefile").read_text()
    tests = re.search(r"^PYTEST = (.*)", makefile, re.M)
    assert tests
    for text in (recipe("demo"), tests[1]):
        assert "OMP_WAIT_POLICY=PASSIVE" in text
    for target in ("demo", "test"):
        assert re.search(r"about \d+ minutes on 2 cores", recipe(target))


def progress(said: str, tmp_path: Path) -> str:
    log = tmp_path / "build" / "install.log"
    command = [sys.executable, str(ROOT / "cmake/progress.py"), str(log)]
    run = subprocess.run(command, input=said, check=True, capture_output=True, text=True)
    assert log.read_text() == said
    return run.stdout


def test_a_build_says_how_far_it_is(tmp_path: Path) -> None:
    files = "".join(f"  [{i}/80] Building CXX object csrc/{i}.cpp.o\n" for i in range(1, 81))
    text = progress(f"Running command cmake\n{files}Successfully installed secateur-0\n", tmp_path)
    counts = [int(count) for count in re.findall(r"(\d+) of 80 files compiled", text)]
    assert counts == [1, *range(8, 81, 8)]
    assert "Successfully installed secateur-0" in text
    assert "cmake" not in text


def test_a_build_that_fails_shows_its_end(tmp_path: Path) -> None:
    said = "".join(f"line {i}\n" for i in range(100)) + "csrc/a.cpp:3:1: error: no such thing\nninja: build stopped\n"
    text = progress(said, tmp_path)
    assert "csrc/a.cpp:3:1: error: no such thing" in text
    assert "line 99" in text
    assert "line 3\n" not in text
