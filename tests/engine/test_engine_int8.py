"""The engine's integer layers against their twin in plain torch: bit for bit, on every instruction set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import secateur.cpu
import torch
from programs import NONE, RELU, Builder, engine, make, run, sizes
from secateur import _host
from secateur.engine.backends.reference import ReferenceProgram
from torch import Tensor

GRID_IN, GRID_OUT = (0.04, 0), (0.07, 3)


@pytest.fixture(params=[False, True], ids=["plain", "dot"])
def dot(request: pytest.FixtureRequest) -> Any:
    """With the CPU's product of four bytes (VNNI and its like) where it has one, and without."""
    if request.param and not _host.dot_available(secateur.cpu.current_isa()):
        pytest.skip(f"{secateur.cpu.current_isa()} has no product of four bytes here")
    _host.allow_dot(request.param)
    yield request.param
    _host.allow_dot(True)


def bytes_of(*shape: int, zeros: float = 0.0) -> np.ndarray:
    w = torch.randint(-127, 128, shape) * (torch.rand(shape) >= zeros)
    return w.to(torch.int8).numpy()


def layer(k: int, per_neuron: int, spread: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    """Bias and multiplier: results spread over the bytes, some beyond them."""
    bias = torch.randint(-20000, 20000, (k,), dtype=torch.int32).numpy()
    scale = spread / (math.sqrt(per_neuron) * 70 * 120)
    return bias, (torch.rand(k) * scale + scale / 2).numpy()


def same(build: Any, *inputs: Tensor, tune: bool = False, kernels: str = "fastest") -> Any:
    program = engine(build, inputs)
    if tune:
        program.prepare(sizes(inputs), 0.02, [], kernels)
    want = make(ReferenceProgram, build, inputs).run(list(inputs))
    got = run(program, inputs)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert torch.equal(a, b), f"{int((a != b).sum())} of {a.numel()} differ, by up to {float((a - b).abs().max())}"
    return program


CONVS = [
    # channels in, out, size, kernel, stride, padding, dilation, groups
    (4, 8, (9, 11), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    (3, 5, (17, 13), (7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
    (16, 32, (7, 7), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    (10, 12, (8, 8), (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    (12, 12, (15, 15), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 12),
    (6, 9, (10, 9), (3, 2), (1, 2), (1, 0, 0, 1), (2, 1), 3),
    (64, 24, (14, 14), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    (8, 8, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    (8, 6, (20, 20), (3, 3), (3, 3), (1, 1, 1, 1), (1, 1), 2),
    (130, 7, (5, 6), (5, 5), (1, 1), (2, 2, 2, 2), (1, 1), 1),
]


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize(
    ("zeros", "kernels"),
    [(0.0, "blocks"), (0.0, "blocks4x4"), (0.5, "blocks4x4"), (0.9, "fastest"), (0.0, "fastest")],
)
def test_conv2d(conv: Any, zeros: float, kernels: str, isa: str, dot: bool) -> None:
    c, k, size, kernel, stride, padding, dilation, groups = conv
    w = bytes_of(k, c // groups, *kernel, zeros=zeros)
    bias, multiplier = layer(k, w[0].size)
    theta = torch.randint(0, 60, (k,), dtype=torch.uint8).numpy()
    for zero_in, zero_out, limits, bound in [
        (0, 0, (0, 255), None),
        (7, 130, (130, 200), None),
        (255, 0, (0, 255), theta),
    ]:
        grid = (0.05, zero_out)

        def build(p: Any, x: int, grid: Any = grid, zero: int = zero_in, limits: Any = limits, t: Any = bound) -> int:
            q = p.quantize(x, (0.04, zero), None, "q")
            y = p.conv2d_int8(
                q, w, bias, multiplier, stride, padding, dilation, groups, -1, 0.0, grid, limits, t, NONE, "conv"
            )
            return int(p.dequantize(y, "d"))

        x = torch.rand(2, c, *size) * 12 - zero_in * 0.04
        program = same(build, x, tune=True, kernels=kernels)
        step = next(s for s in program.describe(sizes([x])) if s["kind"] == "conv2d")
        # Four output channels of different groups may read different quads.
        shared = groups == 1 or (c // groups == 1 and k == c) or k // groups % 4 == 0
        if kernels != "fastest":
            assert step["kernel"] == ("int8 dense" if kernels == "blocks4x4" and shared else "int8")
        elif c == k == groups > 1 and "chosen at random" not in step["why"]:
            assert (step["kernel"] == "int8 depthwise") == (not dot)  # with a product of four bytes squares take less


def test_residual_and_real_outputs(isa: str, dot: bool) -> None:
    w, second, third = bytes_of(24, 16, 3, 3, zeros=0.8), bytes_of(24, 16, 1, 1), bytes_of(5, 24, 1, 1)
    bias, multiplier = layer(24, 30)

    def build(p: Any, x: int) -> list[int]:
        q = p.quantize(x, (0.05, 100), None, "q")
        a = p.conv2d_int8(
            q, second, bias, multiplier, (1, 1), (0,) * 4, (1, 1), 1, -1, 0.0, (0.09, 120), (0, 255), None, NONE, "a"
        )
        b = p.conv2d_int8(
            q, w, bias, multiplier, (1, 1), (1,) * 4, (1, 1), 1, a, 1.37, (0.06, 0), (0, 255), None, NONE, "b"
        )
        real = p.conv2d_int8(
            b, third, bias[:5], multiplier[:5], (1, 1), (0,) * 4, (1, 1),
            1, -1, 0.0, None, (0, 255), None, RELU, "real",
        )  # fmt: skip
        return [p.dequantize(b, "db"), real]

    same(build, torch.randn(3, 16, 13, 10) * 3)


@pytest.mark.parametrize("batch", [1, 3, 4, 19, 70])
def test_linear(batch: int, isa: str, dot: bool, threads: int) -> None:
    w, head = bytes_of(50, 37, zeros=0.7), bytes_of(10, 50)
    bias, multiplier = layer(50, 12)
    theta = torch.randint(0, 60, (50,), dtype=torch.uint8).numpy()

    def build(p: Any, x: int) -> list[int]:
        q = p.quantize(x, (0.05, 9), None, "q")
        h = p.linear_int8(q, w, bias, multiplier, (0.1, 0), (0, 255), theta, NONE, "hidden")
        return [
            p.linear_int8(h, head, bias[:10], multiplier[:10], None, (0, 255), None, RELU, "head"),
            p.dequantize(h, "d"),
        ]

    same(build, torch.randn(batch, 37) * 4)


def test_a_network_of_bytes(isa: str, dot: bool, threads: int) -> None:
    """First layer, pools, depthwise, channels moved, concat, flatten: bytes from end to end."""
    first, deep, point = bytes_of(10, 3, 3, 3), bytes_of(10, 1, 3, 3), bytes_of(6, 10, 1, 1, zeros=0.5)
    b1, m1 = layer(10, 27)
    b2, m2 = layer(10, 9)
    b3, m3 = layer(6, 5)
    head = bytes_of(7, 16 * 5 * 4, zeros=0.8)
    b4, m4 = layer(7, 64)
    one, same_size = (1, 1), (1, 1, 1, 1)
    hidden = (0.05, 5)

    def build(p: Any, x: int) -> list[int]:
        q = p.quantize(x, (0.02, 128), None, "q")
        a = p.conv2d_int8(q, first, b1, m1, (2, 2), same_size, one, 1, -1, 0.0, hidden, (5, 255), None, NONE, "a")
        b = p.conv2d_int8(a, deep, b2, m2, one, same_size, one, 10, -1, 0.0, hidden, (5, 250), None, NONE, "b")
        c = p.conv2d_int8(b, point, b3, m3, one, (0,) * 4, one, 1, -1, 0.0, hidden, (0, 255), None, NONE, "c")
        joined = p.concat([b, c], "join")
        moved = p.select_channels(joined, [*range(1, 16, 2), *range(0, 16, 2)], "shuffle")
        most = p.max_pool(moved, (3, 3), (2, 2), one, one, False, "max")
        mean = p.avg_pool(moved, (3, 3), (2, 2), one, False, False, 0, "avg", (0.06, 9))
        whole = p.global_avg_pool(mean, "global", (0.03, 2))
        real = p.global_avg_pool(most, "real")
        sum_ = p.map(most, None, None, "add", mean, RELU, "sum", (0.08, 0))
        rows = p.linear_int8(p.flatten(sum_), head, b4, m4, None, (0, 255), None, NONE, "head")
        made = [moved, most, mean, whole, sum_]
        return [*(p.dequantize(q, f"d{i}") for i, q in enumerate(made)), real, rows]

    same(build, torch.randn(3, 3, 19, 15))
    same(build, torch.randn(1, 3, 19, 15), tune=True)


def test_values_beyond_everything(isa: str, dot: bool) -> None:
    """Saturation on both sides, infinities, NaN; sums at the edge of 32 bits."""
    w = np.full((4, 8, 1, 1), 127, np.int8)
    w[1] = -127
    big = np.array([2**31 - 1 - 8 * 255 * 127, -(2**31 - 1 - 8 * 255 * 127), 0, 5], np.int32)

    def build(p: Any, x: int) -> list[int]:
        q = p.quantize(x, (0.1, 0), None, "q")
        args = ((1, 1), (0,) * 4, (1, 1), 1, -1, 0.0)
        wide = np.array([3.0, 3.0, 1e-3, 1e30], np.float32)
        y = p.conv2d_int8(q, w, big, wide, *args, (0.1, 17), (0, 255), None, NONE, "wide")
        z = p.conv2d_int8(q, w, big, np.full(4, 1e-8, np.float32), *args, None, (0, 255), None, NONE, "real")
        return [p.dequantize(q, "dq"), p.dequantize(y, "dy"), z]

    x = torch.full((1, 8, 5, 5), 1e9)
    x[0, 0, 0] = torch.tensor([math.inf, -math.inf, math.nan, 0.05, 0.15])
    same(build, x)


def _int8(p: Any, x: int, **changes: Any) -> int:
    a: dict[str, Any] = {
        "weight": np.ones((4, 3, 1, 1), np.int8), "bias": np.zeros(4, np.int32), "multiplier": np.ones(4, np.float32),
        "stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1, "residual": -1,
        "residual_multiplier": 0.0, "grid": (1.0, 0), "limits": (0, 255), "theta": None, "act": NONE, "name": "c1",
    } | changes  # fmt: skip
    return int(p.conv2d_int8(x=x, **a))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, x: _int8(p, 0), r"c1: a layer of bytes takes bytes"),
        (lambda p, x: _int8(p, x, bias=np.zeros(3, np.int32)), r"c1: bias must have 4 elements, got 3"),
        (lambda p, x: _int8(p, x, multiplier=np.full(4, math.nan, np.float32)), r"c1: multiplier must be finite"),
        (lambda p, x: _int8(p, x, multiplier=-np.ones(4, np.float32)), r"c1: multiplier must be finite and at least 0"),
        (lambda p, x: _int8(p, x, bias=np.full(4, 2**31 - 100, np.int32)), r"c1: sums must stay below 2\^31"),
        (lambda p, x: _int8(p, x, theta=np.zeros(5, np.uint8)), r"c1: theta must have 4 elements, got 5"),
        (lambda p, x: _int8(p, x, limits=(9, 3)), r"c1: lo must not be above hi"),
        (lambda p, x: _int8(p, x, limits=(0, 256)), r"c1: limits must be in \[0, 255\], got 256"),
        (lambda p, x: _int8(p, x, grid=(0.0, 0)), r"c1: scale must be finite and > 0, got 0"),
        (lambda p, x: _int8(p, x, grid=(1.0, 256)), r"c1: zero_point must be in \[0, 255\], got 256"),
        (lambda p, x: _int8(p, x, act=RELU), r"c1: an output of bytes ends in lo, hi and theta"),
        (lambda p, x: _int8(p, x, residual=0), r"c1: the residual must be bytes, as x is"),
        (lambda p, x: _int8(p, x, weight=np.ones((4, 3, 1), np.int8)), r"c1: weight must be 4-d, got 3-d"),
        (lambda p, x: p.quantize(x, (1.0, 0), None, "q2"), r"q2: x must be real values, not bytes"),
        (lambda p, x: p.dequantize(0, "d1"), r"d1: x must be bytes"),
        (lambda p, x: p.output(x), r"output: value must be real, not bytes"),
        (lambda p, x: p.concat([x, p.quantize(0, (2.0, 0), None, "q3")], "j1"), r"j1: xs must all be real values, or"),
        (lambda p, x: p.conv2d(x, np.ones((4, 3, 1, 1), np.float32), None, (1, 1), (0,) * 4, (1, 1), 1, -1, NONE, "f1"),
         r"f1: x must be real values, not bytes"),
    ],
)  # fmt: skip
def test_wrong_programs_are_refused(wrong: Any, message: str) -> None:
    p = Builder(_host.Program())
    x = p.quantize(p.input_planes(3), (1.0, 0), None, "q")
    with pytest.raises(ValueError, match=message):
        wrong(p, x)
