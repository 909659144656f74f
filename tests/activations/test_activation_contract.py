"""What prune_activations promises about hooks, modes, shared modules and forwards that keep state."""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import dataclass

import pytest
import secateur
import torch
import torch.nn.functional as F
from secateur import MeanStd
from secateur.nn import ThresholdReLU
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore:prune_activations")
X = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def prune(model: nn.Module, k: float = 100.0) -> nn.Module:
    return secateur.prune_activations(model, [X], MeanStd(k=k), progress=False)


def test_hooks_of_a_relu_fire_on_its_threshold() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()).eval()
    seen: list[Tensor] = []
    model[1].register_forward_hook(lambda m, args, out: seen.append(out))
    model[1].name = "first"
    thin = prune(model)
    assert not seen
    with torch.no_grad():
        thin(X)
        wanted = model(X)
        assert len(seen) == 2
        assert torch.equal(seen[0], seen[1])
        assert torch.equal(thin(X), wanted)
    assert isinstance(thin[1], ThresholdReLU)
    assert thin[1].name == "first"


class Keeps(nn.Module):
    """Keeps its last activation for a loss, and computes its ReLU as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.last = nn.Conv2d(3, 4, 3), nn.ReLU(), None

    def forward(self, x: Tensor) -> Tensor:
        self.last = F.relu(self.conv(x))
        return self.act(self.last - 0.1)


def test_a_value_that_is_kept_has_its_gradient() -> None:
    thin = prune(nn.Sequential(Keeps(), nn.Conv2d(4, 2, 1)))
    assert [row["layer"] for row in thin.report.rows] == ["0.act"]
    assert any("its forward writes last" in note for note in thin.report.notes)
    for x in (X, X[:2] * 2):
        thin(x)
        torch.testing.assert_close(thin[0].last, F.relu(thin[0].conv(x)))
    thin[0].last.square().sum().backward()
    assert thin[0].conv.weight.grad is not None


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.convs = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)]
        self.a, self.b = self.convs

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        for conv in self.convs:
            taps.append(y := conv(x))
            x = self.relu(y)
        return taps


@torch.no_grad()
def test_one_in_place_relu_in_several_places() -> None:
    model = Many().eval()
    thin = prune(model)
    assert len(thin.report.rows) == 2
    for got, wanted in zip(thin(X), model(X), strict=True):
        assert bool((wanted >= 0).all())  # the ReLU has written over what was kept before it
        torch.testing.assert_close(got, wanted)
    assert thin.convs[0] is thin.a
    assert thin.convs[0] is not model.a


def test_modes_of_torchvisions_feature_extractors() -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not there")
    from torchvision.models.feature_extraction import create_feature_extractor

    for mode in (False, True):
        model = create_feature_extractor(models.squeezenet1_1(), ["features.3", "classifier.1"]).train(mode)
        x = torch.randn(1, 3, 64, 64)
        for made in (
            secateur.convert(model, x),
            secateur.prune_activations(model, [x], MeanStd(k=100.0), progress=False),
        ):
            assert {m.training for m in made.modules()} == {mode}
            made.train(not mode)
            made.eval()
            with torch.no_grad():
                for key, value in model.eval()(x).items():
                    torch.testing.assert_close(made(x)[key], value, rtol=1e-4, atol=1e-4)
            model.train(mode)


def test_trials_of_an_evaluation_leave_no_state() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.calls = nn.Conv2d(3, 4, 3), nn.ReLU(), 5

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.act(self.conv(x))

    model = Counter().train()

    def evaluate(network: nn.Module) -> float:
        assert not network.training
        return 0.5 + 0 * float(network(X).sum())

    thin = secateur.prune_activations(model, [X, X], max_accuracy_drop=0.1, evaluate=evaluate, progress=False)
    assert (model.calls, thin.calls, model.training, thin.training) == (5, 5, True, True)
    secateur.activation_sensitivity(model, [X], evaluate, progress=False)
    assert secateur.quantize(model, [X], evaluate=evaluate, progress=False).calls == model.calls == 5


def test_scripted_parts_go_on_training() -> None:
    part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in torch, not gone
        scripted = torch.jit.trace(part, X)
    thin = prune(nn.Sequential(scripted, nn.Conv2d(4, 4, 1), nn.ReLU()))
    thin(X).sum().backward()
    assert all(p.grad is not None for p in thin.parameters())


class WritesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x += 0.25
        y = self.conv(x)
        z = y
        z *= 2
        z[:, :1] = 0.5
        return F.relu(y) + y


def test_augmented_assignments_are_in_place() -> None:
    model = WritesItsInput().eval()
    thin = secateur.prune_activations(model, [torch.rand(2, 3, 6, 6)], MeanStd(k=0.0), progress=False)
    assert [row["layer"] for row in thin.report.rows] == ["conv_relu"]
    thin.conv_relu.theta.zero_()
    for net in (thin, copy.deepcopy(thin), pickle.loads(pickle.dumps(thin))):
        ours = torch.randn(2, 3, 6, 6)
        theirs = ours.clone()
        with torch.no_grad():
            assert torch.equal(net(ours), model(theirs))
        assert torch.equal(ours, theirs)


@dataclass
class Result:
    logits: Tensor


class EditsItsList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))

    def forward(self, x: list[Tensor]) -> None:
        for i, conv in enumerate(self.convs):
            x[i] = conv(x[i])


class GivesADataclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.edit = nn.Conv2d(3, 4, 3), EditsItsList()

    def forward(self, x: Tensor) -> Result:
        y = self.conv(x)
        both = [y, y]
        self.edit(both)
        return Result(torch.relu(both[0]))


def test_results_in_dataclasses_are_compared() -> None:
    model, x = GivesADataclass().eval(), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        try:
            thin = secateur.prune_activations(model, [x], MeanStd(k=1000.0), progress=False)
        except secateur.Error as error:
            assert "tracing" in str(error)  # noqa: PT017
        else:
            torch.testing.assert_close(thin(x).logits, model(x).logits)
        torch.testing.assert_close(secateur.compile(model, x, budget=0.05)(x).logits, model(x).logits)


class NearlyTheSame(nn.Module):
    """A child's edit of the list that tolerances of a comparison would not see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.edit, self.relu = nn.Conv2d(3, 4, 3), EditsItsList(), nn.ReLU()
        for conv in self.edit.convs:
            nn.init.dirac_(conv.weight)
            nn.init.constant_(conv.bias, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.conv(x))
        both = {"all": [y, y]}
        self.edit(both["all"])
        return torch.relu(both["all"][0]) + both["all"][1]


