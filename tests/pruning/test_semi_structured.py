"""Patterns "N:M": which weights of a run stay, what is refused, what is said, the way there, zeros that were there."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import secateur
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from secateur import Criterion, CubicSchedule, Error, GradualPruner, Magnitude, MeanStd, Random, masks
from secateur.masks.layout import Layout
from secateur.nn import MaskedConv2d, MaskedLinear
from secateur.pruning import Decision, WeightView, drop_lowest
from secateur.pruning.criteria.patterns import SemiStructured
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def channels(layer: nn.Module) -> torch.Tensor:
    """The weight as [J, C, T], group by group, written out by hand."""
    weight = layer.weight.detach()
    if "Transpose" in type(layer).__name__:
        inputs = weight.shape[0] // layer.groups
        return torch.stack(
            [
                weight[g * inputs : (g + 1) * inputs, out].flatten(1)
                for g in range(layer.groups)
                for out in range(weight.shape[1])
            ]
        )
    return weight.reshape(*weight.shape[:2], -1)


def best(weight: torch.Tensor, keep: int, run: int) -> torch.Tensor:
    """The definition, on [J, C, T], a run at a time: the largest |w| stay, and of equal ones the later."""
    stays = torch.zeros(weight.shape, dtype=torch.bool)
    J, C, T = weight.shape
    for j in range(J):
        for t in range(T):
            for start in range(0, C, run):
                line = [abs(float(w)) for w in weight[j, start : start + run, t]]
                for i in sorted(range(len(line)), key=lambda i: (line[i], i))[-keep:]:
                    stays[j, start + i, t] = True
    return stays


def rules(pattern: SemiStructured) -> list[Criterion]:
    s = pattern.share
    return [Magnitude(s), MeanStd(sparsity=s), MeanStd(sparsity=s, of="signed"), Random(s, seed=3)]


LAYERS = {
    "linear": lambda: nn.Linear(24, 6),
    "linear, odd": lambda: nn.Linear(13, 5),
    "linear, narrow": lambda: nn.Linear(2, 5),
    "masked linear": lambda: MaskedLinear(24, 6),
    "conv1d": lambda: nn.Conv1d(8, 6, 3),
    "1x1": lambda: nn.Conv2d(10, 6, 1),
    "3x3": lambda: nn.Conv2d(8, 6, 3),
    "3x3, odd": lambda: nn.Conv2d(7, 6, 3),
    "3x3, channels_last": lambda: nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "masked 3x3": lambda: MaskedConv2d(9, 6, 3),
    "grouped": lambda: nn.Conv2d(18, 6, 3, groups=3),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6),
    "transposed, grouped": lambda: nn.ConvTranspose2d(10, 4, 2, groups=2),
    "half": lambda: nn.Linear(24, 6, dtype=torch.float16),
    "bfloat16": lambda: nn.Linear(24, 6).to(torch.bfloat16),
    "double": lambda: nn.Conv2d(8, 6, 3, dtype=torch.float64),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("text", ["2:4", "1:4", "1:2", "4:8", "3:5"])
def test_the_best_of_each_run_stay(name: str, text: str) -> None:
    keep, run = map(int, text.split(":"))
    for rule in rules(SemiStructured(keep, run)):
        layer = LAYERS[name]()
        before = copy.deepcopy(layer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # shorter runs; those of one channel lose nothing
            report = secateur.prune(layer, rule, pattern=text)
        after, dense = channels(layer), channels(before)
        for part in (after != 0).split(run, 1):  # as many as may stay do, but for weights drawn as 0
            assert torch.equal(part.sum(1), torch.full_like(part[:, 0], min(keep, part.shape[1]), dtype=torch.int64))
        assert torch.equal(after[after != 0], dense[after != 0])
        if not isinstance(rule, Random):
            assert torch.equal(after != 0, best(dense, keep, run))
        assert report[0]["pattern"] == text
        assert report[0]["zeros"] == int((after == 0).sum())
        assert report[0]["theta_mean"] is None  # there is no one threshold
        mask = masks.get_mask(layer, "weight")
        if int((after == 0).sum()):
            assert mask is not None
            assert torch.equal(secateur.ops.mask_unpack(mask, layer.weight.shape), layer.weight != 0)


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 13), st.integers(1, 4)),
    run=st.integers(2, 9),
    data=st.data(),
    rule=st.sampled_from(["magnitude", "meanstd", "random"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    few=st.booleans(),
)
def test_the_pattern_holds_with_ties_and_with_zeros_that_were_there(
    shape: tuple[int, int, int], run: int, data: st.DataObject, rule: str, dtype: torch.dtype, few: bool
) -> None:
    keep = data.draw(st.integers(1, run - 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    weight = torch.randn(shape, generator=generator).to(dtype)
    if few:  # few values, so that weights of a run tie
        weight = weight.sign() * weight.abs().ceil().clamp(max=2)
    alive = torch.rand(shape, generator=generator) < data.draw(st.sampled_from([0.5, 0.9, 2.0]))
    pattern = SemiStructured(keep, run)
    criterion = {
        "magnitude": Magnitude(pattern.share),
        "meanstd": MeanStd(sparsity=pattern.share),
        "random": Random(pattern.share, seed=1),
    }[rule]
    (decision,) = criterion.decide([WeightView("w", weight, alive, Layout(), pattern)])
    assert not (decision.keep & ~alive).any()
    assert not pattern.broken(decision.keep).any()
    for lives, stays in zip(alive.split(run, 1), decision.keep.split(run, 1), strict=True):
        assert torch.equal(stays.sum(1), lives.sum(1).clamp(max=keep))  # no more than must
    if rule != "random":
        (again,) = criterion.decide([WeightView("w", weight, alive, Layout(), pattern)])
        assert torch.equal(again.keep, decision.keep)
        dead = weight.masked_fill(~alive, 0)
        expected = best(torch.where(alive, dead.double().abs() + 1, 0), keep, run) & alive
        assert torch.equal(decision.keep, expected)


def test_two_of_four_by_hand() -> None:
    layer = nn.Conv2d(6, 1, (1, 2), bias=False)
    with torch.no_grad():
        first, second = [0.1, -0.4, 0.3, 0.2, 0.6, -0.5], [9.0, 8.0, -7.0, 6.0, 5.0, 0.01]
        layer.weight.copy_(torch.tensor([first, second]).T.reshape(1, 6, 1, 2))
    with pytest.warns(UserWarning, match=r'weight has 33.3 %, not 50.0 %: "2:4" keeps 2 of a shorter last run too'):
        secateur.prune(layer, Magnitude(0.5), pattern="2:4")
    assert (layer.weight[0, :, 0, 0] != 0).tolist() == [False, True, True, False, True, True]
    assert (layer.weight[0, :, 0, 1] != 0).tolist() == [True, True, False, False, True, True]


def test_equal_weights_lose_the_first_of_each_run() -> None:
    """Also in a neuron whose std is 0, which MeanStd keeps whole elsewhere."""
    for rule in (Magnitude(0.5), MeanStd(sparsity=0.5)):
        layer = nn.Linear(8, 3)
        nn.init.constant_(layer.weight, 0.1)
        secateur.prune(layer, rule, pattern="2:4")
        assert torch.equal(layer.weight != 0, torch.tensor([False, False, True, True] * 2).expand(3, 8))


def test_runs_longer_than_the_channels_are_one_run() -> None:
    layer = nn.Linear(5, 3)
    before = layer.weight.detach().clone()
    rule = Magnitude(1 - 2 / 10**17)
    with pytest.warns(UserWarning, match="not 100.0 %"):
        secateur.prune(layer, rule, pattern=f"2:{10**17}")  # and no memory for the rest of the run
    assert torch.equal(layer.weight != 0, best(before[:, :, None], 2, 5)[:, :, 0])


def test_masks_only_grow() -> None:
    layer = nn.Linear(16, 8)
    secateur.prune(layer, Magnitude(0.3))
    gone = layer.weight == 0
    before = layer.weight.detach().clone()
    with pytest.warns(UserWarning, match="zeros may have been there before"):
        secateur.prune(layer, Magnitude(0.5), pattern="2:4")
    assert (layer.weight[gone] == 0).all()
    assert secateur.verify(layer, "2:4").holds
    once = layer.weight.detach().clone()
    for run_before, run_after in zip(before.reshape(-1, 4), once.reshape(-1, 4), strict=True):
        assert (run_after != 0).sum() == min(2, int((run_before != 0).sum()))
    with pytest.warns(UserWarning, match=r"pruned nothing in weight: that many zeros are there already"):
        secateur.prune(layer, Magnitude(0.5), pattern="2:4")
    assert torch.equal(layer.weight, once)
    with pytest.warns(UserWarning, match="zeros may have been there before"):
        secateur.prune(layer, Magnitude(0.75), pattern="1:4")  # from 2:4 on
    assert torch.equal(layer.weight != 0, best(once[:, :, None], 1, 4)[:, :, 0] & (once != 0))


def test_zeros_without_a_mask_are_zeros() -> None:
    layer = nn.Linear(4, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 3.0, 0.0, 1.0]]))
    with pytest.warns(UserWarning, match="that many zeros are there already"):
        secateur.prune(layer, MeanStd(sparsity=0.5), pattern="2:4")
    assert layer.weight.tolist() == [[0.0, 3.0, 0.0, 1.0]]


def test_it_stays_through_training_and_saving(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), MaskedConv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    secateur.prune(model, Magnitude(0.5), pattern="2:4", optimizer=optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 4, 8, 8)).square().sum().backward()
        optimizer.step()
    assert secateur.verify(model, "2:4").holds
    secateur.save(model, tmp_path / "m.safetensors")
    other = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    secateur.load(tmp_path / "m.safetensors", other)
    assert secateur.verify(other, "2:4").holds
    assert torch.equal(other[2].weight, model[2].weight)


def test_overrides_and_recurrent_weights() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.LSTM(8, 4))
    rules = {"1": (Magnitude(0.9, "global"), "1x1"), "0": MeanStd(sparsity=0.5)}
    report = secateur.prune(model, Magnitude(0.5), pattern="2:4", overrides=rules)
    assert [row["pattern"] for row in report] == ["2:4", "1x1", "2:4", "2:4"]
    assert secateur.verify(model, "2:4", exclude="1").holds
    other = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    secateur.prune(other, Magnitude(0.5), overrides={"1": "2:4"})
    assert not secateur.verify(other[0], "2:4").holds
    assert secateur.verify(other[1], "2:4").holds


@pytest.mark.parametrize(
    ("rule", "pattern", "message"),
    [
        (Magnitude(0.9), "2:4", r'sparsity must be 0.5 \(1 - 2/4\) for pattern "2:4", got Magnitude\(sparsity=0.9\)'),
        (Magnitude(0.4), "2:4", "sparsity must be 0.5 .*, got Magnitude"),
        (Magnitude(0.667), "1:3", r"sparsity must be 0.6666666667 \(1 - 1/3\)"),
        (Magnitude(0.0), "7:8", r"sparsity must be 0.125 \(1 - 7/8\)"),
        (MeanStd(sparsity=0.9), "2:4", "sparsity must be 0.5 .*, got MeanStd"),
        (MeanStd(0.5), "2:4", r'sparsity must be 0.5 \(1 - 2/4\) for pattern "2:4", but MeanStd\(k=0.5\) has none'),
        (Magnitude(0.5, "global"), "2:4", r'scope must be "layer" \(or "row"\) for pattern "2:4", got Magnitude'),
        (Random(0.5, "neuron"), "2:4", r'pattern must be "1x1" or "neuron" for Random\(.*, unit=\'neuron\'\)'),
        (Magnitude(0.5), "4:2", 'pattern must be "1x1", .* "N:M"'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_nothing_is_written(rule: Criterion, pattern: str, message: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(Error, match=f"^prune: {message}"):
        secateur.prune(model, Magnitude(0.5), overrides={"0": (rule, pattern)})
    with pytest.raises(Error, match=f"^prune: {message}"):
        secateur.prune(model, rule, pattern=pattern)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("keep", "run"), [(1, 3), (2, 3), (3, 7), (5, 6), (1, 10)])
def test_shares_that_are_no_binary_fractions(keep: int, run: int) -> None:
    for share in (1 - keep / run, (run - keep) / run, float(Fraction(run - keep, run)), round(1 - keep / run, 7)):
        layer = nn.Linear(2 * run, 3)
        secateur.prune(layer, Magnitude(share), pattern=f"{keep}:{run}")
        assert torch.equal((layer.weight != 0).reshape(3, 2, run).sum(2), torch.full((3, 2), keep))


@pytest.mark.parametrize("run", range(2, 13))
def test_which_patterns_are_two_of_four_as_well(run: int) -> None:
    for keep in range(1, run):
        layer = nn.Linear(4 * run, 500)  # so many neurons that what can happen does
        secateur.prune(layer, Magnitude(1 - keep / run), pattern=f"{keep}:{run}")
        assert secateur.verify(layer, "2:4").holds == SemiStructured(keep, run).two_of_four


def test_what_has_no_runs_to_prune_is_said() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3))
    with pytest.warns(UserWarning, match="pruned nothing in 0: no 4 input channels in a row hold more than 2 weights"):
        report = secateur.prune(model, Magnitude(0.5), pattern="2:4")
    assert report["0"]["zeros"] == 0
    assert report["1"]["sparsity"] == 0.5


class ByHand(Criterion):
    """Ranks without drop_lowest: whole rows, at the right share."""

    sparsity = 0.5

    def __init__(self, scope: str) -> None:
        self.scope = scope

    def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
        (view,) = pool
        rank = view.weight.abs().flatten(1).argsort(1).argsort(1)
        return [Decision((rank >= rank.shape[1] // 2).reshape(view.shape))]


class Ranks(Criterion):
    sparsity = 0.5

    def __init__(self, scope: str = "layer") -> None:
        self.scope = scope

    def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
        return drop_lowest(pool, [-view.weight.abs() for view in pool], 0.5)  # scores may be negative


def test_criteria_of_users() -> None:
    for scope in ("layer", "row"):
        layer = nn.Linear(8, 4)
        before = layer.weight.detach().clone()
        rule = (
            r'for weight: keep must leave at most 2 of 4 input channels for pattern "2:4", but leaves more in \d of 8'
        )
        with pytest.raises(Error, match=rule):
            secateur.prune(layer, ByHand(scope), pattern="2:4")
        assert torch.equal(layer.weight, before)
        secateur.prune(layer, Ranks(scope), pattern="2:4")
        smallest = before.abs().reshape(4, 2, 4).argsort(2)[:, :, :2]
        expected = torch.zeros(4, 2, 4, dtype=torch.bool).scatter_(2, smallest, value=True)
        assert torch.equal(layer.weight != 0, expected.reshape(4, 8))
    with pytest.raises(Error, match='scope must be "layer"'):
        secateur.prune(nn.Linear(8, 4), Ranks("global"), pattern="2:4")


class Fused(Ranks):
    """With an operator for one pass, which knows no patterns."""

    def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
        return super().decide(pool)

    def fused(self) -> Any:
        raise AssertionError("asked for a pass that knows no patterns")


def test_what_decides_in_one_pass_does_not_under_a_pattern() -> None:
    layer = nn.Linear(8, 4)
    secateur.prune(layer, Fused(), pattern="2:4")
    assert secateur.verify(layer, "2:4").holds
    with pytest.raises(AssertionError, match="a pass that knows no patterns"):
        secateur.prune(nn.Linear(8, 4), Fused())


def test_on_the_way_mean_std_ranks_by_its_own_score() -> None:
    """Among neurons of different sizes Magnitude takes from the small ones first; MeanStd from all alike."""
    dense = nn.Linear(64, 2, bias=False)
    with torch.no_grad():
        dense.weight[1] = 100 * dense.weight[0]
    for rule, shares in ((Magnitude(0.5), [0.5, 0.0]), (MeanStd(sparsity=0.5), [0.25, 0.25])):
        layer = copy.deepcopy(dense)
        GradualPruner(layer, rule, CubicSchedule(0.5, 0.25, end=5), pattern="2:4").step()
        assert (layer.weight == 0).double().mean(1).tolist() == shares


@pytest.mark.parametrize("rule", [Magnitude(0.5), MeanStd(sparsity=0.5), Random(0.5, seed=1)], ids=repr)
def test_a_schedule_keeps_as_many_of_each_run_until_the_pattern_holds(rule: Criterion) -> None:
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    schedule = CubicSchedule(0.5, end=12, every=3)
    pruner = GradualPruner(model, rule, schedule, pattern="2:4", optimizer=optimizer)
    gone = torch.zeros(12, 16, dtype=torch.bool)
    held = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(14):
            optimizer.zero_grad()
            model(torch.randn(8, 16)).square().mean().backward()
            optimizer.step()
            report = pruner.step()
            if report is None:
                continue
            for row in report:  # the share of the step, as without the pattern
                assert abs(row["zeros"] - schedule(step) * row["weights"]) <= 1
            zero = model[0].weight == 0
            assert (zero | ~gone).all()
            gone = zero
            assert ((model[0].weight != 0).reshape(-1, 4).sum(1) >= 2).all()
            held.append(secateur.verify(model, "2:4").holds)
    assert held == [False, False, False, True]


def test_a_schedule_must_end_at_the_patterns_share() -> None:
    model = nn.Linear(16, 12)
    with pytest.raises(Error, match=r"sparsity must be 0.5 \(1 - 2/4\) .* got Magnitude\(sparsity=0.6\)"):
        GradualPruner(model, Magnitude(0.6), CubicSchedule(0.6, end=4), pattern="2:4")
    with pytest.raises(Error, match=r"sparsity must be 0.75 \(1 - 1/4\) .* got Magnitude\(sparsity=0.5\)"):
        GradualPruner(model, Magnitude(0.5), CubicSchedule(0.5, end=4), overrides={"weight": "1:4"})


def test_a_schedule_may_have_overrides() -> None:
    model = nn.Sequential(nn.Linear(16, 12), nn.Linear(12, 8))
    pruner = GradualPruner(
        model, Magnitude(0.9), CubicSchedule(0.9, end=4), overrides={"0": (MeanStd(sparsity=0.75), "1:4")}
    )
    for _ in range(6):
        pruner.step()
    assert secateur.verify(model, "1:4", exclude="1").holds
    assert secateur.sparsity(model)["0"]["sparsity"] == 0.75
    assert secateur.sparsity(model)["1"]["sparsity"] == pytest.approx(0.9, abs=0.01)


def test_a_last_run_that_is_shorter_is_not_emptied_on_the_way() -> None:
    """Layers whose runs cannot reach a step's share drop what may go, and no more."""
    model = nn.Linear(6, 5)  # runs of 4 and 2: no more than 10 of 30 may go, a share of a third
    before = model.weight.detach().clone()
    pruner = GradualPruner(model, Magnitude(0.5), CubicSchedule(0.5, end=3), pattern="2:4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            pruner.step()
    assert secateur.sparsity(model).sparsity <= 1 / 3 + 1e-6
    with pytest.warns(UserWarning, match="GradualPruner: .*"):
        pruner.step()
    assert torch.equal(model.weight != 0, best(before[:, :, None], 2, 4)[:, :, 0])


def test_weights_on_a_gpu_are_told_that_zeros_save_no_time_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: weights that say they are on one."""
    from secateur.pruning import gpu
    from secateur.pruning.criteria.patterns import parse

    class There:
        is_cuda = True

    def notes(*patterns: str) -> list[str]:
        return gpu.zeros_save_nothing((There(), parse(p)) for p in patterns)  # type: ignore[misc]

    (note,) = notes("1x4", "1x1", "1x1", "2:4")
    assert note.startswith('on a GPU, zeros in pattern "1x1" and "1x4" save no time')
    assert notes("2:4") == notes("1:4") == []
    assert notes("4:8") != []
    assert notes("3:4") != []
    assert not any("on a GPU" in line for line in secateur.prune(nn.Linear(8, 8), Magnitude(0.5)).notes)
