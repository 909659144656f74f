"""Graphs that must not be believed: whatever the text says, an Error that names the file, or a module."""

from __future__ import annotations

import copy
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from secateur import Error
from secateur.checkpoint.graph import kinds, words
from secateur.checkpoint.graph.description import MOST_TEXT, metadata_of
from test_graph_file import Everything, net
from torch import Tensor, nn

X = torch.rand(2, 3, 8, 8)

Parts = tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]


def parts_of(model: nn.Module, path: Path) -> Parts:
    secateur.save(model, path)
    with safe_open(path, "pt") as file:
        metadata = {word: said for word, said in file.metadata().items() if word != "digest"}  # changed files need none
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return tensors, metadata, json.loads(metadata["graph"])


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], graph: Any) -> None:
    text = graph if isinstance(graph, str) else json.dumps(graph)
    save_file(tensors, path, metadata | metadata_of(text))


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return parts_of(net(), tmp_path_factory.mktemp("sequence") / "f")


Change = Callable[[dict[str, Any]], Any]


def put(*where: Any) -> Change:
    """Put the last of ``where`` at the others."""

    def change(graph: dict[str, Any]) -> None:
        *steps, last, value = where
        at: Any = graph
        for step in steps:
            at = at[step]
        at[last] = value

    return change


DEEP: Any = 0
for _ in range(20):
    DEEP = [DEEP]
