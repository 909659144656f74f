"""A file alone: what comes back computes what was saved, and what cannot be followed is not written down."""

from __future__ import annotations

import copy
import pickle
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
import torch.nn.functional as F
from secateur import Error
from secateur.checkpoint.graph import kinds, words
from secateur.checkpoint.graph.writing import described
from secateur.checkpoint.saving import masked_keys, state_of
from secateur.commands.demo.network import TutorialCNN
from secateur.masks import buffer_name
from secateur.nn import MaskedConv2d, MaskedLinear, ThresholdReLU
from torch import Tensor, nn

X = torch.rand(2, 3, 8, 8)


def why_not(model: nn.Module) -> str:
    masks = {buffer_name(key) for key in masked_keys(model)}
    return described(model, {k: v for k, v in state_of(model, "save").items() if k not in masks})[1]


def again(model: nn.Module, path: Path) -> nn.Module:
    secateur.save(model, path / "f")
    return secateur.load(path / "f")


def check(model: nn.Module, path: Path, *inputs: Tensor) -> nn.Module:
    """The model of the file alone: in evaluation mode, with the same keys, and results with the same bits."""
    model.eval()
    assert why_not(model) == ""
    loaded = again(model, path)
    assert not any(module.training for module in loaded.modules())
    assert loaded.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        ours, theirs = loaded(*copy.deepcopy(inputs)), model(*copy.deepcopy(inputs))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    return loaded


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, stride=2, groups=2),
        nn.ReLU6(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    model(X)
    return model.eval()


# ---- what can be followed ----


def test_plain_pruned_thresholded_converted_quantized(tmp_path: Path) -> None:
    model = net()
    check(model, tmp_path, X)
    secateur.prune(model, secateur.MeanStd(sparsity=0.6))
    loaded = check(model, tmp_path, X)
    assert masked_keys(loaded) == masked_keys(model)
    thresholded = secateur.prune_activations(model, [X], secateur.MeanStd(k=-1), progress=False)
    loaded = check(thresholded, tmp_path, X)
    assert any(isinstance(module, ThresholdReLU) for module in loaded.modules())
    check(secateur.quantize(thresholded, [X], progress=False), tmp_path, X)
    converted = secateur.convert(thresholded, X)
    assert why_not(converted) == ""
    assert torch.allclose(again(converted, tmp_path)(X), converted(X), atol=1e-6)  # kernels are chosen by time
    loaded = again(secateur.convert(model), tmp_path)
    assert loaded.get_submodule("0").trial is not None  # each layer has yet to choose its form
    assert torch.allclose(loaded(X), model(X), atol=1e-5)


def test_the_demo_s_network(tmp_path: Path) -> None:
    x = torch.rand(3, 1, 28, 28)
    model = TutorialCNN()
    check(model, tmp_path, x)
    check(secateur.quantize(model, [x], progress=False), tmp_path, x)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision(tmp_path: Path, name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    check(getattr(torchvision.models, name)(weights=None), tmp_path, torch.rand(1, 3, 64, 64))


def test_a_compiled_model_gives_the_one_that_was_compiled(tmp_path: Path) -> None:
    model = net()
    secateur.prune(model, secateur.MeanStd(sparsity=0.8))
    fast = secateur.compile(model, X, budget=1)
    loaded = again(fast, tmp_path)
    assert torch.equal(loaded(X), model(X))
    compiled = secateur.compile(loaded, X, budget=1)
    assert torch.allclose(compiled(X), model(X), atol=1e-4)
    q = secateur.quantize(model, [X], progress=False)
    loaded = again(secateur.compile(q, X, budget=1), tmp_path)
    assert torch.equal(loaded(X), q(X))
    assert torch.allclose(secateur.compile(loaded, X, budget=1)(X), q(X), atol=1e-4)


@pytest.mark.parametrize("model", [nn.Linear(8, 3), nn.Conv2d(3, 4, 3), MaskedConv2d(3, 4, 3), MaskedLinear(8, 2),
                                   nn.BatchNorm2d(3), nn.PReLU(), nn.LayerNorm(8), nn.GroupNorm(3, 3)])  # fmt: skip
def test_a_layer_by_itself(tmp_path: Path, model: nn.Module) -> None:
    assert type(check(model, tmp_path, X)) is type(model)


class Everything(nn.Module):
    """In-place operations on values that are read again, sizes, views, parameters of its own, several results."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.ModuleList([nn.Conv2d(6, 6, 1) for _ in range(2)])
        self.b.append(self.b[0])
        self.scale = nn.Parameter(torch.rand(6, 1, 1))
        self.register_buffer("shift", torch.rand(6, 1, 1))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 6, bias=False)
        self.head.weight = nn.Parameter(torch.rand(6, 6))
        self.tail = nn.Linear(6, 6, bias=False)
        self.tail.weight = self.head.weight
        self.act = F.hardswish
        self.order = [1, 0, 2]
        self.names = {"x": 2}

    def forward(self, x: Tensor, twice: bool = True) -> Any:
        y = self.a(x)
        kept = y
        self.relu(y)
        for i in self.order:
            y = y + self.b[i](y)
        y += kept
        kept.mul_(0.5)
        n, c = y.shape[:2]
        n += 0
        left, right = y.chunk(self.names["x"], dim=1)
        z = torch.cat([right, left], 1) * self.scale - self.shift
        if twice:
            z = self.act(z)
        z = z.view(n, c, -1).permute(0, 2, 1)[:, ::2]
        w = self.head.weight.t()
        return {"out": self.tail(z), "list": [kept, F.linear(z, w)], "size": z.size(1)}


def test_everything_at_once(tmp_path: Path) -> None:
    model = Everything()
    loaded = check(model, tmp_path, X)
    assert loaded.head.weight is loaded.tail.weight
    assert loaded.get_submodule("b.0") is loaded.get_submodule("b.2")
    with pytest.raises(TypeError):
        loaded(X, False)  # an argument with a default is not there
    check(copy.deepcopy(loaded), tmp_path, torch.rand(1, 3, 5, 7))
    secateur.save(loaded, tmp_path / "g")
    assert torch.equal(secateur.load(tmp_path / "g")(X)["out"], model(X)["out"])


def test_it_can_be_trained_on(tmp_path: Path) -> None:
    model = net()
    secateur.prune(model, secateur.MeanStd(sparsity=0.5))
    loaded = again(model, tmp_path).train()
    layer = loaded.get_submodule("0")
    zero = layer.weight == 0
    optimizer = torch.optim.SGD(loaded.parameters(), 0.1)
    loaded(X).square().sum().backward()
    optimizer.step()
    assert bool((layer.weight[zero] == 0).all())
    assert not torch.equal(layer.weight, model[0].weight)


def test_what_comes_back_is_a_model_as_any_other(tmp_path: Path) -> None:
    model = net()
    loaded = again(model, tmp_path)
    assert torch.equal(pickle.loads(pickle.dumps(loaded))(X), model(X))
    q = secateur.quantize(loaded, [X], progress=False)
    assert torch.equal(again(q, tmp_path)(X), q(X))
    secateur.prune(loaded, secateur.MeanStd(sparsity=0.5))
    assert secateur.sparsity(loaded).sparsity == pytest.approx(0.5, abs=0.05)
    assert torch.allclose(secateur.convert(loaded, X)(X), loaded(X), atol=1e-5)
    with torch.no_grad():
        scripted = torch.export.export(again(model, tmp_path), (X,)).module()
    assert torch.allclose(scripted(X), model(X), atol=1e-6)


# ---- what cannot ----


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.count = 0
        self.cache: list[Any] = []
        self.kept: Any = None
        self.constant = torch.ones(8)
        self.register_buffer("hidden", torch.ones(8), persistent=False)
        self.register_buffer("steps", torch.zeros(8))


SHARED: dict[str, Any] = {}
GRID = torch.ones(8)


def forward(name: str) -> Callable[[Any, Tensor], Any]:
    return FORWARDS[name]


def _counts(self: Any, x: Tensor) -> Any:
    self.count += 1
    return self.fc(x) * self.count


def _keeps(self: Any, x: Tensor) -> Any:
    self.kept = self.fc(x)
    return self.kept


def _caches(self: Any, x: Tensor) -> Any:
    self.cache.append(x)
    return self.fc(x)


def _streams(self: Any, x: Tensor) -> Any:
    self.steps = self.steps + 1
    return self.fc(x) + self.steps


def _asks_type(self: Any, x: Any) -> Any:
    return self.fc(x) if isinstance(x, Tensor) else x


def _asks_tensor(self: Any, x: Any) -> Any:
    return self.fc(x) if torch.is_tensor(x) else x


def _asks_kind(self: Any, x: Any) -> Any:
    return self.fc(x) if type(x) is Tensor else x


def _branches(self: Any, x: Tensor) -> Any:
    return self.fc(x) if x.sum() > 0 else x


def _asks_size(self: Any, x: Tensor) -> Any:
    return self.fc(x) if x.shape[0] > 1 else x


def _catches(self: Any, x: Tensor) -> Any:
    try:
        n = int(x.sum())
    except Exception:
        n = 0
    return self.fc(x) + n


def _no_grad(self: Any, x: Tensor) -> Any:
    with torch.no_grad():
        return self.fc(x)


@torch.no_grad()
def _decorated(self: Any, x: Tensor) -> Any:
    return self.fc(x)


def _grad_mode(self: Any, x: Tensor) -> Any:
    return self.fc(x) if torch.is_grad_enabled() else x


def _random(self: Any, x: Tensor) -> Any:
    return self.fc(x) if random.random() < 0.5 else x


def _noise(self: Any, x: Tensor) -> Any:
    return self.fc(x) + torch.rand(8)


def _global(self: Any, x: Tensor) -> Any:
    SHARED["x"] = self.fc(x)
    return x


def _global_tensor(self: Any, x: Tensor) -> Any:
    return self.fc(x) + GRID


def _constant(self: Any, x: Tensor) -> Any:
    return self.fc(x) + self.constant


def _not_saved(self: Any, x: Tensor) -> Any:
    return self.fc(x) + self.hidden


def _unknown(self: Any, x: Tensor) -> Any:
    return torch.linalg.norm(self.fc(x))


def _assigns(self: Any, x: Tensor) -> Any:
    y = self.fc(x)
    y[0] = 0
    return y


def _any_number(self: Any, *args: Tensor) -> Any:
    return self.fc(args[0])


def _hides(self: Any, x: Tensor) -> Any:
    return self.fc(x) if hasattr(x, "mask") else x


def _default(self: Any, x: Tensor, seen: list[Any] = []) -> Any:  # noqa: B006
    seen.append(x)
    return self.fc(x)


def _power(self: Any, x: Tensor) -> Any:
    return (-2) ** self.fc(x)


FORWARDS: dict[str, Callable[..., Any]] = {
    name[1:]: value for name, value in list(globals().items())
    if name.startswith("_") and getattr(value, "__module__", "") == __name__ and callable(value)
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARDS)
def test_what_cannot_be_followed_is_not_written(tmp_path: Path, name: str) -> None:
    model = type("Net", (One,), {"forward": FORWARDS[name]})()
    before = copy.deepcopy({k: v for k, v in vars(model).items() if not k.startswith("_")})
    state = random.getstate()
    assert why_not(model)
    assert random.getstate() == state
    assert {k: v for k, v in vars(model).items() if not k.startswith("_")}.keys() == before.keys()
    assert (model.count, model.cache, model.kept) == (0, [], None)
    assert not SHARED
    secateur.save(model, tmp_path / "f")
    with pytest.raises(Error, match=r"does not say what its model computes.*secateur.load\(path, model\)"):
        secateur.load(tmp_path / "f")
    secateur.load(tmp_path / "f", type(model)())


def test_hooks_and_replaced_parts_are_not_written() -> None:
    model = net()
    handle = model[0].register_forward_hook(lambda module, args, out: out + 1)
    assert "hooks" in why_not(model)
    handle.remove()
    handle = model.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    assert "hooks" in why_not(model)
    handle.remove()
    model[2].forward = lambda x: x  # type: ignore[method-assign]
    assert "replaced" in why_not(model)
    del model[2].forward
    torch.nn.utils.parametrizations.weight_norm(model[0])
    assert why_not(model)
    model = net()
    model[0].padding = (0, 0)  # a plain number, which the file says
    assert why_not(model) == ""
    model[0].padding_mode = "reflect"  # its other half, made when it was constructed, does not fit
    assert "_reversed_padding" in why_not(model)


def test_a_layer_with_a_forward_of_its_own_is_followed_not_taken_for_its_class(tmp_path: Path) -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * 2, self.bias)

    check(nn.Sequential(Scaled(8, 4), nn.ReLU()), tmp_path, X)


def test_an_overridden_train_or_call_is_not_written() -> None:
    class Trains(nn.Sequential):
        def train(self, mode: bool = True) -> Any:
            return super().train(mode)

    class Calls(nn.Sequential):
        def __call__(self, x: Tensor) -> Any:
            return super().__call__(x) * 2

    assert "train" in why_not(Trains(nn.ReLU()))
    assert "__call__" in why_not(Calls(nn.ReLU()))
    assert "__call__" in why_not(nn.Sequential(Calls(nn.ReLU())))


def test_saving_leaves_the_model_and_the_thread_alone(tmp_path: Path) -> None:
    model = Everything().train()
    versions = [p._version for p in (*model.parameters(), *model.buffers())]
    kinds_before = [type(module) for module in model.modules()]
    attributes = {name: id(value) for name, value in vars(model).items()}
    calls: list[str] = []

    def profiler(frame: Any, event: str, argument: Any) -> None:
        calls.append(event)

    rng = torch.get_rng_state()
    sys.setprofile(profiler)
    try:
        secateur.save(model, tmp_path / "f")
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [p._version for p in (*model.parameters(), *model.buffers())] == versions
    assert [type(module) for module in model.modules()] == kinds_before
    assert {name: id(value) for name, value in vars(model).items()} == attributes
    assert all(module.training for module in model.modules())
    assert not any(thread.name == "secateur.save" for thread in threading.enumerate())
    assert torch.equal(secateur.load(tmp_path / "f")(X)["out"], model.eval()(X)["out"])


def test_the_tables_are_closed() -> None:
    assert len(kinds.BY_WORD) == len(kinds.BY_TYPE) == len(kinds.TABLE)
    assert all(words.FUNCTIONS[word] is function for function, word in words.WORDS.items())
    assert all(hasattr(Tensor, name) for name in words.METHODS)
    assert "eval" not in {word.rpartition(".")[2] for word in words.FUNCTIONS}


def test_the_path_comes_first(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"the path comes first, then the model: secateur.load\(path, model\)"):
        secateur.load(net(), tmp_path / "f")  # type: ignore[arg-type]
