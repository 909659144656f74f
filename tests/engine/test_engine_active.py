"""Zeros of the activations: convolutions and linear layers that skip them, against the plain-torch twin in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import secateur
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import NONE, RELU, array, assert_close, engine, largest, run, sizes, twin, weights
from torch import Tensor, nn

THRESHOLD = "threshold"


def sparse(*shape: int, zeros: float) -> Tensor:
    """Normal values, so many of them zero; a channel in four is all zero, as real ones are."""
    x = torch.randn(shape) * (torch.rand(shape) >= zeros)
    if len(shape) == 4 and zeros > 0:
        x[:, ::4] = 0
    return x


def prepared(program: Any, inputs: list[Tensor], kernels: str = "active") -> Any:
    program.prepare(sizes(inputs), 0.05, [array(x[:1]) for x in inputs], kernels)
    return program


def kernel_of(program: Any, inputs: list[Tensor]) -> list[str]:
    steps = program.describe(sizes(inputs))
    return [step["kernel"] for step in steps if step["kind"] == "conv2d"]


def check(build: Any, *inputs: Tensor, terms: int = 0) -> Any:
    program = prepared(engine(build, inputs), list(inputs))
    wanted, near = twin(build, list(inputs)), twin(build, list(inputs), torch.float32)
    first: list[Tensor] | None = None
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        got = run(program, list(inputs))
        for a, b, c in zip(got, wanted, near, strict=True):
            assert_close(a, b, c, terms=terms)
        first = first or got
        assert all(torch.equal(a, b) for a, b in zip(got, first, strict=True))  # to the bit, whatever the threads
    return program


# N C H W, K R S, stride, padding, dilation
CONVS = [
    ((1, 16, 1, 1), (16, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((2, 16, 14, 14), (33, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    ((2, 40, 7, 7), (64, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((1, 3, 30, 31), (64, 7, 7), (2, 2), (3, 3, 3, 3), (1, 1)),
    ((2, 70, 13, 17), (17, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    ((1, 20, 13, 17), (130, 3, 2), (3, 2), (0, 2, 1, 0), (1, 1)),
    ((1, 16, 9, 9), (16, 3, 3), (1, 1), (4, 5, 3, 6), (1, 1)),  # padding beyond the kernel
    ((1, 16, 20, 9), (16, 3, 3), (1, 1), (2, 1, 2, 1), (2, 1)),  # rows apart
    ((3, 64, 28, 28), (64, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((1, 16, 1, 70), (16, 1, 5), (1, 1), (0, 2, 0, 2), (1, 1)),
    ((1, 130, 5, 6), (32, 1, 1), (2, 3), (0, 0, 0, 0), (1, 1)),
]


@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.parametrize("zeros", [0.0, 0.8, 1.0])
def test_conv2d(case: Any, zeros: float, isa: str) -> None:
    shape, (k, r, s), stride, padding, dilation = case
    weight, bias = weights(k, shape[1], r, s), array(torch.randn(k))

    def build(p: Any, x: int) -> int:
        return int(p.conv2d(x, weight, bias, stride, padding, dilation, 1, -1, RELU, "conv"))

    x = sparse(*shape, zeros=zeros)
    program = check(build, x)
    assert kernel_of(program, [x]) == ["active"]


@pytest.mark.parametrize(
    "act", [NONE, ("clamp", 0.0, 6.0, None), (THRESHOLD, 0.0, math.inf, 0.3), ("silu", 0.0, 0.0, None)], ids=str
)
def test_what_follows_the_sum(act: Any, isa: str) -> None:
    theta = None if act[3] is None else array(torch.rand(40))
    weight = weights(40, 32, 3, 3, zeros=0.5)

    def build(p: Any, x: int, residual: int) -> int:
        form = (*act[:3], theta)
        return int(p.conv2d(x, weight, None, (1, 1), (1, 1, 1, 1), (1, 1), 1, residual, form, "conv"))

    check(build, sparse(2, 32, 11, 9, zeros=0.7), torch.randn(2, 40, 11, 9))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_geometry(data: st.DataObject) -> None:
    number = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    kernel, stride = (number(1, 4), number(1, 4)), (number(1, 3), number(1, 3))
    padding = tuple(number(0, 3) for _ in range(4))
    c, k, h, w = number(1, 70), number(16, 70), number(kernel[0], 20), number(kernel[1], 20)
    weight = weights(k, c, *kernel, zeros=data.draw(st.sampled_from([0.0, 0.9])))
    build = lambda p, x: p.conv2d(x, weight, None, stride, padding, (1, 1), 1, -1, NONE, "conv")  # noqa: E731
    check(build, sparse(number(1, 3), c, h, w, zeros=data.draw(st.sampled_from([0.0, 0.6, 0.95]))))


def two_layers(p: Any, x: int) -> list[int]:
    g = torch.Generator().manual_seed(5)
    w = lambda *shape: array(torch.randn(shape, generator=g) / 12)  # noqa: E731
    y = p.conv2d(x, w(48, 32, 3, 3), None, (1, 1), (1, 1, 1, 1), (1, 1), 1, -1, RELU, "a")
    z = p.conv2d(y, w(48, 48, 3, 3), None, (1, 1), (1, 1, 1, 1), (1, 1), 1, y, RELU, "b")
    return [z, p.linear(p.global_avg_pool(z, "pool"), w(10, 48), None, NONE, "head")]


def test_other_sizes_and_batches_keep_the_choice(isa: str) -> None:
    program = prepared(engine(two_layers, [torch.empty(1, 32, 8, 8)]), [sparse(1, 32, 8, 8, zeros=0.8)])
    for shape in ((1, 32, 8, 8), (5, 32, 8, 8), (2, 32, 15, 3), (0, 32, 8, 8), (1, 32, 1, 1), (3, 32, 40, 41)):
        x = sparse(*shape, zeros=0.8)
        assert kernel_of(program, [x]) == ["active", "active"]
        for got, want, near in zip(
            run(program, [x]), twin(two_layers, [x]), twin(two_layers, [x], torch.float32), strict=True
        ):
            assert_close(got, want, near)


def fed(program: Any, inputs: list[Tensor]) -> list[bool]:
    """Of each convolution: whether the one before writes its lists."""
    steps = program.describe(sizes(inputs))
    return [step["why"] == "written by the layer before" for step in steps if step["kind"] == "nonzeros"]


def row_of_layers(p: Any, x: int) -> list[int]:
    """1x1, whose groups divide each other's blocks; the first output has two readers, the second a residual."""
    g = torch.Generator().manual_seed(7)
    w = lambda *shape: array(torch.randn(shape, generator=g) / 8)  # noqa: E731
    conv = lambda x, k, c, residual, act: p.conv2d(  # noqa: E731
        x, w(k, c, 1, 1), w(k), (1, 1), (0, 0, 0, 0), (1, 1), 1, residual, act, "conv"
    )
    theta = array(torch.rand(64, generator=g))
    a = conv(x, 64, 64, -1, (THRESHOLD, 0.0, math.inf, theta))
    b = conv(a, 64, 64, a, RELU)
    c = conv(a, 128, 64, -1, RELU)
    return [conv(b, 64, 64, -1, NONE), conv(c, 20, 128, -1, NONE), a]


