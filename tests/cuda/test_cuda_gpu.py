"""The operators on a real GPU: values, gradients, errors. Skipped, with the reason, where there is none; an error with
SECATEUR_REQUIRE_GPU=1."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cuda_cases import OPERATORS, Target, each_case, each_dtype, packing, random_mask
from gpu import moved, on_device, on_gpu
from samples import SAMPLES, Sample
from secateur import Error, ops
from secateur.ops import reference
from tensors import same_bits
from torch import Tensor

pytestmark = on_device
EVERY_SAMPLE = [
    pytest.param(name, sample, id=f"{name}, {sample.name}") for name in OPERATORS for sample in SAMPLES[name]
]


@each_dtype
@each_case
def test_equals_its_twin(gpu: Target, case: Callable[[Target, torch.dtype], None], dtype: torch.dtype) -> None:
    case(gpu, dtype)


def test_packing(gpu: Target) -> None:
    packing(gpu, torch.bool)


@on_gpu
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


# opcheck itself reads .grad of the tensors that it makes.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(("name", "sample"), EVERY_SAMPLE)
def test_opcheck(gpu: Target, name: str, sample: Sample) -> None:
    for dtype in sample.dtypes:
        arguments = [moved(value, gpu.device) for value in sample.make(dtype)]
        for position in sample.differentiable:
            arguments[position].requires_grad_(dtype.is_floating_point)
        torch.library.opcheck(getattr(gpu, name), tuple(arguments))


@pytest.mark.parametrize(
    ("name", "sample"),
    # A finite difference across a threshold that follows the weights is no gradient.
    [case for case in EVERY_SAMPLE if case.values[1].differentiable and case.values[0] != "statistics_threshold"],
)
def test_gradcheck(gpu: Target, name: str, sample: Sample) -> None:
    arguments = [moved(value, gpu.device) for value in sample.make(torch.float64)]
    inputs = tuple(arguments[position].requires_grad_() for position in sample.differentiable)

    def run(*varied: Tensor) -> tuple[Tensor, ...]:
        whole = list(arguments)
        for position, value in zip(sample.differentiable, varied, strict=True):
            whole[position] = value
        result = getattr(gpu, name)(*whole)
        results = result if isinstance(result, tuple) else (result,)
        return tuple(results[i] for i in sample.outputs)

    assert torch.autograd.gradcheck(run, inputs)