CASES: dict[str, tuple[Change | str, str]] = {
    "no JSON": ("{", "Expecting"),
    "NaN": ('{"inputs": NaN}', "NaN is no JSON"),
    "nested": ("[" * 100_000, "nested too deeply|Expecting"),
    "a list": ("[]", "must be an object of"),
    "a name twice": ('{"inputs":[],"inputs":[]}', "a name comes twice"),
    "a word of tomorrow": (put("code", "print(1)"), "must be an object of"),
    "no inputs": (put("inputs", []), "inputs must be 1 to 64 names"),
    "an input that is code": (put("inputs", ["x=print(1)"]), "a name that Python can have"),
    "an input that hides torch": (put("inputs", ["torch"]), "a name that Python can have"),
    "an input of a keyword": (put("inputs", ["class"]), "a name that Python can have"),
    "an input that is no text": (put("inputs", [1]), "a name that Python can have"),
    "two inputs of a name": (put("inputs", ["x", "x"]), "different names"),
    "an unknown kind": (put("modules", "0", ["torch.nn.Conv2d", {}]), "unknown kind"),
    "a kind that is no text": (put("modules", "0", [1, {}]), "a kind and arguments"),
    "an unknown argument": (put("modules", "0", ["conv2d", {"device": "cuda"}]), "no such arguments"),
    "a huge stride": (put("modules", "0", ["conv2d", {"stride": [2**40, 1]}]), "stride must be a whole number"),
    "a stride of 0": (put("modules", "0", ["conv2d", {"stride": [0, 1]}]), "stride must be a whole number"),
    "a stride of true": (put("modules", "0", ["conv2d", {"stride": [True, 1]}]), "stride must be a whole number"),
    "a stride of text": (put("modules", "0", ["conv2d", {"stride": "1"}]), "stride must be 2"),
    "groups that do not divide": (put("modules", "0", ["conv2d", {"groups": 7}]), "must be divisible by groups"),
    "huge groups": (put("modules", "0", ["conv2d", {"groups": 2**31 - 1}]), ""),
    "another size": (put("modules", "1", ["batch_norm2d", {"num_features": 2**30}]), "num_features must be"),
    "a module that the file has no tensors for": (put("modules", "9", ["linear", {}]), "but the file has none"),
    "a module of other tensors": (put("modules", "0", ["linear", {}]), "weight must have 2 dims"),
    "a module that leaves a tensor out": (put("modules", "0", ["relu", {}]), "must be those of the file"),
    "a path of code": (put("modules", 'a"); print(1); ("', ["relu", {}]), "names that Python can have"),
    "a path that is an attribute": (put("modules", "forward", ["relu", {}]), "names that Python can have"),
    "a path of dunders": (put("modules", "__class__", ["relu", {}]), "names that Python can have"),
    "a path of parts without end": (put("modules", ".".join("a" * 40), ["relu", {}]), "names that Python can have"),
    "an empty path among others": (put("modules", "", ["relu", {}]), "must be all of the model"),
    "a module inside of a module": (put("modules", "0.a", ["relu", {}]), "must not stand inside"),
    "the same as nothing": (put("same", "x", "y"), "must be the same as a module"),
    "the same in a circle": (put("same", {"x": "y", "y": "x"}), "must be the same as a module"),
    "a tensor that is not there": (put("tensors", "x", "parameter"), "must be those of the file"),
    "a tensor of no role": (put("tensors", "x", "code"), "a parameter or a buffer"),
    "no nodes": (put("nodes", None), "nodes must be at most"),
    "too many nodes": (put("nodes", [["module", "2", [{"value": 0}]]] * 20_001), "nodes must be at most"),
    "a node of one word": (put("nodes", 0, ["module"]), "must say what it calls"),
    "an unknown function": (put("nodes", 0, ["function", "os.system", ["true"]]), "calls the unknown"),
    "a function of Python": (put("nodes", 0, ["function", "builtins.eval", ["1"]]), "calls the unknown"),
    "an unknown method": (put("nodes", 0, ["method", "__reduce__", [{"value": 0}]]), "calls the unknown"),
    "an unknown attribute": (put("nodes", 0, ["attribute", "__class__", {"value": 0}]), "calls the unknown"),
    "a method of a text": (put("nodes", 0, ["method", "to", ["cuda"]]), "of a value"),
    "a module that is not there": (put("nodes", 0, ["module", "77", [{"value": 0}]]), "calls the unknown"),
    "a value of itself": (put("nodes", 0, ["module", "0", [{"value": 1}]]), "has the argument"),
    "a later value": (put("nodes", 0, ["module", "0", [{"value": 5}]]), "has the argument"),
    "a negative value": (put("nodes", 0, ["module", "0", [{"value": -1}]]), "has the argument"),
    "a value of true": (put("nodes", 0, ["module", "0", [{"value": True}]]), "has the argument"),
    "a number of 4,000 digits": (put("nodes", 0, ["module", "0", [int("9" * 4000)]]), "more than 63 bits"),
    "a number beyond the largest": ('{"inputs":["x"],"modules":{},"same":{},"tensors":{},"nodes":[],"output":1e999}',
                                    "not finite"),
    "lists in lists": (put("nodes", 0, ["module", "0", [DEEP]]), "lists in lists"),
    "a text without end": (put("nodes", 0, ["module", "0", ["x" * 10_000]]), "has a word of"),
    "a name of an argument that is code": (put("nodes", 0, ["module", "0", [], {"a=1, b": 1}]), "with the name"),
    "an operator of one": (put("nodes", 0, ["function", "operator.add", [{"value": 0}]]), "operands"),
    "a power of a negative number": (put("nodes", 0, ["function", "operator.pow", [-2, {"value": 0}]]), "operands"),
    "a tensor of the file that is a property": (put("nodes", 0, ["tensor", "0.dtype"]), "must be a tensor of the file"),
    "an output of later": (put("output", {"value": 99}), "has the argument"),
    "an output of nothing known": (put("output", {"code": "x"}), "has the argument"),
    "a slice of texts": (put("output", {"slice": ["a", "b", "c"]}), "has the argument"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_graph_that_is_none(tmp_path: Path, sequence: Parts, name: str) -> None:
    tensors, metadata, graph = copy.deepcopy(sequence)
    change, message = CASES[name]
    if callable(change):
        change(graph)
    write(tmp_path / "f", tensors, metadata, change if isinstance(change, str) else graph)
    with pytest.raises(Error, match=rf"load: .*/f must describe what its model computes.* damaged: .*({message})"):
        secateur.load(tmp_path / "f")
    secateur.load(tmp_path / "f", net())  # with a model nobody reads it


def test_a_text_of_another_kind_or_too_long(tmp_path: Path, sequence: Parts) -> None:
    tensors, metadata, _ = sequence
    for text, message in (("[1]", "must be an object"), ("1" * (MOST_TEXT + 1), "is the most")):
        save_file(tensors, tmp_path / "f", metadata | {"graph": text})
        with pytest.raises(Error, match=rf"must describe what its model computes.*{message}"):
            secateur.load(tmp_path / "f")


def test_tensors_that_many_names_share_take_memory_once(tmp_path: Path) -> None:
    names = [f"t{i}" for i in range(2_000)]
    about = {"packed": {}, "aliases": dict.fromkeys(names, "a"), "layers": {}}
    graph = {"inputs": ["x"], "modules": {}, "same": {}, "tensors": dict.fromkeys(["a", *names], "buffer"),
             "nodes": [], "output": {"value": 0}}  # fmt: skip
    metadata = {"format": "secateur", "version": "2", "secateur": json.dumps(about)}
    write(tmp_path / "f", {"a": torch.ones(1_000_000)}, metadata, graph)
    loaded = secateur.load(tmp_path / "f")
    assert len({value.data_ptr() for value in loaded.state_dict().values()}) == 1
    # Sparse layers cannot share: each would be given its own.
    layer = secateur.nn.SparseLinear(torch.eye(4))
    state = {f"l0.{key}": value for key, value in layer.state_dict().items()}
    graph |= {"tensors": {}, "modules": {f"l{i}": ["sparse_linear", {"weight_shape": [4, 4]}] for i in range(9)}}
    about["aliases"] = {f"l{i}.{key}": f"l0.{key}" for i in range(1, 9) for key in layer.state_dict()}
    write(tmp_path / "f", state, metadata | {"secateur": json.dumps(about)}, graph)
    with pytest.raises(Error, match="must be a tensor of its own"):
        secateur.load(tmp_path / "f")


def test_a_long_graph_takes_no_memory_without_end(tmp_path: Path) -> None:
    graph = {"inputs": ["x"], "modules": {"r": ["relu", {}]}, "same": {}, "tensors": {},
             "nodes": [["module", "r", [{"value": 0}]]] * 20_000, "output": list(range(100_000))}  # fmt: skip
    metadata = {"format": "secateur", "version": "2", "secateur": '{"packed":{},"aliases":{},"layers":{}}'}
    write(tmp_path / "f", {}, metadata, graph)
    tracemalloc.start()
    try:
        loaded = secateur.load(tmp_path / "f")
        assert tracemalloc.get_traced_memory()[1] < 300 * 2**20
    finally:
        tracemalloc.stop()
    assert len(loaded(X)) == 100_000


# ---- mutations ----

WORDS = ["", "x", "self", "0", "1", "a.b", "forward", "conv2d", "F.relu", "operator.getitem", "torch.cat", "view",
         "size", "shape", "module", "function", "method", "attribute", "tensor", "value", "tuple", "slice", "dtype",
         "float32",
         "parameter", "__class__", "a\"b'", "\udc80", "é", *random.Random(1).sample(sorted(words.FUNCTIONS), 20),
         *random.Random(1).sample(sorted(kinds.BY_WORD), 20)]  # fmt: skip
ATOMS: list[Any] = [None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, -(2**64), 1.5, -0.0, 1e308, [], {}, [[]], [0, 1],
                    {"value": 0}, {"value": 3}, {"value": 10**6}, {"tuple": []}, {"slice": [None, 1, None]},
                    {"number": "inf"}, {"dict": {"a": 1}}, {"ellipsis": True}]  # fmt: skip


def places(found: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: (container, key)."""
    keys = list(found) if isinstance(found, dict) else range(len(found)) if isinstance(found, list) else []
    return [one for key in keys for one in ((found, key), *places(found[key]))]


def mutate(graph: Any, draw: random.Random) -> None:
    at, key = draw.choice(places(graph))
    what = draw.randrange(7)
    if what == 0:
        at[key] = copy.deepcopy(draw.choice(ATOMS))
    elif what == 1:
        at[key] = draw.choice(WORDS)
    elif what == 2:
        other, name = draw.choice(places(graph))
        at[key] = copy.deepcopy(other[name])
    elif what == 3:
        del at[key]
    elif what == 4 and isinstance(at, list):
        at.insert(key, copy.deepcopy(draw.choice([*at, *ATOMS])))
    elif what == 5 and isinstance(at, dict):
        at[draw.choice(WORDS)] = at.pop(key) if draw.random() < 0.5 else copy.deepcopy(at[key])
    elif isinstance(at[key], int | float):
        at[key] += draw.choice([-1, 1, 2**20])
    elif isinstance(at, list):
        draw.shuffle(at)


@pytest.mark.parametrize("seed", range(4))
def test_mutations(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    pruned = net()
    secateur.prune(pruned, secateur.MeanStd(sparsity=0.6))
    models = [net(), Everything(), secateur.quantize(net(), [X], progress=False), secateur.convert(pruned)]
    given = parts_of(models[seed], tmp_path / "f")
    made = refused = 0
    rounds = 150
    for _ in range(rounds):
        tensors, metadata, graph = copy.deepcopy(given)
        for _ in range(draw.choice([1, 1, 1, 2, 5])):
            mutate(graph, draw)
        write(tmp_path / "f", tensors, metadata, graph)
        try:
            loaded = secateur.load(tmp_path / "f")
        except Error as error:
            refused += "/f " in str(error)
        else:
            made += 1
            assert isinstance(loaded, nn.Module)
    assert made > 5
    assert made + refused == rounds, "an error that names no file"
