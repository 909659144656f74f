"""One table says what torch calls things, and everybody who asks reads it."""

from __future__ import annotations

import ast
import inspect
import operator
from pathlib import Path

import pytest
import secateur
import torch
import torch.nn.functional as F
from secateur.activations import relu_sites
from secateur.engine.recognise import elementwise, nodes
from secateur.graph import aten, operators
from secateur.quantization import kinds
from torch import Tensor, fx, nn

PACKAGE = Path(secateur.__file__).parent
READERS = [
    *sorted((PACKAGE / "engine" / "recognise").glob("*.py")),
    *sorted((PACKAGE / "quantization").glob("*.py")),
    *sorted((PACKAGE / "activations").glob("*.py")),
    PACKAGE / "graph" / "aten.py",
    PACKAGE / "graph" / "tracing.py",
    PACKAGE / "graph" / "value_order.py",
    PACKAGE / "pt2e.py",
]
ROWS = pytest.mark.parametrize("row", operators.TABLE, ids=lambda row: row.name)


def overload(name: str):
    packet, which = name.split(".")
    return getattr(getattr(torch.ops.aten, packet), which)


@ROWS
def test_a_row_names_what_torch_has(row):
    assert row.functions or row.methods or row.modules or row.elsewhere
    assert all(callable(function) for function in row.functions)
    assert all(callable(getattr(Tensor, method)) for method in row.methods)
    assert all(issubclass(module, nn.Module) for module in row.modules)
    assert all(isinstance(overload(name), torch._ops.OpOverload) for name in row.aten)
    assert row.functions or not row.aten  # what an overload becomes


@ROWS
def test_a_row_names_arguments_in_torchs_order(row):
    ours = row.arguments.split()
    for function in row.functions:
        try:
            theirs = list(inspect.signature(function).parameters)
        except ValueError:
            continue  # written in C
        if theirs and theirs[0] in ("input", "x") and function not in (F.max_pool2d, F.adaptive_max_pool2d):
            assert theirs[: len(ours)][1:] == ours[1:][: len(theirs) - 1]
    for name in row.aten:
        theirs = [argument.name for argument in overload(name)._schema.arguments]
        known = [argument for argument in ours[1:] if argument in theirs]
        assert known == [argument for argument in theirs if argument in known]


def test_names_stand_in_one_row():
    for names in ("functions", "methods", "modules", "aten", "elsewhere"):
        every = [each for row in operators.TABLE for each in dict.fromkeys(getattr(row, names))]
        assert len(every) == len(set(every))
    assert len({row.name for row in operators.TABLE}) == len(operators.TABLE)


@pytest.mark.parametrize(
    ("function", "row", "written"),
    [
        (torch.relu_, operators.RELU, True),
        (F.hardtanh_, operators.HARDTANH, True),
        (operator.iadd, operators.ADD, True),
        (torch.subtract, operators.SUB, False),
        (F.max_pool2d, operators.MAX_POOL2D, False),
        (torch.sin, None, False),
    ],
)
def test_a_function_is_found_in_place_or_not(function, row, written):
    graph = fx.Graph()
    node = graph.call_function(function, (graph.placeholder("x"),))
    assert operators.of(node) is row
    assert operators.in_place(node) is written
    plain = operators.out_of_place(function)
    assert (plain in row.functions) if written else plain is None


@pytest.mark.parametrize(
    ("method", "row", "written"),
    [("relu_", operators.RELU, True), ("view", operators.RESHAPE, False), ("sin_", None, False)],
)
def test_a_method_is_found_in_place_or_not(method, row, written):
    graph = fx.Graph()
    node = graph.call_method(method, (graph.placeholder("x"),))
    assert operators.of(node) is row
    assert operators.in_place(node) is written


class Mine(nn.ReLU6):
    pass


class Other(nn.ReLU6):
    def forward(self, input: Tensor) -> Tensor:
        return input


def test_a_module_is_found_by_the_forward_that_it_has():
    assert operators.of_module(nn.ReLU6()) is operators.RELU6
    assert operators.of_module(Mine()) is operators.RELU6
    assert operators.of_module(Other()) is None
    replaced = nn.ReLU()
    replaced.forward = lambda x: x
    assert operators.of_module(replaced) is None
    assert operators.of_module(nn.BatchNorm3d(2)) is None


def test_the_readers_know_rows_of_the_table():
    rows = set(operators.TABLE)
    assert rows > set(nodes.CALLS) > set(elementwise.CALLS)
    assert rows > set(nodes.MODULES) > set(elementwise.MODULES)
    assert set(kinds._KINDS) | {"layer", "pad", "convert", "math"} == {row.kind for row in operators.TABLE}
    assert set(relu_sites.FUNCTIONS) == {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6}
    assert {row.functions[0] for row in operators.TABLE if row.kind == "dropout" and row.functions} == set(
        relu_sites._DROPOUTS
    )


def test_views_are_told_by_their_schemas():
    graph = fx.Graph()
    x = graph.placeholder("x")
    for name in (
        "view.default",
        "chunk.default",
        "slice.Tensor",
        "expand.default",
        "dropout.default",
        "detach.default",
    ):
        assert aten.is_view(graph.call_function(overload(name), (x,))), name
    for name in ("relu.default", "relu_.default", "clone.default", "add.Tensor", "cat.default"):
        assert not aten.is_view(graph.call_function(overload(name), (x,))), name


def vocabulary() -> set[str]:
    """Every function, class, method and overload of the table, as source code would write it."""
    homes = {"torch": torch, "F": F, "nn": nn, "operator": operator, "Tensor": Tensor}
    known = {each for row in operators.TABLE for each in operators.callables(row)}
    known |= {module for row in operators.TABLE for module in row.modules}
    written = {
        f"{label}.{name}"
        for label, home in homes.items()
        for name, value in inspect.getmembers(home, callable)
        if not name.startswith("__") and value in known
    }
    methods = {method for row in operators.TABLE for method in row.methods}
    strings = methods | {f"{m}_" for m in methods} | {row.name for row in operators.TABLE}
    strings |= {f"aten.{name}" for row in operators.TABLE for name in row.aten}
    return written | {repr(string) for string in strings}


def lists_of(source: str, words: set[str]) -> list[str]:
    """The literal collections in a source that hold two or more of the words."""
    found = []
    for node in ast.walk(ast.parse(source)):
        entries = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        if len({ast.unparse(entry) for entry in entries if entry is not None} & words) >= 2:
            found.append(ast.unparse(node))
    return found


def test_a_second_list_would_be_seen():
    words = vocabulary()
    for second in ('{"relu", "flatten"}', "{F.relu: 1, torch.relu_: 2}", "(nn.ReLU, nn.Flatten)", '["relu_", "view"]'):
        assert lists_of(f"names = {second}", words), second
    assert not lists_of('names = {"mean", "std"}; other = (torch.float32, F.relu)', words)


#: Lists that ask something else of a class than what it computes.
OTHER_QUESTIONS = {
    # whose forward torch.fx looks into
    "(nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d, nn.ReLU)",
    # which BatchNorm can be folded into the layer before it
    "(nn.BatchNorm1d, nn.BatchNorm2d)",
    # kinds of the table's rows and of the engine's steps, which have names of their own
    repr(kinds._KINDS),
    "('conv2d', 'linear')",
}


@pytest.mark.parametrize("path", READERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_reader_has_a_list_of_its_own(path):
    assert set(lists_of(path.read_text(), vocabulary())) <= OTHER_QUESTIONS
