"""A compiled model as a module: its weights, its copies, refresh, and calls of every kind."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import secateur
import torch
from compiling import X, assert_near, compiled, kinds, net, prune, set_clock, with_state
from secateur import Error
from secateur.engine import CompiledModel
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread", "engine_wins")


# ---- the module ----


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
    assert_near(fast(X), with_state(net(), before), X)  # it has weights of its own


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
    set_clock(monkeypatch, engine=9.0, plain=1.0)  # the choices go with it: nothing is timed again
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
    with pytest.warns(UserWarning, match="train: a compiled model stays in evaluation mode"):
        fast.train()
    assert nn.Sequential(fast, nn.Linear(2, 2)).train()[0].training is False  # said once
    with pytest.raises(Error, match="input must not require grad"):
        fast(X.clone().requires_grad_())


def test_compile_of_what_is_compiled() -> None:
    model = net()
    fast = compiled(model, X)
    again = compiled(fast, X[:1])
    assert_near(again(X), model, X)
    assert "compiled from Sequential" in repr(again)
