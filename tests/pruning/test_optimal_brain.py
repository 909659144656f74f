"""OptimalBrain and restore on whole networks: solutions that are known, odd layers, mistakes, interrupts."""

from __future__ import annotations

import copy
import signal
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import secateur
import torch
from secateur import CubicSchedule, Error, GradualPruner, Magnitude, MeanStd, OptimalBrain, masks
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(seed: int = 0, n: int = 32) -> Tensor:
    """Channels that say much the same, so that survivors can make up for what goes; a mean that is not 0."""
    common = normal(n, 1, 8, 8, seed=seed)
    return common + 0.3 * normal(n, 4, 8, 8, seed=seed + 9) + 0.5


BATCHES = [images(seed, 128) for seed in range(4)]


def net(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2, bias=not norm), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(),
        nn.Conv2d(8, 12, 3, bias=not norm), nn.BatchNorm2d(12) if norm else nn.Identity(), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(192, 6),
    )  # fmt: skip
    if norm:
        with torch.no_grad():
            for layer in (model[1], model[4]):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.uniform_(-0.5, 0.5)
        secateur.recalibrate(model, BATCHES, progress=False)
    return model.eval()


def error(model: nn.Module, dense: nn.Module, seed: int = 20) -> float:
    """Of the output on images that were not seen, as a share of the output's variance."""
    x = images(seed, 64)
    with torch.no_grad():
        ours, theirs = model(x), dense(x)
    return float((ours - theirs).square().mean() / theirs.var())


def quiet(*args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return secateur.prune(*args, progress=False, **kwargs)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[key], value) for key, value in before.items())


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("pattern", ["1x1", "1x4", "neuron"])
def test_far_less_is_lost_than_by_magnitude(norm: bool, pattern: str) -> None:
    dense = net(norm)
    lost = {}
    for rule in (Magnitude(0.6), Magnitude(0.6, "global"), OptimalBrain(0.6), OptimalBrain(0.6, "global")):
        model = copy.deepcopy(dense)
        report = quiet(model, rule, data=BATCHES, pattern=pattern)
        assert report.sparsity == pytest.approx(0.6, abs=0.05 if pattern != "neuron" else 0.1)
        secateur.recalibrate(model, BATCHES, progress=False)
        lost[repr(rule)] = error(model, dense)
    best = min(lost["OptimalBrain(sparsity=0.6)"], lost["OptimalBrain(sparsity=0.6, scope='global')"])
    plain = min(lost["Magnitude(sparsity=0.6)"], lost["Magnitude(sparsity=0.6, scope='global')"])
    assert best < (0.5 if pattern != "neuron" else 0.9) * plain, lost


def runs_of(layer: nn.Module, run: int) -> tuple[Tensor, ...]:
    return (layer.weight != 0).reshape(*layer.weight.shape[:2], -1).split(run, 1)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:5"])
def test_runs_lose_less_than_by_magnitude_and_restore(norm: bool, pattern: str) -> None:
    keep, run = map(int, pattern.split(":"))
    dense = net(norm)
    model, plain = copy.deepcopy(dense), copy.deepcopy(dense)
    report = quiet(model, OptimalBrain(1 - keep / run), data=BATCHES, pattern=pattern, exclude=["0"])
    quiet(plain, Magnitude(1 - keep / run), pattern=pattern, exclude=["0"])
    secateur.restore(plain, dense, BATCHES, progress=False)
    assert secateur.verify(model, pattern, exclude=["0"]).holds
    for layer in (model[3], model[7]):
        for part in runs_of(layer, run):
            assert (part.sum(1) == min(keep, part.shape[1])).all()
    assert {row["pattern"] for row in report} == {pattern}
    secateur.recalibrate(model, BATCHES, progress=False)
    assert error(model, dense) < error(plain, dense)


