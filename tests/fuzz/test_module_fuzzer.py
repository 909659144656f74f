"""The fuzzer that writes modules: what it writes runs, the contract notices defects, failures shrink."""

from __future__ import annotations

import ast
import collections
import contextlib
import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from module_fuzzer import calls, findings, plants, pool, shrink, snapshot, trees
from module_fuzzer.contract import Dull, prepare
from module_fuzzer.counter import Tally
from module_fuzzer.features import FEATURES
from module_fuzzer.program import Program
from module_fuzzer.writer import write
from torch import nn

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # TorchScript is deprecated, and people have it
]


# ---- the writer ----


def test_written_modules_run_and_most_say_something() -> None:
    dull = 0
    for seed in range(40):
        with Program(write(seed).text) as program, contextlib.suppress(Dull):
            assert len(prepare(program, seed).sizes) >= 2
            continue
        dull += 1
    assert dull <= 4


def test_a_seed_is_always_the_same_module() -> None:
    assert write(7) == write(7)
    assert write(7).text != write(8).text


def test_every_feature_is_written_often_enough() -> None:
    """A hundred times in 3,000 modules, and more than that: some modules say nothing."""
    counts = collections.Counter(name for seed in range(3000) for name in write(seed).features)
    assert {name: counts[name] for name in FEATURES if counts[name] < 115} == {}


# ---- the contract ----

NET = """
import torch
import torch.nn.functional as F
from torch import nn

SEEN = []

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)
        {init}
    def forward(self, x):
        y = self.conv(x)
        {forward}

def make():
    torch.manual_seed(0)
    model = Net()
    model.eval()
    {make}
    return model

def inputs(n, h, w):
    return (torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(n + h + w)),)
"""


def script(forward: str, init: str = "pass", make: str = "pass") -> str:
    return NET.format(forward=forward.replace("\n", "\n        "), init=init, make=make)


POOLED = "return self.fc(F.relu(y).mean((2, 3)))"


def itself(model: nn.Module, example: tuple[Any, ...], more: Any = ()) -> nn.Module:
    """A call without a fault, for networks as simple as those below."""
    return copy.deepcopy(model).eval()


