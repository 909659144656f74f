"""docs/contract.md, for compile: the given model does not notice, the result computes what the model computes."""

from __future__ import annotations

import contextlib
import copy
import io
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compiling import compiled
from contract import X, conv, near
from secateur import Error
from secateur._base.tensors import _same, alike
from secateur.engine.unit import _near
from torch import Tensor, nn


class Keeps(nn.Module):
    """Keeps values on itself, in every way that people write."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 4)
        self.last: Tensor | None = None
        self.kept: dict[str, Any] = {}
        self.history: list[Any] = []
        self.recent: deque[float] = deque(maxlen=3)
        self.calls = 0
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.conv(x))
        self.last = y
        self.kept["y"] = y
        self.history.append(y.shape[0])
        self.recent.append(float(self.calls))
        self.calls += 1
        self.count += 1
        self.mean = 0.5 * self.mean + 0.5 * y.mean((0, 2, 3))
        return y * self.calls + self.mean[:, None, None]


class Clamps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.conv.weight.mul_(0.9)
        return self.conv(x)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        random.random()
        return self.conv(x) + 0 * torch.rand(1)


class Draws(nn.Module):
    """Noise in evaluation mode, part of it no operation on the input."""

    def __init__(self, outside: bool) -> None:
        super().__init__()
        self.a, self.b, self.outside = conv(3, 4), conv(4, 4), outside

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.a(x), 0.3, training=True)
        if self.outside:
            y = y + torch.randn(1) + random.random()
        return F.dropout(self.b(y), 0.3, training=True) + F.dropout(y, 0.5, training=True)


@pytest.mark.parametrize("outside", [False, True])
def test_random_numbers_are_drawn_alike(outside: bool) -> None:
    model = Draws(outside).eval()
    fast = compiled(model, X)
    for seed in (1, 2):
        made = []
        for net in (fast, model):
            torch.manual_seed(seed), random.seed(seed)
            with torch.no_grad():
                made.append(net(X))
        near(*made)


class Raises(Keeps):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise ValueError("never")


def picture(model: nn.Module) -> Any:
    plain = {
        name: {k: copy.copy(v) for k, v in vars(m).items() if not k.startswith("_")}
        for name, m in model.named_modules()
    }
    tensors = [(t.clone(), t._version, t.requires_grad, t.data_ptr()) for t in [*model.parameters(), *model.buffers()]]
    hooks = [list(m._forward_hooks.values()) + list(m._forward_pre_hooks.values()) for m in model.modules()]
    return plain, tensors, hooks, torch.random.get_rng_state(), random.getstate()


def same_picture(a: Any, b: Any) -> None:
    assert str(a[0]) == str(b[0])
    for (t, *rest), (u, *others) in zip(a[1], b[1], strict=True):
        assert torch.equal(t, u)
        assert rest == others
    assert a[2] == b[2]
    assert torch.equal(a[3], b[3])
    assert a[4] == b[4]


@pytest.mark.parametrize("kind", [Keeps, Clamps, Noisy, Raises])
@pytest.mark.parametrize("inside", [False, True])
def test_the_given_model_does_not_notice(kind: Callable[[], nn.Module], inside: bool) -> None:
    model = nn.Sequential(kind(), nn.BatchNorm2d(4), conv(4, 2)) if inside else kind()
    model.train()
    fired: list[Any] = []
    next(m for m in model.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(lambda *a: fired.append(a))
    before = picture(model)
    with pytest.raises(Error, match="ValueError: never") if kind is Raises else contextlib.nullcontext():
        compiled(model, X)
    same_picture(picture(model), before)
    assert not fired


@pytest.mark.parametrize("inside", [False, True])
def test_what_the_forward_keeps_belongs_to_the_last_call(inside: bool) -> None:
    model = nn.Sequential(conv(3, 3), Keeps(), conv(4, 2)).eval() if inside else Keeps().eval()
    part = "1." if inside else ""
    with torch.no_grad():
        model(X)  # the state goes on from here
        ref = copy.deepcopy(model)
        fast = compiled(model, X)
        for net in (fast, copy.deepcopy(fast)):
            theirs = copy.deepcopy(ref)
            for x in (X, torch.rand(3, 3, 8, 10), torch.rand(1, 3, 12, 12)):
                near(net(x), theirs(x))
                ours, want = net.get_submodule(part[:-1]), theirs.get_submodule(part[:-1])
                near(ours.last, want.last)
                near(ours.kept["y"], want.kept["y"])
                assert ours.history == want.history
                assert ours.recent == want.recent
                assert ours.calls == want.calls
                near(net.state_dict()[part + "mean"], theirs.state_dict()[part + "mean"])
                near(net.state_dict()[part + "count"], theirs.state_dict()[part + "count"])
        buffer = io.BytesIO()
        torch.save(fast, buffer)
        buffer.seek(0)
        again = torch.load(buffer, weights_only=False)
        near(again(X), fast(X))
    assert any("outlives the call" in row["why"] for row in fast.report)


def test_parameters_that_the_forward_writes_go_on() -> None:
    for model in (Clamps().eval(), nn.Sequential(Clamps(), conv(4, 2)).eval()):
        ref = copy.deepcopy(model)
        fast = compiled(model, X)
        with torch.no_grad():
            for _ in range(3):
                near(fast(X), ref(X))


class Reads(nn.Module):
    """Reads what its child keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Keeps()
        self.out = conv(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.out(self.gate(x))
        assert self.gate.last is not None
        return y, self.gate.last * 2


class Stream(nn.Module):
    """Goes on with the last samples of the call before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 4)
        self.past: Tensor | None = None

    def reset(self) -> None:
        self.past = None

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.past is None else torch.cat([self.past, x], 3)
        self.past = x[..., -2:]
        return self.conv(y)


class Grid(nn.Module):
    """Filled at the first call, and again for another size; filled before it is compiled, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.grid = conv(3, 4), None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.grid is None or self.grid.shape[-2:] != y.shape[-2:]:
            self.grid = torch.ones_like(y[:1, :1]).cumsum(2)
        return y + self.grid


@pytest.mark.parametrize("kind", [Reads, Stream, Grid])
@pytest.mark.parametrize("warm", [False, True])
def test_state_between_modules_and_calls(kind: Callable[[], nn.Module], warm: bool) -> None:
    model = kind().eval()
    with torch.no_grad():
        if warm:
            model(X)
        ref, fast = copy.deepcopy(model), compiled(model, X)
        for x in (X, 2 * X, torch.rand(2, 3, 12, 8), torch.rand(1, 3, 12, 12) if kind is not Stream else X):
            near(fast(x), ref(x))
        if kind is Stream:
            fast.reset(), ref.reset()
            near(fast(X), ref(X))
            fast.past = ref.past = None
            near(fast(X), ref(X))


# ---- in place, aliases ----


def _nobody_takes(net: nn.Module, x: Tensor) -> Any:
    y = net.a(x)
    net.relu(y)
    return net.b(y)


def _function(net: nn.Module, x: Tensor) -> Any:
    y = net.a(x)
    F.relu_(y)
    y.clamp_(max=0.3)
    return net.b(y) + y.mean()


def _shortcut(net: nn.Module, x: Tensor) -> Any:
    y = net.a(x)
    return net.b(net.relu(y)) + y.sum(1, keepdim=True)


def _features(net: nn.Module, x: Tensor) -> Any:
    y = net.a(x)
    kept = [y]
    z = net.relu(y)
    return net.b(z), kept


def _views(net: nn.Module, x: Tensor) -> Any:
    y = net.a(x)
    first, second = y.chunk(2, 1)
    first.relu_()
    second[:, :1] = 0.5
    y.view(y.shape[0], -1)[:, 0] = 7.0
    return net.b(y) + second.mean()


def _the_input(net: nn.Module, x: Tensor) -> Any:
    x.mul_(2.0)
    return net.b(net.a(F.relu_(x.sub_(0.5))))


def _preactivation(net: nn.Module, x: Tensor) -> Any:
    x = net.a(x)
    y = net.c(net.relu(x))
    y += x
    return net.b(y)


class Way(nn.Module):
    def __init__(self, way: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.relu, self.way = conv(3, 4), conv(4, 2), conv(4, 4), nn.ReLU(inplace=True), way

    def forward(self, x: Tensor) -> Any:
        return self.way(self, x)


WAYS = [_nobody_takes, _function, _shortcut, _features, _views, _the_input, _preactivation]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_memory_is_seen_as_in_torch(way: Callable[[nn.Module, Tensor], Any]) -> None:
    model = Way(way).eval()
    fast = compiled(model, X)
    for x in (torch.randn(2, 3, 12, 12), torch.randn(1, 3, 9, 7), torch.randn(3, 3, 12, 12)):
        ours, theirs = x.clone(), x.clone()
        with torch.no_grad():
            near(fast(ours), model(theirs))
        assert torch.equal(ours, theirs)


# ---- every input ----


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.heads = conv(3, 4), nn.ModuleList(conv(4, 2, 1) for _ in range(4))

    def forward(self, images: Any, scale: float = 1.0, *, mode: str = "max") -> Any:
        if isinstance(images, dict):
            return {key: self.conv(value) for key, value in images.items()}
        if isinstance(images, list):
            made = [self.conv(image[None]) for image in images]
            for i, y in enumerate(made):
                made[i] = self.heads[i](y)
            return made
        return self.conv(images) * scale


def test_lists_dicts_and_arguments_of_other_kinds() -> None:
    model = Lists().eval()
    images = [torch.rand(3, 8, 8), torch.rand(3, 10, 6)]
    with torch.no_grad():
        for example in (images, X, {"a": X}):
            fast = compiled(model, (example,))
            for given in (images, images[:1], [*images, images[0]], X, {"a": X}, {"b": X, "c": X[:1]}, X[0]):
                near(fast(given), model(given))
            near(fast(X, 2.0), model(X, 2.0))
            near(fast(X, scale=3.0), model(X, scale=3.0))
            near(fast(X, mode="min"), model(X, mode="min"))
            with pytest.raises(Error, match="the model says"):
                fast(torch.rand(2, 5, 8, 8))


class Squeezes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = conv(3, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.conv(x)), 1).squeeze())


