"""secateur.compile and secateur.profile: what runs where, and that the values, the weights and the errors are right."""

from __future__ import annotations

import copy
import io
import math
import operator
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import secateur
import torch
import torch.nn.functional as F
from secateur import Error, timing
from secateur.engine import CompiledModel
from secateur.nn import SparseConv2d, SparseLinear, ThresholdReLU
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def engine_is_faster(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Small networks are often faster in torch: let the clock say otherwise, or the engine would not be tested."""
    torch.set_num_threads(1)  # small tensors: threads would take longer to meet than to compute
    if "real_clock" not in request.fixturenames:
        _clock(monkeypatch, engine=1.0, plain=2.0)


@pytest.fixture
def real_clock() -> None:
    """For a test that measures."""


def _clock(monkeypatch: pytest.MonkeyPatch, engine: float, plain: float) -> None:
    monkeypatch.setattr(timing, "interleave", lambda forms, rounds, budget: [[engine * 1e-3], [plain * 1e-3]])


def compiled(model: nn.Module, *example: Any, budget: float = 0.2) -> CompiledModel:
    return secateur.compile(model, example if len(example) != 1 else example[0], budget=budget)


def in_torch(fast: CompiledModel) -> list[str]:
    """What the engine leaves to torch."""
    return [row["layer"] for row in fast.report if row["kernel"] == "torch"]


def kinds(fast: CompiledModel) -> list[str]:
    """The engine's steps but for those that bring images into planes and out of them."""
    return [
        row["kind"] for row in fast.report
        if row["kernel"] != "torch" and row["kind"] not in ("input", "output", "repack", "frame")
    ]  # fmt: skip


def assert_near(got: Tensor, model: nn.Module, *inputs: Tensor) -> None:
    """Four times as far from float64 as torch's float32, but for 16 roundings (2^-24) of the largest value."""
    with torch.no_grad():
        exact = copy.deepcopy(model).eval().double()(*[x.double() if x.is_floating_point() else x for x in inputs])
        plain = copy.deepcopy(model).eval()(*[x.clone() for x in inputs])
    assert got.shape == plain.shape
    assert got.dtype == plain.dtype
    bound = 4 * (plain.double() - exact).abs().max() + 2.0**-20 * max(float(exact.abs().max()), 1e-3)
    assert float((got.double() - exact).abs().max()) <= float(bound)


def prune(model: nn.Module, zeros: float = 0.7) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p *= torch.rand_like(p) >= zeros
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.uniform_(-1, 2)
                    module.bias.normal_()
    return model.eval()


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


# ---- torchvision ----

NETWORKS = {  # name -> image size
    "alexnet": 224, "resnet18": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64, "mnasnet0_5": 64, "efficientnet_b0": 64, "regnet_y_400mf": 64, "densenet121": 64,
    "googlenet": 64, "inception_v3": 96, "resnext50_32x4d": 48, "convnext_tiny": 48, "swin_t": 64,
}  # fmt: skip
_BOUND = {"convnext_tiny": {"LayerNorm", "LayerNorm2d"}, "swin_t": {"LayerNorm"}}


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = prune(getattr(models, name)(**options))
    size = NETWORKS[name]
    for module in model.modules():  # as after training: values of size 1 all the way
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    with torch.no_grad():
        [module.eval() for module in model.modules() if isinstance(module, nn.Dropout)]
        if name == "inception_v3":
            model.aux_logits = False
            model.AuxLogits = None
        model(torch.randn(4, 3, size, size))
    model.eval()
    x = torch.randn(2, 3, size, size)
    fast = compiled(model, x)
    assert_near(fast(x), model, x)
    left = [row["kind"] for row in fast.report if row["kernel"] == "torch"]
    if name in _BOUND:
        assert _BOUND[name] & set(left)
        assert {"conv2d", "linear"} <= set(kinds(fast))
    else:
        assert left == []
        more = torch.cat([x, x[:1]])
        assert_near(fast(more), model, more)


# ---- what stays torch ----


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.logsumexp(x, 1, keepdim=True) + x.cumsum(1)


def test_the_unknown_runs_in_torch_between_segments_and_is_named() -> None:
    model = prune(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Odd(), nn.Conv2d(6, 4, 3), nn.GroupNorm(2, 4)))
    x = torch.randn(2, 3, 10, 12)
    fast = compiled(model, x)
    why = {row["kind"]: row["why"] for row in fast.report if row["kernel"] == "torch"}
    assert why["logsumexp"] == "the engine has no logsumexp"
    assert why["cumsum"] == "the engine has no cumsum"
    assert why["GroupNorm"] == "the engine has no GroupNorm"
    assert kinds(fast).count("conv2d") == 2
    assert_near(fast(x), model, x)
    assert_near(fast(x[:, :, :7]), model, x[:, :, :7])


