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
import secateur
import torch
import torch.nn.functional as F
from secateur import Error
from torch import Tensor, nn

X = torch.rand(2, 3, 12, 12)


def conv(a: int, b: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(a, b, size, padding=size // 2)


def compiled(model: nn.Module, x: Any = X) -> Any:
    return secateur.compile(model, x, budget=0.05)


def near(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


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
    fast = compiled(model)
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
        compiled(model)
    same_picture(picture(model), before)
    assert not fired


@pytest.mark.parametrize("inside", [False, True])
def test_what_the_forward_keeps_belongs_to_the_last_call(inside: bool) -> None:
    model = nn.Sequential(conv(3, 3), Keeps(), conv(4, 2)).eval() if inside else Keeps().eval()
    part = "1." if inside else ""
    with torch.no_grad():
        model(X)  # the state goes on from here
        ref = copy.deepcopy(model)
        fast = compiled(model)
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
        fast = compiled(model)
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
        ref, fast = copy.deepcopy(model), compiled(model)
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
    fast = compiled(model)
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
    fast = compiled(model)
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
    fast = compiled(model)
    with torch.no_grad():
        for x in (X, torch.rand(1, 3, 7, 7)):
            got, want = fast(x), model(x)
            assert type(got) is Result
            assert got.size == want.size
            near(got.value, want.value)


# ---- what others see ----


def test_hooks_fire_as_in_torch() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), nn.Sequential(conv(4, 4), nn.ReLU(inplace=True)), conv(4, 2)).eval()
    fired: list[tuple[str, Tensor]] = []
    model[2][0].register_forward_hook(lambda m, a, out: fired.append(("before", out.clone())))
    model[3].register_forward_pre_hook(lambda m, a: (a[0] * 2,))
    fast = compiled(model)
    assert not fired
    with torch.no_grad():
        want = model(X)
        seen, fired[:] = fired[0][1], []
        near(fast(X), want)
        assert [name for name, _ in fired] == ["before"]
        near(fired[0][1], seen)
        fired.clear()
        known = {m: name for name, m in fast.named_modules()}
        handle = fast[0].register_forward_hook(lambda m, a, out: fired.append((known[m], out.clone())))
        for x in (X, torch.rand(1, 3, 9, 9)):
            fired.clear()
            near(fast(x), model(x))
            assert [name for name, _ in fired] == ["0", "before", "before"]  # ours, ours, and the model's own
            near(fired[0][1], model[0](x))
        handle.remove()
        fired.clear()
        near(fast(X), want)
        assert [name for name, _ in fired] == ["before"]
        fast[0].register_forward_hook(lambda m, a, out: out * 0)
        near(fast(X), model[3](model[2](model[1](0 * model[0](X)))))


def test_what_a_hook_keeps_is_overwritten_as_in_torch() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(inplace=True), conv(4, 4), nn.ReLU(inplace=True), conv(4, 2)).eval()
    kept: list[Tensor] = []
    model[0].register_forward_hook(lambda m, a, out: kept.append(out))
    model[4].register_forward_pre_hook(lambda m, a: kept.append(a[0]))
    fast = compiled(model)
    with torch.no_grad():
        for x in (X, torch.randn(1, 3, 9, 9)):
            kept.clear()
            want = model(x)
            theirs = list(kept)
            kept.clear()
            near(fast(x), want)
            for a, b in zip(kept, theirs, strict=True):
                near(a, b)


def test_hooks_of_what_nobody_reads() -> None:
    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(3, 4), nn.Identity(), conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            self.c(self.b(y))
            return y

    model = Side().eval()
    fired: list[str] = []
    for name in "bc":
        model.get_submodule(name).register_forward_hook(lambda *a, name=name: fired.append(name))
    fast = compiled(model)
    fast(X)
    assert fired == ["b", "c"]


def test_attributes_and_methods() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.names, self.stride = conv(3, 4), ["a", "b"], 8
            self.anchors, self.scale = torch.ones(3), 2.0

        def classes(self) -> int:
            return len(self.names)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * self.scale

    model = Named().eval()
    fast = compiled(model)
    assert (fast.names, fast.stride, fast.classes()) == (["a", "b"], 8, 2)
    assert torch.equal(fast.anchors, torch.ones(3))
    assert not hasattr(fast, "absent")
    fast.scale = model.scale = 3.0
    fast.more = 1
    with torch.no_grad():
        near(fast(X), model(X))
    assert copy.deepcopy(fast).names == ["a", "b"]
    assert copy.deepcopy(fast).more == 1
    near(copy.copy(fast)(X), fast(X))


