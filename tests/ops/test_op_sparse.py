"""sparse_linear and sparse_conv2d against float64, on every instruction set; what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from secateur import Error, _host, cpu, ops
from tensors import same_bits
from torch import Tensor

# N C H W, K R S, stride, padding, dilation, groups
CONVS = [
    ((1, 3, 8, 9), (5, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((3, 4, 7, 7), (6, 3, 3), (2, 2), (1, 1), (1, 1), 2),
    ((2, 8, 14, 15), (16, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 8, 14, 15), (16, 1, 1), (2, 3), (1, 2), (1, 1), 1),
    ((1, 6, 30, 31), (6, 5, 3), (1, 2), (2, 0), (2, 1), 6),  # depthwise
    ((2, 70, 13, 13), (9, 3, 3), (1, 1), (3, 3), (2, 2), 1),  # several chunks of input channels
    ((1, 1, 1, 1), (1, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((1, 2, 5, 5), (2, 7, 7), (4, 4), (3, 3), (1, 1), 1),
    ((5, 2, 3, 3), (4, 1, 1), (7, 5), (0, 0), (1, 1), 1),  # a stride beyond the image
    ((1, 2, 3, 3), (4, 1, 1), (1, 1), (4, 5), (1, 1), 1),  # padding beyond the kernel
    ((2, 3, 40, 41), (4, 2, 4), (3, 1), (1, 3), (3, 2), 1),
    ((1, 2, 1, 33), (3, 1, 3), (1, 1), (0, 1), (1, 1), 1),
    ((2, 2, 65, 1), (3, 5, 1), (2, 1), (2, 0), (1, 1), 1),
]


def packed(shape: tuple[int, ...], zeros: float) -> tuple[Tensor, Tensor, Tensor]:
    weight = torch.randn(shape) * (torch.rand(shape) >= zeros)
    return weight, ops.mask_pack(weight != 0), weight[weight != 0]


def bound(reference: Tensor, terms: int) -> float:
    """Rounding of a float32 sum of ``terms`` products of normal numbers: 2^-24 for each step of the largest sum."""
    return 2.0**-24 * (terms + 2) * max(float(reference.abs().max()), math.sqrt(terms + 1) * 4)


def run_conv(x: Tensor, mask: Tensor, values: Tensor, bias: Tensor | None, case: Any, plan: int = 0) -> Tensor:
    _, (_, r, s), stride, padding, dilation, groups = case
    return ops.sparse_conv2d(x, mask, values, bias, [r, s], stride, padding, dilation, groups, plan)


@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.parametrize("zeros", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("channels_last", [False, True])
def test_conv2d_equals_float64(case: Any, zeros: float, channels_last: bool, isa: str) -> None:
    shape, (k, r, s), stride, padding, dilation, groups = case
    weight, mask, values = packed((k, shape[1] // groups, r, s), zeros)
    bias = torch.randn(k)
    x = torch.randn(shape)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding, dilation, groups)
    got = run_conv(x, mask, values, bias, case)
    assert got.shape == expected.shape
    assert got.is_contiguous()
    assert float((got - expected).abs().max()) <= bound(expected, weight[0].numel())
    without = run_conv(x, mask, values, None, case)
    assert float((without - (expected - bias.view(-1, 1, 1).double())).abs().max()) <= bound(
        expected, weight[0].numel()
    )


@pytest.mark.parametrize("shape", [(1, 3), (1, 700), (2, 100), (5, 33), (16, 64), (17, 300), (64, 3136), (65, 500)])
@pytest.mark.parametrize("neurons", [1, 17, 600])
def test_linear_equals_float64(shape: tuple[int, int], neurons: int, isa: str) -> None:
    weight, mask, values = packed((neurons, shape[1]), 0.8)
    bias, x = torch.randn(neurons), torch.randn(shape)
    expected = F.linear(x.double(), weight.double(), bias.double())
    got = ops.sparse_linear(x, mask, values, bias)
    assert float((got - expected).abs().max()) <= bound(expected, shape[1])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_convolution(data: st.DataObject) -> None:
    draw = data.draw
    small, groups = st.integers(1, 4), draw(st.integers(1, 3))
    n, cg, kg, r, s = (draw(small) for _ in range(5))
    stride, dilation = ([draw(small), draw(small)] for _ in range(2))
    padding = [draw(st.integers(0, 5)), draw(st.integers(0, 5))]
    least = [max(1, dilation[0] * (r - 1) + 1 - 2 * padding[0]), max(1, dilation[1] * (s - 1) + 1 - 2 * padding[1])]
    h, w = (draw(st.integers(least[i], least[i] + 20)) for i in range(2))
    weight, mask, values = packed((kg * groups, cg, r, s), draw(st.sampled_from([0.0, 0.5, 0.9])))
    x = torch.randn(n, cg * groups, h, w)
    expected = F.conv2d(x.double(), weight.double(), None, stride, padding, dilation, groups)
    for name in cpu.available_isas():
        with cpu.use_isa(name):
            got = ops.sparse_conv2d(x, mask, values, None, [r, s], stride, padding, dilation, groups)
        assert got.shape == expected.shape
        assert float((got - expected).abs().max()) <= bound(expected, cg * r * s)


@pytest.mark.parametrize("images", [1, 2, 3, 5])
def test_conv2d_is_the_same_for_any_number_of_threads(images: int, isa: str) -> None:
    case = ((images, 70, 20, 21), (9, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    _, mask, values = packed((9, 70, 3, 3), 0.6)
    x = torch.randn(case[0])
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run_conv(x, mask, values, None, case))
    finally:
        torch.set_num_threads(before)
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


@pytest.mark.parametrize("count", [1, 2, 33, 64, 200])
def test_linear_is_the_same_for_any_number_of_threads(count: int, isa: str) -> None:
    _, mask, values = packed((600, 1500), 0.6)
    x = torch.randn(count, 1500)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.sparse_linear(x, mask, values, None))
    finally:
        torch.set_num_threads(before)
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


def test_large_batches_equal_their_images_one_by_one(isa: str) -> None:
    case = ((7, 5, 9, 9), (4, 3, 3), (2, 2), (1, 1), (1, 1), 1)
    _, mask, values = packed((4, 5, 3, 3), 0.5)
    x = torch.randn(case[0])
    whole = run_conv(x, mask, values, None, case)
    assert same_bits(whole, torch.cat([run_conv(image[None], mask, values, None, case) for image in x]))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 8, 8)])
def test_empty_batches_and_no_neurons(shape: tuple[int, ...]) -> None:
    _, mask, values = packed((4, 3, 3, 3), 0.5)
    assert ops.sparse_conv2d(torch.randn(0, 3, 8, 8), mask, values, None, [3, 3], [1, 1], [1, 1], [1, 1], 1).shape == (
        0, 4, 8, 8,
    )  # fmt: skip
    none, nothing = torch.zeros(0, 4, dtype=torch.uint8), torch.zeros(0)
    assert ops.sparse_conv2d(torch.randn(shape), none, nothing, None, [3, 3], [1, 1], [1, 1], [1, 1], 1).shape == (
        shape[0], 0, 8, 8,
    )  # fmt: skip
    _, mask, values = packed((4, 10), 0.5)
    assert ops.sparse_linear(torch.randn(0, 10), mask, values, None).shape == (0, 4)
    assert ops.sparse_linear(torch.randn(3, 0, 10), mask, values, None).shape == (3, 0, 4)
    no_inputs = torch.zeros(4, 0, dtype=torch.uint8)
    assert torch.equal(ops.sparse_linear(torch.randn(2, 0), no_inputs, nothing, torch.ones(4)), torch.ones(2, 4))


def test_nan_and_inf_reach_exactly_the_outputs_that_read_them(isa: str) -> None:
    weight = torch.zeros(2, 2, 1, 1)
    weight[0, 0] = 2
    weight[1, 1] = 3
    x = torch.ones(1, 2, 4, 4)
    x[0, 0, 1, 2], x[0, 1, 3, 3] = math.nan, math.inf
    got = ops.sparse_conv2d(x, ops.mask_pack(weight != 0), weight[weight != 0], None, [1, 1], [1, 1], [0, 0], [1, 1], 1)
    assert int(got.isnan().sum()) == 1  # a pruned weight times NaN is not computed
    assert bool(got[0, 0, 1, 2].isnan())
    assert int(got.isinf().sum()) == 1
    assert bool(got[0, 1, 3, 3].isinf())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_run_torchs_own_layer(dtype: torch.dtype) -> None:
    weight, mask, values = packed((4, 3, 3, 3), 0.5)
    x = torch.randn(2, 3, 8, 8).to(dtype)
    got = ops.sparse_conv2d(x, mask, values.to(dtype), None, [3, 3], [1, 1], [1, 1], [1, 1], 1)
    torch.testing.assert_close(got, F.conv2d(x, weight.to(dtype), None, 1, 1))
    weight, mask, values = packed((4, 30), 0.5)
    x = torch.randn(2, 30).to(dtype)
    torch.testing.assert_close(ops.sparse_linear(x, mask, values.to(dtype), None), F.linear(x, weight.to(dtype)))


GOOD: dict[str, Any] = {
    "x": torch.randn(1, 2, 8, 8),
    "mask": torch.tensor([[1], [2], [0], [0]], dtype=torch.uint8),
    "values": torch.randn(2),
    "bias": None,
    "kernel_size": [1, 1],
    "stride": [1, 1],
    "padding": [0, 0],
    "dilation": [1, 1],
    "groups": 1,
    "plan": 0,
}
BAD_CONV = [
    ({"x": torch.randn(2, 8, 8)}, r"sparse_conv2d: x must be \[N, C, H, W\], got \[2, 8, 8\]"),
    ({"x": torch.ones(1, 2, 8, 8, dtype=torch.int32)}, "sparse_conv2d: x must be float32.*got int32"),
    ({"x": torch.randn(1, 2, 8, 8).double()}, "values must have the dtype of x, float64, got float32"),
    ({"mask": torch.zeros(4, 1)}, "mask must be uint8 on the CPU, got float32"),
    ({"mask": torch.zeros(4, 2, dtype=torch.uint8)}, r"mask must be \[4, 1\], got \[4, 2\]"),
    ({"mask": torch.tensor([[1], [4], [0], [0]], dtype=torch.uint8)}, "unused bits clear, got one set in neuron 1"),
    ({"mask": torch.tensor([[3], [2], [0], [0]], dtype=torch.uint8)}, "one element for each of the 3 bits.*got 2"),
    ({"values": torch.randn(3)}, "one element for each of the 2 bits of mask, got 3"),
    ({"values": torch.randn(1, 2)}, r"values must be \[nnz\]"),
    ({"bias": torch.randn(3)}, r"bias must be a contiguous \[4\], got \[3\]"),
    ({"bias": torch.randn(4).double()}, "bias must be float32, got float64"),
    ({"kernel_size": [1]}, "kernel_size must be 2 integers of 1"),
    ({"kernel_size": [0, 1]}, "kernel_size must be 2 integers of 1"),
    ({"stride": [0, 1]}, r"stride must be 2 integers of 1 to 2\^31 - 1, got \[0, 1\]"),
    ({"padding": [-1, 0]}, "padding must be 2 integers of 0"),
    ({"dilation": [1, 2**40]}, "dilation must be 2 integers of 1"),
    ({"groups": 0}, "groups must be >= 1 and divide C and K"),
    ({"groups": 3}, "groups must be >= 1 and divide C and K, got groups 3, C 2, K 4"),
    ({"padding": [2**30, 2**30]}, r"fewer than 2\^31 padded values"),
    ({"plan": 10**9}, "plan must be 0 or a live plan, got 1000000000"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CONV, ids=[m for _, m in BAD_CONV])
def test_conv2d_says_what_is_wrong(change: dict[str, Any], message: str) -> None:
    assert ops.sparse_conv2d(**GOOD).shape == (1, 4, 8, 8)
    with pytest.raises(Error, match=message):
        ops.sparse_conv2d(**{**GOOD, **change})


def test_a_kernel_must_fit_the_padded_image() -> None:
    _, mask, values = packed((1, 2, 5, 5), 0.5)
    with pytest.raises(Error, match="kernel must fit the padded image, got kernel reach 9x9 on image 8x8"):
        ops.sparse_conv2d(GOOD["x"], mask, values, None, [5, 5], [1, 1], [0, 0], [2, 2], 1)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(()), r"sparse_linear: x must be \[\.\.\., C\], got a 0-d tensor"),
        (torch.randn(3, 9), r"mask must be \[4, 2\], got \[4, 1\]"),
        (torch.ones(3, 8, dtype=torch.int64), "x must be float32.*got int64"),
        (torch.randn(3, 8).half(), "values must have the dtype of x, float16, got float32"),
    ],
)
def test_linear_says_what_is_wrong(x: Tensor, message: str) -> None:
    mask = torch.tensor([[1], [2], [0], [0]], dtype=torch.uint8)
    with pytest.raises(Error, match=message):
        ops.sparse_linear(x, mask, torch.randn(2), None)


def test_a_plan_serves_only_the_layer_that_it_was_made_for() -> None:
    _, mask, values = packed((4, 2, 3, 3), 0.5)
    plan = _host.SparseLayer(mask.numpy(), values.numpy(), (4, 2, 3, 3), padding=(1, 1))
    x = torch.randn(1, 2, 8, 8)
    held = ops.sparse_conv2d(x, mask, values, None, [3, 3], [1, 1], [1, 1], [1, 1], 1, plan.id)
    assert same_bits(held, ops.sparse_conv2d(x, mask, values, None, [3, 3], [1, 1], [1, 1], [1, 1], 1))
    with pytest.raises(Error, match="must have been made for the same layer"):
        ops.sparse_conv2d(x, mask, values, None, [3, 3], [2, 2], [1, 1], [1, 1], 1, plan.id)
    with pytest.raises(Error, match="must have been made for the same layer"):
        ops.sparse_linear(torch.randn(1, 18), mask, values, None, plan.id)
    gone = plan.id
    del plan
    with pytest.raises(Error, match="plan must be 0 or a live plan"):
        ops.sparse_conv2d(x, mask, values, None, [3, 3], [1, 1], [1, 1], [1, 1], 1, gone)


@pytest.mark.parametrize(
    "kwargs", [{"shape": (-1, 2, 3, 3)}, {"shape": (4, 2**40, 2**40, 3)}, {"groups": 0}, {"stride": (0, 1)}]
)
def test_a_plan_is_checked_where_it_is_made(kwargs: dict[str, Any]) -> None:
    _, mask, values = packed((4, 2, 3, 3), 0.5)
    with pytest.raises((RuntimeError, ValueError), match="sparse layer"):
        _host.SparseLayer(mask.numpy(), values.numpy(), **{"shape": (4, 2, 3, 3), **kwargs})