class Branches(nn.Module):
    """Python decides by values: torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3))
        self.two = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two(y) if float(x.sum()) > 0 else y


def test_untraceable_forwards_run_as_they_are_around_their_children() -> None:
    model = prune(Branches())
    x = torch.rand(2, 3, 9, 9)
    for whole in (model, nn.Sequential(nn.Conv2d(3, 3, 1), model).eval()):
        fast = compiled(whole, x)
        assert any("cannot trace" in row["why"] for row in fast.report)
        assert kinds(fast).count("conv2d") >= 3
        assert_near(fast(x), whole, x)
        assert_near(fast(-x), whole, -x)


def test_hooks_run() -> None:
    model = prune(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    model[0].register_forward_hook(lambda m, inputs, y: y + 1)
    x = torch.randn(1, 3, 7, 7)
    assert_near(compiled(model, x)(x), model, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_run_in_torch(dtype: torch.dtype) -> None:
    model = prune(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())).to(dtype)
    x = torch.randn(2, 3, 9, 9, dtype=dtype)
    fast = compiled(model, x)
    assert kinds(fast) == []
    assert torch.equal(fast(x), model(x))


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor, y: Tensor, scale: float = 2.0) -> dict[str, Any]:
            z = F.relu(self.a(x) + self.b(y)) * scale
            return {"map": z, "rows": [self.c(z.mean((2, 3))), x], "none": None}

    model = prune(Two())
    x, y = torch.randn(2, 3, 8, 9), torch.randn(2, 2, 8, 9)
    fast = compiled(model, x, y)
    got, want = fast(x, y), model(x, y)
    assert in_torch(fast) == []
    assert type(got) is dict
    assert list(got) == list(want)
    assert type(got["rows"]) is list
    assert got["none"] is None
    torch.testing.assert_close(got["map"], want["map"])
    torch.testing.assert_close(got["rows"][0], want["rows"][0])
    assert torch.equal(got["rows"][1], x)
    torch.testing.assert_close(fast(y=y, x=x)["map"], want["map"])
    torch.testing.assert_close(compiled(model, x, y, 3.0)(x, y, 3.0)["map"], model(x, y, 3.0)["map"])


def test_torch_where_torch_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    _clock(monkeypatch, engine=3.0, plain=2.0)
    model = prune(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    x = torch.randn(2, 3, 9, 9)
    fast = compiled(model, x)
    assert kinds(fast) == []
    assert [row["why"] for row in fast.report] == ["the engine would take 1.50x as long"]
    assert torch.equal(fast(x), model(x))
    _clock(monkeypatch, engine=1.0, plain=9.0)  # a copy keeps the choice
    assert torch.equal(copy.deepcopy(fast)(x), model(x))


def test_a_result_that_differs_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.engine import segment

    run = segment.Segment._outputs
    monkeypatch.setattr(segment.Segment, "_outputs", lambda self, made, args: run(self, [y * 1.01 for y in made], args))
    model = prune(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    x = torch.randn(2, 3, 9, 9)
    fast = compiled(model, x)
    assert [row["why"] for row in fast.report] == ["its result differs from torch's on the example"]
    assert torch.equal(fast(x), model(x))


def test_choices_by_the_real_clock(real_clock: None) -> None:
    model = prune(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)), 0.9)
    x = torch.randn(1, 32, 28, 28)
    fast = compiled(model, x)
    assert_near(fast(x), model, x)
    assert any(" in the engine, " in note and " in torch, " in note for note in fast.report.notes)


# ---- the module ----


def net() -> nn.Module:
    return prune(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        )
    )  # fmt: skip


X = torch.linspace(-1, 1, 2 * 3 * 10 * 9).reshape(2, 3, 10, 9)


def test_the_source_is_left_alone() -> None:
    model = net().train()
    model[3].weight.grad = torch.ones_like(model[3].weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    objects = {key: id(value) for key, value in model.state_dict(keep_vars=True).items()}
    names = {name: set(vars(module)) for name, module in model.named_modules()}
    fast = compiled(model, X)
    fast(X)
    assert model.training
    assert model[1].training
    assert all(p.requires_grad for p in model.parameters())
    assert bool((model[3].weight.grad == 1).all())
    assert {key: id(value) for key, value in model.state_dict(keep_vars=True).items()} == objects
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == names
    with torch.no_grad():
        model[3].weight.zero_()
    assert_near(fast(X), _with(net(), before), X)  # it has weights of its own


def _with(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    model.load_state_dict(state)
    return model


def test_state_dict_is_the_models_own() -> None:
    model = net()
    fast = compiled(model, X)
    state = fast.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert [name for name, _ in fast.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert not any(p.requires_grad for p in fast.parameters())
    assert not fast.training
    net().load_state_dict(state)

    torch.manual_seed(1)
    other = net()
    assert fast.load_state_dict(other.state_dict()).missing_keys == []
    assert_near(fast(X), other, X)
    with pytest.raises(RuntimeError, match="Missing key"):
        fast.load_state_dict({})
    assert_near(fast(X), other, X)
    whole = nn.ModuleDict({"inner": fast})  # as a part of something larger
    whole.load_state_dict({f"inner.{key}": value for key, value in model.state_dict().items()})
    assert_near(fast(X), model, X)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy of a part": lambda fast: copy.deepcopy(nn.Sequential(fast))[0],
    "pickle": lambda fast: pickle.loads(pickle.dumps(fast)),
}


def _saved(fast: Any) -> Any:
    file = io.BytesIO()
    torch.save(fast, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


COPIES["torch.save"] = _saved


@pytest.mark.parametrize("way", COPIES)
def test_copies(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = compiled(net(), X)
    expected = fast(X)
    other = COPIES[way](fast)
    assert type(other) is CompiledModel
    assert [row["layer"] for row in other.report] == [row["layer"] for row in fast.report]
    _clock(monkeypatch, engine=9.0, plain=1.0)  # the choices go with it: nothing is timed again
    torch.testing.assert_close(other(X), expected, rtol=1e-5, atol=1e-6)
    assert kinds(other)
    with torch.no_grad():
        next(iter(other.parameters())).zero_()
    other.refresh()
    assert not torch.equal(other(X), expected)
    assert torch.equal(fast(X), expected)
    assert other(torch.randn(7, 3, 12, 5)).shape == (7, 5)


def test_refresh() -> None:
    model = net()
    fast = compiled(model, X)
    torch.manual_seed(1)
    other = net()
    assert fast.refresh(other) is fast
    assert_near(fast(X), other, X)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in fast.state_dict().items())
    with torch.no_grad():
        for p in fast.parameters():
            p.mul_(0.5)
    fast.refresh()
    halved = copy.deepcopy(other)
    with torch.no_grad():
        for p in halved.parameters():
            p.mul_(0.5)
    assert_near(fast(X), halved, X)
    fast.refresh(compiled(model, X))
    assert_near(fast(X), model, X)


def _changed(change: Callable[[Any], Any]) -> nn.Module:
    model = net()
    change(model)
    return model


MISMATCHES: list[tuple[Callable[[Any], Any], str]] = [
    (lambda m: m.__setitem__(3, nn.Conv2d(8, 8, 3)), r"3 was Conv2d\(8, 8, .*padding=\(1, 1\)\) and is Conv2d"),
    (lambda m: m.__setitem__(2, nn.Sigmoid()), r"2 was a ReLU and is a Sigmoid"),
    (lambda m: m.append(nn.ReLU()), r"8 is only in the new one"),
    (lambda m: m.__delitem__(7), r"7 is only in the compiled one"),
    (lambda m: m.double(), r"0\.weight was float32 \[8, 3, 3, 3\] and is float64 \[8, 3, 3, 3\]"),
    (lambda m: m[3].register_buffer("more", torch.zeros(1)), r"3\.more is only in the new one"),
]


@pytest.mark.parametrize(("change", "message"), MISMATCHES, ids=lambda v: v if isinstance(v, str) else "")
def test_refresh_refuses_another_architecture(change: Callable[[Any], Any], message: str) -> None:
    fast = compiled(net(), X)
    expected = fast(X)
    with pytest.raises(Error, match=rf"refresh: model must have the architecture .*{message}"):
        fast.refresh(_changed(change))
    assert torch.equal(fast(X), expected)
    with pytest.raises(Error, match=r"refresh: model must be a torch\.nn\.Module, got dict"):
        fast.refresh({})  # type: ignore[arg-type]


def test_tied_weights_stay_tied() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = prune(nn.Sequential(nn.Conv2d(3, 4, 1), conv, nn.ReLU(), conv))
    x = torch.randn(1, 3, 8, 8)
    fast = compiled(model, x)
    assert len(list(fast.parameters())) == 4
    assert fast.get_parameter("1.weight") is fast.get_parameter("3.weight")
    assert kinds(fast).count("conv2d") == 3
    assert_near(fast(x), model, x)
    twin = copy.deepcopy(fast)
    assert twin.get_parameter("1.weight") is twin.get_parameter("3.weight")


def test_masks_of_pruning_are_seen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    secateur.prune(model, secateur.Magnitude(sparsity=0.75))
    torch.nn.utils.prune.l1_unstructured(model[0], "bias", 0.5)
    x = torch.randn(2, 3, 9, 9)
    fast = compiled(model, x)
    assert [row["zeros"] for row in fast.report if row["kind"] == "conv2d"] == pytest.approx([0.75, 0.75], abs=0.01)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))


# ---- calls ----


def test_any_batch_and_image_size() -> None:
    model = net()
    fast = compiled(model, X)
    for n, h, w in ((1, 10, 9), (3, 1, 1), (17, 5, 30), (2, 33, 4), (1, 64, 64)):
        x = torch.randn(n, 3, h, w)
        assert_near(fast(x), model, x)
        assert_near(fast(x.to(memory_format=torch.channels_last)), model, x)
    assert fast(torch.empty(0, 3, 10, 9)).shape == (0, 5)
    first = fast(torch.cat([X, X]))
    assert torch.equal(first[:2], first[2:])


def test_a_graph_that_depends_on_the_image_size() -> None:
    model = prune(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d((2, 2)), nn.Conv2d(4, 4, 2)))
    fast = compiled(model, torch.randn(1, 3, 8, 8))
    for h, w in ((8, 8), (4, 6), (9, 7), (2, 2), (8, 8)):
        x = torch.randn(2, 3, h, w)
        assert_near(fast(x), model, x)


def test_the_input_is_not_written() -> None:
    model = prune(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1)))
    x = torch.randn(1, 3, 5, 5)
    plain, ours = x.clone(), x.clone()
    fast = compiled(model, ours)
    assert torch.equal(ours, x), "compile wrote over the example"
    with torch.no_grad():
        expected = model(plain)
    torch.testing.assert_close(fast(ours), expected)
    assert torch.equal(ours, plain)  # what the model writes, a caller may rely on


def test_outputs_are_the_callers() -> None:
    fast = compiled(net(), X)
    first = fast(X)
    kept = first.clone()
    fast(X + 1)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads(count: int) -> None:
    torch.set_num_threads(1)
    fast = compiled(net(), X)
    expected = fast(X)
    torch.set_num_threads(count)
    assert torch.equal(fast(X), expected)
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(fast, [X] * 20):
            assert torch.equal(y, expected)


def test_threads_that_call_a_copy_first() -> None:
    fast = compiled(net(), X)
    expected = fast(X)
    for _ in range(3):
        other = copy.deepcopy(fast)  # the first call builds it
        with ThreadPoolExecutor(4) as pool:
            for y in pool.map(other, [X] * 8):
                torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


def test_refresh_while_others_call() -> None:
    one = net()
    torch.manual_seed(1)
    two = net()
    fast = compiled(one, X)
    results = [fast(X), fast.refresh(two)(X)]
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(fast, X) for _ in range(40)]
        for model in (one, two, one):
            fast.refresh(model)
        for call in calls:
            assert any(torch.allclose(call.result(), r, rtol=1e-4, atol=1e-6) for r in results)


def test_modes() -> None:
    model = net()
    with torch.inference_mode():
        fast = compiled(model, X)
        inside = fast(X)
    assert torch.equal(fast(X.clone()), inside)
    with torch.no_grad():
        assert torch.equal(fast(X), inside)
    assert not fast(X).requires_grad
    with torch.inference_mode():
        assert torch.equal(fast(X + 0), inside)
    assert fast.eval() is fast
    assert fast.train(False) is fast
    nn.Sequential(fast).eval()
    with pytest.raises(Error, match="train: a compiled model is for inference"):
        fast.train()
    with pytest.raises(Error, match="input must not require grad"):
        fast(X.clone().requires_grad_())


def test_compile_of_what_is_compiled() -> None:
    model = net()
    fast = compiled(model, X)
    again = compiled(fast, X[:1])
    assert_near(again(X), model, X)
    assert "compiled from Sequential" in repr(again)


# ---- what is refused ----


def test_compile_refuses() -> None:
    model = net()
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: secateur.compile("net", X), "compile: model must be a torch.nn.Module, got str"),
        (lambda: secateur.compile(model, X, budget=0), "compile: budget must be a positive number of seconds, got 0"),
        (lambda: secateur.compile(model, X, budget=True), "budget must be a positive number of seconds, got True"),
        (lambda: secateur.compile(model, X, budget=math.nan), "budget must be a positive number of seconds, got nan"),
        (lambda: secateur.compile(model, X[:0]), r"example_input must hold at least one image, got \[0, 3, 10, 9\]"),
        (
            lambda: secateur.compile(model, X[:, :2]),
            "example_input must be what the model takes: RuntimeError",
        ),
        (lambda: secateur.compile(model, (X, X)), "compile: example_input must be what the model takes: TypeError"),
        (lambda: secateur.compile(model, None), "compile: example_input must be what the model takes"),
        (lambda: secateur.compile(nn.LazyLinear(3), X), "compile: model must be initialized, but weight is not"),
    ]
    for call, message in refused:
        with pytest.raises(Error, match=message):
            call()


def test_calls_refuse_what_the_example_was_not() -> None:
    fast = compiled(net(), X)
    refused: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: fast(X[0]),
            r"input 0 must be float32 \[N, 3, H, W\] on cpu, as the example was, got float32 \[N,",
        ),
        (lambda: fast(X[:, :2]), r"must be float32 \[N, 3, H, W\] on cpu, .*, got float32 \[N, 2, H, W\] on cpu"),
        (lambda: fast(X.double()), r"must be float32 .*, got float64 \[N, 3, H, W\] on cpu"),
        (lambda: fast(X.to("meta")), r"got float32 \[N, 3, H, W\] on meta"),
        (lambda: fast(X, X), r"inputs must be 1, as in the example, got 2"),
        (lambda: fast(), r"inputs must be 1, as in the example, got 0"),
        (lambda: fast("x"), r"input 0 must be float32 .* got str 'x'"),
        (lambda: fast(y=X), r"compile: missing a required argument: 'input'"),
    ]
    for call, message in refused:
        with pytest.raises(Error, match=message):
            call()
    assert_near(fast(X), net_of(fast), X)


def net_of(fast: CompiledModel) -> nn.Module:
    return _with(net(), fast.state_dict())


def test_torchscript_is_for_parts_only() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        part = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval())
    with pytest.raises(Error, match="compile: model must be the module itself, got what TorchScript made of it"):
        compiled(part, X)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), part, nn.Conv2d(4, 4, 1)).eval()
    fast = compiled(model, X)
    assert in_torch(fast) == ["1.forward"]
    assert kinds(fast).count("conv2d") == 2
    with torch.no_grad():
        torch.testing.assert_close(fast(X), model(X))


def test_what_cannot_be_planned_runs_in_torch() -> None:
    far = nn.Conv2d(3, 2, 3, padding=100, dilation=100)  # taps further apart than 16 bits reach, in a wide image
    model = prune(nn.Sequential(far, nn.ReLU()))
    fast = compiled(model, X)
    assert kinds(fast)
    wide = torch.randn(1, 3, 4, 4000)
    with pytest.warns(UserWarning, match=r"compile: 0: torch computes \[1, 3, 4, 4000\], for .* too large for 16-bit"):
        assert_near(fast(wide), model, wide)
    fast = compiled(model, wide)
    assert kinds(fast) == []
    assert "the engine refuses it: engine: 0: the image is too large for 16-bit offsets" in in_words(fast)
    assert_near(fast(wide), model, wide)

    valid = compiled(prune(nn.Sequential(nn.Conv2d(3, 4, 5))), X)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        valid(X[:, :, :4])


def in_words(fast: CompiledModel) -> str:
    return "; ".join(row["why"] for row in fast.report)


# ---- profile ----


def test_profile() -> None:
    model = nn.Sequential(*net(), Softmax())
    fast = compiled(model, X)
    report = secateur.profile(fast, X)
    rows = {row["layer"]: row for row in report}
    assert rows["0"]["kind"] == rows["3"]["kind"] == "conv2d"
    assert rows["7"]["kind"] == "linear"
    assert rows["3"]["shape"] == (8, 8, 3, 3)
    assert rows["3"]["zeros"] == pytest.approx(float((model[3].weight == 0).float().mean()))
    assert rows["3"]["kernel"] in ("sparse", "dense")
    assert rows["3"]["tile"]
    assert rows["3"]["why"]
    assert 0 < rows["3"]["ms"] < 1e3
    assert rows["3"]["roofline"] > 0
    other = next(row for row in report if row["kind"] == "softmax")
    assert (other["kernel"], other["why"]) == ("torch", "the engine has no softmax")
    assert report.total is not None
    assert report.total["ms"] > 0
    assert "conv2d" in str(report)
    with pytest.raises(Error, match=r"profile: fast must come from secateur\.compile, got Sequential"):
        secateur.profile(model, X)
    with pytest.raises(Error, match=r"profile: fast must come from secateur\.compile, got int"):
        secateur.profile(3, X)
    with pytest.raises(Error, match="input 0 must be"):
        secateur.profile(fast, X[:, :1])


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


def test_profile_of_what_cannot_be_traced() -> None:
    x = torch.rand(2, 3, 9, 9)
    report = secateur.profile(compiled(prune(Branches()), x), x)
    assert [row["kind"] for row in report if row["kind"] in ("python", "conv2d")] == ["python"] + ["conv2d"] * 3
    assert all(row["ms"] is not None for row in report if row["kind"] in ("python", "conv2d"))
