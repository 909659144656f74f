"""The engine's programs: what their builder refuses, and what the operator that runs them does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from programs import NONE, RELU, Builder, engine, run
from secateur import _host
from torch import Tensor

INF = math.inf

# ---- what the builder refuses ----

W = np.ones((2, 4, 3, 3), np.float32)
ONE = (1, 1)
NO_PAD = (0, 0, 0, 0)


def _conv(p: Any, x: int = 0, weight: Any = W, bias: Any = None, **a: Any) -> int:
    a = {"stride": ONE, "padding": NO_PAD, "dilation": ONE, "groups": 1, "residual": -1, "act": NONE, **a}
    return int(p.conv2d(x=x, weight=weight, bias=bias, name="c1", **a))


def _map(p: Any, x: int = 0, **a: Any) -> int:
    a = {"scale": None, "shift": None, "join": "none", "other": -1, "act": NONE, **a}
    return int(p.map(x=x, name="m1", **a))


# Value 0 is planes of 4 channels, 1 rows of 6, 2 planes of 3 channels.
REFUSED: list[tuple[Any, str]] = [
    (lambda p: p.input_planes(0), r"engine: input: channels must be at least 1, and below 2\^31, got 0"),
    (lambda p: p.input_rows(-1), r"engine: input: channels must be at least 1, and below 2\^31, got -1"),
    (lambda p: _conv(p, weight=W[:0]), r"c1: weight must have elements"),
    (lambda p: p.linear(1, np.ones((0, 6), np.float32), None, NONE, "l1"), r"l1: weight must have elements"),
    (lambda p: p.select_channels(0, [], "s1"), r"s1: index must not be empty"),
    (lambda p: _conv(p, 9), r"engine: c1: x must be a value of this program, got 9"),
    (lambda p: _conv(p, -1), r"engine: c1: x must be a value of this program, got -1"),
    (lambda p: _conv(p, 1), r"engine: c1: x must be planes"),
    (lambda p: _conv(p, weight=W[0]), r"c1: weight must be 4-d, got 3-d"),
    (lambda p: _conv(p, 2), r"c1: weight must have 27 elements an output channel, got 36"),
    (lambda p: _conv(p, bias=np.ones(3, np.float32)), r"c1: bias must have 2 elements, got 3"),
    (lambda p: _conv(p, bias=np.ones((2, 1), np.float32)), r"c1: bias must be 1-d, got 2-d"),
    (lambda p: _conv(p, stride=(0, 1)), r"c1: kernel, stride and dilation must be between 1 and 2\^20, got 3, 0, 1"),
    (lambda p: _conv(p, dilation=(1, 1 << 40)), r"c1: kernel, stride and dilation must be between 1 and 2\^20"),
    (lambda p: _conv(p, padding=(0, 0, -1, 0)), r"c1: padding must be between 0 and 2\^20, got -1"),
    (lambda p: _conv(p, groups=3), r"c1: groups must divide the channels, 4 and 2, got 3"),
    (lambda p: _conv(p, groups=0), r"c1: groups must divide the channels, 4 and 2, got 0"),
    (lambda p: _conv(p, residual=1), r"c1: residual must be planes"),
    (lambda p: _conv(p, residual=2), r"c1: residual must have 2 channels, got 3"),
    (lambda p: _conv(p, act=("selu", 0, 0, None)), r'engine: c1: act: no activation is named "selu"'),
    (lambda p: _conv(p, act=("clamp", math.nan, 0, None)), r"c1: the bounds of an activation must not be NaN"),
    (lambda p: _conv(p, act=("threshold", 0, 1, None)), r"c1: theta must have 2 elements, got 0"),
    (lambda p: _conv(p, act=("clamp", 0, 1, np.ones(2, np.float32))), r'theta is for the activation "threshold" only'),
    (lambda p: _map(p, act=("threshold", 0, 1, np.full(4, -1, np.float32))), r"m1: theta must be at least 0, got -1"),
    (lambda p: _map(p, act=("threshold", 0, 1, np.full(4, np.nan, np.float32))), r"m1: theta must be at least 0"),
    (lambda p: p.linear(0, np.ones((2, 4), np.float32), None, NONE, "l1"), r"l1: x must be rows"),
    (lambda p: p.linear(1, np.ones((2, 4), np.float32), None, NONE, "l1"), r"l1: weight must have 6 columns, got 4"),
    (lambda p: p.linear(1, W, None, NONE, "l1"), r"l1: weight must be 2-d, got 4-d"),
    (lambda p: p.max_pool(1, ONE, ONE, (0, 0), ONE, False, "p1"), r"p1: x must be planes"),
    (lambda p: p.max_pool(0, (2, 2), ONE, (2, 0), ONE, False, "p1"), r"p1: padding must be at most half of the kernel"),
    (lambda p: p.avg_pool(0, (2, 0), ONE, (0, 0), False, True, 0, "p1"), r"p1: kernel, stride and dilation must be"),
    (lambda p: p.global_avg_pool(1, "g1"), r"g1: x must be planes"),
    (lambda p: _map(p, scale=np.ones(3, np.float32)), r"m1: scale must have 4 elements, got 3"),
    (lambda p: _map(p, p.flatten(0), shift=np.ones(3, np.float32)), r"m1: scale and shift need a known number"),
    (lambda p: _map(p, join="minus", other=0), r'm1: join must be "none", "add" or "multiply", got "minus"'),
    (lambda p: _map(p, join="add"), r'm1: join needs two values, "none" one'),
    (lambda p: _map(p, other=0), r'm1: join needs two values, "none" one'),
    (lambda p: _map(p, 1, join="add", other=0), r"m1: other must be rows, as x is"),
    (lambda p: _map(p, join="add", other=1), r"m1: other must have 4 channels, got 6"),
    (lambda p: p.concat([], "k1"), r"k1: needs an input"),
    (lambda p: p.concat([0, 1], "k1"), r"k1: xs must be planes"),
    (lambda p: p.concat([1, 0], "k1"), r"k1: xs must be rows"),
    (lambda p: p.select_channels(0, [1, 4], "s1"), r"s1: index must be below 4, got 4"),
    (lambda p: p.select_channels(0, [-1], "s1"), r"s1: index must be below 4, got -1"),
    (lambda p: p.flatten(1), r"flatten: x must be planes"),
    (lambda p: p.output(3), r"output: value must be a value of this program, got 3"),
    (lambda p: p.finish(), r"finish: a program needs an output"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_the_builder_refuses(call: Any, message: str) -> None:
    p = Builder(_host.Program())
    p.input_planes(4), p.input_rows(6), p.input_planes(3)
    with pytest.raises(ValueError, match=message):
        call(p)
    p.output(_map(p))  # and is as good as before
    p.finish()


def test_nothing_follows_finish() -> None:
    p = Builder(_host.Program())
    x = p.input_planes(4)
    p.output(x)
    p.finish()
    for call in (lambda: p.input_rows(1), lambda: _map(p, x), lambda: p.output(x)):
        with pytest.raises(ValueError, match="the program is finished"):
            call()


# ---- what the operator refuses ----


def test_engine_run_refuses() -> None:
    def build(p: Any, x: int, r: int) -> list[int]:
        return [_conv(p, x), p.map(r, None, None, "none", -1, RELU, "relu")]

    x, r = torch.randn(2, 4, 5, 6), torch.randn(2, 6)
    program = engine(build, [x, r])
    refused: list[tuple[list[Tensor], str]] = [
        ([x], r"engine_run: takes 2 inputs, got 1"),
        ([x, r, r], r"engine_run: takes 2 inputs, got 3"),
        ([x[0], r], r"input 0 must be \[N, 4, H, W\], got \[4, 5, 6\]"),
        ([x[:, :3], r], r"input 0 must be \[N, 4, H, W\], got \[2, 3, 5, 6\]"),
        ([x, r[:, :5]], r"input 1 must be \[N, 6\], got \[2, 5\]"),
        ([x, r[:1]], r"inputs must agree in N, got 2 and 1"),
        ([x.double(), r], r"input 0 must be float32, got float64"),
        ([x, r.to(torch.bfloat16)], r"input 1 must be float32, got bfloat16"),
        ([x[:, :, :2], r], r"c1: an image of 2x6 is smaller than the kernel 3x3"),
        ([x[:, :, :0], r], r"an image must have at least one pixel, got 0x6"),
    ]
    for inputs, message in refused:
        with pytest.raises((RuntimeError, ValueError), match=message):
            run(program, inputs)
    assert run(program, [x, r])[0].shape == (2, 2, 3, 4)
    with pytest.raises(RuntimeError, match=r"program must be the id of a program that is held, got 123456789"):
        torch.ops.secateur.engine_run([x, r], 123456789)
    gone = program.id
    del program
    with pytest.raises(RuntimeError, match=rf"a program that is held, got {gone}"):
        torch.ops.secateur.engine_run([x, r], gone)
    raw = _host.Program()
    raw.output(raw.input_rows(6))
    with pytest.raises((RuntimeError, ValueError), match=r"the program is not finished"):
        run(raw, [r])


def test_sizes_that_do_not_meet_are_refused_when_they_are_planned() -> None:
    x, y = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 9)
    kernel = np.ones((3, 3, 1, 1), np.float32)
    builds = [
        (lambda p, x, y: p.map(x, None, None, "add", y, NONE, "sum"), r"sum: x is 8x8, other is 8x9"),
        (lambda p, x, y: p.concat([x, y], "cat"), r"cat: images of 8x8 and 8x9 cannot be joined"),
        (lambda p, x, y: _conv(p, x, kernel, residual=y), r"c1: the residual is 8x9, the output 8x8"),
    ]
    for build, message in builds:
        program = engine(build, [x, y])
        with pytest.raises((RuntimeError, ValueError), match=message):
            run(program, [x, y])
        with pytest.raises(ValueError, match=message):
            program.prepare([(8, 8), (8, 9)], 0.1)
        run(program, [x, x])


def test_sizes_are_checked_where_a_plan_is_asked_for() -> None:
    program = engine(lambda p, x: _map(p, x), [torch.randn(1, 4, 5, 5)])
    for wrong in ([], [(5, 5), (5, 5)]):
        with pytest.raises(ValueError, match=r"sizes must be one for each input of planes, 1, got"):
            program.prepare(wrong, 0.1)
        with pytest.raises(ValueError, match=r"sizes must be one for each input of planes, 1, got"):
            program.describe(wrong)
