"""What criteria learn of the inputs of layers: sums against the definition, and a model that is left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import secateur
import torch
from secateur import Criterion, Error
from secateur.calibration.calls import Calls
from secateur.masks.weights import weights_of
from secateur.pruning import Inputs, drop_lowest
from secateur.pruning.inputs import collect
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


class Curious(Criterion):
    """Magnitude that asks for inputs."""

    def __init__(self, sparsity: float = 0.5, needs: str = "norms") -> None:
        self.sparsity, self.needs = sparsity, needs

    def decide(self, pool: Any) -> Any:
        return drop_lowest(pool, [view.weight.abs() for view in pool], self.sparsity)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(model: nn.Module, data: Any, need: str = "gram") -> list[Inputs]:
    weights = weights_of(model)
    return collect(model, weights, [need] * len(weights), Calls(data, "prune: data", model))


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: nn.Conv2d(4, 6, 3), (4, 9, 8)),
    "padded, strided, dilated": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2)), (4, 9, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 7, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 7, 6)),
    "same": (lambda: nn.Conv2d(4, 6, (4, 3), padding="same", dilation=2), (4, 9, 8)),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 9, 8)),
    "1d": (lambda: nn.Conv1d(4, 6, 5, 2, 1), (4, 13)),
    "3d": (lambda: nn.Conv3d(2, 4, 2, padding=1), (2, 4, 5, 3)),
    "linear": (lambda: nn.Linear(5, 6), (7, 5)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_outputs_follow_from_the_sums(name: str) -> None:
    """With X the inputs as the weights see them: sums of the outputs are W X 1, and of their products W X X^T W^T."""
    make, shape = CONVOLUTIONS[name]
    layer = make().double()
    xs = [normal(3, *shape, seed=seed).double() for seed in range(2)]
    (known,) = inputs_of(layer, xs)
    w = layer.weight.detach().flatten(1)
    channel = 1 if name != "linear" else -1
    y = torch.cat([layer(x).detach().movedim(channel, 0).flatten(1) for x in xs], 1) - layer.bias.detach()[:, None]
    assert known.count == y.shape[1]
    assert known.gram is not None
    G = known.sum.shape[0]
    J = w.shape[0] // G
    for g in range(G):
        own, out = w[g * J : (g + 1) * J], y[g * J : (g + 1) * J]
        torch.testing.assert_close(own @ known.sum[g], out.sum(1))
        torch.testing.assert_close(own @ known.gram[g] @ own.T, out @ out.T)
        torch.testing.assert_close(known.gram[g].diagonal(), known.squares[g])
        torch.testing.assert_close(known.norms[g] ** 2, known.squares[g])


def test_sums_do_not_depend_on_batches_or_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Conv2d(4, 6, 3, groups=2), normal(6, 4, 8, 8)
    (whole,) = inputs_of(layer, [x])
    monkeypatch.setattr("secateur.calibration.columns.CHUNK_BYTES", 1)
    (parts,) = inputs_of(layer, [(x[:2], "label"), [x[2:5]], x[5]])  # the last one without a batch
    assert parts.count == whole.count
    torch.testing.assert_close(parts.gram, whole.gram)
    (norms,) = inputs_of(layer, [x], "norms")
    assert norms.gram is None
    torch.testing.assert_close(norms.squares, whole.squares)


def test_sums_are_float64() -> None:
    """In float32 the small inputs would vanish beside the large ones: 1e8 + 1 is 1e8."""
    layer = nn.Linear(1, 1)
    (known,) = inputs_of(layer, [torch.full((1, 1), 1e4), torch.ones(1000, 1)])
    assert known.squares.item() == 1e8 + 1000
    assert known.gram is not None
    assert known.gram.item() == 1e8 + 1000


def test_a_layer_called_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(input=self.a(self.a(x)))  # type: ignore[no-any-return]

    model = Twice()
    (known,) = inputs_of(model, [normal(5, 4)])
    assert known.count == 15


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(32, 4))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model = net()
    model[1].eval()
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    generator = torch.get_rng_state()
    bad = [normal(2, 3, 4, 4), normal(2, 3, 9, 9)] if fails else [normal(2, 3, 4, 4)]
    if fails:
        with pytest.raises(
            Error, match=r"prune: data must be what the model takes, got float32 \[2, 3, 9, 9\]: Runtime"
        ):
            secateur.prune(model, Curious(), data=bad)
    else:
        inputs_of(model, bad)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()
    assert [m.training for m in model.modules()] == flags
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.is_grad_enabled()


def test_parts_that_are_compiled_are_seen() -> None:
    model = nn.Sequential(nn.Linear(4, 4), torch.compile(nn.Sequential(nn.Linear(4, 4)), backend="eager"))
    x = normal(5, 4)
    with torch.no_grad():
        model(x)  # compiled before the hooks are there
    known = inputs_of(model, [x])
    assert [one.count for one in known] == [5, 5]


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "data", "message"),
    [
        (
            net,
            None,
            r"data must be batches of inputs for Curious\(sparsity=0.5\), which needs the norms of its .* None",
        ),
        (net, [], "data must hold at least one batch, got none"),
        (net, 3, "data must be an iterable of batches, got int"),
        (net, normal(2, 3, 4, 4), r"data must be an iterable of batches, got one tensor: write \[tensor\]"),
        (
            net,
            [3],
            "data: a batch must be a tensor, or a tuple or list that starts with one, or a dict of arguments, got int",
        ),
        (
            net,
            [torch.full((1, 3, 4, 4), torch.nan)],
            "data: a batch must hold finite numbers, got NaN or Inf in batch 0",
        ),
        (Idle, [normal(2, 4)], r"data must reach idle, but the model never calls it with an input \(exclude it\)"),
        (
            lambda: nn.LSTM(4, 4, proj_size=2),
            [normal(2, 1, 4)],
            r"weight_ih_l0 is of a layer whose inputs cannot be known: an RNN, LSTM or GRU with projections",
        ),
    ],
)
def test_bad_data_changes_nothing(make: Callable[[], nn.Module], data: Any, message: str) -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(Error, match=f"prune: .*{message}"):
        secateur.prune(model, Curious(), data=data)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_data_that_nobody_needs_is_a_warning() -> None:
    said = r"prune: data was not looked at: Magnitude\(sparsity=0.5\) needs no inputs"
    with pytest.warns(UserWarning, match=said):
        secateur.prune(net(), secateur.Magnitude(0.5), data=[normal(2, 3, 4, 4)])
    report = secateur.prune(net(), secateur.Magnitude(0.5), overrides={"5": Curious()}, data=[normal(2, 3, 4, 4)])
    assert report["5"]["criterion"] == "Curious(sparsity=0.5)"


def test_gram_matrices_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.pruning.inputs._MOST_GRAM_BYTES", 8 * (27**2 + 32**2) - 1)
    with pytest.raises(Error, match="prune: Gram matrices of all layers must fit"):
        secateur.prune(net(), Curious(needs="gram"), data=[normal(2, 3, 4, 4)])
    secateur.prune(net(), Curious(needs="norms"), data=[normal(2, 3, 4, 4)])
