"""Training for integers: the loop is the usual one, zeros stay, and what comes out is quantize's."""

from __future__ import annotations

import copy
import pickle

import pytest
import secateur
import torch
import torch.nn.functional as F
from secateur import masks
from secateur.nn import QATConv2d, QATLinear, Quantize, QuantizedConv2d, QuantizedLinear
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.drop, self.fc = nn.Dropout(0.1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.conv2(x) + x)
        return self.fc(self.drop(x.mean((2, 3))))


pytestmark = pytest.mark.usefixtures("one_thread")


def task() -> tuple[Tensor, Tensor]:
    """Which of three pairs of rows is bright."""
    y = torch.randint(0, 3, (64,))
    x = 0.3 * torch.randn(64, 4, 6, 6)
    for i, place in enumerate(y.tolist()):
        x[i, :, 2 * place : 2 * place + 2] += torch.tensor([1.0, -1.0, 0.5, place - 1.0])[:, None, None]
    return x, y


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int, lr: float = 0.05) -> float:
    """The loop of fp32 fine-tuning."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    model.train()
    for _ in range(steps):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return loss.item()


def decibels(wanted: Tensor, got: Tensor) -> float:
    return float(10 * torch.log10(wanted.square().sum() / (wanted - got).square().sum()))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if name.endswith("weight") and p.dim() > 1}


@pytest.fixture
def pruned() -> tuple[nn.Module, Tensor, Tensor]:
    x, y = task()
    model = Net()
    train(model, x, y, 20)
    secateur.prune(model, secateur.Magnitude(0.75), pattern="1x4")
    return model, x, y


def test_from_pruned_to_integers(pruned: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = pruned
    zeros = {name: p == 0 for name, p in weights(model).items()}
    before = copy.deepcopy(model.state_dict())
    student = secateur.prepare_qat(model, [x], progress=False)
    assert student.training == model.training
    assert {type(m) for m in student.modules()} >= {QATConv2d, QATLinear, Quantize}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [row["form"] for row in student.report] == ["int8"] * 3

    first = train(student, x, y, 1)
    last = train(student, x, y, 30)
    assert last < 0.7 * first
    assert list(weights(student)) == list(zeros)
    for name, p in weights(student).items():
        assert not p[zeros[name]].any()
        assert not torch.equal(p, before[name])
        assert masks.get_mask(student.get_submodule(name.removesuffix(".weight")), "weight") is not None

    q = secateur.quantize(student)
    assert not q.training
    assert {type(m) for m in q.modules()} >= {QuantizedConv2d, QuantizedLinear, Quantize}
    assert not list(q.parameters())
    assert not any("mask" in name for name in q.state_dict())
    for name, zero in zeros.items():
        assert not q.get_submodule(name.removesuffix(".weight")).weight_int8[zero].any()
    assert q.report.total["sparsity"] == pytest.approx(0.75, abs=0.02)
    assert q.report.calibration == "mse"
    with torch.no_grad():
        # The same numbers, but float32 sums against exact ones: a value on the edge of two bytes may take the other.
        assert decibels(student(x), q(x)) > 45
        assert torch.equal(secateur.compile(q, x, budget=0.3)(x), q(x))
        assert (q(x).argmax(1) == y).double().mean() > 0.9


def test_untrained_it_is_quantize(pruned: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, _ = pruned
    for calibration in ("mse", "min-max"):
        after = secateur.quantize(model, [x], calibration=calibration, progress=False)
        through = secateur.quantize(secateur.prepare_qat(model, [x], calibration=calibration, progress=False))
        ours, theirs = dict(after.named_buffers()), dict(through.named_buffers())
        # Biases alone differ: quantize takes back what rounding shifts, training sees the shift itself.
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == [
            name for name in ours if name.endswith(".bias")
        ]
        assert [n for n, _ in after.named_modules()] == [n for n, _ in through.named_modules()]
        assert through.report.rows == after.report.rows
        with torch.no_grad():
            assert decibels(after(x), through(x)) > 25


def test_training_repairs_what_rounding_costs() -> None:
    """A layer whose weights are so uneven that all but one column round to zero."""
    x, model = torch.randn(128, 8), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight[:, 0] *= 300
        x[:, 0] /= 300
        y = model(x)
        noise = F.mse_loss(secateur.quantize(model, [x], progress=False)(x), y)
    student = secateur.prepare_qat(model, [x], progress=False).train()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    for _ in range(100):
        loss = F.mse_loss(student(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert F.mse_loss(secateur.quantize(student)(x), y) < 0.5 * noise  # a fifth


@pytest.mark.parametrize("share", [None, 0.8])
def test_layers(share: float | None) -> None:
    """The forward has the bytes' weights, the gradient is the plain layer's."""
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    shares = None if share is None else torch.full((6,), share)
    layer = QATConv2d.from_dense(plain, 0.02, 3, shares)
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    rounded, scale = layer.rounded_weight(), layer.weight_scale()
    steps = rounded / scale.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert steps.abs().max().round() == 127
    assert torch.allclose(scale, plain.weight.detach().abs().amax((1, 2, 3)) / 127 * (share or 1))
    x = torch.randn(2, 4, 7, 7)
    near = torch.clamp(torch.round(x / 0.02) + 3, 0, 255) * 0.02 - 0.06
    torch.testing.assert_close(layer(x), F.conv2d(near, rounded, plain.bias, 2, 1, 1, 2), rtol=1e-4, atol=1e-5)
    outer = torch.randn_like(layer(x))
    (got,) = torch.autograd.grad(layer(x), plain.weight, outer)
    (wanted,) = torch.autograd.grad(plain(near), plain.weight, outer)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)  # whether a weight was clamped or not
    assert "input_scale=0.02" in repr(layer)


def test_excluded_layers_train_as_they_are(pruned: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = pruned
    zeros = {name: p == 0 for name, p in weights(model).items()}
    student = secateur.prepare_qat(model, [x], exclude=["conv2"], progress=False)
    assert type(student.conv2) is nn.Conv2d
    train(student, x, y, 3)
    assert not student.conv2.weight[zeros["conv2.weight"]].any()
    q = secateur.quantize(student)
    assert [(row["form"], row["why"]) for row in q.report] == [("int8", ""), ("fp32", "excluded"), ("int8", "")]
    with torch.no_grad():
        assert decibels(student(x), q(x)) > 45


def test_inside_what_cannot_be_traced() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x))) if x.sum() < 1e9 else x

    x, y = torch.randn(32, 6), torch.randint(0, 3, (32,))
    model = Branching()
    student = secateur.prepare_qat(model, [x], progress=False)
    first = train(student, x, y, 1)
    assert train(student, x, y, 20) < 0.95 * first
    q = secateur.quantize(student)
    assert type(q) is Branching
    with torch.no_grad():
        assert decibels(student(x), q(x)) > 40


def test_a_module_called_twice_trains_one_weight() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(F.relu(self.layer(x)))

    x = torch.randn(16, 6)
    model = Twice()
    secateur.prune(model, secateur.Magnitude(0.5))
    student = secateur.prepare_qat(model, [x], progress=False)
    assert len(list(student.parameters())) == 2
    train(student, x, torch.randint(0, 6, (16,)), 3)
    first, second = (m for m in secateur.quantize(student).modules() if isinstance(m, QuantizedLinear))
    assert torch.equal(first.weight_int8, second.weight_int8)
    assert (first.weight_int8 == 0).double().mean() >= 0.5


def test_frozen_parameters_stay_frozen(pruned: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, _ = pruned
    model.conv2.requires_grad_(False)
    student = secateur.prepare_qat(model, [x], progress=False)
    assert not student.conv2.weight.requires_grad
    assert not student.conv2.bias.requires_grad
    assert student.conv1.weight.requires_grad


def test_copies_pickles_state_dicts_and_pruning_further(pruned: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = pruned
    student = secateur.prepare_qat(model, [x], progress=False)
    other = secateur.prepare_qat(model, [2 * x], progress=False)
    train(student, x, y, 2)
    with torch.no_grad():
        wanted = student(x)
        assert torch.equal(copy.deepcopy(student)(x), wanted)
        again = pickle.loads(pickle.dumps(student))
        assert torch.equal(again(x), wanted)
        other.load_state_dict(student.state_dict())
        assert torch.equal(other(x), wanted)
    train(again, x, y, 2)
    assert secateur.sparsity(again).sparsity >= 0.74
    secateur.prune(again, secateur.Magnitude(0.9), pattern="1x4")
    train(again, x, y, 2)
    assert secateur.quantize(again).report.total["sparsity"] == pytest.approx(0.9, abs=0.02)


def test_it_learns_from_a_teacher(pruned: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = pruned
    student = secateur.prepare_qat(model, [x], progress=False).train()
    loss = secateur.DistillationLoss(model, hints=["conv2"])
    optimizer = torch.optim.SGD(student.parameters(), lr=0.02, momentum=0.9)
    for _ in range(5):
        value = loss(student, x, y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert torch.isfinite(value)
    assert student.conv2.weight.grad.abs().sum() > 0
    assert secateur.sparsity(student).sparsity == pytest.approx(0.75, abs=0.02)


def test_errors(pruned: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, _ = pruned
    student = secateur.prepare_qat(model, [x], progress=False)
    with pytest.raises(secateur.Error, match="of prepare_qat has its grids already and takes no batches, exclude"):
        secateur.quantize(student, [x], exclude=["fc"])
    with pytest.raises(secateur.Error, match="prepare_qat: calibration must be"):
        secateur.prepare_qat(model, [x], calibration="all")
    with pytest.raises(secateur.Error, match="prepare_qat: batches must hold at least one batch"):
        secateur.prepare_qat(model, [])
    with pytest.raises(secateur.Error, match="QATLinear: input_scale must be finite and > 0, got -1"):
        QATLinear(3, 4, input_scale=-1.0)
