"""Wanda against its definition on whole layers."""

from __future__ import annotations

import warnings

import pytest
import secateur
import torch
from secateur import CubicSchedule, Error, GradualPruner, Wanda
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SIZES = torch.tensor([0.1, 1.0, 3.0, 0.5, 2.0, 0.2, 0.7, 1.5])
BATCHES = [normal(16, 8, 6, 6, seed=seed) * SIZES.reshape(8, 1, 1) for seed in range(2)]


def score(layer: nn.Conv2d) -> Tensor:
    unfolded = nn.functional.unfold(torch.cat(BATCHES), 3)
    return layer.weight.detach().flatten(1).abs() * unfolded.square().sum((0, 2)).sqrt()


@pytest.mark.parametrize("scope", ["row", "layer"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_the_lowest_products_go(scope: str, share: float) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 3)
    s, before = score(layer), layer.weight.detach().clone()
    secateur.prune(layer, Wanda(share, scope), data=iter(BATCHES), progress=False)
    gone = layer.weight.flatten(1) == 0
    assert torch.equal(layer.weight[layer.weight != 0], before[layer.weight != 0])
    if scope == "row":
        assert (gone.sum(1) == round(share * 72)).all()
        assert all(row[drop].max() <= row[~drop].min() for row, drop in zip(s, gone, strict=True))
    else:
        assert gone.sum() == round(share * 432)
        assert s[gone].max() <= s[~gone].min()


def test_rows_count_zeros_that_are_there_and_keep_one() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 3)
    with torch.no_grad():
        layer.weight[0].flatten()[:60] = 0
    secateur.masks.adopt(layer)
    with pytest.warns(UserWarning, match="zeros that were there stay"):
        secateur.prune(layer, Wanda(0.5), data=BATCHES, progress=False)
    assert (layer.weight.flatten(1) == 0).sum(1).tolist() == [60] + [36] * 5
    secateur.prune(layer, Wanda(0.999), data=BATCHES, progress=False)
    assert (layer.weight.flatten(1) != 0).sum(1).tolist() == [1] * 6


def test_norms_are_those_of_the_network_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    with torch.no_grad():
        x = model[:2](torch.cat(BATCHES))
    s = model[2].weight.detach().flatten(1).abs() * nn.functional.unfold(x, 3).square().sum((0, 2)).sqrt()
    secateur.prune(model, Wanda(0.5, "layer"), data=BATCHES, progress=False)
    gone = model[2].weight.flatten(1) == 0
    assert s[gone].max() <= s[~gone].min()


def test_blocks_and_neurons() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 3)
    s = score(layer).reshape(6, 2, 4, 9).mean(2)
    secateur.prune(layer, Wanda(0.5), data=BATCHES, pattern="1x4", progress=False)
    gone = (layer.weight.reshape(6, 2, 4, 9) == 0).all(2)
    assert (gone.sum((1, 2)) == 9).all()
    assert all(s[j][gone[j]].max() <= s[j][~gone[j]].min() for j in range(6))
    layer = nn.Conv2d(8, 6, 3)
    sums = score(layer).sum(1)
    secateur.prune(layer, Wanda(0.5), data=BATCHES, pattern="neuron", progress=False)
    gone = (layer.weight.flatten(1) == 0).all(1)
    assert gone.sum() == 3
    assert sums[gone].max() <= sums[~gone].min()


@pytest.mark.parametrize("scope", ["row", "layer"])
@pytest.mark.parametrize(("keep", "run"), [(2, 4), (1, 4), (4, 8), (3, 5)])
def test_the_best_of_each_run_stay(scope: str, keep: int, run: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 3)
    s, before = score(layer).reshape(6, 8, 9), layer.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 5 does not divide 8
        secateur.prune(layer, Wanda(1 - keep / run, scope), data=BATCHES, pattern=f"{keep}:{run}", progress=False)
    stays = layer.weight != 0
    assert secateur.verify(layer, f"{keep}:{run}").holds
    assert torch.equal(layer.weight[stays], before[stays])
    for products, kept in zip(s.split(run, 1), stays.flatten(2).split(run, 1), strict=True):
        best = products.argsort(dim=1, descending=True).argsort(dim=1) < keep
        assert torch.equal(kept, best)


@pytest.mark.parametrize("scope", ["row", "layer"])
def test_on_the_way_to_a_run_the_lowest_that_may_go(scope: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 3)
    s = score(layer).reshape(6, 8, 9)
    pruner = GradualPruner(layer, Wanda(0.5, scope), CubicSchedule(0.5, end=8), data=BATCHES, pattern="2:4")
    pruner.step()
    pruner.step()
    gone = (layer.weight == 0).flatten(2)
    share = float(gone.double().mean())
    assert 0.1 < share < 0.4
    assert (gone.reshape(6, 2, 4, 9).sum(2) <= 2).all()
    best = (s.reshape(6, 2, 4, 9).argsort(dim=2, descending=True).argsort(dim=2) < 2).reshape(6, 8, 9)
    assert not (gone & best).any()
    for one, drop, held in zip(s, gone, best, strict=True) if scope == "row" else [(s, gone, best)]:
        assert one[drop].max() <= one[~drop & ~held].min()
    if scope == "row":
        assert len(set(gone.flatten(1).sum(1).tolist())) == 1
    for _ in range(6):
        pruner.step()
    assert secateur.verify(layer, "2:4").holds
    assert float((layer.weight == 0).double().mean()) == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Wanda(1.5), "Wanda: sparsity must be a number from 0 to 1, got 1.5"),
        (lambda: Wanda(0.5, "global"), "Wanda: scope must be 'row' or 'layer', got 'global'"),  # type: ignore[arg-type]
        (
            lambda: secateur.prune(nn.Linear(4, 4), Wanda(0.5)),
            r"data must be batches of inputs for Wanda\(sparsity=0.5\)",
        ),
    ],
)
def test_mistakes(make: object, message: str) -> None:
    with pytest.raises(Error, match=message):
        make()  # type: ignore[operator]
