"""The order of the rooms: an import, or an include, points down. The lists here are the only place that says so.

A room is a folder, or a file that stands for itself. ``docs/map.md`` says what is in each, in the same order.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "secateur"
CSRC = ROOT / "csrc"

#: python/secateur, top to bottom. "." is the package's own face, __init__.py.
ROOMS = (
    "__main__.py",
    "commands",
    "commands/demo",
    ".",
    "finetuning",
    "checkpoint",
    "checkpoint/graph",
    "checkpoint/format",
    "quantization",
    "training",
    "engine",
    "engine/lowering",
    "engine/recognise",
    "engine/backends",
    "activations",
    "pt2e.py",
    "pruning",
    "pruning/criteria",
    "reconstruction",
    "calibration",
    "graph",
    "nn",
    "masks",
    "ops",
    "cpu.py",
    "report.py",
    "_base",
)

#: csrc, top to bottom.
NATIVE_ROOMS = (
    "bindings",
    "cuda/ops",
    "cuda",  # and cuda/device
    "ops",
    "engine/run",
    "engine/kinds",
    "engine/plan",
    "engine/steps/int8",
    "engine/steps/conv",
    "engine/steps",
    "engine/program",
    "engine/layout",
    "formats",
    "registry.h",
    "cpu",  # and cpu/algorithms, which the files of an instruction set put between two of its levels
)

Graph = Mapping[Path, set[Path]]


def python_imports() -> Graph:
    """Each file of the package with those of its own that it imports, wherever in the file."""
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}

    def file_of(parts: tuple[str, ...]) -> Path | None:
        for path in (Path(*parts).with_suffix(".py") if parts else None, Path(*parts, "__init__.py")):
            if path in files:
                return path
        return None

    def imported(path: Path) -> Iterable[Path]:
        for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level == 0:
                assert not re.match(r"(from|import) secateur\b", ast.unparse(node)) or not isinstance(
                    node, ast.Import | ast.ImportFrom
                ), f"{path}: imports inside the package are relative"
                continue
            here = path.parent.parts
            module = (*here[: len(here) - node.level + 1], *(node.module or "").split("."))
            module = tuple(part for part in module if part)
            for name in node.names:
                found = file_of((*module, name.name)) or file_of(module)
                if name.name != "_host" and node.module != "_host":  # the compiled module: below everything
                    assert found is not None, f"{path}: {ast.unparse(node)}"
                    yield found

    return {path: {other for other in imported(path) if other != path} for path in files}


def native_includes() -> Graph:
    """Each file of csrc with those of its own that it includes; a .cpp file and its header are one."""
    files = {path.relative_to(CSRC) for kind in ("h", "cpp", "cu", "cuh") for path in CSRC.rglob(f"*.{kind}")}

    def one(path: Path) -> Path:
        return path.with_suffix(".h") if path.with_suffix(".h") in files else path

    def included(path: Path) -> Iterable[Path]:
        for name in re.findall(r'#include "(.+?)"', (CSRC / path).read_text()):
            # on_device.h and launch.h are found through an include folder: tests put an emulated grid in their place.
            places = (path.parent / name, Path(name), Path("cuda/device") / name)
            found = next((place for place in places if place in files), None)
            assert found is not None, f"csrc/{path} includes {name}"
            yield one(found)

    graph: dict[Path, set[Path]] = {}
    for path in files:
        graph.setdefault(one(path), set()).update(set(included(path)) - {one(path)})
    return graph


def room_of(path: Path, rooms: tuple[str, ...]) -> int:
    names = [path.as_posix(), path.parent.as_posix()]
    if path.parent == Path(".") and path.stem.startswith("bindings"):
        names.append("bindings")
    if path.parent in (Path("cpu/algorithms"), Path("cuda/device")):
        names.append(path.parts[0])
    known = [rooms.index(name) for name in names if name in rooms and (name != "." or path.name == "__init__.py")]
    assert len(known) == 1, f"{path} must stand in one of the rooms that {__file__} lists"
    return known[0]


def circles(graph: Graph) -> list[list[str]]:
    """The circles that a walk through the graph meets."""
    done: set[Path] = set()
    found: list[list[str]] = []

    def visit(path: Path, way: list[Path]) -> None:
        if path in way:
            found.append([str(p) for p in [*way[way.index(path) :], path]])
        elif path not in done:
            for other in sorted(graph[path]):
                visit(other, [*way, path])
            done.add(path)

    for path in sorted(graph):
        visit(path, [])
    return found


def arrows_up(graph: Graph, rooms: tuple[str, ...]) -> list[str]:
    return [
        f"{path} -> {other}"
        for path in sorted(graph)
        for other in sorted(graph[path])
        if room_of(path, rooms) > room_of(other, rooms)
    ]


def without_schema(graph: Graph) -> Graph:
    """csrc/schema.cpp includes nothing and is included by nobody."""
    assert graph[Path("schema.cpp")] == set()
    return {path: others for path, others in graph.items() if path != Path("schema.cpp")}


@pytest.mark.parametrize(
    ("graph", "rooms"),
    [
        pytest.param(python_imports(), ROOMS, id="python"),
        pytest.param(without_schema(native_includes()), NATIVE_ROOMS, id="csrc"),
    ],
)
def test_arrows_point_down_and_form_no_circle(graph: Graph, rooms: tuple[str, ...]) -> None:
    assert sum(map(len, graph.values())) > 100
    assert arrows_up(graph, rooms) == []
    assert circles(graph) == []
    assert {room_of(path, rooms) for path in graph} == set(range(len(rooms))), "a room that is listed and empty"


def test_the_test_sees_arrows_that_point_up() -> None:
    graph = {Path("masks/a.py"): {Path("nn/b.py")}, Path("nn/b.py"): {Path("masks/a.py")}}
    assert arrows_up(graph, ROOMS) == ["masks/a.py -> nn/b.py"]
    assert circles(graph) == [["masks/a.py", "nn/b.py", "masks/a.py"]]
    with pytest.raises(AssertionError, match="must stand in one of the rooms"):
        arrows_up({Path("attic/a.py"): {Path("nn/b.py")}}, ROOMS)


@pytest.mark.parametrize(
    ("heading", "rooms"), [("python/secateur", ROOMS), ("csrc", NATIVE_ROOMS)], ids=["python", "csrc"]
)
def test_the_map_lists_the_same_rooms_in_the_same_order(heading: str, rooms: tuple[str, ...]) -> None:
    text = (ROOT / "docs" / "map.md").read_text()
    section = text.partition(f"## `{heading}`")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(.+?)` \|", section, re.M)) == rooms