def test_runs_grow_from_zeros_that_are_there_and_step_by_step() -> None:
    model = net(False)
    quiet(model, Magnitude(0.3))
    gone = [model[i].weight == 0 for i in (0, 3, 7)]
    pruner = GradualPruner(model, OptimalBrain(0.5), CubicSchedule(0.5, end=3), data=BATCHES, pattern="2:4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(4):
            pruner.step()
    assert secateur.verify(model, "2:4").holds
    for i, before in zip((0, 3, 7), gone, strict=True):
        assert (model[i].weight[before] == 0).all()
        for lives, stays in zip(
            (~before).reshape(*before.shape[:2], -1).split(4, 1), runs_of(model[i], 4), strict=True
        ):
            assert (stays.sum(1) == lives.sum(1).clamp(max=2)).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: (nn.Conv2d(8, 6, 3, groups=2), normal(64, 8, 6, 6)),
        lambda: (nn.ConvTranspose2d(8, 6, 2, groups=2), normal(64, 8, 6, 6)),
        lambda: (nn.Conv1d(10, 6, 3), normal(64, 10, 6)),
        lambda: (nn.LSTM(8, 6), normal(16, 20, 8)),
        lambda: (nn.Linear(8, 6, dtype=torch.float64), normal(200, 8).double()),
        lambda: (nn.Linear(2, 6), normal(200, 2)),
    ],
    ids=["grouped", "transposed", "conv1d", "lstm", "double", "narrow"],
)
def test_runs_in_layers_of_all_kinds(make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    layer, x = make()
    quiet(layer, OptimalBrain(0.5), data=[x], pattern="2:4")
    assert secateur.verify(layer, "2:4").holds
    quiet(layer, OptimalBrain(0.75), data=[x], pattern="1:4")
    assert secateur.verify(layer, "1:4").holds


@pytest.mark.parametrize("pattern", ["1x1", "2:4"])
def test_one_layer_is_what_least_squares_finds(pattern: str) -> None:
    """The bias too: weights and bias of a Linear by torch.linalg.lstsq on its survivors."""
    torch.manual_seed(0)
    mixed = torch.eye(12) + 0.2 * normal(12, 12)
    x = [normal(200, 12, seed=seed) @ mixed + 1 for seed in range(2)]
    layer = nn.Linear(12, 5)
    dense = copy.deepcopy(layer)
    quiet(layer, OptimalBrain(0.5), data=x, pattern=pattern)
    assert pattern == "1x1" or secateur.verify(layer, pattern).holds
    whole = torch.cat(x).double()
    for j in range(5):
        s = layer.weight[j] != 0
        design = torch.cat([whole[:, s], torch.ones(400, 1, dtype=torch.float64)], 1)
        target = whole @ dense.weight[j].detach().double() + dense.bias[j].item()
        best = torch.linalg.lstsq(design, target[:, None]).solution[:, 0]
        found = torch.cat([layer.weight[j][s], layer.bias[j : j + 1]]).detach().double()
        residual = [(design @ each - target).square().mean().item() for each in (found, best)]
        assert residual[0] < 1.02 * residual[1]  # damped by 1 %
    assert (layer.weight == 0).float().mean() == 0.5


def test_batch_norm_statistics_on_the_way_are_written() -> None:
    dense, model = net(), net()
    report = quiet(model, OptimalBrain(0.7), data=BATCHES, exclude=["0"])
    assert torch.equal(model[1].running_mean, dense[1].running_mean)  # before every pruned layer
    assert not torch.equal(model[4].running_var, dense[4].running_var)
    assert "the statistics of 1 BatchNorm layers were taken again" in str(report)
    fresh = copy.deepcopy(model)
    secateur.recalibrate(fresh, BATCHES, progress=False)
    torch.testing.assert_close(model[4].running_var, fresh[4].running_var, rtol=0.05, atol=1e-3)


def test_layers_see_what_the_pruned_ones_before_them_give() -> None:
    """The last layer, solved by hand on the inputs that the finished network gives it."""
    dense, model = net(False), net(False)
    quiet(model, OptimalBrain(0.7), data=BATCHES)
    x = torch.cat(BATCHES)
    with torch.no_grad():
        before, now, target = dense[:7](x).double(), model[:7](x).double(), dense(x).double()
    last = model[7]
    for j in range(6):
        s = last.weight[j] != 0
        mean, aim = now[:, s].mean(0), target[:, j] - target[:, j].mean()
        best = torch.linalg.lstsq(now[:, s] - mean, aim[:, None]).solution[:, 0]
        ours = ((now[:, s] - mean) @ last.weight[j][s].detach().double() - aim).square().sum()
        assert ours < 1.1 * ((now[:, s] - mean) @ best - aim).square().sum() + 1e-9
    assert not torch.allclose(before, now)


def test_it_is_the_same_twice_under_one_and_many_iterables() -> None:
    made = []
    for data in (BATCHES, iter(BATCHES), [(batch, 3) for batch in BATCHES]):
        model = net()
        quiet(model, OptimalBrain(0.8, "global", seed=5), data=data)
        made.append(snapshot(model))
    for other in made[1:]:
        assert all(torch.equal(other[key], value) for key, value in made[0].items())


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sample_of_the_positions_will_do(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.calibration.hessian.POSITIONS", 600)
    dense, model = net(), net()
    quiet(model, OptimalBrain(0.6, seed=seed), data=BATCHES)
    whole = net()
    quiet(whole, Magnitude(0.6))
    secateur.recalibrate(whole, BATCHES, progress=False)
    assert error(model, dense) < error(whole, dense)


def test_masks_grow_and_hold() -> None:
    model = net()
    quiet(model, MeanStd(sparsity=0.4))
    gone = [model[i].weight == 0 for i in (0, 3, 7)]
    report = quiet(model, OptimalBrain(0.7), data=BATCHES)
    for i, before in zip((0, 3, 7), gone, strict=True):
        assert (model[i].weight[before] == 0).all()
        assert masks.get_mask(model[i], "weight") is not None
    assert report.sparsity == pytest.approx(0.7, abs=0.01)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(BATCHES[0]).square().sum().backward()
    zeros = [model[i].weight == 0 for i in (0, 3, 7)]
    optimizer.step()
    assert all((model[i].weight[z] == 0).all() for i, z in zip((0, 3, 7), zeros, strict=True))


def test_other_rules_beside_it_are_seen() -> None:
    dense, model = net(False), net(False)
    report = quiet(
        model, OptimalBrain(0.5), data=BATCHES, overrides={"0": Magnitude(0.5), "7": (OptimalBrain(0.8), "1x4")}
    )
    assert report["0"]["criterion"] == "Magnitude(sparsity=0.5)"
    assert report["7"]["pattern"] == "1x4"
    alone = copy.deepcopy(dense)
    quiet(alone, Magnitude(0.5))
    assert torch.equal(model[0].weight, alone[0].weight)
    assert not torch.equal(model[3].weight[model[3].weight != 0], dense[3].weight[model[3].weight != 0])


def test_gradual_pruning_takes_it() -> None:
    model = net(False)
    pruner = GradualPruner(model, OptimalBrain(0.6, "global"), CubicSchedule(0.6, end=2), data=BATCHES)
    reached = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            pruner.step()
            reached.append(secateur.sparsity(model).sparsity)
    assert reached == sorted(reached)
    assert reached[-1] == pytest.approx(0.6, abs=0.01)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.out(torch.relu(self.a(left) + self.b(right)))  # type: ignore[no-any-return]


def test_networks_of_several_inputs() -> None:
    torch.manual_seed(0)
    first = TwoInputs()
    second = copy.deepcopy(first)
    pairs = [(normal(40, 6, seed=s), normal(40, 4, seed=s + 5)) for s in range(2)]
    quiet(first, OptimalBrain(0.5), data=pairs, inputs=2)
    quiet(second, OptimalBrain(0.5), data=[{"right": b, "left": a} for a, b in pairs])
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(Error, match=r"prune: data must be what the model takes, got float32 \[40, 6\]: TypeError"):
        quiet(TwoInputs(), OptimalBrain(0.5), data=pairs)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.b(torch.relu(self.a(x)))))  # type: ignore[no-any-return]


