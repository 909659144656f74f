"""``optimizer=``: one, several that share the parameters, and what is none."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import secateur
import torch
from secateur import CubicSchedule, Error, GradualPruner, Magnitude, MeanStd, Random
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5))


def sgd(*parameters: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def split(model: nn.Module, how: str) -> Any:
    weights = [p for p in model.parameters() if p.dim() > 1]
    biases = [p for p in model.parameters() if p.dim() == 1]
    if how == "weights and biases":
        return [sgd(*weights), torch.optim.AdamW(biases)]
    if how == "each":
        return tuple(sgd(p) for p in model.parameters())
    if how == "values":
        return {p: sgd(p) for p in model.parameters()}.values()
    if how == "generator":
        return (sgd(p) for p in model.parameters())
    return [sgd(*biases), sgd(weights[0])]  # the last layer is frozen


@pytest.mark.parametrize("how", ["weights and biases", "each", "values", "generator", "some"])
@pytest.mark.parametrize("gradual", [False, True])
def test_several_that_share_the_parameters(how: str, gradual: bool) -> None:
    model = net()
    optimizers = split(model, how)
    known = list(optimizers)
    optimizers = iter(known) if how == "generator" else optimizers
    for optimizer in known:
        model(torch.randn(8, 30)).square().mean().backward()
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if gradual:
            pruner = GradualPruner(model, Magnitude(0.8), CubicSchedule(0.8, 0.5, end=2), optimizer=optimizers)
            for _ in range(3):
                pruner.step()
        else:
            secateur.prune(model, Magnitude(0.8), optimizer=optimizers)
    for optimizer in known:
        for parameter, state in optimizer.state.items():
            if parameter.dim() > 1:
                moving = state["momentum_buffer"]
                assert bool((moving[parameter == 0] == 0).all())
                assert bool(moving.any())


def test_those_that_hold_none_together_are_reported() -> None:
    model, other = net(), net()
    with pytest.warns(UserWarning, match="given a SGD that holds none of the pruned weights"):
        secateur.prune(model, Magnitude(0.5), optimizer=sgd(*other.parameters()))
    with pytest.warns(UserWarning, match="given several SGD that hold none of the pruned weights"):
        secateur.prune(model, Magnitude(0.6), optimizer=[sgd(p) for p in model.parameters() if p.dim() == 1])


@pytest.mark.parametrize("bad", ["adam", 3, [1], {"a": 1}, torch.optim.SGD, [torch.optim.SGD], np.zeros(3), b"x"])
def test_what_is_no_optimizer(bad: Any) -> None:
    model = net()
    with pytest.raises(Error, match=r"GradualPruner: optimizer must be a torch.optim.Optimizer or a list of them"):
        GradualPruner(model, Magnitude(0.5), CubicSchedule(0.5, end=2), optimizer=bad)
    with pytest.raises(Error, match=r"prune: optimizer must be a torch.optim.Optimizer or a list of them"):
        secateur.prune(model, Magnitude(0.5), optimizer=bad)
    assert secateur.sparsity(model).sparsity == 0


@pytest.mark.parametrize(
    "bad", [np.zeros(3), np.array(["layer", "global"]), torch.ones(2), ["layer"], None, 1, np.zeros(0)]
)
def test_choices_that_are_no_words(bad: Any) -> None:
    with pytest.raises(Error, match="Magnitude: scope must be 'layer' or 'global', got"):
        Magnitude(0.5, scope=bad)
    with pytest.raises(Error, match="MeanStd: of must be 'abs' or 'signed', got"):
        MeanStd(0.5, of=bad)
    with pytest.raises(Error, match="Random: unit must be 'element' or 'neuron', got"):
        Random(0.5, unit=bad)

    class Own(Magnitude):
        scope = bad

        def __post_init__(self) -> None:
            object.__setattr__(self, "scope", bad)

    with pytest.raises(Error, match=r"prune: Own.scope must be 'layer', 'row' or 'global', got"):
        secateur.prune(net(), Own(0.5))
