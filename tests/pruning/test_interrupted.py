"""Ctrl-C in prune: a model is pruned whole or not at all, and never zeroed without its mask."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import pytest
import secateur
import torch
from secateur import CubicSchedule, GradualPruner, Magnitude, MeanStd, masks
from torch import nn
from torch.nn.utils import prune as torch_prune

pytestmark = pytest.mark.usefixtures("one_thread")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(20, 20) for _ in range(5)])


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


class Interrupted(Magnitude):
    """Ctrl-C while the third weight is decided."""

    calls = 0

    def decide(self, pool: Sequence[Any]) -> Any:
        type(self).calls += 1
        if type(self).calls == 3:
            interrupt()
        return super().decide(pool)


@pytest.fixture(autouse=True)
def _ctrl_c() -> Any:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    Interrupted.calls = 0
    yield
    signal.signal(signal.SIGINT, before)


def done(model: nn.Module) -> list[bool]:
    return [bool((layer.weight == 0).any()) for layer in model]  # type: ignore[attr-defined,union-attr,operator]


def masked(model: nn.Module) -> list[bool]:
    return [masks.get_mask(layer, "weight") is not None for layer in model]  # type: ignore[attr-defined,union-attr,operator]


def test_while_it_decides() -> None:
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        secateur.prune(model, Interrupted(0.5))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(masked(model))


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("criterion", [Magnitude(0.5), MeanStd(0.0)])
@pytest.mark.parametrize("where", ["attach", "zeros"])
def test_while_it_writes(monkeypatch: pytest.MonkeyPatch, criterion: Any, where: str, times: int) -> None:
    """However often the keys are pressed."""
    module: Any = masks if where == "attach" else secateur.ops
    name = "attach" if where == "attach" else ("mask_apply_" if isinstance(criterion, Magnitude) else "mask_pack")
    if where == "zeros" and isinstance(criterion, MeanStd):
        name = "statistics_threshold_"
    original, calls = getattr(module, name), [0]

    def pressed(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        calls[0] += 1
        if calls[0] in range(2, 2 + times):
            interrupt()
        return result

    monkeypatch.setattr(module, name, pressed)
    model = net()
    torch_prune.l1_unstructured(model[4], "weight", amount=0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with pytest.raises(KeyboardInterrupt):
        secateur.prune(model, criterion, optimizer=optimizer)
    assert calls[0] >= 2
    assert all(done(model))
    assert all(masked(model))


def test_a_gradual_pruning_that_was_interrupted_is_made_up_for() -> None:
    model = net()
    pruner = GradualPruner(model, Interrupted(0.5), CubicSchedule(0.5, 0.4, end=1))
    with pytest.raises(KeyboardInterrupt):
        pruner.step()
    assert not any(masked(model))
    assert pruner.step() is not None
    assert pruner.step() is not None
    assert pruner.done
    assert secateur.sparsity(model).sparsity == pytest.approx(0.5)


def test_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.masks import buffers

    original = buffers.detach

    def pressed(*args: Any) -> None:
        original(*args)
        interrupt()

    model = net()
    secateur.prune(model, Magnitude(0.5))
    monkeypatch.setattr(buffers, "detach", pressed)
    with pytest.raises(KeyboardInterrupt):
        secateur.strip(model)
    assert not any(masked(model))