def test_wrappers_and_what_overrides() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = conv(3, 4), nn.BatchNorm2d(4)

        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            super().train(mode)
            self.bn.eval()
            for p in self.conv.parameters():
                p.requires_grad = False

        def __call__(self, x: Tensor) -> Any:
            return super().__call__(x + 1)

        def load_state_dict(self, state_dict: Any, strict: bool = True) -> None:  # type: ignore[override]
            super().load_state_dict(state_dict, strict)

        def __getattr__(self, name: str) -> Any:
            if name == "extra":
                return 7
            return super().__getattr__(name)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x))

    model = Odd()
    flags = [p.requires_grad for p in model.parameters()]
    for given in (
        model,
        nn.Sequential(model, conv(4, 2)),
        nn.DataParallel(model),
        torch.compile(model, backend="eager"),
    ):
        fast = compiled(given)
        plain = copy.deepcopy(given if isinstance(given, nn.Sequential) else model)
        plain.eval()
        with torch.no_grad():
            near(fast(X), plain(X))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert compiled(model).extra == 7
    fast = compiled(model)
    new = Odd().state_dict()
    fast.load_state_dict(new)
    model.load_state_dict(new)
    model.eval()
    with torch.no_grad():
        near(fast(X), model(X))


def test_tied_by_function() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.conv = nn.Linear(12, 12), conv(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x) * self.conv.weight.abs().mean()
            return F.linear(self.fc(y), self.fc.weight.t()) * self.fc.bias

    model = Tied().eval()
    secateur.prune(model, secateur.Magnitude(0.5))
    with torch.no_grad():
        near(compiled(model)(X), model(X))


# ---- other ways to call ----


def test_parameters_of_a_call() -> None:
    model, other = (nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)).eval() for _ in range(2))
    fast = compiled(model)
    theirs = dict(other.named_parameters())
    with torch.no_grad():
        near(torch.func.functional_call(fast, theirs, (X,)), other(X))
        near(fast(X), model(X))
    assert any("other parameters than were compiled" in note for note in fast.report.notes)
    loss = torch.func.functional_call(fast, theirs, (X,)).sum()
    loss.backward()
    assert other[0].weight.grad is not None
    fast[2] = nn.Identity()
    with torch.no_grad():
        near(fast(X), model[:2](X))


@pytest.mark.filterwarnings("ignore")  # torch's own, of its decompositions
def test_derivatives_are_refused() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU()).eval()
    fast = compiled(model)
    for call in (
        lambda: torch.func.jvp(fast, (X,), (X,)), lambda: torch.func.jacfwd(fast)(X),
        lambda: torch.func.grad(lambda x: fast(x).sum())(X), lambda: fast(X.clone().requires_grad_()),
    ):  # fmt: skip
        with pytest.raises(Error, match="compile: "):
            call()
    with torch.autograd.forward_ad.dual_level():
        with pytest.raises(Error, match="forward-mode"):
            fast(torch.autograd.forward_ad.make_dual(X, X))
        with torch.no_grad():
            near(fast(X), model(X))


def test_a_part_of_a_larger_model_is_loaded_whole() -> None:
    a, b = (nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)).eval() for _ in range(2))
    fast = compiled(a)
    outer = nn.Sequential(fast)
    amid = fast.get_submodule("2").register_load_state_dict_pre_hook(lambda *_: fast(X))
    with torch.no_grad():
        outer.load_state_dict({"0." + k: v for k, v in b.state_dict().items()})
        amid.remove()
        near(outer(X), b(X))


def test_a_head_is_trained_on_it() -> None:
    backbone = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU()).eval()
    with pytest.warns(UserWarning, match="stays in evaluation mode"):
        net = nn.Sequential(compiled(backbone), nn.Flatten(), nn.Linear(4 * 144, 2)).train()
    net(X).sum().backward()
    assert net[2].weight.grad is not None
    assert net[0].training is False
    assert net[2].training is True


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_clear_errors() -> None:
    sparse = nn.Linear(4, 4)
    sparse.weight = nn.Parameter(sparse.weight.detach().to_sparse())
    with pytest.raises(Error, match="compile: parameters must be dense tensors, but weight is sparse_coo"):
        compiled(sparse, torch.rand(1, 4))
    fast = compiled(nn.Sequential(conv(3, 4)))
    with pytest.raises(Error, match="compile: inputs must be plain tensors"):
        fast(torch.nested.nested_tensor([X[0]]))