class Sequence(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.rnn, self.out = kind(6, 8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])  # type: ignore[no-any-return]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attention(x, x, x, need_weights=False)[0])  # type: ignore[no-any-return]


#: Networks, an input, and what is excluded.
ODD: dict[str, tuple[Callable[[], nn.Module], Tensor, list[str]]] = {
    "tied": (Tied, normal(64, 8), []),
    "lstm": (lambda: Sequence(nn.LSTM), normal(8, 10, 6), []),
    "gru": (lambda: Sequence(nn.GRU), normal(8, 10, 6), []),
    "attention": (Attention, normal(8, 10, 8), ["attention.out_proj"]),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 8, 3, 2, groups=2), nn.ReLU(), nn.Conv2d(8, 3, 3)),
        images(),
        [],
    ),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 3, 1)), images(), []),
    "1d": (lambda: nn.Sequential(nn.Conv1d(4, 8, 5, dilation=2), nn.ReLU(), nn.Conv1d(8, 3, 3)), normal(8, 4, 30), []),
    "double": (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double(), normal(64, 8).double(), []),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_layers_of_all_kinds(name: str, scope: Any) -> None:
    make, x, exclude = ODD[name]
    torch.manual_seed(0)
    model = make().eval()
    dense, plain = copy.deepcopy(model), copy.deepcopy(model)
    report = quiet(model, OptimalBrain(0.4, scope), data=[x], exclude=exclude)
    quiet(plain, Magnitude(0.4, scope), exclude=exclude)
    assert report.sparsity == pytest.approx(0.4, abs=0.03)
    with torch.no_grad():
        ours, theirs, simple = model(x), dense(x), plain(x)
    assert (ours - theirs).square().mean() < 1.01 * (simple - theirs).square().mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type(dtype: torch.dtype) -> None:
    model = net(False).to(dtype)
    quiet(model, OptimalBrain(0.6), data=[batch.to(dtype) for batch in BATCHES])
    assert model[0].weight.dtype == dtype
    assert all(torch.isfinite(p).all() for p in model.parameters())
    dense = net(False)
    assert error(model.float(), dense) < 0.5


