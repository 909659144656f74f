"""The table of kinds: what attributes the builder takes, and programs as data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import secateur
import torch
from programs import RELU, engine, run, weights
from secateur import _host
from secateur.engine.backends import reference
from secateur.engine.backends.program import KINDS, Unplannable
from secateur.engine.backends.reference import ReferenceProgram
from secateur.engine.lowering.segment import Segment
from torch import nn

W = np.ones((2, 4, 3, 3), np.float32)
BUILDERS: list[Callable[[], Any]] = [_host.Program, ReferenceProgram]


def test_every_kind_has_a_twin() -> None:
    assert set(KINDS) == set(reference._TWINS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_says_which_attributes_it_needs(kind: str) -> None:
    required, known = KINDS[kind]
    assert set(required) <= set(known)
    for builder in BUILDERS:
        p = builder()
        x = p.input_planes(4)
        for attribute in required:
            with pytest.raises(ValueError, match=rf"attribute {required[0]} is missing"):
                p.add(kind, [x], {attribute: None}, "n1")
        message = "has no attribute" if not required else "has no attribute|is missing"
        with pytest.raises(ValueError, match=message):
            p.add(kind, [x], {"colour": 1})


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("conv3d", {}, r'engine: n1: no kind of operation is named "conv3d"'),
    ("flatten", {"index": [0]}, r'engine: n1: flatten has no attribute "index"; it has: none'),
    ("max_pool", {"kernel": (2, 2), "divisor": 3}, r'engine: n1: max_pool has no attribute "divisor"; it has: kernel'),
    ("conv2d", {"weight": W, "slope": 1}, r'engine: n1: conv2d has no attribute "slope"; it has: groups, weight, bias'),
    ("conv2d", {}, r"engine: n1: attribute weight is missing"),
    ("conv2d", {"weight": W, "stride": 2}, r"engine: n1: stride must be two integers, got 2"),
    ("conv2d", {"weight": W, "padding": (1, 1)}, r"engine: n1: padding must be four integers, got \(1, 1\)"),
    ("conv2d", {"weight": W, "groups": "2"}, r"engine: n1: groups must be an integer, got '2'"),
    ("conv2d", {"weight": "W"}, r"engine: n1: weight must be an array of float32"),
    ("conv2d", {"weight": W, "bias": W}, r"engine: n1: bias must be 1-d, got 4-d"),
    ("conv2d", {"weight": W, "act": "relu"}, r"engine: n1: act must be \(name, lo, hi, theta\), got 'relu'"),
    ("conv2d_int8", {"weight": W}, r"engine: n1: weight must be an array of int8, got float32"),
    ("max_pool", {"kernel": (2, 2), "ceil_mode": 3.5}, r"engine: n1: ceil_mode must be true or false, got 3.5"),
    ("map", {"join": 3}, r"engine: n1: join must be a name, got 3"),
    ("quantize", {"grid": 0.5}, r"engine: n1: grid must be \(scale, zero_point\), got 0.5"),
    ("quantize", {"grid": (1.0, 0), "theta": np.zeros(4)}, r"engine: n1: theta must be an array of uint8, got float64"),
    ("select_channels", {"index": 3}, r"engine: n1: index must be a list of integers, got 3"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "attributes", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_attributes_that_a_kind_does_not_take(kind: str, attributes: dict[str, Any], message: str) -> None:
    p = _host.Program()
    x = p.input_planes(4)
    with pytest.raises(ValueError, match=message):
        p.add(kind, [x], attributes, "n1")
    p.output(p.add("flatten", [x]))  # and is as good as before
    p.finish()


# ---- programs as data ----


def network(p: Any, x: int) -> list[int]:
    torch.manual_seed(3)
    y = p.conv2d(x, weights(6, 4, 3, 3, zeros=0.6), np.ones(6, np.float32), (1, 1), (1,) * 4, (1, 1), 1, -1, RELU, "a")
    act = ("threshold", 0.0, math.inf, np.full(6, 0.25, np.float32))
    z = p.map(
        y, np.full(6, 0.1, np.float32), None, "add", p.max_pool(y, (3, 3), (1, 1), (1, 1), (1, 1), False, "b"), act, "c"
    )
    q = p.quantize(z, (0.05, 3), np.arange(6, dtype=np.uint8), "q")
    w = np.arange(-12, 12, dtype=np.int8).reshape(4, 6, 1, 1)
    ones = np.ones(4, np.float32)
    r = p.conv2d_int8(
        q,
        w,
        np.arange(4, dtype=np.int32),
        ones,
        (1, 1),
        (0,) * 4,
        (1, 1),
        1,
        -1,
        0.0,
        (0.1, 0),
        (1, 254),
        None,
        ("none", 0, 0, None),
        "d",
    )
    mean = p.global_avg_pool(p.concat([p.select_channels(r, [1, 0], "s"), r], "k"), "g", (0.2, 1))
    w2 = np.ones((3, 6), np.int8)
    return [z, p.linear_int8(mean, w2, np.zeros(3, np.int32), ones[:3], None, (0, 255), None, RELU, "l"), p.flatten(z)]


def rebuilt(dump: dict[str, Any]) -> Any:
    p = _host.Program()
    ids = {v: (p.input_planes if kind == "planes" else p.input_rows)(size) for v, kind, size in dump["inputs"]}
    for op in dump["ops"]:
        ids[op["output"]] = p.add(op["kind"], [ids[v] for v in op["inputs"]], op["attributes"], op["name"])
    for v in dump["outputs"]:
        p.output(ids[v])
    p.finish()
    return p


def test_a_program_can_be_copied_compared_and_written_down() -> None:
    x = torch.randn(2, 4, 9, 7)
    program = engine(network, [x])
    again, copied, other = engine(network, [x]), program.copy(), rebuilt(program.dump())
    for same in (again, copied, other):
        assert same == program
        assert str(same) == str(program)
        assert same.id != program.id
        assert all(torch.equal(a, b) for a, b in zip(run(same, [x]), run(program, [x]), strict=True))
    for kind in ("conv2d", "map", "max_pool", "quantize", "conv2d_int8", "linear_int8", "concat", "flatten"):
        assert f"{kind} " in str(program)


def test_a_copy_can_be_carried_on() -> None:
    p = _host.Program()
    x = p.input_planes(4)
    q = p.copy()
    q.output(q.add("flatten", [x]))
    q.finish()
    assert p != q
    p.output(p.add("flatten", [x]))
    p.finish()
    assert p == q


@pytest.mark.parametrize("change", ["name", "attribute", "weight", "output"])
def test_programs_that_differ(change: str) -> None:
    dump = engine(network, [torch.randn(1, 4, 5, 5)]).dump()
    same = rebuilt(dump)
    if change == "name":
        dump["ops"][0]["name"] = "other"
    elif change == "attribute":
        dump["ops"][0]["attributes"]["dilation"] = (1, 2)
    elif change == "weight":
        dump["ops"][0]["attributes"]["weight"][5, 3, 2, 1] += 1
    else:
        dump["outputs"] = dump["outputs"][:2]
    assert rebuilt(dump) != same
    assert str(rebuilt(dump)) != str(same)


# ---- sizes without a plan ----


def test_a_size_without_a_plan_is_an_error_of_its_own() -> None:
    program = engine(
        lambda p, x: p.conv2d(x, W, None, (1, 1), (0,) * 4, (1, 1), 1, -1, RELU, "c"), [torch.ones(1, 4, 5, 5)]
    )
    assert issubclass(_host.Unplannable, ValueError)
    with pytest.raises(_host.Unplannable, match=r"c: an image of 2x5 is smaller than the kernel 3x3"):
        program.prepare([(2, 5)], 0.0)
    assert "smaller than the kernel" in program.unplannable([(2, 5)])
    assert program.unplannable([(5, 5)]) is None
    with pytest.raises(ValueError, match="sizes must be one for each input") as wrong:
        program.prepare([], 0.0)
    assert not isinstance(wrong.value, _host.Unplannable)


@pytest.mark.usefixtures("engine_wins")
def test_only_a_size_without_a_plan_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 4, 8, 8)
    fast = secateur.compile(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU()), x)
    expected = fast(x)

    def fail(error: Exception) -> None:
        def raising(*_: Any) -> Any:
            raise error

        patch.setattr(Segment, "_outputs", raising)

    with monkeypatch.context() as patch:
        fail(Unplannable("engine: no plan"))
        with pytest.warns(UserWarning, match=r"torch computes .* for engine: no plan"):
            assert torch.allclose(fast(x), expected, atol=1e-5)
        fail(RuntimeError("a kernel's bug"))
        with pytest.raises(RuntimeError, match="a kernel's bug"):
            fast(x)
        fail(ValueError("a wrong call"))
        with pytest.raises(ValueError, match="a wrong call"):
            fast(x)
    assert torch.equal(fast(x), expected)