@pytest.fixture
def faultless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call gives a copy: whatever is found then was planted."""
    for name, call in calls.CALLS.items():
        monkeypatch.setitem(calls.CALLS, name, dataclasses.replace(call, run=itself))
    monkeypatch.setattr("module_fuzzer.contract._report_of", lambda result: [])
    monkeypatch.setattr("module_fuzzer.contract.EXTRAS", ("deepcopy",))


#: For each defect a network on which it shows.
SHOWS = {
    "trial_runs_on_the_callers_model": ("self.calls += 1\n" + POOLED, "self.calls = 0", "pass"),
    "parameters_shared": (POOLED, "pass", "model.fc.weight.data.fill_(0.5)"),
    "inplace_switched_off": ("self.relu(y)\nreturn self.fc(y.mean((2, 3))), y", "self.relu = nn.ReLU(True)", "pass"),
    "writes_into_inputs_lost": ("x.mul_(0.5)\n" + POOLED, "pass", "pass"),
    "proxy_kept": ("self.last = y\n" + POOLED, "self.last, self.kept0 = None, None", "pass"),
    "threshold_in_place": ("z = self.relu(y)\nreturn self.fc(z.mean((2, 3))), y", "self.relu = nn.ReLU()", "pass"),
    "state_of_the_trial": ("self.calls += 1\n" + POOLED.replace("y)", "y * self.calls)"), "self.calls = 0", "pass"),
    "training_mode": (POOLED, "pass", "pass"),
    "batch_one_as_two": ("return self.fc(F.adaptive_avg_pool2d(y, 1).squeeze())", "pass", "pass"),
    "hooks_dropped": (POOLED, "pass", "model.conv.register_forward_hook(lambda m, a, out: SEEN.append(out))"),
    "raw_errors": (POOLED, "self.d = nn.Linear(4, 5); self.d.weight = self.fc.weight", "pass"),
    "masks_averaged": (POOLED, "pass", "import secateur; secateur.prune(model, secateur.Magnitude(0.5))"),
}  # fmt: skip


@pytest.mark.usefixtures("faultless")
@pytest.mark.parametrize("name", plants.PLANTS)
def test_a_planted_defect_is_noticed(name: str) -> None:
    text = script(*SHOWS[name])
    where = plants.PLANTS[name][0].split()

    def found() -> list[str]:
        return [
            failure.kind for call in where for seed in range(4) for failure in findings.failures_of(text, seed, call)
        ]

    assert found() == [], "without the defect"
    with plants.planted(name):
        assert found(), name
    assert found() == [], "it is gone again"


def test_a_snapshot_sees_every_kind_of_change() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.names = ["a"]  # type: ignore[assignment]
    x = torch.randn(1, 3, 2, 2)

    def kinds(change: Callable[[], object]) -> set[str]:
        before = snapshot.Snapshot(model, (x,))
        assert list(before.changes()) == []
        change()
        return {each.what for each in before.changes()}

    assert kinds(lambda: model[0].weight.data.mul_(2)) == {"parameter"}
    assert kinds(lambda: model[0].requires_grad_(False)) == {"parameter"}
    assert kinds(lambda: model[1].running_mean.add_(1)) == {"buffer"}  # type: ignore[union-attr,operator]
    assert kinds(lambda: model.names.append("b")) == {"attribute"}  # type: ignore[union-attr,operator]
    assert kinds(lambda: setattr(model, "new", 1)) == {"attribute"}
    assert kinds(lambda: model[1].eval()) == {"training flag"}
    assert kinds(lambda: model[0].register_forward_hook(print)) == {"hooks"}
    assert kinds(lambda: torch.rand(1)) == {"random state"}
    assert kinds(lambda: x.add_(1)) == {"example"}


def test_differences_are_named() -> None:
    a = {"x": [torch.ones(2, 3), None], "n": 3}

    def what(b: Any, near: trees.Tolerance = trees.EXACT) -> str:
        found = trees.difference(a, b, near)
        return found.what if found else ""

    assert what({"x": [torch.ones(2, 3), None], "n": 3}) == ""
    assert what({"x": [torch.ones(2, 3) + 0.01, None], "n": 3}) == "value"
    assert what({"x": [torch.ones(2, 3) + 0.01, None], "n": 3}, trees.INTEGER) == ""
    assert what({"x": [torch.ones(3, 2), None], "n": 3}) == "shape"
    assert what({"x": [torch.ones(2, 3).double(), None], "n": 3}) == "dtype"
    assert what({"x": (torch.ones(2, 3), None), "n": 3}) == "structure"
    assert what({"x": [torch.ones(2, 3), None], "n": 4}) == "value"
    proxy = torch.fx.Proxy(torch.fx.Graph().placeholder("p"), torch.fx.Tracer())
    assert what({"x": [proxy, None], "n": 3}) == "proxy"


# ---- the shrinker ----


def test_a_script_shrinks_to_what_fails() -> None:
    text = script("z = y\nif x.dim() == 4:\n    F.relu_(z)\n" + POOLED)

    def fails(candidate: str) -> bool:
        return "F.relu_(" in candidate and "class Net" in candidate

    short = shrink.shrink(text, fails, 10)
    assert fails(short)
    assert len(short.splitlines()) <= 4
    ast.parse(short)


def test_what_does_not_fail_is_not_shrunk() -> None:
    assert shrink.shrink("a = 1\nb = 2", lambda text: False, 5) == "a = 1\nb = 2"


# ---- the counter, the processes ----


def test_sums() -> None:
    tally = Tally()
    line = {"features": ["chunk", "iadd", "pool"], "calls": ["compile", "convert"], "wholly_torch": True}
    failure = {"kind": "compile: value", "detail": "", "want": "", "got": ""}
    tally.add(line | {"refused": {"convert": "convert: no"}, "failures": [failure]})
    tally.add(line | {"refused": {}, "failures": []})
    tally.add({"dull": "constant"})
    text = tally.text(2.0)
    assert tally.pairs["chunk", "iadd"] == 2
    for said in (
        "2 modules",
        "1 more",
        "25.0 % of the calls",
        "50.0 % of the modules",
        "100.0 % of the comp",
        "1  compile: value",
    ):
        assert said in text


def test_a_module_that_ends_its_process_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.sys, "executable", "/bin/false")
    line = next(pool.lines(5, 1, 10.0))
    assert line["seed"] == 5
    assert line["failures"][0]["kind"] == "process: exit 1"
