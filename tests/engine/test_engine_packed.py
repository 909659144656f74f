"""A compiled model holds its pruned weights packed until somebody looks: nobody must be able to tell."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import secateur
import torch
from secateur.engine.packed import PackedParameters
from secateur.engine.watched import Watch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.body = nn.Conv2d(64, 64, 3, padding=1)
        self.again = self.body  # the same module twice
        self.norm = nn.BatchNorm2d(64)
        self.tied = nn.Conv2d(64, 64, 3, padding=1)
        self.tied.weight = self.body.weight
        self.head = nn.Linear(64, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.body(torch.relu(self.stem(x)))))
        return self.head(self.tied(x).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def case(one_thread: None, engine_wins: None) -> tuple[nn.Module, Any, Tensor]:
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        for layer in (model.body, model.head):
            layer.weight.mul_(torch.rand_like(layer.weight) >= 0.8)
    x = torch.randn(2, 3, 12, 13)
    return model, secateur.compile(model, x), x


def packed(fast: nn.Module) -> list[str]:
    """Names of what is packed, found without a look."""
    tables = {name: vars(m)["_parameters"] for name, m in vars(fast)["_source"].named_modules()}
    return sorted(f"{n}.{k}" for n, t in tables.items() if isinstance(t, PackedParameters) for k in t._packed)


def test_what_is_pruned_is_packed_and_looks_dense(case: Any) -> None:
    model, fast, x = case
    assert "head.weight" in packed(fast)
    with torch.no_grad():
        before = fast(x)
        expected = model(x)
    torch.testing.assert_close(before, expected, rtol=1e-4, atol=1e-5)
    ours, theirs = fast.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert packed(fast) == []  # it was looked at, and stays
    assert torch.equal(fast(x), before)


def test_shares_no_memory_with_the_model(case: Any) -> None:
    model, fast, x = case
    before, kept = fast(x), {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert torch.equal(fast(x), before)
    assert all(torch.equal(v, kept[k]) for k, v in fast.state_dict().items())
    for p in fast.parameters():
        p.data.zero_()
    assert all(float(p.detach().abs().max()) > 0.5 for p in model.parameters())


def test_tied_weights_stay_tied(case: Any) -> None:
    _, fast, _ = case
    assert fast.tied.weight is fast.body.weight
    assert fast.again is fast.body


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_hold_ordinary_tables(case: Any, how: str) -> None:
    model, fast, x = case
    names, before = packed(fast), fast(x)
    if how == "deepcopy":
        other = copy.deepcopy(fast)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(fast))
    else:
        file = io.BytesIO()
        torch.save(fast, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert packed(fast) == names  # no look was needed
    assert not any(isinstance(vars(m)["_parameters"], PackedParameters) for m in vars(other)["_source"].modules())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in other.state_dict().items())
    torch.testing.assert_close(other(x), before)


def test_what_is_written_after_a_look_lasts(case: Any) -> None:
    model, fast, x = case
    with torch.no_grad():
        fast.head.weight.mul_(2.0)
        model.head.weight.mul_(2.0)
        torch.testing.assert_close(fast.refresh()(x), model(x), rtol=1e-4, atol=1e-5)
    assert "head.weight" in packed(fast)  # again
    assert torch.equal(fast.head.weight, model.head.weight)
    state = {k: v * 0.5 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    fast.load_state_dict(state)
    model.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.double()
        torch.testing.assert_close(fast.double()(x.double()), model(x.double()))


class Told:
    def hooked(self) -> None:
        raise AssertionError("no hook was registered")


def test_the_table_is_a_dict_in_every_way() -> None:
    weight = nn.Parameter((torch.rand(80, 80) > 0.9).float() * torch.randn(80, 80), requires_grad=False)
    expected = weight.detach().clone()
    looks: dict[str, Any] = {
        "[]": lambda t: t["weight"], "get": lambda t: t.get("weight"), "values": lambda t: next(iter(t.values())),
        "items": lambda t: dict(t.items())["weight"], "dict()": lambda t: dict(t)["weight"],
        "**": lambda t: {**t}["weight"], "copy": lambda t: t.copy()["weight"], "pop": lambda t: t.pop("weight"),
        "setdefault": lambda t: t.setdefault("weight", None), "deepcopy": lambda t: copy.deepcopy(t)["weight"],
        "pickle": lambda t: pickle.loads(pickle.dumps(t))["weight"], "|": lambda t: ({} | t)["weight"],
    }  # fmt: skip
    for name, look in looks.items():
        held = {"weight": nn.Parameter(expected.clone(), requires_grad=False), "bias": None}
        table = PackedParameters(held, Watch(Told().hooked))
        del held
        table.pack("weight")
        table.pack("bias")
        table.pack("absent")
        assert list(table._packed) == ["weight"], name
        assert list(table) == ["weight", "bias"], name
        assert "weight" in table, name
        assert len(table) == 2, name
        found = look(table)
        assert isinstance(found, nn.Parameter), name
        assert torch.equal(found, expected), name
        assert found.requires_grad is False, name
    held = {"weight": nn.Parameter(expected.clone(), requires_grad=False)}
    table = PackedParameters(held, Watch(Told().hooked))
    del held
    table.pack("weight")
    table["weight"] = None
    assert table["weight"] is None
    held = nn.Parameter(expected.clone(), requires_grad=False)
    table["weight"] = held
    table.pack("weight")  # somebody holds it
    assert table["weight"] is held
    for wrong in (torch.randn(80, 80), expected.double(), expected[:40].T):
        held = {"weight": nn.Parameter(wrong, requires_grad=False)}
        table = PackedParameters(held, Watch(Told().hooked))
        table.pack("weight")  # gains nothing, or is not what the operators take
        assert not table._packed
