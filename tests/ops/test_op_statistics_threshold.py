"""statistics_threshold: theta as defined, as accurate as torch's own mean and std; an error loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
import secateur
import secateur.cpu
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from secateur import ops
from secateur.ops import reference
from tensors import ARRANGEMENTS, DTYPES, LAYOUTS, RANKS, arrangement_id, make, same_bits
from torch import Tensor


def check(weight: Tensor, k: float, signed: bool) -> None:
    """Against the twin. theta may differ by one rounding; mask and weight must follow the theta that came back."""
    before = weight.clone()
    pruned, mask, theta = ops.statistics_threshold(weight, k, signed)
    expected = reference.statistics_threshold(weight, k, signed)
    # The sums run in double and cancel in mean - k * std: some double roundings of the larger terms, one of theta.
    rows, columns = reference.rows_and_columns(weight.shape)
    scale = weight.double().reshape(rows, columns).abs().amax(1) if columns and rows else torch.zeros(rows)
    slack = (1 + abs(k)) * scale.double() * 1e-13 + expected[2].abs().double() * torch.finfo(theta.dtype).eps
    assert theta.dtype == expected[2].dtype
    assert bool(((theta.double() - expected[2].double()).abs() <= slack).all())
    assert same_bits(weight, before)

    magnitude = weight.reshape(rows, columns).double().abs()
    sample = weight.reshape(rows, columns) if signed else magnitude
    constant = sample.amax(1) == sample.amin(1) if columns and rows else torch.ones(rows, dtype=torch.bool)
    keep = (magnitude >= theta.double().unsqueeze(1)) | constant.unsqueeze(1)
    assert same_bits(mask, reference.mask_pack(keep))
    assert same_bits(pruned, reference.mask_apply(weight, mask))

    strides = weight.stride()
    in_place = ops.statistics_threshold_(weight, k, signed)
    assert same_bits(in_place[0], mask)
    assert same_bits(in_place[1], theta)
    assert same_bits(weight, pruned)
    assert weight.stride() == strides


@pytest.mark.parametrize(("layout", "shape"), ARRANGEMENTS, ids=arrangement_id)
def test_equals_its_twin(layout: str, shape: tuple[int, ...], isa: str) -> None:
    for dtype in DTYPES:
        for k, signed in [(-0.5, False), (0.7, True)]:
            check(make(layout, shape, dtype), k, signed)


def test_the_definition_by_hand(isa: str) -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, -6.0], [5.0, 5.0, -5.0, 5.0]])
    pruned, mask, theta = ops.statistics_threshold(weight, 0.5)
    # |w| = 1 2 3 6: mean 3, biased variance (4 + 1 + 0 + 9) / 4 = 3.5. The second row's std is 0.
    torch.testing.assert_close(theta, torch.tensor([3 - 0.5 * 3.5**0.5, 5.0]))
    assert torch.equal(pruned, torch.tensor([[0.0, 0.0, 3.0, -6.0], [5.0, 5.0, -5.0, 5.0]]))
    assert mask.tolist() == [[0b1100], [0b1111]]
    # signed: w = 1 -2 3 -6: mean -1, variance (4 + 1 + 16 + 25) / 4 = 11.5; theta = -1 + 11.5 ** 0.5 = 2.39
    pruned, _, theta = ops.statistics_threshold(weight[:1], -1.0, signed=True)
    torch.testing.assert_close(theta, torch.tensor([11.5**0.5 - 1]))
    assert torch.equal(pruned, torch.tensor([[0.0, 0.0, 3.0, -6.0]]))


def test_gaussian_weights_lose_what_the_normal_distribution_says(isa: str) -> None:
    # P(|z| < m - k s) with m = sqrt(2 / pi), s = sqrt(1 - 2 / pi); 4 standard errors of 10^6 samples.
    weight = torch.randn(100, 10_000)
    for k, pruned in [(1.0, 0.1549), (0.0, 0.5751), (-1.0, 0.8387), (-2.0, 0.9550)]:
        out, _, _ = ops.statistics_threshold(weight, k)
        assert (out == 0).double().mean().item() == pytest.approx(pruned, abs=0.002)


@pytest.mark.parametrize("dtype", DTYPES, ids=arrangement_id)
@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, -3.7, 6e-8])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 10_000])
def test_a_neuron_whose_std_is_0_keeps_all(columns: int, value: float, dtype: torch.dtype, isa: str) -> None:
    weight = torch.full((2, columns), value, dtype=torch.float64).to(dtype)
    for signed in (False, True):
        pruned, mask, theta = ops.statistics_threshold(weight, -2.0, signed)
        assert same_bits(pruned, weight)
        assert bool(ops.mask_unpack(mask, weight.shape).all())
        expected = (weight if signed else weight.abs())[:, 0]
        assert torch.equal(theta, expected.to(theta.dtype))


@pytest.mark.parametrize("position", [0, 1, 16, 36])
def test_one_weight_that_differs_is_enough_for_a_std(position: int, isa: str) -> None:
    weight = torch.ones(1, 37)
    weight[0, position] = 1 + 2**-10
    _, mask, theta = ops.statistics_threshold(weight, -1.0)
    assert 1 < theta.item() <= weight[0, position].item()
    assert ops.mask_unpack(mask, [1, 37]).sum().item() == 1


def test_denormals(isa: str) -> None:
    for dtype in DTYPES:
        weight = (torch.randn(3, 50).double() * torch.finfo(dtype).tiny / 4).to(dtype)
        check(weight, -0.5, False)


def test_the_largest_floats_are_not_too_large(isa: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weight = torch.full((2, 100), torch.finfo(dtype).max, dtype=dtype)
        weight[:, ::2] = -1
        check(weight, 0.5, True)


@pytest.mark.parametrize("dtype", DTYPES, ids=arrangement_id)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "windowed"])
def test_an_error_loses_nothing(layout: str, value: float, dtype: torch.dtype, isa: str) -> None:
    rule = "weight must be finite, got .* in neuron 3$"
    for columns, position in [(40, 0), (40, 17), (40, 39), (7, 6), (10_000, 9_000)]:
        weight = make(layout, (5, columns), dtype)
        weight[3, position] = value
        before = weight.clone()
        for signed in (False, True):
            with pytest.raises(secateur.Error, match=f"^statistics_threshold: {rule}"):
                ops.statistics_threshold(weight, -1.0, signed)
            with pytest.raises(secateur.Error, match=f"^statistics_threshold_: {rule}"):
                ops.statistics_threshold_(weight, -1.0, signed)
        assert same_bits(weight, before)


def test_doubles_whose_squares_overflow_are_an_error(isa: str) -> None:
    weight = torch.tensor([[1e200, -1.0, 3.0]], dtype=torch.float64)
    with pytest.raises(secateur.Error, match="squares beyond float64"):
        ops.statistics_threshold(weight, 1.0)


def exact(row: Tensor, k: float, signed: bool) -> np.longdouble:
    sample = row.double().numpy().astype(np.longdouble)
    sample = sample if signed else np.abs(sample)
    mean = sample.mean()
    return mean - np.longdouble(k) * np.sqrt(np.square(sample - mean).mean())


ROWS = {
    "gaussian": lambda n: torch.randn(n).double(),
    "mean 1000 std 1": lambda n: torch.randn(n).double() + 1000,
    "mean 1e6 std 1e-3": lambda n: torch.randn(n).double() * 1e-3 + 1e6,
    "next to constant": lambda n: 1 + (torch.rand(n) < 0.5).double() * 2**-23,
    "one outlier first": lambda n: torch.cat([torch.tensor([1e6]).double(), torch.randn(n - 1).double() * 1e-3]),
    "both signs": lambda n: torch.randn(n).double() * 10 ** torch.empty(n).uniform_(-6, 2).double(),
}


@pytest.mark.skipif(np.finfo(np.longdouble).eps >= 2**-52, reason="needs a long double wider than double")
@pytest.mark.parametrize("dtype", DTYPES, ids=arrangement_id)
@pytest.mark.parametrize("kind", list(ROWS))
@pytest.mark.parametrize("n", [1000, 300_000])
def test_as_accurate_as_torch(n: int, kind: str, dtype: torch.dtype) -> None:
    """Ours against torch's mean and std of the same dtype, both against long double, over a few rows and k."""
    ours = torchs = rounding = 0.0
    for _ in range(3):
        row = ROWS[kind](n).clamp(-6e4, 6e4 if dtype == torch.float16 else 1e7).to(dtype).unsqueeze(0)
        for k, signed in [(0.0, False), (-2.0, False), (1.0, True)]:
            truth = exact(row[0], k, signed)
            sample = row if signed else row.abs()
            torch_theta = sample.mean(1) - k * sample.std(1, correction=0)
            theta = ops.statistics_threshold(row, k, signed)[2]
            ours += abs(float(np.longdouble(theta.item()) - truth))
            torchs += abs(float(np.longdouble(torch_theta.item()) - truth))
            rounding += abs(float(truth)) * torch.finfo(theta.dtype).eps / 2
    assert ours <= torchs + rounding  # the last rounding of theta goes either way


