"""Zeros of the activations, through ``secateur.compile``: layers of ResNet and VGG against torch's dense ones.

A case is a chain of layers, each with a threshold behind it that leaves so many zeros; so a layer reads zeros that the
layer before has made, and turning them into lists is part of the time. ``single`` is one layer by itself, which also
takes its image from the caller's memory and gives one back. Inputs are rotated: eight of them, so that none sits in a
cache. Zeros are random, singly, or in clumps of 4x4 pixels. Dense weights unless the name says otherwise.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import secateur
import torch
import torch.nn.functional as F
from conftest import Contender, Goal
from secateur import MeanStd
from torch import Tensor, nn

# Random layers leave a little more than half of their outputs zero by themselves.
pytestmark = pytest.mark.filterwarnings("ignore:.*prunes nothing:UserWarning")
INPUTS = 8
GOALS = {0.7: 1.2, 0.8: 1.8, 0.9: 2.8}  # over torch dense
# channels of the layers in turn, H = W, kernel
CHAINS = {
    "3x3-64-56": ([64] * 5, 56, 3), "3x3-128-28": ([128] * 5, 28, 3), "3x3-256-14": ([256] * 5, 14, 3),
    "3x3-512-7": ([512] * 5, 7, 3), "3x3-256-56": ([256] * 3, 56, 3), "1x1-64-256-56": ([64, 256, 64, 256, 64], 56, 1),
    "1x1-256-1024-14": ([256, 1024, 256, 1024, 256], 14, 1), "1x1-512-2048-7": ([512, 2048, 512, 2048, 512], 7, 1),
}  # fmt: skip


def zeroed(x: Tensor, zeros: float, clumps: bool = False) -> Tensor:
    """Positive values, so many of them set to zero."""
    shape = (*x.shape[:2], -(-x.shape[2] // 4), -(-x.shape[3] // 4)) if clumps else x.shape
    keep = (torch.rand(shape) >= zeros).float()
    if clumps:
        keep = F.interpolate(keep, scale_factor=4)[..., : x.shape[2], : x.shape[3]]
    return x.abs() * keep


def inputs(shape: tuple[int, ...], zeros: float, clumps: bool = False) -> list[Tensor]:
    return [zeroed(torch.randn(shape), zeros, clumps) for _ in range(INPUTS)]


def chain(channels: list[int], kernel: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for c, k in itertools.pairwise(channels):
        layers += [nn.Conv2d(c, k, kernel, padding=kernel // 2), nn.ReLU()]
    return nn.Sequential(*layers)


def pruned_weights(model: nn.Module, zeros: float) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            with torch.no_grad():
                layer.weight.mul_(torch.rand_like(layer.weight) >= zeros).mul_((1 - zeros) ** -0.5)
    return model


def contender(run: Callable[[Tensor], Tensor], xs: list[Tensor], reference: nn.Module | None) -> Contender:
    turn = itertools.cycle(xs)

    def check() -> None:
        if reference is None:
            return
        expected = copy.deepcopy(reference).double()(xs[0].double())
        # A value that rounding moves across its threshold is off by all of itself, so most must agree, not all.
        off = (run(xs[0]).double() - expected).abs() > 1e-3 * expected.abs().max()
        assert float(off.double().mean()) < 1e-3

    return Contender(lambda: run(next(turn)), check=check)


def last(xs: list[Tensor]) -> list[Tensor]:
    return [x.to(memory_format=torch.channels_last) for x in xs]


def dense_contenders(model: nn.Module, xs: list[Tensor]) -> dict[str, Contender]:
    nhwc = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return {
        "torch dense": contender(model, xs, model),
        "torch dense, channels_last": contender(nhwc, last(xs), model),
    }


@pytest.mark.parametrize("zeros", [0.5, 0.7, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("name", CHAINS)
def test_chain(contest: Callable[..., Any], name: str, zeros: float) -> None:
    channels, size, kernel = CHAINS[name]
    torch.manual_seed(0)
    xs = inputs((1, channels[0], size, size), zeros)
    model = chain(channels, kernel).eval()
    thin = secateur.prune_activations(model, xs[:2], MeanStd(sparsity=zeros), progress=False).eval()
    with torch.inference_mode():
        contenders = dense_contenders(model, xs)
        contenders["secateur.compile"] = contender(secateur.compile(thin, xs[0]), xs, thin)
        goal = GOALS.get(zeros, 1.0)
        contest(contenders, [Goal("secateur.compile", peer, goal) for peer in list(contenders)[:2]])


@pytest.mark.parametrize("clumps", [False, True], ids=["singly", "clumps"])
@pytest.mark.parametrize("zeros", [0.7, 0.8, 0.9])
@pytest.mark.parametrize("case", [(64, 64, 56, 3), (256, 256, 14, 3), (512, 512, 7, 3), (256, 64, 56, 1)], ids=str)
def test_single(contest: Callable[..., Any], case: tuple[int, ...], zeros: float, clumps: bool) -> None:
    c, k, size, kernel = case
    torch.manual_seed(0)
    xs = inputs((1, c, size, size), zeros, clumps)
    model = nn.Conv2d(c, k, kernel, padding=kernel // 2).eval()
    with torch.inference_mode():
        contenders = dense_contenders(model, xs)
        contenders["secateur.compile"] = contender(secateur.compile(model, xs[0]), xs, model)
        contest(contenders, [Goal("secateur.compile", peer, GOALS[zeros]) for peer in list(contenders)[:2]])


@pytest.mark.parametrize("name", ["3x3-64-56", "3x3-256-14", "1x1-64-256-56"])
def test_both(contest: Callable[..., Any], name: str) -> None:
    """80 % of the weights and 80 % of the activations, against either alone."""
    channels, size, kernel = CHAINS[name]
    torch.manual_seed(0)
    xs = inputs((1, channels[0], size, size), 0.8)
    dense = chain(channels, kernel).eval()
    sparse = pruned_weights(dense, 0.8).eval()
    thin = secateur.prune_activations(dense, xs[:2], MeanStd(sparsity=0.8), progress=False).eval()
    both = secateur.prune_activations(sparse, xs[:2], MeanStd(sparsity=0.8), progress=False).eval()
    with torch.inference_mode():
        contenders = {
            "weights alone": contender(secateur.compile(sparse, xs[0].abs() + 0.1), xs, None),
            "activations alone": contender(secateur.compile(thin, xs[0]), xs, thin),
            "both": contender(secateur.compile(both, xs[0]), xs, both),
        }
        contest(contenders, [Goal("both", peer, 1.5) for peer in list(contenders)[:2]])


@pytest.mark.parametrize("weight_zeros", [0.0, 0.8])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("case", [(4096, 4096), (25088, 4096), (4096, 1000)], ids=str)
def test_linear(contest: Callable[..., Any], case: tuple[int, int], zeros: float, weight_zeros: float) -> None:
    torch.manual_seed(0)
    xs = inputs((1, case[0]), zeros)
    model = pruned_weights(nn.Linear(*case), weight_zeros).eval()
    with torch.inference_mode():
        contenders = {"torch dense": contender(model, xs, model)}
        contenders["secateur.compile"] = contender(secateur.compile(model, xs[0]), xs, model)
        contest(contenders, [Goal("secateur.compile", "torch dense", {0.8: 3.5, 0.9: 6.0}.get(zeros, 1.0))])


@pytest.mark.parametrize("name", ["3x3-64-56", "3x3-256-14", "1x1-64-256-56"])
def test_denser_than_the_example(contest: Callable[..., Any], name: str) -> None:
    """Compiled for 90 % zeros, then given images without any: at most 1.3 times the time of dense."""
    channels, size, kernel = CHAINS[name]
    torch.manual_seed(0)
    xs = inputs((1, channels[0], size, size), 0.9)
    full = [10 * torch.rand_like(x) + 10 for x in xs]  # nothing stays below a threshold
    model = chain(channels, kernel).eval()
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            layer.weight.data.abs_()
    thin = secateur.prune_activations(model, xs[:2], MeanStd(sparsity=0.9), progress=False).eval()
    with torch.inference_mode():
        contenders = dense_contenders(model, full)
        ours = "secateur.compile, for 90 % zeros"
        contenders[ours] = contender(secateur.compile(thin, xs[0]), full, model)
        contenders["secateur.compile, for these"] = contender(secateur.compile(thin, full[0]), full, model)
        contest(contenders, [Goal(ours, peer, 1 / 1.3) for peer in contenders if peer != ours])
