"""Part 1: the package of this very tree, with its CUDA library. One that is there already and fits is used.

In order: the package that is installed here, if it is this tree's and no older than its sources; what an earlier run
put into build/gpu/site; a build, by pip and scikit-build-core, or by cmake alone where one of them is missing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .machine import digest, nvcc
from .parts import ROOT
from .record import Record, replace

FOLDER = ROOT / "build" / "gpu"
SITE = FOLDER / "site"
_PROBE = """
import json, sys
from pathlib import Path
import torch
from secateur._base import library
import secateur
print(json.dumps({"package": str(Path(secateur.__file__).parent), "library": str(library.LIBRARY_DIR),
                  "cuda": library.HAS_CUDA, "gpu": torch.cuda.is_available(), "torch": torch.__version__}))
"""


def main(record: Record) -> None:
    begin = time.monotonic()
    wants_cuda = not record.dry or nvcc() is not None
    found = _installed()
    how = "the installed package of this tree"
    if found is None or (wants_cuda and not found["cuda"] and not record.dry):
        how, path = "an earlier build", str(SITE)
        if not _stamped():
            how = _build(cuda=wants_cuda)
        found = _probe(path)
        if found is None or not Path(found["package"]).is_relative_to(SITE):
            record.fail("import", "what was built is not what Python imports: is another secateur installed here?")
            return
        record.keep("environment", {"PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))})
    row = {"how": how, "seconds": round(time.monotonic() - begin, 1), "cuda_library": found["cuda"]}
    if wants_cuda and not found["cuda"]:
        if record.dry:
            row["cuda_library_compiled"] = _compile_cuda()  # raises where it does not compile
        else:
            record.fail("CUDA", "the build has no CUDA library, or this torch has no CUDA")
    if record.dry and nvcc() is None:
        record.skip("the CUDA library", "nvcc was not found")
    if not record.dry and not found["gpu"]:
        record.fail("GPU", "torch finds no GPU; --dry needs none")
    record.keep("facts", {"torch": _facts(record)})
    record.add("build", row)


def _facts(record: Record) -> Any:
    """:func:`machine.with_torch`, of the package that was chosen."""
    environment = {**os.environ, **record.data.get("private", {}).get("environment", {})}
    code = "import json; from benchmarks.gpu.machine import with_torch; print(json.dumps(with_torch()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.splitlines()[-1])


def _probe(path: str = "") -> dict[str, Any] | None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], cwd=FOLDER.parent if FOLDER.parent.exists() else None, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        print(f"no package{' in ' + path if path else ''}: {done.stderr.strip().splitlines()[-1:]}")
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _installed() -> dict[str, Any] | None:
    found = _probe()
    if found is None:
        return None
    if not Path(found["package"]).is_relative_to(ROOT / "python"):
        print("the installed package is another tree's")
        return None
    sources = [p for top in ("csrc", "cmake") for p in (ROOT / top).rglob("*") if p.is_file()]
    newest = max(path.stat().st_mtime for path in [*sources, ROOT / "CMakeLists.txt"])
    if (Path(found["library"]) / "libsecateur.so").stat().st_mtime < newest:
        print("the installed package is older than its sources")
        return None
    return found


def _stamp() -> dict[str, str]:
    import importlib.metadata

    return {"sources": digest(), "python": sys.version, "torch": importlib.metadata.version("torch")}


def _stamped() -> bool:
    try:
        return bool(json.loads((SITE / "stamp.json").read_text()) == _stamp())
    except (OSError, ValueError):
        return False


def _build(cuda: bool) -> str:
    """Into SITE; says by what. CMake's own folder stays, so that a second build compiles only what changed."""
    shutil.rmtree(SITE, ignore_errors=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    missing = [name for name in ("pip", "scikit_build_core") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"without {', '.join(missing)}: cmake alone")
    (_by_cmake if missing else _by_pip)(cuda)
    replace(SITE / "stamp.json", _stamp())
    return "cmake" if missing else "pip"


def _by_pip(cuda: bool) -> None:
    settings = {"build-dir": str(FOLDER / "cmake"), "cmake.define.SECATEUR_CUDA": "ON" if cuda else "OFF"}
    command = [sys.executable, "-m", "pip", "install", "-v", "--no-index", "--no-deps", "--no-build-isolation",
               "--target", str(SITE)]  # fmt: skip
    for name, value in settings.items():
        command += ["--config-settings", f"{name}={value}"]
    _run([*command, str(ROOT)])


def _configure(folder: Path, *more: str) -> None:
    import pybind11

    definitions = {"Python_EXECUTABLE": sys.executable, "pybind11_DIR": pybind11.get_cmake_dir()}
    ninja = ["-G", "Ninja"] if shutil.which("ninja", path=_tools()) else []
    _run([_cmake(), "-S", str(ROOT), "-B", str(folder), *ninja, *(f"-D{k}={v}" for k, v in definitions.items()), *more])


def _by_cmake(cuda: bool) -> None:
    folder = FOLDER / "cmake"
    _configure(folder, f"-DSECATEUR_CUDA={'ON' if cuda else 'OFF'}")
    _run([_cmake(), "--build", str(folder), "--parallel", str(os.cpu_count() or 2)])
    _run([_cmake(), "--install", str(folder), "--prefix", str(SITE)])
    shutil.copytree(ROOT / "python" / "secateur", SITE / "secateur", dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("__pycache__", "*.so"))  # fmt: skip


def _compile_cuda() -> str:
    """Only the CUDA library, as ``make cuda`` does: a machine without a GPU can tell whether it compiles."""
    folder = FOLDER / "cuda"
    _configure(folder, "-DSECATEUR_CUDA=ON", "-DSECATEUR_WERROR=ON")
    _run([_cmake(), "--build", str(folder), "--target", "secateur_cuda", "--parallel", str(os.cpu_count() or 2)])
    return "compiled"


def _tools() -> str:
    """PATH with this Python's own folder first: pip puts cmake and ninja there."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _cmake() -> str:
    found = shutil.which("cmake", path=_tools())
    if found is None:
        raise FileNotFoundError("cmake was not found")
    return found


def _run(command: list[str]) -> None:
    print("$", " ".join(command), flush=True)
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": _tools()}, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} {command[1]} ended with code {done.returncode}: gpu.log says why")
