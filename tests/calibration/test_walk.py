"""The walk: each layer's inputs are those of a whole run with the weights of that moment, whatever is kept."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from secateur import Error
from secateur._base.trial import trial
from secateur.calibration import calls as calls_module
from secateur.calibration.calls import Calls
from secateur.calibration.columns import columns_of, groups_of
from secateur.calibration.walk import Walk
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    """A shortcut, writes in place, a layer that is called twice, a tensor made in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        y = self.twice(x)
        y += x
        y = self.twice(self.relu(y))
        return self.last(self.relu(y).mean((2, 3)) * torch.arange(6))  # type: ignore[no-any-return]


class Branching(Residual):
    """Not to be traced."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        return super().forward(x)


BATCHES = [normal(4, 3, 6, 6, seed=seed) for seed in range(3)]
LAYERS = ["first", "norm", "twice", "last"]


def seen(model: nn.Module, name: str, batch: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: found.append(args[0].clone()))
    with torch.no_grad():
        model(batch.clone())
    handle.remove()
    return found


@pytest.mark.parametrize("kind", [Residual, Branching])
@pytest.mark.parametrize("kept_bytes", [0, 40_000, 1 << 30])
@pytest.mark.parametrize("networks", [1, 2])
def test_inputs_are_those_of_a_whole_run(kind: type[nn.Module], kept_bytes: int, networks: int) -> None:
    torch.manual_seed(0)
    models = [kind().eval() for _ in range(networks)]
    alone = copy.deepcopy(models)
    given = [batch.clone() for batch in BATCHES]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(trial(model))
        walk = Walk(models, Calls(given, "test: batches", models[0]), kept_bytes)
        assert walk.begin(LAYERS) == LAYERS
        assert walk.normalized == {"first"}
        assert bool(walk.notes) == (kind is Branching)
        for name in LAYERS:
            number = 0
            for batch, uses in zip(BATCHES, walk.uses([name]), strict=True):
                for model, calls in zip(alone, uses, strict=True):
                    expected = seen(model, name, batch)
                    assert len(calls) == len(expected)
                    for use, x in zip(calls, expected, strict=True):
                        torch.testing.assert_close(use.args[0], x)
                number += 1
            assert number == 3
            with torch.no_grad():  # what comes behind sees the change
                for group in (models, alone):
                    group[0].get_submodule(name).weight.mul_(0.5)
    assert all(torch.equal(a, b) for a, b in zip(given, BATCHES, strict=True))


def test_an_iterator_is_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(4, 4)
    calls = Calls((normal(2, 4) for _ in range(3)), "test: batches", model, again=True)
    assert [len(list(calls)) for _ in range(2)] == [3, 3]
    monkeypatch.setattr(calls_module, "KEPT_BYTES", 80)
    with pytest.raises(Error, match="test: batches is an iterator, which cannot be gone through again, and of its"):
        Calls((normal(2, 4) for _ in range(3)), "test: batches", model, again=True)


TRANSPOSED: dict[str, tuple[Any, tuple[int, ...]]] = {
    "plain": (lambda: nn.ConvTranspose2d(4, 6, 3), (4, 5, 6)),
    "strided": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), 1, dilation=(2, 1)), (4, 5, 4)),
    "grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2), (4, 5, 5)),
    "cropped": (lambda: nn.ConvTranspose1d(4, 6, 2, 2, 3), (4, 9)),
    "3d": (lambda: nn.ConvTranspose3d(2, 4, 2, 2), (2, 2, 3, 2)),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_columns_of_transposed_convolutions(name: str) -> None:
    make, shape = TRANSPOSED[name]
    layer = make().double()
    x = normal(3, *shape).double()
    columns = torch.cat(list(columns_of(layer, "weight", (x,), {}, "layer")), 2)  # [G, F, n]
    G = groups_of(layer, "weight")
    C, K = layer.in_channels // G, layer.out_channels // G
    w = layer.weight.detach().reshape(G, C, K, -1).transpose(1, 2).reshape(G, K, -1)
    y = layer(x).detach().movedim(1, 0).flatten(1) - layer.bias.detach()[:, None]
    torch.testing.assert_close((w @ columns).reshape(G * K, -1), y)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [False, True])
def test_columns_of_recurrent_layers(kind: Any, batch_first: bool) -> None:
    """Each matrix with its columns: one step of the cell, computed by hand, gives the next state."""
    layer = kind(3, 5, 2, bidirectional=True, batch_first=batch_first)
    x = normal(4, 7, 3) if batch_first else normal(7, 4, 3)
    gates = layer.weight_ih_l0.shape[0] // 5
    with torch.no_grad():
        out = layer(x)[0]
        for suffix in ("l1", "l1_reverse"):
            ih, hh = (torch.cat(list(columns_of(layer, f"weight_{part}_{suffix}", (x,), {}, "l", torch.float32)), 2)[0]
                      for part in ("ih", "hh"))  # fmt: skip
            assert ih.shape == (10, 28)
            assert hh.shape == (5, 28)
            half = slice(5, 10) if suffix.endswith("reverse") else slice(0, 5)
            states = (out.transpose(0, 1) if batch_first else out)[..., half]  # [L, N, H]
            order = range(5, -1, -1) if suffix.endswith("reverse") else range(1, 7)
            step = 1 if suffix.endswith("reverse") else -1
            for t in order:
                torch.testing.assert_close(hh.T.reshape(7, 4, 5)[t], states[t + step])
            if kind is nn.RNN:
                w = {p: getattr(layer, f"{p}_{suffix}") for p in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
                made = torch.tanh(w["weight_ih"] @ ih + w["weight_hh"] @ hh + (w["bias_ih"] + w["bias_hh"])[:, None])
                torch.testing.assert_close(made.T.reshape(7, 4, 5), states)
    assert gates in (1, 3, 4)


def test_columns_of_attention() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    q, k, v = normal(2, 5, 8), normal(2, 6, 8, seed=1), normal(2, 6, 8, seed=2)
    columns = torch.cat(list(columns_of(layer, "in_proj_weight", (q, k), {"value": v}, "l", torch.float32)), 2)
    assert columns.shape == (3, 8, 10)  # as many as the fewest
    torch.testing.assert_close(columns[0].T, q.reshape(-1, 8))
    torch.testing.assert_close(columns[2].T, v.reshape(-1, 8)[:10])


def test_sampled_positions_are_some_of_all() -> None:
    layer = nn.Conv2d(3, 4, 3, 2, 1, groups=1)
    x = normal(2, 3, 9, 9)
    full = torch.cat(list(columns_of(layer, "weight", (x,), {}, "l", torch.float32)), 2)[0]
    which = torch.tensor([0, 7, 26, 49])
    some = torch.cat(list(columns_of(layer, "weight", (x,), {}, "l", torch.float32, lambda n, of: which)), 2)[0]
    torch.testing.assert_close(some, full[:, which])
    unfolded = F.unfold(x, 3, 1, 1, 2)
    torch.testing.assert_close(full, unfolded.transpose(0, 1).flatten(1))
