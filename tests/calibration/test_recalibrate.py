"""recalibrate: statistics as torch would take them, moments as the dense network has them, and nothing else."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from typing import Any

import pytest
import secateur
import torch
from secateur import Error, Magnitude, masks
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BATCHES = [normal(16, 3, 8, 8, seed=seed) * 2 + 1 for seed in range(3)]


def net(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=not norm), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(6, 8, 3, bias=not norm), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "values": {key: value.clone() for key, value in model.state_dict().items()},
        "flags": [(m.training, len(m._forward_hooks)) for m in model.modules()],
        "momentum": [getattr(m, "momentum", None) for m in model.modules()],
        "wants": [p.requires_grad for p in model.parameters()],
        "random": torch.get_rng_state(),
    }


def assert_same(a: dict[str, Any], b: dict[str, Any], but: tuple[str, ...] = ()) -> None:
    assert a["values"].keys() == b["values"].keys()
    for key, value in a["values"].items():
        if not key.endswith(but or ("nothing",)):
            assert torch.equal(value, b["values"][key]), key
    assert (a["flags"], a["momentum"], a["wants"]) == (b["flags"], b["momentum"], b["wants"])
    assert torch.equal(a["random"], b["random"])


@pytest.mark.parametrize("kind", ["list", "generator", "pairs", "dicts"])
def test_statistics_are_torchs_cumulative_average(kind: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, image: Tensor, other: Tensor | None = None) -> Tensor:
            return self.inner(image if other is None else image + other)  # type: ignore[no-any-return]

    model, expected = Named(), net()
    secateur.prune(model, Magnitude(0.5))
    secateur.prune(expected, Magnitude(0.5))
    model.inner[1].eval()
    before = state(model)
    given: dict[str, tuple[Any, int]] = {
        "list": (BATCHES, 1),
        "generator": ((batch for batch in BATCHES), 1),
        "pairs": ([(batch, torch.zeros_like(batch)) for batch in BATCHES], 2),
        "dicts": ([{"image": batch, "other": torch.zeros_like(batch)} for batch in BATCHES], 1),
    }
    batches, inputs = given[kind]
    fired: list[int] = []
    model.inner[0].register_forward_hook(lambda *_: fired.append(1))
    before["flags"] = state(model)["flags"]
    report = secateur.recalibrate(model, batches, inputs=inputs)
    assert not fired
    assert_same(before, state(model), ("running_mean", "running_var", "num_batches_tracked"))
    expected.eval()
    for layer in (expected[1], expected[5]):
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    with torch.no_grad():
        for batch in BATCHES:
            expected(batch)
    for a, b in ((model.inner[1], expected[1]), (model.inner[5], expected[5])):
        torch.testing.assert_close(a.running_mean, b.running_mean)
        torch.testing.assert_close(a.running_var, b.running_var)
        assert a.num_batches_tracked == 3
    assert [row["layer"] for row in report] == ["inner.1", "inner.5"]
    assert report["inner.1"]["set"] == "statistics"
    assert report["inner.1"]["mean_shift"] > 0
    assert masks.get_mask(model.inner[0], "weight") is not None
    assert (model.inner[0].weight == 0).float().mean() == 0.5


def test_moments_are_those_of_the_dense_network() -> None:
    dense, model = net(norm=False).eval(), net(norm=False).eval()
    secateur.prune(model, Magnitude(0.6))
    zeros = [model[i].weight == 0 for i in (0, 4, 9)]
    kept = state(dense)
    report = secateur.recalibrate(model, (batch for batch in BATCHES), dense)
    assert_same(kept, state(dense))
    x = torch.cat(BATCHES)
    with torch.no_grad():
        for i in (0, 4, 9):
            ours, theirs = model[: i + 1](x), dense[: i + 1](x)
            dims = (0, 2, 3) if i < 9 else (0,)
            torch.testing.assert_close(ours.mean(dims), theirs.mean(dims), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(ours.std(dims), theirs.std(dims), rtol=1e-3, atol=1e-4)
    assert all((model[i].weight[z] == 0).all() for i, z in zip((0, 4, 9), zeros, strict=True))
    assert [row["set"] for row in report] == ["scale and bias"] * 3


def test_with_batch_norm_only_the_others_are_matched() -> None:
    dense, model = net().eval(), net().eval()
    secateur.prune(model, Magnitude(0.6))
    weights = [model[i].weight.clone() for i in (0, 4)]
    report = secateur.recalibrate(model, BATCHES, dense)
    assert [(row["layer"], row["set"]) for row in report] == [
        ("1", "statistics"), ("5", "statistics"), ("9", "scale and bias"),
    ]  # fmt: skip
    assert all(torch.equal(model[i].weight, w) for i, w in zip((0, 4), weights, strict=True))


def test_dead_channels_stay_constant() -> None:
    dense, model = net(norm=False).eval(), net(norm=False).eval()
    with torch.no_grad():
        model[4].weight[2] = 0
    secateur.recalibrate(model, BATCHES, dense)
    x = torch.cat(BATCHES)
    with torch.no_grad():
        torch.testing.assert_close(model[:5](x)[:, 2].mean(), dense[:5](x)[:, 2].mean(), rtol=1e-3, atol=1e-4)
    assert (model[4].weight[2] == 0).all()


def test_with_neither_nothing_changes_and_it_says_so() -> None:
    model = net(norm=False)
    before = state(model)
    report = secateur.recalibrate(model, BATCHES)
    assert_same(before, state(model))
    assert len(report) == 0
    assert "nothing changed: the model has no layer with running statistics" in str(report)


def test_a_layer_that_is_never_called_is_left() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)  # type: ignore[no-any-return]

    model = Idle()
    report = secateur.recalibrate(model, [normal(8, 4)])
    assert "idle: never called on the batches, left as they were" in str(report)
    assert (model.idle.running_var == 1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    secateur.recalibrate(model, [batch.to(dtype) for batch in BATCHES])
    assert model[1].running_mean.dtype == dtype
    assert torch.isfinite(model[1].running_mean).all()


NAN = torch.full((2, 3, 8, 8), torch.nan)


@pytest.mark.parametrize(
    ("make", "batches", "more", "message"),
    [
        (net, [], {}, "recalibrate: batches must hold at least one batch, got none"),
        (net, 3, {}, "recalibrate: batches must be an iterable of batches, got int"),
        (net, BATCHES[0], {}, r"recalibrate: batches must be an iterable of batches, got one tensor: write \[tensor\]"),
        (
            net,
            [BATCHES[0], NAN],
            {},
            "recalibrate: batches: a batch must hold finite numbers, got NaN or Inf in batch 1",
        ),
        (
            net,
            [normal(2, 5, 8, 8)],
            {},
            r"recalibrate: batches must be what the model takes, got float32 \[2, 5, 8, 8\]",
        ),
        (net, [(BATCHES[0],)], {"inputs": 2}, "a batch must hold inputs=2 arguments of the model, got 1"),
        (net, BATCHES, {"inputs": 0}, "recalibrate: inputs must be a whole number from 1 up, got 0"),
        (lambda: nn.BatchNorm1d(4), [normal(1, 4)], {}, "must hold several samples a batch"),
        (lambda: 3, BATCHES, {}, "recalibrate: model must be a torch.nn.Module, got int"),
        (net, BATCHES, {"dense": 3}, "recalibrate: dense must be a torch.nn.Module, got int"),
        (net, BATCHES, {"dense": nn.Linear(3, 3)}, "recalibrate: dense must have model's layers"),
    ],
)
def test_mistakes_change_nothing(make: Callable[[], Any], batches: Any, more: dict[str, Any], message: str) -> None:
    model = make()
    before = copy.deepcopy(model.state_dict()) if isinstance(model, nn.Module) else {}
    with pytest.raises(Error, match=message):
        secateur.recalibrate(model, batches, **more)
    for key, value in before.items():
        assert torch.equal(model.state_dict()[key], value)


def test_an_interrupt_changes_nothing() -> None:
    model = net()
    before = state(model)

    def batches() -> Any:
        yield BATCHES[0]
        signal.raise_signal(signal.SIGINT)
        yield BATCHES[1]

    held = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            secateur.recalibrate(model, batches())
    finally:
        signal.signal(signal.SIGINT, held)
    assert_same(before, state(model))