def test_a_layer_writes_the_lists_of_the_next(isa: str) -> None:
    x = sparse(3, 64, 9, 14, zeros=0.8)
    program = prepared(engine(row_of_layers, [x]), [x])
    assert True in fed(program, [x])
    assert fed(program, [x])[0] is False  # nobody before it
    check(row_of_layers, x)


def test_a_layer_that_falls_back_leaves_no_old_lists_behind() -> None:
    """Sparse and dense images in turn: what was written for one must not be read for the next."""
    weight = [weights(64, 64, 3, 3) for _ in range(3)]

    def build(p: Any, x: int) -> int:
        for w in weight:
            x = p.conv2d(x, w, None, (1, 1), (1, 1, 1, 1), (1, 1), 1, -1, (THRESHOLD, 0.0, math.inf, theta), "conv")
        return x

    theta = array(torch.full((64,), 0.2))
    empty = torch.zeros(1, 64, 20, 20)
    empty[:, ::8, ::8, ::8] = 1.0
    program = engine(build, [empty])
    program.prepare([(20, 20)], 5.0, [array(empty)])
    assert kernel_of(program, [empty]) == ["active"] * 3
    full = torch.rand(1, 64, 20, 20) + 0.1
    for x in (empty, full, empty, torch.cat([full, empty, full, empty, empty])):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            got, want, near = run(program, [x])[0], twin(build, [x])[0], twin(build, [x], torch.float32)[0]
            moved = (got - want).abs() > 1e-4 * largest(want)  # rounding may take a value across its threshold
            assert float(moved.double().mean()) < 1e-3 + float(((near - want).abs() > 1e-4).double().mean())