def test_a_list_that_a_child_edits() -> None:
    model, x = NearlyTheSame().eval(), torch.randn(2, 3, 6, 6)
    with pytest.warns(UserWarning, match="a child, EditsItsList, changes a list that it is given"):
        thin = secateur.prune_activations(model, [x], MeanStd(k=1000.0), progress=False)
    thin.relu.theta.zero_()
    with torch.no_grad():
        assert torch.equal(thin(x), model(x))


class Positions(nn.Module):
    """[N, C, H, W] -> [N, H * W, C]: dim 1 follows the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.fc, self.last = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 5), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fc(self.relu(self.conv(x).flatten(2).transpose(1, 2))).mean(1))


def test_a_dim_that_follows_the_image_size_gets_no_thresholds() -> None:
    model = Positions().eval()
    with pytest.warns(UserWarning, match="'relu' is called with different numbers of channels"):
        thin = prune(model)
    assert [row["layer"] for row in thin.report.rows] == ["last"]
    with torch.no_grad():
        thin.last.theta.zero_()
        for size in (10, 14):
            x = torch.randn(2, 3, size, size)
            assert torch.equal(thin(x), model(x))


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.ReLU()

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0, *, more: float = 0.0) -> Tensor:
        y = self.relu(self.a(x))
        if mask is not None:
            y = y * mask
        return F.relu(self.b(y) * scale + more)


@pytest.mark.filterwarnings("ignore:quantize")
@pytest.mark.parametrize("call", ["prune_activations", "quantize", "prepare_qat"])
def test_optional_arguments_that_calibration_did_not_see(call: str) -> None:
    model = Optional().eval()
    rest = [MeanStd(k=1000.0)] if call == "prune_activations" else []
    result = getattr(secateur, call)(model, [X], *rest, progress=False).eval()
    for module in result.modules():
        if isinstance(module, ThresholdReLU):
            module.theta.zero_()
    mask = torch.rand(4, 1, 8, 8)
    nets = (result, copy.deepcopy(result), pickle.loads(pickle.dumps(result)))
    with torch.no_grad():
        for args, kwargs in (
            ((X, mask), {}),
            ((X,), {"mask": mask}),
            ((X, None, 2.0), {}),
            ((X, None, 1.0), {}),
            ((), {"x": X, "more": 0.5}),
        ):
            wanted = model(*args, **kwargs)
            for net in nets:
                torch.testing.assert_close(net(*args, **kwargs), wanted, atol=0.03 * float(wanted.max()), rtol=0)
        with pytest.raises(secateur.Error, match="unexpected keyword argument 'bogus'"):
            result(X, bogus=1)
        with pytest.raises(secateur.Error, match="missing a required argument"):
            result()


def test_an_argument_that_needs_thresholds_of_its_own_is_refused() -> None:
    class Twice(Optional):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            y = self.relu(self.a(x))
            return self.relu(self.b(y if mask is None else y * mask))

    thin = prune(Twice().eval())
    thin(X)
    with pytest.raises(secateur.Error, match="Twice was seen without mask, and cannot take it now: the calls of relu"):
        thin(X, torch.rand(4, 1, 8, 8))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.register_buffer("shift", torch.rand(4))
        torch.nn.utils.prune.random_unstructured(self.fc, "weight", 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.fc(x.mean((2, 3))) - self.shift.view(1, -1))
        return F.linear(y, self.fc.weight.t())


def test_what_a_forward_computes_of_its_tensors_is_computed_at_each_call() -> None:
    model = Transposed().eval()
    with pytest.raises(secateur.Error, match=r"computes with fc\.weight, which a graph would take as it is now"):
        prune(model)
    torch.nn.utils.prune.remove(model.fc, "weight")
    thin = prune(model)
    twice = copy.deepcopy(model)
    with torch.no_grad():
        for t in [*twice.parameters(), twice.shift]:
            t.mul_(2)
        for net in (thin, copy.deepcopy(thin).double().float()):
            for module in net.modules():
                if isinstance(module, ThresholdReLU):
                    module.theta.zero_()
            for t in [*net.parameters(), net.shift]:
                t.mul_(2)
            torch.testing.assert_close(net(X), twice(X))


class KeepsOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.b(self.relu(self.a(x))))


def test_what_a_hook_keeps_on_a_relu_belongs_to_its_last_call() -> None:
    model = KeepsOut().eval()
    model.relu.register_forward_hook(lambda m, args, out: setattr(m, "out", out))
    thin = prune(model)
    thin.relu.theta.zero_()
    with torch.no_grad():
        assert torch.equal(thin(X), model(X))
        assert torch.equal(thin.relu.out, model.relu.out)
