"""The public calls on models of another device: what they decide there, and what they bring to the host.

Not collected by itself: test_second_device.py runs it in a process of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
import torch.nn.functional as F
from secateur import Magnitude, MeanStd, Random
from secateur.nn import ThresholdReLU
from second_device import SECOND, There, Watch
from torch import Tensor, nn

# Values on the host that a call may look at one by one: flags, sums, thetas. Activations of a batch here have 4608
# elements and more, weights up to 1440, tables of a histogram 2048.
SMALL = 64
HISTOGRAM = 2048  # of a layer's values, once a layer


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 20, 3, padding=1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(20, 10),
    ).eval()


def batches(count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(9, 3, 8, 8, generator=generator) for _ in range(count)]


@pytest.fixture
def watch() -> Iterator[Watch]:
    with Watch() as active:
        yield active


def there(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(SECOND)


def moved(values: list[Tensor]) -> list[Tensor]:
    return [value.to(SECOND) for value in values]


def all_there(model: nn.Module) -> None:
    for name, value in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        assert value.device == SECOND, name
    for name, module in model.named_modules():
        assert getattr(module, "weight_mask", None) is None or module.weight_mask.device == SECOND, name


def same(model: nn.Module, on_cpu: nn.Module) -> None:
    state, expected = model.state_dict(), on_cpu.state_dict()
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert isinstance(state[key], There), key
        torch.testing.assert_close(state[key].held, value)


def test_a_copy_to_the_host_is_seen(watch: Watch) -> None:
    """The watch itself: without it the checks below could not fail."""
    x = torch.randn(100).to(SECOND)
    assert watch.copies == []
    x.sum().item()
    assert watch.copies == [("aten::_local_scalar_dense", 1)]
    assert watch.largest() == 1
    for bring in (lambda: x.cpu(), lambda: x.to("cpu"), lambda: torch.zeros(100).copy_(x)):
        watch.copies.clear()
        bring()
        assert watch.largest() == 100
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(100)


CRITERIA: list[Any] = [
    (MeanStd(k=-1.0), "1x1"),
    (MeanStd(k=-1.0), "neuron"),
    (MeanStd(sparsity=0.8), "1x1"),
    (MeanStd(sparsity=0.8), "1x4"),
    (Magnitude(sparsity=0.8), "1x1"),
    (Magnitude(sparsity=0.8), "neuron"),
    (Magnitude(sparsity=0.8, scope="global"), "1x4"),
    (Random(sparsity=0.5), "1x1"),
]


@pytest.mark.filterwarnings("ignore:prune. no weight is left:UserWarning")
@pytest.mark.parametrize(("criterion", "pattern"), CRITERIA, ids=str)
def test_prune(watch: Watch, criterion: Any, pattern: str) -> None:
    here, model = net(), there(net())
    for each in (here, model):
        each.requires_grad_(False)
    watch.copies.clear()
    report = secateur.prune(model, criterion, pattern=pattern)
    assert watch.largest() <= SMALL, watch.large(SMALL)
    all_there(model)
    if not isinstance(criterion, Random):
        expected = secateur.prune(here, criterion, pattern=pattern)
        assert [row["zeros"] for row in report.rows] == [row["zeros"] for row in expected.rows]
        same(model, here)
    watch.copies.clear()
    assert secateur.sparsity(model).sparsity == pytest.approx(report.sparsity)
    assert watch.largest() <= SMALL, watch.large(SMALL)
    secateur.strip(model)
    net().to(SECOND).load_state_dict(model.state_dict())


RULES: list[Any] = [
    (MeanStd(k=0.0), "all", "channel"),
    (MeanStd(k=0.0), "positive", "layer"),
    (MeanStd(sparsity=0.7), "all", "scalar"),
    (Magnitude(sparsity=0.7), "positive", "channel"),
    (Magnitude(sparsity=0.7), "all", "layer"),
]


@pytest.mark.parametrize(("rule", "over", "granularity"), RULES, ids=str)
def test_prune_activations(watch: Watch, rule: Any, over: Any, granularity: Any) -> None:
    model, data = there(net()), moved(batches())
    watch.copies.clear()
    thin = secateur.prune_activations(model, data, rule, over=over, granularity=granularity, progress=False)
    assert watch.largest() <= SMALL, watch.large(SMALL)
    all_there(thin)
    same(thin, secateur.prune_activations(net(), batches(), rule, over=over, granularity=granularity, progress=False))
    assert sum(isinstance(module, ThresholdReLU) for module in thin.modules()) == 2
    watch.copies.clear()
    thin(data[0])
    assert watch.copies == []


def accuracy(model: nn.Module) -> float:
    """Whose only look at the device is its result."""
    x = torch.cat(batches()).to(next(model.parameters()).device)
    with torch.no_grad():
        return float((model(x).sum(1) > 0).double().mean())


def test_sensitivity_of_activations(watch: Watch) -> None:
    model, data = there(net()), moved(batches())
    watch.copies.clear()
    report = secateur.activation_sensitivity(model, data, accuracy, levels=[0.8], progress=False)
    assert watch.largest() <= SMALL, watch.large(SMALL)
    expected = secateur.activation_sensitivity(net(), batches(), accuracy, levels=[0.8], progress=False)
    assert [row["zeros"] for row in report.rows] == pytest.approx([row["zeros"] for row in expected.rows])


@pytest.mark.parametrize("calibration", ["min-max", "mse"])
def test_quantize(watch: Watch, calibration: str) -> None:
    model, data = there(net()), moved(batches())
    watch.copies.clear()
    q = secateur.quantize(model, data, calibration=calibration, progress=False)
    assert watch.largest() <= HISTOGRAM, watch.large(HISTOGRAM)
    all_there(q)
    same(q, secateur.quantize(net(), batches(), calibration=calibration, progress=False))


@pytest.mark.parametrize("calibration", ["min-max", "mse"])
def test_prepare_qat_and_training(watch: Watch, calibration: str) -> None:
    model, data = net(), batches()
    secateur.prune(model, MeanStd(sparsity=0.7))
    model_there, data_there = there(model), moved(data)
    watch.copies.clear()
    student = secateur.prepare_qat(model_there, data_there, calibration=calibration, progress=False).train()
    assert watch.largest() <= HISTOGRAM, watch.large(HISTOGRAM)
    all_there(student)
    twin = secateur.prepare_qat(model, data, calibration=calibration, progress=False).train()
    same(student, twin)
    for network, inputs in ((student, data_there), (twin, data)):
        optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
        for number, x in enumerate(inputs):
            network(x).square().mean().backward()
            watch.copies.clear()
            optimizer.step()
            assert number == 0 or watch.copies == []  # the first one looks whether the optimizer is older
    same(student, twin)
    watch.copies.clear()
    q = secateur.quantize(student)
    assert watch.largest() <= SMALL, watch.large(SMALL)
    all_there(q)


def test_distillation(watch: Watch) -> None:
    labels = torch.arange(9) % 10
    results = []
    for model, x, y in ((there(net()), batches()[0].to(SECOND), labels.to(SECOND)), (net(), batches()[0], labels)):
        distill = secateur.DistillationLoss(model, hints=["0"])
        secateur.prune(model, MeanStd(sparsity=0.8))
        watch.copies.clear()
        loss = distill(model, x, y)
        loss.backward()
        assert watch.copies == []
        results.append((loss, model))
    torch.testing.assert_close(results[0][0].held, results[1][0])
    for a, b in zip(results[0][1].parameters(), results[1][1].parameters(), strict=True):
        torch.testing.assert_close(a.grad.held, b.grad)


def test_activation_loss_and_trained_thresholds(watch: Watch) -> None:
    results = []
    for model, data in ((there(net()), moved(batches())), (net(), batches())):
        thin = secateur.prune_activations(model, data, MeanStd(k=0.0), progress=False)
        secateur.train_thresholds(thin)
        penalty = secateur.ActivationSparsityLoss(thin.train())
        watch.copies.clear()
        thin(data[0])
        loss = penalty()
        loss.backward()
        assert watch.copies == []
        results.append(loss)
    torch.testing.assert_close(results[0].held, results[1])


def test_gradual_pruner(watch: Watch) -> None:
    results = []
    for model, data in ((there(net()), moved(batches())), (net(), batches())):
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        schedule = secateur.CubicSchedule(final=0.9, end=4, every=2)
        pruner = secateur.GradualPruner(model, Magnitude(sparsity=0.9), schedule, optimizer=optimizer)
        for _ in range(6):
            optimizer.zero_grad()
            F.mse_loss(model(data[0]), torch.zeros_like(model(data[0]))).backward()
            watch.copies.clear()
            optimizer.step()
            pruner.step()
            assert watch.largest() <= SMALL, watch.large(SMALL)
        results.append(model)
    same(*results)
    all_there(results[0])


def test_save_and_load(watch: Watch, tmp_path: Path) -> None:
    here = net()
    secateur.prune(here, MeanStd(sparsity=0.8))
    model = there(here)
    secateur.save(model, tmp_path / "there.safetensors")
    secateur.save(here, tmp_path / "here.safetensors")
    assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()
    again = secateur.load(tmp_path / "there.safetensors", there(net()))
    all_there(again)
    same(again, here)
    same(secateur.load(tmp_path / "here.safetensors", there(net())), here)
