"""The engine's programs against their plain-torch twin in float64, operation by operation and in random graphs."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import NONE, RELU, array, assert_close, check, engine, largest, run, sizes, twin, weights
from secateur import cpu
from torch import Tensor

INF = math.inf
ONE = (1, 1)

# N C H W, K R S, stride, padding (top, left, bottom, right), dilation, groups
CONVS = [
    ((1, 1, 1, 1), (1, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((2, 5, 1, 1), (7, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),  # a 1x1 map, which meets one tap of nine
    ((3, 5, 3, 3), (7, 3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1),  # one pixel comes out
    ((1, 16, 14, 14), (33, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((2, 8, 7, 7), (9, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((1, 3, 30, 31), (6, 7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
    ((2, 8, 13, 17), (5, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    ((1, 8, 13, 17), (5, 3, 3), (3, 2), (1, 1, 1, 1), (1, 1), 1),
    ((1, 8, 20, 21), (5, 1, 1), (4, 4), (0, 0, 0, 0), (1, 1), 1),
    ((2, 4, 5, 5), (4, 1, 1), (7, 6), (0, 0, 0, 0), (1, 1), 1),  # a stride beyond the image
    ((1, 4, 3, 3), (4, 1, 1), (1, 1), (4, 3, 2, 1), (1, 1), 1),  # padding beyond the kernel
    ((2, 4, 9, 10), (6, 3, 3), (1, 1), (0, 2, 1, 0), (1, 1), 1),  # a side of its own each
    ((1, 4, 9, 10), (6, 2, 4), (2, 1), (1, 0, 0, 3), (1, 1), 1),
    ((1, 6, 30, 11), (6, 5, 3), (1, 2), (2, 0, 2, 0), (2, 1), 1),
    ((2, 4, 15, 15), (4, 3, 3), (2, 2), (4, 4, 4, 4), (4, 4), 1),
    ((2, 12, 14, 13), (8, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 4),
    ((1, 12, 14, 13), (20, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 2),
    ((2, 5, 28, 28), (5, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 5),  # depthwise
    ((1, 5, 11, 8), (5, 5, 5), (2, 2), (2, 2, 2, 2), (1, 1), 5),
    ((1, 5, 11, 8), (15, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 5),  # three filters a channel
    ((1, 90, 6, 6), (7, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),  # several chunks of input channels
    ((1, 2, 1, 70), (3, 1, 5), (1, 1), (0, 2, 0, 2), (1, 1), 1),
    ((1, 2, 67, 1), (3, 5, 1), (2, 1), (2, 0, 2, 0), (1, 1), 1),
    ((1, 2, 65, 66), (3, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
]  # fmt: skip


def conv(p: Any, x: int, case: Any, weight: Any, bias: Any = None, residual: int = -1, act: Any = NONE) -> int:
    _, _, stride, padding, dilation, groups = case
    return int(p.conv2d(x, weight, bias, stride, padding, dilation, groups, residual, act, "conv"))


def conv1x1(p: Any, x: int, weight: Any, act: Any = NONE) -> int:
    return int(p.conv2d(x, weight, None, (1, 1), (0, 0, 0, 0), (1, 1), 1, -1, act, "conv1x1"))


@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv2d(case: Any, isa: str) -> None:
    shape, (k, r, s), _, _, _, groups = case
    x = torch.randn(shape)
    for zeros in (0.0, 0.7, 1.0):
        weight, bias = weights(k, shape[1] // groups, r, s, zeros=zeros), array(torch.randn(k))
        program = check(lambda p, x, w=weight, b=bias: conv(p, x, case, w, b, act=RELU), x)
        steps = [step for step in program.describe(sizes([x])) if step["kind"] == "conv2d"]
        assert [step["shape"] for step in steps] == [(k, shape[1] // groups, r, s)]
        assert steps[0]["zeros"] == pytest.approx(1 - np.count_nonzero(weight) / weight.size)
    check(lambda p, x: conv(p, x, case, weights(k, shape[1] // groups, r, s, zeros=0.5)), x, tune=True)


@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_every_choice_of_the_tuner_computes_the_same(zeros: float, isa: str) -> None:
    # Large enough for several tiles and chunks; what is measured fastest differs from run to run.
    case = ((2, 130, 28, 30), (20, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
    weight = weights(20, 130, 3, 3, zeros=zeros)
    check(lambda p, x: conv(p, x, case, weight, act=RELU), torch.randn(case[0]), tune=True, terms=9 * 130)


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 5, 17])
def test_one_program_for_every_batch_and_image_size(batch: int, isa: str) -> None:
    one, two = weights(12, 3, 3, 3, zeros=0.5), weights(4, 12, zeros=0.5)
    case = ((), (), (2, 2), (1, 1, 1, 1), (1, 1), 1)

    def build(p: Any, x: int) -> list[int]:
        y = conv(p, x, case, one, act=RELU)
        return [y, p.linear(p.global_avg_pool(y, "pool"), two, None, NONE, "head")]

    program = engine(build, [torch.randn(1, 3, 8, 8)])
    for h, w in ((9, 12), (1, 1), (30, 7), (9, 12), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6)):  # more than are kept
        x = torch.randn(batch, 3, h, w)
        for got, want, near in zip(run(program, [x]), twin(build, [x]), twin(build, [x], torch.float32), strict=True):
            assert_close(got, want, near)


def test_images_of_which_one_plane_is_all_that_16_bits_reach(isa: str) -> None:
    case = ((), (), (1, 1), (1, 1, 1, 1), (1, 1), 1)
    weight = weights(2, 3, 3, 3, zeros=0.6)
    program = check(lambda p, x: conv(p, x, case, weight), torch.randn(1, 3, 1030, 1030))
    (step,) = (step for step in program.describe([(1030, 1030)]) if step["kind"] == "conv2d")
    assert (step["kernel"], step["chunk"]) == ("sparse", 1) or "chosen at random" in step["why"]


def test_what_lies_oddly_in_memory(isa: str) -> None:
    weight = weights(6, 4, 3, 3)
    case = ((), (), (1, 1), (1, 1, 1, 1), (1, 1), 1)
    x = torch.randn(2, 4, 9, 8)
    plain = engine(lambda p, x: conv(p, x, case, weight), [x])
    expected = run(plain, [x])[0]
    shifted = torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    for other in (x.to(memory_format=torch.channels_last), torch.stack([x, x + 1], -1)[..., 0], shifted):
        assert torch.equal(run(plain, [other])[0], expected)


ACTS: list[Any] = [
    NONE, RELU, ("clamp", 0.0, 6.0, None), ("clamp", -0.5, 0.25, None), ("clamp", -INF, 1.0, None),
    ("leaky", 0.1, 0.0, None), ("leaky", -0.5, 0.0, None), ("hardswish", 0.0, 0.0, None),
    ("hardsigmoid", 0.0, 0.0, None), ("sigmoid", 0.0, 0.0, None), ("silu", 0.0, 0.0, None),
    ("gelu", 0.0, 0.0, None), ("tanh", 0.0, 0.0, None),
]  # fmt: skip


@pytest.mark.parametrize("act", ACTS, ids=lambda a: f"{a[0]}({a[1]}, {a[2]})")
def test_activations(act: Any, isa: str) -> None:
    # Where they bend, where they saturate, and in between; the numbers 3 and 6 are those of hardswish.
    values = torch.cat([torch.linspace(-12, 12, 411), torch.tensor([0.0, -0.0, 3, -3, 6, -6, 90, -90, 1e30, -1e30])])
    x = values[torch.randperm(421)][:420].reshape(2, 3, 7, 10)
    check(lambda p, x: p.map(x, None, None, "none", -1, act, "act"), x)
    check(lambda p, x: p.map(x, None, None, "none", -1, act, "act"), x.reshape(2, 210))
    weight, matrix = weights(5, 3, 1, 1), weights(5, 7, zeros=0.5)
    check(lambda p, x: conv1x1(p, x, weight, act), torch.randn(2, 3, 7, 10) * 4)
    check(lambda p, x: p.linear(x, matrix, None, act, "linear"), torch.randn(3, 7) * 4)


def test_threshold(isa: str) -> None:
    theta = torch.tensor([0.0, 0.5, 1.0, 0.25, 2.0])
    x = torch.randn(3, 5, 6, 7) * 2
    x[0, :, 0, 0] = theta  # what equals the threshold stays
    identity = array(torch.eye(5))
    for hi in (INF, 1.5):
        act = ("threshold", 0.0, hi, array(theta))
        check(lambda p, x, act=act: p.map(x, None, None, "none", -1, act, "act"), x)
        check(lambda p, x, act=act: p.map(x, None, None, "none", -1, act, "act"), x[:, :, 0, 0].contiguous())
        check(lambda p, x, act=act: conv1x1(p, x, identity.reshape(5, 5, 1, 1), act), x)
        check(lambda p, x, act=act: p.linear(x, identity, None, act, "linear"), x[:, :, 0, 0].contiguous())


# ---- pools ----

# kernel, stride, padding, dilation
POOLS = [
    ((3, 3), (2, 2), (1, 1), (1, 1)), ((2, 2), (2, 2), (0, 0), (1, 1)), ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((3, 2), (2, 3), (1, 1), (1, 1)), ((2, 2), (3, 3), (1, 1), (1, 1)), ((5, 1), (1, 4), (2, 0), (1, 1)),
    ((3, 3), (2, 2), (1, 0), (2, 2)), ((2, 2), (1, 1), (1, 1), (3, 3)),
]  # fmt: skip
MAPS = [(2, 3, 28, 28), (1, 2, 13, 17), (3, 1, 7, 7), (1, 2, 9, 5)]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_max_pool(pool: Any, ceil_mode: bool, isa: str) -> None:
    for shape in MAPS:
        below = torch.randn(shape) - 5  # padding with zeros would win
        check(lambda p, x: p.max_pool(x, *pool, ceil_mode, "pool"), below)
        relu = lambda p, x: p.max_pool(p.map(x, None, None, "none", -1, RELU, "relu"), *pool, ceil_mode, "pool")  # noqa: E731
        if pool[3] == (1, 1):  # with dilation a window can lie outside of the image: -inf, as in torch
            check(relu, torch.randn(shape))


@pytest.mark.parametrize("relu", [False, True])
def test_max_pool_of_nothing_but_padding(relu: bool, isa: str) -> None:
    """A dilated window whose taps all miss the image gives -inf, as in torch."""
    x = torch.randn(1, 2, 2, 2)

    def build(p: Any, x: int) -> int:
        y = p.map(x, None, None, "none", -1, RELU, "relu") if relu else x
        return int(p.max_pool(y, (2, 2), (1, 1), (1, 1), (3, 3), False, "pool"))

    assert torch.equal(run(engine(build, [x]), [x])[0], twin(build, [x], torch.float32)[0])


@pytest.mark.parametrize("pool", [pool for pool in POOLS if pool[3] == (1, 1)], ids=str)
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_avg_pool(pool: Any, ceil_mode: bool, isa: str) -> None:
    kernel, stride, padding, _ = pool
    for shape in MAPS:
        for include, divisor in ((True, 0), (False, 0), (True, 5), (False, 5)):
            build = lambda p, x, a=(ceil_mode, include, divisor): p.avg_pool(x, kernel, stride, padding, *a, "pool")  # noqa: E731
            check(build, torch.randn(shape))


@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (1, 5, 1, 1), (3, 2, 13, 17), (2, 20, 56, 56)], ids=str)
def test_global_avg_pool_and_flatten(shape: Any, isa: str) -> None:
    check(lambda p, x: p.global_avg_pool(x, "pool"), torch.randn(shape) + 3)
    x = torch.randn(shape)
    assert torch.equal(run(engine(lambda p, x: p.flatten(x), [x]), [x])[0], x.flatten(1))


def test_global_avg_pool_of_many_pixels_is_accurate(isa: str) -> None:
    check(lambda p, x: p.global_avg_pool(x, "pool"), torch.rand(1, 2, 300, 301) + 100)


# ---- sums, products, channels ----


@pytest.mark.parametrize("join", ["add", "multiply"])
def test_joins(join: str, isa: str) -> None:
    x, y, rows = torch.randn(2, 5, 9, 7), torch.randn(2, 5, 9, 7), torch.randn(2, 5)
    scale, shift = array(torch.randn(5)), array(torch.randn(5))
    for a, b in ((None, None), (scale, None), (None, shift), (scale, shift)):
        build = lambda p, x, y, a=a, b=b: p.map(x, a, b, join, y, RELU, "join")  # noqa: E731
        check(build, x, y)
        check(build, x, rows)
        check(build, rows, rows + 1)
        check(lambda p, x, a=a, b=b: p.map(x, a, b, "none", -1, NONE, "affine"), x)
        check(lambda p, x, a=a, b=b: p.map(x, a, b, "none", -1, NONE, "affine"), rows)
    check(lambda p, x: p.map(x, None, None, join, x, NONE, "twice"), x)


def test_squeeze_and_excite(isa: str) -> None:
    down, up, bias = weights(3, 10, zeros=0.3), weights(10, 3), array(torch.randn(3))
    case = ((), (), (1, 1), (1, 1, 1, 1), (1, 1), 10)
    depthwise = weights(10, 1, 3, 3)

    def build(p: Any, x: int) -> list[int]:
        y = conv(p, x, case, depthwise, act=("hardswish", 0.0, 0.0, None))
        gate = p.linear(p.global_avg_pool(y, "squeeze"), down, bias, RELU, "down")
        gate = p.linear(gate, up, None, ("hardsigmoid", 0.0, 0.0, None), "up")
        return [p.map(y, None, None, "multiply", gate, NONE, "excite"), gate]

    check(build, torch.randn(5, 10, 11, 6))


def test_concat(isa: str) -> None:
    x, y, rows = torch.randn(2, 5, 9, 7), torch.randn(2, 2, 9, 7), torch.randn(2, 3)
    one, two = weights(4, 5, 3, 3, zeros=0.5), weights(3, 4, 1, 1)
    same = ((), (), (1, 1), (1, 1, 1, 1), (1, 1), 1)

    def branches(p: Any, x: int, y: int) -> list[int]:
        a = conv(p, x, same, one, act=RELU)
        b = conv1x1(p, a, two)  # a is read by others than the concat
        pooled = p.max_pool(a, (3, 3), (1, 1), (1, 1), (1, 1), False, "pool")
        whole = p.concat([a, y, b, pooled, a], "concat")
        return [p.concat([whole, b], "again"), conv(p, whole, same, weights_of_whole, act=RELU)]

    weights_of_whole = weights(3, 17, 3, 3, zeros=0.5)
    check(branches, x, y)
    check(lambda p, x, y: p.concat([x, y, x], "inputs"), x, y)
    check(lambda p, x, r: p.concat([p.global_avg_pool(x, "pool"), r, p.flatten(x)], "rows"), x, rows)


def test_select_channels(isa: str) -> None:
    x = torch.randn(2, 6, 9, 7)
    weight = weights(4, 3, 3, 3)
    same = ((), (), (1, 1), (1, 1, 1, 1), (1, 1), 1)
    check(lambda p, x: p.select_channels(x, [5, 0, 0, 3], "select"), x)
    check(lambda p, x: conv(p, p.select_channels(x, [1, 3, 5], "select"), same, weight), x)


# ---- residuals, outputs ----


@pytest.mark.parametrize("act", [NONE, RELU, ("threshold", 0.0, 2.0, array(torch.tensor([0.0, 0.3, 0.6, 0.9])))])
def test_residuals(act: Any, isa: str) -> None:
    same = ((), (), (1, 1), (1, 1, 1, 1), (1, 1), 1)
    down = ((), (), (2, 2), (1, 1, 1, 1), (1, 1), 1)
    one, two = weights(4, 4, 3, 3, zeros=0.8), weights(4, 4, 1, 1, zeros=0.5)
    bias = array(torch.randn(4))

    def build(p: Any, x: int) -> list[int]:
        y = conv(p, x, same, one, bias, x, act)  # what it adds is what it reads
        short = p.conv2d(y, two, None, (2, 2), (0, 0, 0, 0), (1, 1), 1, -1, NONE, "short")
        return [conv(p, y, down, one, bias, short, act), y]

    check(build, torch.randn(3, 4, 11, 14))
    check(build, torch.randn(1, 4, 1, 1))


def test_outputs_of_every_kind(isa: str) -> None:
    """An input handed on, one value twice, values that are read again."""
    x, rows = torch.randn(2, 4, 6, 5), torch.randn(2, 3)
    square = weights(3, 3)

    def build(p: Any, x: int, r: int) -> list[int]:
        y, z = p.map(x, None, None, "none", -1, RELU, "relu"), p.linear(r, square, None, RELU, "linear")
        return [x, y, y, r, z, z, r, p.concat([y, x], "concat"), p.linear(z, square, None, NONE, "head")]

    check(build, x, rows)


# ---- linear ----


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 16, 17, 70])
def test_linear(n: int, isa: str) -> None:
    for features, k, zeros in ((1, 1, 0.0), (64, 10, 0.9), (100, 33, 0.0), (70000, 5, 0.99), (17, 40, 1.0)):
        weight, bias = weights(k, features, zeros=zeros), array(torch.randn(k))
        check(lambda p, x, w=weight, b=bias: p.linear(x, w, b, NONE, "linear"), torch.randn(n, features))


def test_flatten_into_linear(isa: str) -> None:
    weight = weights(9, 4 * 5 * 3, zeros=0.5)
    program = check(lambda p, x: p.linear(p.flatten(x), weight, None, RELU, "head"), torch.randn(3, 4, 5, 3))
    with pytest.raises(
        (RuntimeError, ValueError), match=r"head: expects 60 features, got 80 \(the image size decides\)"
    ):
        run(program, [torch.randn(3, 4, 5, 4)])


# ---- what is not a number ----


@pytest.mark.parametrize("value", [math.nan, INF, -INF])
@pytest.mark.parametrize("zeros", [0.0, 0.6])
def test_what_is_not_finite_reaches_what_reads_it_and_nothing_else(value: float, zeros: float, isa: str) -> None:
    case = ((1, 6, 13, 14), (9, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
    weight = weights(9, 6, 3, 3, zeros=zeros)
    x = torch.randn(2, 6, 13, 14)
    x[1, 2, 6, 7] = value
    build = lambda p, x: conv(p, x, case, weight)  # noqa: E731
    got, want = run(engine(build, [x]), [x])[0], twin(build, [x])[0]
    reads = torch.zeros(2, 9, 13, 14, dtype=torch.bool)
    for r in range(3):
        for s in range(3):
            reads[1, :, 7 - r, 8 - s] = torch.from_numpy(weight[:, 2, r, s] != 0)
    assert torch.equal(got[reads].isnan(), want[reads].isnan())
    assert torch.equal(got[reads].isposinf(), want[reads].isposinf())
    near = torch.zeros_like(reads)
    near[1, :, 5:8, 6:9] = True  # a zero weight times infinity is a matter of who skips zeros
    assert bool(got[~near].isfinite().all())
    assert largest(got[~near].double() - want[~near]) < 1e-5


@pytest.mark.parametrize("act", [*ACTS, ("threshold", 0.0, INF, array(torch.full((2,), 0.5)))], ids=lambda a: a[0])
def test_nan_stays_nan(act: Any, isa: str) -> None:
    x = torch.randn(2, 2, 5, 5)
    x[0, 1, 2, 3] = math.nan

    def build(p: Any, x: int) -> list[int]:
        y = p.map(x, None, None, "none", -1, act, "act")
        pools = [
            p.max_pool(y, (3, 3), (2, 2), (1, 1), (1, 1), False, "max"),
            p.avg_pool(y, (3, 3), (2, 2), (1, 1), False, True, 0, "avg"),
        ]
        return [y, *pools, p.global_avg_pool(y, "global"), p.map(y, None, None, "add", y, act, "add")]

    for got, want in zip(run(engine(build, [x]), [x]), twin(build, [x], torch.float32), strict=True):
        assert torch.equal(got.isnan(), want.isnan())
        assert bool(got.isnan().any())


# ---- threads ----


def network(p: Any, x: int) -> list[int]:
    """Convolutions of every kind, pools, a concat, a gate, a head: what threads share in all their ways."""
    g = torch.Generator().manual_seed(3)
    w = lambda *shape, zeros: array(torch.randn(shape, generator=g) * (torch.rand(shape, generator=g) >= zeros) / 8)  # noqa: E731
    same, down = (1, 1), (2, 2)
    pad = (1, 1, 1, 1)
    y = p.conv2d(x, w(20, 3, 3, 3, zeros=0), None, down, pad, (1, 1), 1, -1, RELU, "stem")
    z = p.conv2d(y, w(20, 20, 3, 3, zeros=0.9), None, same, pad, (1, 1), 1, -1, RELU, "a")
    z = p.conv2d(z, w(20, 20, 3, 3, zeros=0.5), None, same, pad, (1, 1), 1, y, RELU, "b")
    d = p.conv2d(z, w(20, 1, 3, 3, zeros=0), None, same, pad, (1, 1), 20, -1, ("silu", 0.0, 0.0, None), "depthwise")
    gate = p.linear(p.global_avg_pool(d, "squeeze"), w(20, 20, zeros=0.5), None, ("sigmoid", 0, 0, None), "gate")
    d = p.map(d, None, None, "multiply", gate, NONE, "excite")
    c = p.concat([z, d, p.max_pool(z, (3, 3), same, (1, 1), (1, 1), False, "max")], "concat")
    c = p.conv2d(c, w(40, 60, 1, 1, zeros=0.8), None, same, (0, 0, 0, 0), (1, 1), 1, -1, RELU, "wide")
    return [c, p.linear(p.global_avg_pool(c, "pool"), w(10, 40, zeros=0.7), None, NONE, "head")]


@pytest.mark.parametrize("tune", [False, True])
def test_bitwise_the_same_for_any_number_of_threads(tune: bool, isa: str) -> None:
    program = engine(network, [torch.randn(1, 3, 8, 8)])
    if tune:
        program.prepare([(37, 41)], 0.3)
    for batch in (1, 2, 3, 5):
        x = torch.randn(batch, 3, 37, 41)
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results += [run(program, [x]) for _ in range(2)]
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_callers_do_not_disturb_each_other() -> None:
    program = engine(network, [torch.randn(1, 3, 8, 8)])
    inputs = [torch.randn(1 + i % 3, 3, 20 + i % 2, 21) for i in range(12)]
    expected = [run(program, [x]) for x in inputs]
    with ThreadPoolExecutor(4) as pool:  # new sizes are planned in one while others run
        for _ in range(3):
            for result, want in zip(pool.map(lambda x: run(program, [x]), inputs), expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(result, want, strict=True))


def test_a_program_may_go_while_it_runs() -> None:
    x = torch.randn(4, 3, 64, 64)
    expected = run(engine(network, [x]), [x])

    def once(_: int) -> list[Tensor]:
        return run(engine(network, [x]), [x])  # nobody holds it but the call

    with ThreadPoolExecutor(3) as pool:
        for result in pool.map(once, range(6)):
            assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


# ---- random graphs ----


def _random(p: Any, rng: np.random.Generator, x: int, channels: int, steps: list[str], every: bool) -> list[int]:
    """A graph of ``steps``, each on values made before it; all choices come from ``rng``, so two programs agree."""
    planes: list[tuple[int, int, int]] = [(x, channels, 0)]  # value, channels, how often its size was changed
    rows: list[tuple[int, int]] = []
    pick = lambda items: items[rng.integers(len(items))]  # noqa: E731
    chance = lambda share: bool(rng.random() < share)  # noqa: E731

    def tensor(*shape: int) -> Any:
        keep = rng.random(shape) >= pick([0.0, 0.5, 0.9])
        return (rng.standard_normal(shape) * keep / math.sqrt(math.prod(shape[1:]))).astype(np.float32)

    def act(c: int) -> Any:
        return pick([*ACTS, ("threshold", 0.0, 4.0, np.zeros(c, np.float32))])  # continuous: rounding decides nothing

    for i, step in enumerate(steps):
        v, c, level = planes[-1] if chance(0.6) else pick(planes)
        like = [u for u, d, e in planes if (d, e) == (c, level)]
        name = f"{step}{i}"
        bias = tensor(c) if chance(0.5) else None
        if step == "conv":
            k, r = int(rng.integers(1, 24)), pick([1, 3, 5])
            w = tensor(k, c, r, r)
            bias = tensor(k) if chance(0.5) else None
            planes.append((p.conv2d(v, w, bias, ONE, (r // 2,) * 4, ONE, 1, -1, act(k), name), k, level))
        elif step == "residual":
            w = tensor(c, c, 3, 3)
            planes.append((p.conv2d(v, w, bias, ONE, (2,) * 4, (2, 2), 1, pick(like), act(c), name), c, level))
        elif step == "depthwise":
            w = tensor(c, 1, 3, 3)
            planes.append((p.conv2d(v, w, bias, ONE, (1,) * 4, ONE, c, -1, act(c), name), c, level))
        elif step == "shrink":  # sizes are known by how they were made, so that joins meet
            if level < 2:
                kind = pick(["conv", "max", "avg"])
                if kind == "conv":
                    y = p.conv2d(v, tensor(c, c, 3, 3), bias, (2, 2), (1,) * 4, ONE, 1, -1, act(c), name)
                elif kind == "max":
                    y = p.max_pool(v, (3, 3), (2, 2), ONE, ONE, False, name)
                else:
                    y = p.avg_pool(v, (3, 3), (2, 2), ONE, False, chance(0.5), 0, name)
                planes.append((y, c, level + 1))
        elif step == "pool":
            planes.append((p.max_pool(v, (3, 3), ONE, ONE, ONE, False, name), c, level))
        elif step == "map":
            planes.append((p.map(v, bias, tensor(c), pick(["add", "multiply"]), pick(like), act(c), name), c, level))
        elif step == "concat":
            others = [(u, d) for u, d, e in planes if e == level]
            parts = [pick(others) for _ in range(rng.integers(1, 4))]
            if sum(d for _, d in parts) <= 64:
                planes.append((p.concat([u for u, _ in parts], name), sum(d for _, d in parts), level))
        elif step == "select":
            index = rng.integers(0, c, int(rng.integers(1, 20))).tolist()
            planes.append((p.select_channels(v, index, name), len(index), level))
        elif step == "gate":
            gate = p.linear(p.global_avg_pool(v, name), tensor(c, c), bias, act(c), name)
            rows.append((gate, c))
            planes.append((p.map(v, None, None, pick(["add", "multiply"]), gate, act(c), name), c, level))
        elif step == "rows" and rows:
            r, f = pick(rows)
            k = int(rng.integers(1, 40))
            rows.append((p.linear(r, tensor(k, f), tensor(k), act(k), name), k))
            rows.append((p.concat([rows[-1][0], r], name), k + f))
    values = [v for v, _, _ in planes] + [r for r, _ in rows]
    if every:
        return values
    marks = rng.random(len(values)) < 0.3
    return [v for v, mark in zip(values, marks, strict=True) if mark] + [values[-1]]


STEPS = ["conv", "residual", "depthwise", "shrink", "pool", "map", "concat", "select", "gate", "rows"]


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=12),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 33), st.integers(1, 33)),
    isa=st.sampled_from(cpu.available_isas()),
    tune=st.booleans(),
)
def test_random_graphs(seed: int, steps: list[str], shape: tuple[int, int, int, int], isa: str, tune: bool) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
    build = lambda every: lambda p, v: _random(p, np.random.default_rng(seed), v, shape[1], steps, every)  # noqa: E731
    scale = max(largest(t) for t in twin(build(True), [x]))
    with cpu.use_isa(isa):
        program = engine(build(False), [x])
        if tune:
            program.prepare(sizes([x]), 0.01)
        outputs = run(program, [x])
        torch.set_num_threads(2 if torch.get_num_threads() == 1 else 1)
        again = run(program, [x])
    float32, reference = twin(build(False), [x], torch.float32), twin(build(False), [x])
    for got, repeated, want, near in zip(outputs, again, reference, float32, strict=True):
        assert_close(got, want, near, scale, terms=400)
        assert torch.equal(got, repeated)
