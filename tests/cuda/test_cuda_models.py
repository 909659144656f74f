"""The public calls on models that live on the device: the same decisions as on the CPU, and all of it stays there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
from cuda_cases import Target
from gpu import on_device
from secateur import Magnitude, MeanStd, Random
from secateur.nn import ThresholdReLU
from tensors import same_bits
from torch import nn

pytestmark = on_device
CRITERIA = [MeanStd(k=-1.0), MeanStd(sparsity=0.8), Magnitude(sparsity=0.8), Magnitude(sparsity=0.8, scope="global")]


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 9, 3),
        nn.BatchNorm2d(9),
        nn.ReLU(),
        nn.Conv2d(9, 7, 3),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(112, 5),
    )


def _devices(model: nn.Module) -> set[torch.device]:
    return {t.device for module in model.modules() for t in [*module.parameters(), *module.buffers(),
            *([module.weight_mask] if getattr(module, "weight_mask", None) is not None else [])]}  # fmt: skip


def _same_state(here: nn.Module, there: nn.Module) -> None:
    a, b = here.state_dict(), there.state_dict()
    assert list(a) == list(b)
    for name in a:
        assert same_bits(a[name], b[name].cpu()), name


@pytest.mark.parametrize("pattern", ["1x1", "1x4"])
@pytest.mark.parametrize("criterion", CRITERIA, ids=str)
def test_prune_decides_as_on_the_cpu(gpu: Target, criterion: Any, pattern: str) -> None:
    here = _net()
    there = copy.deepcopy(here).to(gpu.device)
    reports = [secateur.prune(model, criterion, pattern=pattern) for model in (here, there)]
    assert _devices(there) == {gpu.device}
    for (name, a), b in zip(here.named_parameters(), there.parameters(), strict=True):
        off = a != b.cpu()
        # MeanStd solves k from the score of a weight that it then compares: a sum's last bit may decide that one.
        allowed = (int(pattern[-1]) if a.dim() > 1 else 0) if criterion == MeanStd(sparsity=0.8) else 0
        assert int(off.sum()) <= allowed, name
    assert [row["layer"] for row in reports[0].rows] == [row["layer"] for row in reports[1].rows]
    assert secateur.sparsity(there).sparsity == pytest.approx(secateur.sparsity(here).sparsity, abs=0.01)
    secateur.strip(there)
    _net().to(gpu.device).load_state_dict(there.state_dict(), strict=True)


def test_random_prunes_that_share(gpu: Target) -> None:
    model = _net().to(gpu.device)
    report = secateur.prune(model, Random(sparsity=0.5))
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    assert _devices(model) == {gpu.device}


def test_masks_follow_their_model_to_another_device(gpu: Target) -> None:
    model = _net()
    secateur.prune(model, MeanStd(sparsity=0.8))
    before = copy.deepcopy(model)
    model.to(gpu.device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(4, 3, 8, 8, device=gpu.device)).square().mean().backward()
    optimizer.step()
    assert _devices(model) == {gpu.device}
    model.cpu()
    for module, old in zip(model.modules(), before.modules(), strict=True):
        if getattr(old, "weight_mask", None) is not None:
            assert same_bits(module.weight_mask.cpu(), old.weight_mask)
            keep = secateur.ops.mask_unpack(old.weight_mask, old.weight.shape)
            assert not bool(module.weight[~keep].any())


def test_saved_and_loaded(gpu: Target, tmp_path: Path) -> None:
    model = _net().to(gpu.device)
    secateur.prune(model, MeanStd(sparsity=0.8))
    secateur.save(model, tmp_path / "m.safetensors")
    again = secateur.load(tmp_path / "m.safetensors", _net().to(gpu.device))
    assert _devices(again) == {gpu.device}
    _same_state(copy.deepcopy(model).cpu(), again)
    _same_state(copy.deepcopy(model).cpu(), secateur.load(tmp_path / "m.safetensors", _net()))


@pytest.mark.parametrize("rule", [MeanStd(k=0.0), MeanStd(sparsity=0.7), Magnitude(sparsity=0.7)], ids=str)
def test_activations_are_calibrated_there(gpu: Target, rule: Any) -> None:
    model = _net().eval()
    batches = [torch.randn(8, 3, 8, 8) for _ in range(3)]
    here = secateur.prune_activations(model, batches, rule, progress=False)
    there = secateur.prune_activations(
        copy.deepcopy(model).to(gpu.device), [batch.to(gpu.device) for batch in batches], rule, progress=False
    )
    assert _devices(there) == {gpu.device}
    thetas = [[m.theta for m in thin.modules() if isinstance(m, ThresholdReLU)] for thin in (here, there)]
    assert len(thetas[0]) == len(thetas[1]) == 2
    for a, b in zip(*thetas, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=2e-2, atol=1e-3)  # convolutions differ, quantiles are from bins
    y = there(batches[0].to(gpu.device))
    torch.testing.assert_close(y.cpu(), here(batches[0]), rtol=5e-2, atol=5e-2)
