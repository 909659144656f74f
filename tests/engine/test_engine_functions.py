"""secateur.compile: functions, modules and heads that the engine takes, and what it computes for them."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from compiling import assert_near, compiled, in_torch, kinds, prune
from secateur.nn import SparseConv2d, SparseLinear, ThresholdReLU
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread", "engine_wins")


class Fn(nn.Module):
    """A convolution, a function of its result, a convolution: what stands between must run in the engine too."""

    def __init__(self, fn: Callable[..., Tensor], channels: int = 6) -> None:
        super().__init__()
        self.fn = fn
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.fn(self.a(x)))


def channel_shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)


def squeeze_excite(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def in_place(x: Tensor) -> Tensor:
    y = F.relu_(x)
    y.add_(1)
    return x + y.mul_(0.5)  # x was written


def misread(x: Tensor) -> Tensor:
    y = x
    y += F.relu(x)  # torch.fx takes it for y = y + ...
    return x * 2


def aliased(x: Tensor) -> Tensor:
    half = x[:, :3]
    half.mul_(2)  # x changes with it
    return x * 1.5


def swapped(x: Tensor) -> Tensor:
    y = x.clone()
    y.add_(1)
    return x - y.relu_()


C = torch.linspace(-1, 1, 6)

# What is recognised, and the channels that come out.
FORMS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "relu": (torch.relu, 6), "F.relu inplace": (lambda x: F.relu(x, inplace=True), 6),
    "method": (lambda x: x.relu(), 6),
    "relu6": (F.relu6, 6), "hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.25), 6), "clamp": (lambda x: x.clamp(0, 1), 6),
    "clamp min": (lambda x: torch.clamp(x, min=-0.1), 6), "clamp_max": (lambda x: x.clamp_max(0.2), 6),
    "leaky": (lambda x: F.leaky_relu(x, 0.2), 6), "hardswish": (F.hardswish, 6), "hardsigmoid": (F.hardsigmoid, 6),
    "sigmoid": (torch.sigmoid, 6), "silu": (F.silu, 6), "gelu": (F.gelu, 6), "tanh": (lambda x: x.tanh(), 6),
    "x * sigmoid(x)": (lambda x: x * torch.sigmoid(x), 6), "2 * x": (lambda x: 2 * x, 6), "-x": (lambda x: -x, 6),
    "1 - x": (lambda x: 1 - x, 6), "x / 3": (lambda x: x / 3, 6), "x + x": (lambda x: x + x, 6),
    "x - relu(x)": (lambda x: x - F.relu(x), 6), "x * x": (lambda x: x * x, 6),
    "relu(x) - x": (lambda x: F.relu(x).sub(x), 6), "alpha": (lambda x: torch.add(x, F.relu(x), alpha=-0.3), 6),
    "residual": (lambda x: F.relu(x + F.max_pool2d(x, 3, 1, 1)), 6),
    "max_pool": (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), 6), "max_pool dilated": (
        lambda x: F.max_pool2d(F.relu(x), 2, 1, 1, dilation=2), 6),
    "avg_pool": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), 6),
    "avg_pool divisor": (lambda x: F.avg_pool2d(x, (2, 3), divisor_override=5), 6),
    "adaptive 1": (lambda x: x * F.adaptive_avg_pool2d(x, 1), 6), "squeeze-excite": (squeeze_excite, 6),
    "mean": (lambda x: x + x.mean([2, 3])[:, :, None, None], 6), "expand": (
        lambda x: x * x.mean((2, 3), keepdim=True).expand_as(x), 6),
    "cat": (lambda x: torch.cat([x, F.relu(x)], 1), 12), "cat dim": (lambda x: torch.cat((x, x), dim=-3), 12),
    "chunk": (lambda x: x.chunk(2, 1)[1], 3), "split": (lambda x: torch.split(x, [2, 4], 1)[1], 4),
    "slice": (lambda x: x[:, 1:5:2], 2), "shuffle": (channel_shuffle, 6), "channel_shuffle": (
        lambda x: F.channel_shuffle(x, 2), 6),
    "dropout": (lambda x: F.dropout(x, 0.5, training=False), 6), "contiguous": (lambda x: x.contiguous(), 6),
    "to": (lambda x: x.to("cpu"), 6), "pad": (lambda x: F.pad(x, (1, 2, 0, 1)), 6),
    "in place": (in_place, 6), "clone": (swapped, 6), "aliased": (aliased, 6),
    "misread": (misread, 6), "x += y": (lambda x: operator.iadd(x.clone(), F.relu(x)), 6),
}  # fmt: skip
_STAYS = {"aliased", "misread"}  # right, but in torch: memory that several values show


@pytest.mark.parametrize("form", FORMS)
def test_functions_between_convolutions(form: str) -> None:
    fn, channels = FORMS[form]
    model = prune(Fn(fn, channels))
    x = torch.randn(2, 3, 11, 13)
    fast = compiled(model, x)
    assert_near(fast(x), model, x)
    for other in (torch.randn(5, 3, 11, 13), torch.randn(1, 3, 8, 21)):  # batch and image size are free
        assert_near(fast(other), model, other)
    if form not in _STAYS:
        assert in_torch(fast) == []
    assert kinds(fast).count("conv2d") == (1 if form == "aliased" else 2)
    assert torch.equal(fast(x), fast(x))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True), "relu6": nn.ReLU6, "hardtanh": lambda: nn.Hardtanh(-0.2, 0.5),
    "leaky": lambda: nn.LeakyReLU(0.3), "hardswish": nn.Hardswish, "hardsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "gelu": nn.GELU, "tanh": nn.Tanh, "prelu": nn.PReLU,
    "threshold": lambda: ThresholdReLU(torch.linspace(0, 0.5, 6), max=1.0),
    "batch norm": lambda: nn.BatchNorm2d(6), "plain batch norm": lambda: nn.BatchNorm2d(6, affine=False),
    "batch norm first": lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6), nn.ReLU()),
    "dropout": lambda: nn.Dropout2d(), "identity": nn.Identity,
    "max_pool": lambda: nn.MaxPool2d(3, 2, 1), "avg_pool": lambda: nn.AvgPool2d(2),
    "grouped": lambda: nn.Conv2d(6, 6, 3, 2, padding=1, groups=3), "depthwise": lambda: nn.Conv2d(6, 6, 5, groups=6),
    "same": lambda: nn.Conv2d(6, 6, (2, 4), padding="same", dilation=2),
    "no bias": lambda: nn.Conv2d(6, 6, 1, bias=False),
    "zero pad": lambda: nn.Sequential(nn.ZeroPad2d((1, 0, 2, 3)), nn.Conv2d(6, 6, 3)),
    "channel shuffle": lambda: nn.ChannelShuffle(3),
    "sparse": lambda: SparseConv2d.from_dense(prune(nn.Conv2d(6, 6, 3))),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules_between_convolutions(name: str) -> None:
    model = prune(nn.Sequential(nn.Conv2d(3, 6, 3), MODULES[name](), nn.Conv2d(6, 5, 3)))
    x = torch.randn(2, 3, 14, 17)
    fast = compiled(model, x)
    assert in_torch(fast) == []
    assert_near(fast(x), model, x)
    assert_near(fast(x[:1, :, :, 2:]), model, x[:1, :, :, 2:])


def test_what_is_fused_is_gone() -> None:
    conv, fold = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
    fast = compiled(
        prune(nn.Sequential(conv, fold, nn.ReLU(), nn.Conv2d(6, 6, 1), nn.Hardswish())), torch.randn(1, 3, 9, 9)
    )
    assert kinds(fast) == ["conv2d", "conv2d"]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.n = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.n(self.b(F.relu(self.a(x)))) + x)

    block = prune(nn.Sequential(Block(), Block()))
    x = torch.randn(2, 4, 9, 9)
    fast = compiled(block, x)
    assert kinds(fast) == ["conv2d"] * 4
    assert_near(fast(x), block, x)


HEADS: dict[str, Callable[[], nn.Module]] = {
    "flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6 * 81, 7)),
    "pool, flatten": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Dropout(), nn.Linear(6, 7)),
    "pool 3x3": lambda: nn.Sequential(nn.AdaptiveAvgPool2d((3, 3)), nn.Flatten(), nn.Linear(54, 7)),
    "1x1 convolution of a pooled map": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 9, 1), nn.ReLU(), nn.Conv2d(9, 7, 1), nn.Flatten()),
    "batch norm of rows": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.SiLU()),
    "sparse": lambda: nn.Sequential(nn.Flatten(), SparseLinear.from_dense(prune(nn.Linear(6 * 81, 7)))),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str) -> None:
    model = prune(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), HEADS[name]()))
    x = torch.randn(3, 3, 9, 9)
    fast = compiled(model, x)
    assert in_torch(fast) == []
    assert_near(fast(x), model, x)
    assert_near(fast(x[:1]), model, x[:1])
    if "pool, " in name:
        wide = torch.randn(1, 3, 12, 30)
        assert_near(fast(wide), model, wide)


def test_perceptrons_of_rows_and_of_sequences() -> None:
    model = prune(nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 7)))
    for shape in ((5, 40), (2, 3, 40)):
        x = torch.randn(shape)
        fast = compiled(model, x)
        assert in_torch(fast) == []
        assert_near(fast(x), model, x)
        assert_near(fast(x[:1]), model, x[:1])
