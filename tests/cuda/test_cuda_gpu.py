"""The operators on a real GPU; skipped, with the reason, where there is none (SECATEUR_REQUIRE_GPU=1: an error)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cuda_cases import OPERATORS, Target, each_case, each_dtype, packing, random_mask
from samples import SAMPLES
from secateur import Error, ops
from secateur._base import library
from secateur.ops import reference
from tensors import same_bits
from torch import Tensor


def _missing() -> str:
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    return "" if library.HAS_CUDA else "libsecateur_cuda.so was not built (no nvcc, or SECATEUR_CUDA=OFF)"


if os.environ.get("SECATEUR_REQUIRE_GPU") == "1" and _missing():
    raise RuntimeError(f"SECATEUR_REQUIRE_GPU=1, but {_missing()}")
pytestmark = pytest.mark.skipif(bool(_missing()), reason=_missing() or "a GPU is here")


@pytest.fixture
def gpu() -> Target:
    return Target(torch.ops.secateur, torch.device("cuda", torch.cuda.current_device()))


@each_dtype
@each_case
def test_equals_its_twin(gpu: Target, case: Callable[[Target, torch.dtype], None], dtype: torch.dtype) -> None:
    case(gpu, dtype)


def test_packing(gpu: Target) -> None:
    packing(gpu, torch.bool)


def test_errors_of_arguments_are_secateurs(gpu: Target) -> None:
    weight, mask = torch.randn(4, 10, device=gpu.device), torch.zeros(4, 2, dtype=torch.uint8)
    with pytest.raises(Error, match="mask_apply: mask must be on the device of the tensor that it masks"):
        ops.mask_apply(weight, mask)
    with pytest.raises(Error, match="threshold_relu: theta must be on the device of x"):
        ops.threshold_relu(weight, torch.zeros(10))
    with pytest.raises(Error, match=r"statistics_threshold: weight must be finite, got NaN or Inf .* in neuron 2"):
        ops.statistics_threshold(weight.index_fill(0, torch.tensor([2], device=gpu.device), float("nan")), 1.0)


def test_gradients(gpu: Target) -> None:
    weight = torch.randn(6, 3, 3, 3, dtype=torch.float64, device=gpu.device, requires_grad=True)
    mask = random_mask((6, 3, 3, 3)).to(gpu.device)
    assert torch.autograd.gradcheck(lambda w: ops.mask_apply(w, mask), weight)
    grad = torch.randn_like(weight)

    pruned, kept, _ = ops.statistics_threshold(weight, -0.5)
    (got,) = torch.autograd.grad(pruned, weight, grad)
    assert same_bits(got.cpu(), reference.mask_apply(grad.cpu(), kept.cpu()))

    x = torch.randn(2, 5, 4, 4, device=gpu.device).to(memory_format=torch.channels_last).requires_grad_()
    y, passes = ops.threshold_relu(x, torch.rand(5, device=gpu.device), 0.75)
    upstream = torch.randn_like(y)
    (got,) = torch.autograd.grad(y, x, upstream)
    assert same_bits(got.cpu(), reference.mask_apply(upstream.cpu(), passes.cpu()))


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device).requires_grad_(value.requires_grad)
    return value


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(gpu: Target, name: str) -> None:
    for sample in SAMPLES[name]:
        args = tuple(_on(gpu.device, value) for value in sample.make(sample.dtypes[0]))
        torch.library.opcheck(getattr(gpu, name), args)


def test_runs_in_the_current_stream(gpu: Target) -> None:
    """The kernel waits for what its own stream still has to do: on any other stream it would read the old values."""
    x, mask = torch.zeros(1 << 16, device=gpu.device), random_mask((1 << 16,)).to(gpu.device)
    theta = torch.zeros(1, device=gpu.device)
    stream = torch.cuda.Stream(gpu.device)
    torch.cuda.synchronize(gpu.device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # about a tenth of a second
        x.fill_(1.0)
        masked = ops.mask_apply(x, mask)
        y, passes = ops.threshold_relu(x, theta)
        keep = ops.mask_unpack(passes, x.shape)
    stream.synchronize()
    assert same_bits(masked.cpu(), reference.mask_apply(torch.ones(1 << 16), mask.cpu()))
    assert bool((y == 1).all())
    assert bool(keep.all())


def test_captured_in_a_graph(gpu: Target) -> None:
    """mask_apply_ and threshold_relu never wait for the device, so a CUDA graph can hold them."""
    weight, mask = torch.ones(64, 100, device=gpu.device), random_mask((64, 100)).to(gpu.device)
    theta = torch.full((100,), 0.5, device=gpu.device)
    ops.mask_apply_(weight.clone(), mask)  # loads the module before the capture
    ops.threshold_relu(weight, theta)
    torch.cuda.synchronize(gpu.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.mask_apply_(weight, mask)
        y, _ = ops.threshold_relu(weight, theta)
    for value in (3.0, 0.25):
        weight.fill_(value)
        graph.replay()
        torch.cuda.synchronize(gpu.device)
        expected = reference.mask_apply(torch.full((64, 100), value), mask.cpu())
        assert same_bits(weight.cpu(), expected)
        assert same_bits(y.cpu(), reference.threshold_relu(expected, theta.cpu())[0])


def test_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    for device in (torch.device("cuda", 1), torch.device("cuda", 0)):
        with torch.cuda.device(1 - device.index):
            target = Target(torch.ops.secateur, device)
            weight = torch.randn(16, 100)
            pruned, mask, theta = target.statistics_threshold(weight.to(device), -0.5)
            assert {t.device for t in (pruned, mask, theta)} == {device}
            assert torch.cuda.current_device() == 1 - device.index
            assert same_bits(pruned.cpu(), reference.mask_apply(weight, mask.cpu()))


def test_on_a_thread_of_its_own(gpu: Target) -> None:
    """A fresh thread has no current CUDA context: autograd's backward threads start like that."""
    from threading import Thread

    weight, mask = torch.randn(64, 100), random_mask((64, 100))
    results: list[Tensor] = []
    there = weight.to(gpu.device), mask.to(gpu.device)
    thread = Thread(target=lambda: results.append(ops.mask_apply(*there).cpu()))
    thread.start()
    thread.join()
    assert same_bits(results[0], reference.mask_apply(weight, mask))


def test_more_than_2_to_the_31_elements(gpu: Target) -> None:
    """Indices are 64-bit: a 32-bit one would wrap in the second half. 4.3 GB of bfloat16."""
    n = (1 << 31) + 1000
    if torch.cuda.mem_get_info(gpu.device)[0] < 12 << 30:
        pytest.skip("needs 12 GB of free GPU memory")
    x = torch.ones(1, n, dtype=torch.bfloat16, device=gpu.device)
    mask = torch.zeros(1, (n + 7) // 8, dtype=torch.uint8, device=gpu.device)
    mask[0, 0], mask[0, -1] = 1, 0xFF
    ops.mask_apply_(x, mask)
    assert int(torch.count_nonzero(x)) == 9
    assert x[0, 0] == 1
    assert bool((x[0, -8:] == 1).all())
