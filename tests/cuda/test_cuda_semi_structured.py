"""Masks of 2:4 on a GPU whose tensor cores skip them; skipped, with the reason, where there is none."""

from __future__ import annotations

import copy
import os
import warnings

import pytest
import secateur
import torch
from secateur import CubicSchedule, GradualPruner, Magnitude, MeanStd
from secateur.nn import MaskedLinear
from torch import nn


def _missing() -> str:
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if torch.cuda.get_device_capability() < (8, 0):
        return "the GPU has no sparse tensor cores"
    return "" if torch.backends.cusparselt.is_available() else "this torch has no cuSPARSELt"


if os.environ.get("SECATEUR_REQUIRE_GPU") == "1" and not torch.cuda.is_available():
    raise RuntimeError(f"SECATEUR_REQUIRE_GPU=1, but {_missing()}")
pytestmark = pytest.mark.skipif(bool(_missing()), reason=_missing() or "a GPU is here")


def test_the_same_masks_as_on_the_cpu() -> None:
    """Also where weights tie, whose order the device's sort must not change."""
    for rule in (Magnitude(0.5), MeanStd(sparsity=0.5)):
        here = nn.Sequential(nn.Conv2d(16, 32, 3, groups=2), nn.Flatten(), nn.Linear(32 * 36, 64))
        with torch.no_grad():
            here[0].weight.copy_(here[0].weight.sign() * torch.ceil(here[0].weight.abs() * 40) / 40)
        there = copy.deepcopy(here).cuda()
        secateur.prune(here, rule, pattern="2:4")
        report = secateur.prune(there, rule, pattern="2:4")
        for one, other in zip(here.state_dict().values(), there.state_dict().values(), strict=True):
            assert torch.equal(one, other.cpu())
        assert secateur.verify(there, "2:4").holds
        assert not any("on a GPU" in note for note in report.notes)
        report = secateur.prune(there, Magnitude(0.9))
        assert any(note.startswith('on a GPU, zeros in pattern "1x1" save no time') for note in report.notes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_to_sparse_semi_structured_agrees(dtype: torch.dtype, bias: bool) -> None:
    layer = MaskedLinear(256, 128, bias=bias, device="cuda", dtype=dtype)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    schedule = CubicSchedule(0.5, end=3)
    pruner = GradualPruner(layer, Magnitude(0.5), schedule, pattern="2:4", optimizer=optimizer)
    x = torch.randn(64, 256, device="cuda", dtype=dtype)
    for _ in range(6):
        optimizer.zero_grad()
        layer(x).float().square().mean().backward()
        optimizer.step()
        pruner.step()
    layer.eval()
    report = secateur.verify(layer, "2:4")
    assert report.holds
    assert report["weight"]["why"] == "too narrow to gain in TensorRT"  # and to_sparse_semi_structured takes it
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: the class is a prototype
        dense = layer(x)
        weight = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        sparse = nn.functional.linear(x, weight, layer.bias)
        whole = nn.functional.linear(torch.eye(256, device="cuda", dtype=dtype), weight)  # its weights, one by one
    # Sums of 128 products in another order, in float32 within the tensor cores: the result's own rounding is the most.
    torch.testing.assert_close(sparse, dense, rtol=2 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    assert torch.equal(whole.T, layer.weight)