@pytest.mark.parametrize("dtype", DTYPES, ids=arrangement_id)
@pytest.mark.parametrize("shape", [(7, 1000), (2, 70_001), (300, 270)])
def test_threads_and_instruction_sets_agree(shape: tuple[int, ...], dtype: torch.dtype, threads: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    torch.set_num_threads(1)
    with secateur.cpu.use_isa("scalar"):
        expected = ops.statistics_threshold(weight, -0.7)
    torch.set_num_threads(threads)
    for name in secateur.cpu.available_isas():
        with secateur.cpu.use_isa(name):
            assert all(same_bits(a, b) for a, b in zip(ops.statistics_threshold(weight, -0.7), expected, strict=True))
            written = weight.clone()
            in_place = ops.statistics_threshold_(written, -0.7)
            assert all(same_bits(a, b) for a, b in zip((written, *in_place), expected, strict=True))


def test_gradient_reaches_only_the_kept_weights() -> None:
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    pruned, mask, theta = ops.statistics_threshold(weight, -0.5)
    assert not mask.requires_grad
    assert not theta.requires_grad
    (gradient,) = torch.autograd.grad(pruned.sum(), weight)
    assert torch.equal(gradient, ops.mask_unpack(mask, weight.shape).float())


def test_an_expanded_weight_can_be_read_but_not_written() -> None:
    weight = torch.randn(1, 33).expand(4, 33)
    pruned, _, theta = ops.statistics_threshold(weight, -0.5)
    assert theta.unique().numel() == 1
    assert torch.equal(pruned, reference.statistics_threshold(weight, -0.5)[0])
    with pytest.raises(secateur.Error, match=r"^statistics_threshold_: weight must not overlap itself"):
        ops.statistics_threshold_(weight, -0.5)


@pytest.mark.parametrize("name", ["statistics_threshold", "statistics_threshold_"])
def test_errors(name: str) -> None:
    op = getattr(ops, name)
    with pytest.raises(secateur.Error, match=f"^{name}: weight must be float32, .*, got int64$"):
        op(torch.zeros(3, 3, dtype=torch.int64), 1.0)
    for k, shown in [(float("nan"), "-?nan"), (float("inf"), "inf")]:
        with pytest.raises(secateur.Error, match=f"^{name}: k must be finite, got {shown}$"):
            op(torch.zeros(3, 3), k)


def test_in_place_is_for_no_grad_use() -> None:
    weight = torch.randn(3, 9, requires_grad=True)
    with pytest.raises(secateur.Error, match=r"^statistics_threshold_: weight must not require a gradient here"):
        ops.statistics_threshold_(weight, 1.0)
    with torch.no_grad():
        ops.statistics_threshold_(weight, 1.0)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(0, 12), min_size=0, max_size=5).map(tuple),
    layout=st.sampled_from(sorted(LAYOUTS)),
    dtype=st.sampled_from(DTYPES),
    k=st.floats(-4, 4),
    signed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape(
    shape: tuple[int, ...], layout: str, dtype: torch.dtype, k: float, signed: bool, seed: int, isa: str
) -> None:
    torch.manual_seed(seed)
    check(make(layout if len(shape) in RANKS[layout] else "contiguous", shape, dtype), k, signed)