class BySize(nn.Module):
    """Python decides by sizes and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.small, self.fc = conv(3, 4), conv(4, 4), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if x.shape[0] == 1:
            y = y * 2
        if x.shape[-1] < 10:
            return self.small(y).mean((1, 2, 3))
        return self.fc(F.adaptive_avg_pool2d(y, 6).view(-1, 4 * 36)).sum(1)


@pytest.mark.parametrize("kind", [Squeezes, BySize])
@pytest.mark.parametrize("example", [1, 2, 4])
def test_batches_and_sizes(kind: Callable[[], nn.Module], example: int) -> None:
    model = kind().eval()
    with torch.no_grad():
        fast = compiled(model, torch.rand(example, 3, 12, 12))
        for n in (example, 1, 3, 2, 4):
            for size in (12, 8):
                x = torch.rand(n, 3, size, size)
                near(fast(x), model(x))


def test_no_image_at_all() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)).eval()
    fast = compiled(model, X)
    none = torch.rand(0, 3, 12, 12)
    with torch.no_grad():
        assert fast(none).shape == model(none).shape
        near(fast(X), model(X))


@dataclass
class Result:
    value: Tensor
    size: tuple[int, ...]


class MakesResults(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 4)

    def forward(self, x: Tensor) -> Result:
        return Result(self.conv(x), tuple(x.shape))


def test_dataclasses_come_back() -> None:
    model = MakesResults().eval()
    fast = compiled(model, X)
    with torch.no_grad():
        for x in (X, torch.rand(1, 3, 7, 7)):
            got, want = fast(x), model(x)
            assert type(got) is Result
            assert got.size == want.size
            near(got.value, want.value)


def test_what_a_dataclass_holds_is_compared() -> None:
    one, other = (Result(torch.full((8,), value), (1,)) for value in (1.0, 2.0))
    for leaf in (_same, _near):
        assert alike([one], [copy.copy(one)], leaf)
        assert not alike([one], [other], leaf)
    assert not alike(one, Result(one.value, (2,)), _same)