def test_denser_images_than_the_example_take_the_planes() -> None:
    """Measured on an image that is nearly empty, lists pay for few nonzeros only; dense images are right all the same,
    beside sparse ones in the same batch."""
    empty = torch.zeros(1, 64, 56, 56)
    empty[:, ::16, ::8] = 1.0
    weight = weights(64, 64, 3, 3)
    build = lambda p, x: p.conv2d(x, weight, None, (1, 1), (1, 1, 1, 1), (1, 1), 1, -1, RELU, "conv")  # noqa: E731
    program = engine(build, [empty])
    program.prepare([(56, 56)], 5.0, [array(empty)])
    assert kernel_of(program, [empty]) == ["active"]
    step = next(s for s in program.describe([(56, 56)]) if s["kind"] == "conv2d")
    assert step["input_zeros"] > 0.99
    assert step["active_ms"] < step["other_ms"]
    x = torch.cat([torch.rand(1, 64, 56, 56) + 0.1, empty, torch.rand(1, 64, 56, 56)])
    planes = engine(build, [empty])
    planes.prepare([(56, 56)], 0.5, [array(empty)], "planes")
    torch.set_num_threads(2)
    mixed = run(program, [x])[0]
    assert_close(mixed, twin(build, [x])[0], twin(build, [x], torch.float32)[0])
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert torch.equal(run(program, [x])[0], mixed)


def test_nonfinite_inputs_come_through(isa: str) -> None:
    weight = weights(32, 16, 3, 3)
    build = lambda p, x: p.conv2d(x, weight, None, (1, 1), (1, 1, 1, 1), (1, 1), 1, -1, NONE, "conv")  # noqa: E731
    x = sparse(1, 16, 12, 12, zeros=0.9)
    program = prepared(engine(build, [x]), [x])
    for value in (math.nan, math.inf, -math.inf):
        x[0, 3, 5, 6] = value
        got, want = run(program, [x])[0], twin(build, [x])[0]
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got.isfinite(), want.isfinite())
        assert got[want.isfinite()].allclose(want[want.isfinite()].float(), atol=1e-5)


# ---- linear ----


@pytest.mark.parametrize("zeros_in", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("zeros", [0.0, 0.9])
@pytest.mark.parametrize("shape", [(1, 1), (10, 7), (37, 300), (513, 1030), (2100, 64)], ids=str)
def test_linear(shape: tuple[int, int], zeros: float, zeros_in: float, isa: str) -> None:
    weight, bias = weights(*shape, zeros=zeros), array(torch.randn(shape[0]))
    for act in (NONE, (THRESHOLD, 0.0, math.inf, array(torch.rand(shape[0])))):
        build = lambda p, x, act=act: p.linear(x, weight, bias, act, "linear")  # noqa: E731
        for batch in (1, 2, 5):
            x = torch.randn(batch, shape[1]) * (torch.rand(batch, shape[1]) >= zeros_in)
            check(build, x, terms=shape[1])


def test_a_long_sum_keeps_its_digits() -> None:
    """Every 256 terms are a sum of their own: as near to float64 as torch."""
    x, weight = torch.rand(1, 60000) + 0.5, array(torch.rand(16, 60000) + 0.5)
    build = lambda p, x: p.linear(x, weight, None, NONE, "linear")  # noqa: E731
    wanted = twin(build, [x])[0]
    got = run(engine(build, [x]), [x])[0]
    assert float(((got - wanted) / wanted).abs().max()) < 3e-6


# ---- refusals, and through compile ----


def test_refusals() -> None:
    x = torch.randn(1, 16, 4, 4)
    program = engine(two_layers, [torch.empty(1, 32, 8, 8)])
    with pytest.raises(ValueError, match="one array for each input, 1, got 2"):
        program.prepare([(4, 4)], 0.1, [array(x), array(x)])
    for wrong in (x, torch.randn(1, 32, 4, 5), torch.randn(32, 4), torch.empty(0, 32, 4, 4)):
        with pytest.raises(ValueError, match="example 0 must be"):
            program.prepare([(4, 4)], 0.1, [array(wrong)])
    with pytest.raises(ValueError, match='no kernels are named "sparse"'):
        program.prepare([(4, 4)], 0.1, [array(torch.randn(1, 32, 4, 4))], "sparse")


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.act = secateur.nn.ThresholdReLU(1.2)
        self.body = nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.act(self.stem(x)))  # type: ignore[no-any-return]


def test_compile_measures_the_zeros_that_the_example_brings() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, x = Wide().eval(), torch.randn(2, 3, 40, 40)
    fast = secateur.compile(model, x)
    with torch.no_grad():
        expected = model.double()(x.double())
        zeros = float((model.act(model.stem(x.double())) == 0).double()[:1].mean())
    assert float((fast(x) - expected).abs().max()) < 1e-5
    rows = {row["layer"]: row for row in secateur.profile(fast, x).rows if row["kind"] == "conv2d"}
    if rows["body"]["kernel"] != "torch":
        assert rows["body"]["input_zeros"] == pytest.approx(zeros, abs=0.01)
        assert zeros > 0.9
    if rows["body"]["kernel"] == "active":
        assert "zeros come in" in rows["body"]["why"]