@pytest.mark.parametrize("kind", ["one image", "constant", "dead channels", "zeros"])
def test_little_data_is_enough(kind: str) -> None:
    """H is singular: damping leaves magnitudes to decide."""
    data = {
        "one image": [BATCHES[0][:1]],
        "constant": [torch.ones(2, 4, 8, 8)],
        "dead channels": [torch.cat([torch.zeros(128, 2, 8, 8), BATCHES[0][:, 2:]], 1)],
        "zeros": [torch.zeros(2, 4, 8, 8)],
    }[kind]
    model = net(False)
    report = quiet(model, OptimalBrain(0.6, "global"), data=data)
    assert report.sparsity == pytest.approx(0.6, abs=0.01)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_nothing_and_everything(share: float, scope: Any) -> None:
    dense, model = net(False), net(False)
    report = quiet(model, OptimalBrain(share, scope), data=BATCHES)
    assert report.sparsity == pytest.approx(share)
    if share == 0:
        assert error(model, dense) < 1e-6
    else:  # the biases give the mean output
        with torch.no_grad():
            torch.testing.assert_close(model(BATCHES[0])[0], dense(torch.cat(BATCHES)).mean(0), rtol=1e-3, atol=1e-3)


def test_masks_of_torchs_own_pruning_are_taken_over() -> None:
    model = net(False)
    torch_prune.l1_unstructured(model[3], "weight", 0.3)
    gone = model[3].weight == 0
    quiet(model, OptimalBrain(0.6), data=BATCHES)
    assert (model[3].weight[gone] == 0).all()
    assert not hasattr(model[3], "weight_orig")


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "data", "message"),
    [
        (
            net,
            None,
            r"prune: data must be batches of inputs for OptimalBrain\(sparsity=0.5\), which needs the second moments",
        ),
        (net, [], "prune: data must hold at least one batch, got none"),
        (net, iter(()), "prune: data must hold at least one batch, got none"),
        (
            net,
            [BATCHES[0], BATCHES[0] * torch.nan],
            "prune: data: a batch must hold finite numbers, got NaN or Inf in batch 1",
        ),
        (net, [normal(2, 3, 8, 8)], r"prune: data must be what the model takes, got float32 \[2, 3, 8, 8\]"),
        (
            net,
            [BATCHES[0], normal(2, 3, 8, 8)],
            "prune: data must be what the model takes: RuntimeError",
        ),
        (
            Idle,
            [normal(8, 4)],
            r"prune: data must reach idle, but the model never calls it with an input \(exclude it\)",
        ),
        (lambda: nn.LSTM(4, 4, proj_size=2), [normal(3, 2, 4)], "with projections"),
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.Softplus(1e-38), nn.Linear(4, 4)),
            [normal(8, 4) * 1e38],
            "NaN or Inf",
        ),
    ],
)
def test_mistakes_change_nothing(make: Callable[[], nn.Module], data: Any, message: str) -> None:
    model = make()
    before = snapshot(model)
    with pytest.raises(Error, match=message):
        secateur.prune(model, OptimalBrain(0.5), data=data, progress=False)
    assert same(model, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimalBrain(-0.1), "OptimalBrain: sparsity must be a number from 0 to 1, got -0.1"),
        (lambda: OptimalBrain(0.5, "row"), "OptimalBrain: scope must be 'layer' or 'global', got 'row'"),  # type: ignore[arg-type]
        (lambda: OptimalBrain(0.5, seed=1.5), "OptimalBrain: seed must be an int, got 1.5"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(Error, match=message):
        make()


@pytest.mark.parametrize("call", ["prune", "restore"])
def test_an_interrupt_changes_nothing_and_hooks_do_not_fire(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, dense = net(), net()
    if call == "restore":
        quiet(model, Magnitude(0.5))
    fired: list[int] = []
    model[0].register_forward_hook(lambda *_: fired.append(1))
    model.train()
    before, flags, generator = snapshot(model), [m.training for m in model.modules()], torch.get_rng_state()
    import secateur.reconstruction.survivors as survivors

    calls, real = [0], survivors.factored

    def interrupting(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    def prune_or_restore() -> None:
        if call == "prune":
            secateur.prune(model, OptimalBrain(0.5, "global"), data=BATCHES, progress=False)
        else:
            secateur.restore(model, dense, BATCHES, progress=False)

    held = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(survivors, "factored", interrupting)
        with pytest.raises(KeyboardInterrupt):
            prune_or_restore()
    finally:
        signal.signal(signal.SIGINT, held)
    assert same(model, before)
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.is_grad_enabled()
    assert not fired


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("zeros", ["masked", "exact", "torch's"])
def test_restore_brings_back_what_survivors_can(norm: bool, zeros: str) -> None:
    dense, model = net(norm), net(norm)
    if zeros == "torch's":
        for i in (0, 3, 7):
            torch_prune.l1_unstructured(model[i], "weight", 0.6)
    else:
        secateur.prune(model, MeanStd(sparsity=0.6))
    if zeros == "exact":
        secateur.strip(model)
    gone = [model[i].weight == 0 for i in (0, 3, 7)]
    kept, keys = snapshot(dense), set(model.state_dict())
    plain = net(norm)
    secateur.prune(plain, MeanStd(sparsity=0.6))
    secateur.recalibrate(plain, BATCHES, dense, progress=False)
    report = secateur.restore(model, dense, iter(BATCHES), progress=False)
    with torch.no_grad():
        model(BATCHES[0])  # torch's pruning makes its weights here
    assert all(torch.equal(model[i].weight == 0, g) for i, g in zip((0, 3, 7), gone, strict=True))
    assert set(model.state_dict()) == keys
    assert same(dense, kept)
    assert [row["layer"] for row in report] == ["0", "3", "7"]
    assert all(row["error_after"] < row["error_before"] for row in report)
    assert error(model, dense) < 0.5 * error(plain, dense)
    assert "recalibrate set" in str(report)


def test_restore_leaves_layers_without_zeros() -> None:
    dense, model = net(), net()
    secateur.prune(model, Magnitude(0.5), exclude=["0"])
    secateur.restore(model, dense, BATCHES, progress=False)
    assert torch.equal(model[0].weight, dense[0].weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, d: (net(), d, BATCHES), "restore: model must have a layer with zeros that can be solved, got none"),
        (
            lambda m, d: (m, nn.Linear(4, 4), BATCHES),
            r"restore: dense must have model's layers, 0.weight \[8, 2, 3, 3\], got",
        ),
        (lambda m, d: (m, 3, BATCHES), "restore: dense must be a torch.nn.Module, got int"),
        (lambda m, d: (3, d, BATCHES), "restore: model must be a torch.nn.Module, got int"),
        (lambda m, d: (m, d, []), "restore: batches must hold at least one batch, got none"),
        (lambda m, d: (m, d, [BATCHES[0] * torch.inf]), "restore: batches: a batch must hold finite numbers"),
    ],
)
def test_restores_mistakes_change_nothing(change: Callable[..., Any], message: str) -> None:
    model, dense = net(), net()
    secateur.prune(model, Magnitude(0.5))
    before = snapshot(model)
    with pytest.raises(Error, match=message):
        secateur.restore(*change(model, dense), progress=False)
    assert same(model, before)


@pytest.mark.parametrize("pattern", ["1x1", "1x4", "neuron"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_wide_layers_are_solved_in_parts(pattern: str, scope: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.pruning.inputs.WIDEST", 64)  # the Linear has 192 inputs
    dense, model, plain = net(False), net(False), net(False)
    report = quiet(model, OptimalBrain(0.5, scope), data=BATCHES, pattern=pattern)
    assert "7 is solved in 3 parts of its 192 inputs (H in diagonal blocks)" in str(report)
    quiet(plain, Magnitude(0.5, scope), pattern=pattern)
    assert report.sparsity == pytest.approx(0.5, abs=0.08)
    assert error(model, dense) < error(plain, dense)
    if pattern == "neuron":
        w = model[7].weight != 0
        assert torch.equal(w.all(1), w.any(1))
    secateur.restore(plain, dense, BATCHES, progress=False)
    assert error(plain, dense) < 1


def test_parts_of_wide_layers_cut_no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.pruning.inputs.WIDEST", 80)
    torch.manual_seed(0)
    for channels, pattern, parts in ((192, "2:4", 3), (180, "3:5", 3), (252, "4:9", 4)):
        layer = nn.Linear(channels, 6)
        keep, run = map(int, pattern.split(":"))
        report = quiet(layer, OptimalBrain(1 - keep / run), data=[normal(400, channels)], pattern=pattern)
        assert f"solved in {parts} parts" in str(report)
        assert secateur.verify(layer, pattern).holds
    layer = nn.Linear(128, 6)
    before = snapshot(layer)
    with pytest.raises(Error, match="pattern must have runs that 2 equal parts of 128 input channels do not cut"):
        quiet(layer, OptimalBrain(0.4), data=[normal(400, 128)], pattern="3:5")
    assert same(layer, before)
