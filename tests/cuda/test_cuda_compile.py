"""torch.compile(fullgraph) and autocast over the operators and over the layers that use them."""

from __future__ import annotations

import copy

import pytest
import torch
from cuda_cases import OPERATORS, Target
from gpu import moved, on_device
from samples import SAMPLES, Sample
from secateur import ops
from secateur.nn import MaskedConv2d, MaskedLinear, ThresholdReLU
from tensors import same_bits
from torch import Tensor, nn

pytestmark = [
    on_device,
    # torch's own: a GPU multiplies faster in TF32.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32:UserWarning"),
]
FIRST = [pytest.param(name, SAMPLES[name][0], id=name) for name in OPERATORS]


@pytest.fixture(autouse=True)
def _forget() -> None:
    torch.compiler.reset()


def _all(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in _all(item)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize(("name", "sample"), FIRST)
def test_operators_compile_whole(gpu: Target, name: str, sample: Sample) -> None:
    """One graph, the same bits: results, and what was written."""
    arguments = [moved(value, gpu.device) for value in sample.make(sample.dtypes[0])]
    other = copy.deepcopy(arguments)
    run = torch.compile(lambda *args: getattr(gpu, name)(*args), fullgraph=True)
    with torch.no_grad():
        got, expected = run(*arguments), getattr(gpu, name)(*other)
    for a, b in zip([*_all(got), *_all(arguments)], [*_all(expected), *_all(other)], strict=True):
        assert same_bits(a, b)


def test_layers_compile_whole_and_train(gpu: Target) -> None:
    model = nn.Sequential(
        MaskedConv2d(3, 8, 3), ThresholdReLU(torch.full((8,), 0.1)), nn.Flatten(), MaskedLinear(8 * 6 * 6, 4)
    ).to(gpu.device)
    for layer in (model[0], model[3]):
        layer.set_mask(torch.rand_like(layer.weight) < 0.3)
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(5, 3, 8, 8, device=gpu.device)
    got, expected = compiled(x), plain(x)
    # Another order of summation of 27 and 288 float32 terms, and TF32 nowhere.
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    got.square().mean().backward()
    expected.square().mean().backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
    for layer in (model[0], model[3]):
        keep = ops.mask_unpack(layer.weight_mask, layer.weight.shape)
        assert not bool(layer.weight.grad[~keep].any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("whole", [False, True], ids=["eager", "compiled"])
def test_under_autocast(gpu: Target, dtype: torch.dtype, whole: bool) -> None:
    """Weights and masks stay as they are; layers compute in half precision; pruned weights get no gradient."""
    model = nn.Sequential(MaskedLinear(40, 16), ThresholdReLU(torch.full((16,), 0.05)), nn.Linear(16, 4)).to(gpu.device)
    model[0].set_mask(torch.rand(16, 40) < 0.4)
    run = torch.compile(model, fullgraph=True) if whole else model
    x = torch.randn(7, 40, device=gpu.device)
    with torch.autocast(gpu.device.type, dtype=dtype):
        y = run(x)
        pruned = ops.mask_apply(model[0].weight, model[0].weight_mask)
    assert y.dtype == dtype
    assert pruned.dtype == torch.float32
    y.float().square().mean().backward()
    keep = ops.mask_unpack(model[0].weight_mask, (16, 40))
    grad = model[0].weight.grad
    assert grad.dtype == torch.float32
    assert not bool(grad[~keep].any())
    assert bool(grad[keep].any())
    torch.testing.assert_close(y.float(), model(x), rtol=2e-2, atol=2e-2)  # 8 bits of a bfloat16, sums of 40 and 16
