"""Criteria of users: what the protocol carries, shown by two that come from papers, and what it refuses."""

from __future__ import annotations

import copy
import inspect
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import secateur
import torch
from secateur import Criterion, CubicSchedule, Error, GradualPruner, Magnitude, MeanStd, masks
from secateur.pruning import Decision, WeightView, drop_lowest
from secateur.pruning.criteria.patterns import Pattern
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Wanda(Criterion):
    """|w| times the norm of its input, compared within each neuron (Sun et al., 2023), a layer or all layers."""

    sparsity: float
    scope: str = "row"
    needs = "norms"

    def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
        scores = [view.weight.abs() * view.norms for view in pool]
        if self.scope != "row":
            return drop_lowest(pool, scores, self.sparsity)
        return [self.by_row(view, score) for view, score in zip(pool, scores, strict=True)]

    def by_row(self, view: WeightView, score: torch.Tensor) -> Decision:
        field = view.blocks(score)  # [R, B]
        stay = field.score.shape[1] - round(self.sparsity * field.score.shape[1])
        best = field.score.topk(stay, 1).indices
        keep = torch.zeros_like(field.alive).scatter_(1, best, value=True)
        return Decision(view.weights(keep & field.alive))


@dataclass(frozen=True)
class LeastSquares(Criterion):
    """Drops blocks by w^2 E[x^2]; survivors and bias are solved again for what the dense layer computed."""

    sparsity: float
    needs = "gram"

    def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
        dropped = drop_lowest(pool, [(view.weight * view.norms) ** 2 for view in pool], self.sparsity)
        return [self.solved(view, decision.keep) for view, decision in zip(pool, dropped, strict=True)]

    def solved(self, view: WeightView, keep: torch.Tensor) -> Decision:
        x, J = view.inputs, keep.shape[0]
        assert x is not None
        assert x.gram is not None
        has_bias = view.bias is not None
        dense = torch.cat([view.weight.flatten(1), view.bias[:, None] if has_bias else torch.zeros(J, 1)], 1).double()
        use = torch.cat([keep.flatten(1), torch.full((J, 1), has_bias)], 1)
        new = torch.zeros_like(dense)
        for j in range(J):
            g = j * x.sum.shape[0] // J
            H = torch.cat([x.gram[g], x.sum[g][:, None]], 1)  # [F, F + 1]
            H = torch.cat([H, torch.cat([x.sum[g], torch.tensor([float(x.count)])])[None]])
            s = use[j]
            new[j, s] = torch.linalg.solve(H[s][:, s] + 1e-9 * torch.eye(int(s.sum())), (H @ dense[j])[s])
        return Decision(keep, new[:, :-1].reshape(keep.shape), new[:, -1] if has_bias else None, theta=0.5)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.Flatten(), nn.Linear(72, 12)
    )


#: Channels of different sizes that say much the same, so that survivors can make up for what goes.
BATCHES = [
    (normal(24, 1, 7, 7, seed=seed) + 0.3 * normal(24, 4, 7, 7, seed=9 + seed) + 1)
    * torch.tensor([0.1, 1.0, 3.0, 0.5]).reshape(4, 1, 1)
    for seed in (1, 2)
]


def test_the_example_of_the_docstring_runs(capsys: pytest.CaptureFixture[str]) -> None:
    doc = inspect.cleandoc(Criterion.__doc__ or "")
    example = textwrap.dedent(doc.partition("::\n\n")[2].partition("\n\n``prune``")[0])
    assert len(example.splitlines()) <= 16
    exec(compile(example, "example", "exec"), {"__name__": "example"})
    assert "prune: Wanda(sparsity=0.75), pattern 1x1" in capsys.readouterr().out


@pytest.mark.parametrize("pattern", ["1x1", "1x4"])
def test_wanda(pattern: str) -> None:
    model, dense = net(), net()
    report = secateur.prune(model, Wanda(0.5), data=iter(BATCHES), pattern=pattern)
    with torch.no_grad():
        x = dense[1](torch.cat([dense[0](batch) for batch in BATCHES]))
        norms = nn.functional.unfold(x, 3).square().sum((0, 2)).sqrt()  # [C * T]
    score = (dense[2].weight.detach().flatten(1) * norms).abs().reshape(8, 8, 9)
    if pattern == "1x4":
        score = score.reshape(8, 2, 4, 9).mean(2, keepdim=True).expand(8, 2, 4, 9).reshape(8, 8, 9)
    median = score.flatten(1).median(1).values
    assert torch.equal(model[2].weight.reshape(8, 8, 9) != 0, score > median.reshape(8, 1, 1))
    assert torch.equal(model[2].weight[model[2].weight != 0], dense[2].weight[model[2].weight != 0])
    assert report["2"]["criterion"] == "Wanda(sparsity=0.5, scope='row')"
    assert masks.get_mask(model[2], "weight") is not None


def test_a_global_pool_is_decided_in_one_call() -> None:
    model = net()
    seen: list[list[str]] = []

    class Everywhere(Wanda):
        def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
            seen.append([view.name for view in pool])
            return super().decide(pool)

    report = secateur.prune(model, Everywhere(0.8, "global"), data=BATCHES, overrides={"2": MeanStd(0.0)})
    assert seen == [["0.weight", "4.weight"]]
    zeros = sum(report[name]["zeros"] for name in ("0", "4"))
    assert zeros == round(0.8 * (8 * 2 * 9 + 72 * 12))
    assert report["0"]["theta_min"] == report["4"]["theta_min"] > 0
    assert report["0"]["sparsity"] != report["4"]["sparsity"]
    assert report["2"]["criterion"] == "MeanStd(k=0)"


@pytest.mark.parametrize("pattern", ["1x1", "1x4"])
def test_survivors_and_biases_are_written(pattern: str) -> None:
    model, dense, plain = net(), net(), net()
    report = secateur.prune(model, LeastSquares(0.5), data=BATCHES, pattern=pattern)
    for name in ("0", "2", "4"):
        assert report[name]["sparsity"] == pytest.approx(0.5, abs=0.01)
        assert report[name]["theta_mean"] == 0.5
        new, old = model[int(name)].weight, dense[int(name)].weight
        assert not torch.equal(new[new != 0], old[new != 0])
    assert not torch.equal(model[4].bias, dense[4].bias)
    # The first layer, whose inputs are the data's: torch's least squares on the very inputs finds the same.
    x = torch.cat(BATCHES)
    columns = nn.functional.unfold(x[:, 2:], 3).transpose(0, 1).flatten(1).double()  # group 1 [18, n]
    j = 5
    s = (model[0].weight[j] != 0).flatten()
    target = (dense[0].weight[j].detach().flatten().double() @ columns) + dense[0].bias[j].item()
    design = torch.cat([columns[s], torch.ones(1, columns.shape[1], dtype=torch.float64)]).T
    best = torch.linalg.lstsq(design, target[:, None]).solution.flatten()
    torch.testing.assert_close(model[0].weight[j].flatten()[s].double(), best[:-1], rtol=1e-4, atol=1e-5)  # float32
    torch.testing.assert_close(model[0].bias[j].double(), best[-1], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        plain[0].weight.mul_(model[0].weight != 0)
    solved, masked = ((other[0](x) - dense[0](x)).square().mean().item() for other in (model, plain))
    assert solved < 0.5 * masked


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_keep_theirs(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    secateur.prune(model, Wanda(0.5, "layer"), data=[batch.to(dtype) for batch in BATCHES])
    assert model[0].weight.dtype == dtype
    assert secateur.sparsity(model).sparsity == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("rule", [Wanda(0.6), Wanda(0.6, "global"), LeastSquares(0.6)])
def test_gradual_pruning_raises_any_criterion(rule: Criterion) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    pruner = GradualPruner(
        model, rule, CubicSchedule(0.6, end=4, every=2), data=BATCHES, optimizer=optimizer,
        overrides={"4": (Wanda(0.3, "layer"), "1x4"), "2": Magnitude(0.4)},
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            optimizer.zero_grad()
            model(BATCHES[0]).square().mean().backward()
            optimizer.step()
            pruner.step()
    counted = secateur.sparsity(model)
    assert counted["0"]["sparsity"] == pytest.approx(0.6, abs=0.05)  # rows of 18: a share in eighteenths
    assert counted["4"]["sparsity"] == pytest.approx(0.3, abs=0.01)
    assert counted["2"]["sparsity"] == pytest.approx(0.4, abs=0.01)
    assert all(module.training for module in model.modules())


def test_a_schedule_refuses_data_that_runs_out_and_shares_that_do_not_move() -> None:
    schedule = CubicSchedule(0.6, end=4)
    with pytest.raises(
        Error, match="GradualPruner: data must be batches that can be gone through again, got list_iter"
    ):
        GradualPruner(net(), Wanda(0.6), schedule, data=iter(BATCHES))
    with pytest.raises(Error, match="prune: data must be batches of inputs for Wanda"):
        GradualPruner(net(), Wanda(0.6), schedule)

    class Stubborn(Criterion):
        sparsity = property(lambda self: 0.6)  # type: ignore[assignment]

        def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
            return drop_lowest(pool, [view.weight.abs() for view in pool], 0.6)

    pruner = GradualPruner(net(), Stubborn(), CubicSchedule(0.6, initial=0.3, end=4))
    with pytest.raises(Error, match=r"with_sparsity\(0.3\) of Stubborn\(sparsity=0.6\) must give a criterion with it"):
        pruner.step()


class Answer(Criterion):
    """Answers what it is told to."""

    def __init__(self, answer: Callable[[WeightView], Any]) -> None:
        self.answer = answer

    def decide(self, pool: Sequence[WeightView]) -> Any:
        return [self.answer(view) for view in pool]


def half(view: WeightView) -> torch.Tensor:
    return torch.arange(view.total).reshape(view.shape) % 2 == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda v: half(v), r"Answer\(\) must return a list of Decisions, got \[tensor"),
        (lambda v: Decision(0.5), r"Answer\(\) for 1: keep must be a bool tensor \[5, 6, 1\], got float"),
        (lambda v: Decision(half(v).float()), r"for 1: keep must be bool \[5, 6, 1\], got float32 \[5, 6, 1\]"),
        (lambda v: Decision(half(v).flatten(1)), r"for 1: keep must be bool \[5, 6, 1\], got bool \[5, 6\]"),
        (
            lambda v: Decision(half(v), half(v) * torch.nan),
            r"for 1: new weights must be finite in float32, got nan at \[0, 0, 0\] \(30 such\)",
        ),
        (lambda v: Decision(half(v), half(v) * 1e39), "for 1: new weights must be finite in float32, got inf at"),
        (lambda v: Decision(half(v), half(v).int()), r"for 1: new weights must be float \[5, 6, 1\], got int32"),
        (lambda v: Decision(half(v), half(v).float()[0]), r"for 1: new weights must be float .*, got float32 \[6, 1\]"),
        (lambda v: Decision(half(v), 3.0), "for 1: new weights must be a float tensor .*, got float"),
        (lambda v: Decision(half(v), v.weight), "for 1: new weights must be 0 where keep is False"),
        (lambda v: Decision(half(v), bias=torch.zeros(6)), r"for 1: a new bias must be float \[5\], got float32 \[6\]"),
        (lambda v: Decision(half(v), bias=torch.full((5,), torch.inf)), "for 1: a new bias must be finite in float32"),
        (lambda v: Decision(half(v), theta="high"), "for 1: theta must be a number or a tensor of numbers, got str"),
        (lambda v: Decision(half(v), k="high"), "for 1: k must be a number or None, got 'high'"),
    ],
)
def test_bad_decisions_change_nothing(answer: Callable[[WeightView], Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(Error, match=f"prune: .*{message}"):
        secateur.prune(model, Answer(answer), overrides={"0": Magnitude(0.5)})  # 0 has been decided by then
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_bias_that_is_not_there_cannot_be_written() -> None:
    for model in (nn.Linear(4, 5, bias=False), nn.LSTM(4, 5), nn.Sequential(*[nn.Linear(5, 5)] * 2)):
        seen: list[torch.Tensor | None] = []

        def answer(view: WeightView, seen: list[torch.Tensor | None] = seen) -> Decision:
            seen.append(view.bias)
            return Decision(half(view), bias=torch.zeros(view.shape[0]))

        if not isinstance(model, nn.Sequential):
            with pytest.raises(Error, match="a new bias needs a layer with a bias of its own, which this one has not"):
                secateur.prune(model, Answer(answer))
            assert seen == [None]
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    second.weight = first.weight  # whose bias would it be?
    with pytest.raises(Error, match="a new bias needs a layer with a bias of its own"):
        secateur.prune(nn.Sequential(first, second), Answer(lambda v: Decision(half(v), bias=torch.zeros(5))))


class Named(Criterion):
    def decide(self, pool: Sequence[WeightView]) -> Any:
        return []


def named(**attributes: Any) -> Criterion:
    criterion = Named()
    vars(criterion).update(attributes)
    return criterion


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (Criterion(), r"criterion must define decide\(pool\), which Criterion does not"),
        (
            Named,
            r"criterion must be a MeanStd, .* or another secateur.Criterion, got <class .*> \(write Named\(...\)\)",
        ),
        (named(scope="model"), "Named.scope must be 'layer', 'row' or 'global', got 'model'"),
        (named(needs="inputs"), "Named.needs must be None, 'norms', 'gram' or 'hessian', got 'inputs'"),
        (named(sparsity=90), "Named: sparsity must be a number from 0 to 1, got 90"),
        (named(), r"Named\(\) must return one Decision a weight, got 0 for 1"),
    ],
)
def test_bad_criteria_are_named(criterion: Any, message: str) -> None:
    for call in (
        lambda: secateur.prune(nn.Linear(4, 4), criterion),
        lambda: secateur.prune(nn.Sequential(nn.Linear(4, 4)), Magnitude(0.5), overrides={"0": criterion}),
    ):
        with pytest.raises(Error, match=f"prune: .*{message.removeprefix('criterion')}"):
            call()


def test_what_a_criterion_sees_is_a_copy() -> None:
    def greedy(view: WeightView) -> Decision:
        view.weight.zero_()
        assert view.bias is not None
        view.bias.zero_()
        return Decision(torch.ones(view.shape, dtype=torch.bool))

    layer = nn.Linear(6, 5)
    before = copy.deepcopy(layer)
    with pytest.warns(UserWarning, match=r"Answer\(\) pruned nothing in weight: the criterion keeps all weights"):
        secateur.prune(layer, Answer(greedy))
    assert torch.equal(layer.weight, before.weight)
    assert torch.equal(layer.bias, before.bias)


def test_what_is_pruned_stays_pruned() -> None:
    """Whatever keep says, by our mask, by torch.nn.utils.prune's, or because it was 0 already."""
    layer = nn.Linear(6, 5)
    secateur.prune(layer, Magnitude(0.5))
    zeros = layer.weight == 0
    seen: list[torch.Tensor] = []

    def all_of_it(view: WeightView) -> Decision:
        seen.append(view.alive)
        return Decision(torch.ones(view.shape, dtype=torch.bool))

    with pytest.warns(UserWarning, match="pruned nothing"):
        secateur.prune(layer, Answer(all_of_it))
    assert torch.equal(layer.weight == 0, zeros)
    assert torch.equal(seen[0].flatten(1), ~zeros)
    with pytest.raises(Error, match="new weights must be 0 where keep is False or a weight was pruned before"):
        secateur.prune(layer, Answer(lambda v: Decision(torch.ones_like(v.alive), torch.ones(v.shape))))


def test_neurons_of_a_transposed_convolution_go_back_to_their_places() -> None:
    layer = nn.ConvTranspose2d(4, 6, 2, groups=2)
    values: list[torch.Tensor] = []

    def numbered(view: WeightView) -> Decision:
        assert view.shape == (6, 2, 4)
        values.append(torch.arange(1.0, 1 + view.total).reshape(view.shape))
        keep = view.alive.clone()
        keep[3] = False
        return Decision(keep, values[0] * keep, torch.arange(6.0))

    secateur.prune(layer, Answer(numbered))
    assert torch.equal(layer.weight[2:, 1], values[0][4].reshape(2, 2, 2))  # neuron 4 = group 1, output 1
    assert (layer.weight[2:, 0] == 0).all()
    assert layer.bias.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_share_that_a_criterion_misses_is_said_in_its_words() -> None:
    class Shy(Magnitude):
        why_missed = "it is shy"

        def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
            return drop_lowest(pool, [view.weight.abs() for view in pool], self.sparsity / 2)

    with pytest.warns(UserWarning, match=r"prune: weight has 25.0 %, not 50.0 %: it is shy"):
        secateur.prune(nn.Linear(10, 10), Shy(0.5))


def test_patterns_may_be_refused_or_exchanged() -> None:
    class Blocks(Magnitude):
        def pattern_for(self, pattern: Pattern) -> Pattern:
            if pattern.block == 0:
                raise Error("prune: pattern must not be neurons")
            return Pattern(2)

    report = secateur.prune(nn.Linear(8, 8), Blocks(0.5))
    assert report["weight"]["pattern"] == "1x2"
    with pytest.raises(Error, match="pattern must not be neurons"):
        secateur.prune(nn.Linear(8, 8), Blocks(0.5), pattern="neuron")


@dataclass
class Changeable(Criterion):
    """A dataclass that is not frozen has no hash."""

    sparsity: float
    scope: str = "global"

    def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
        return drop_lowest(pool, [view.weight.abs() for view in pool], self.sparsity)


def test_criteria_without_a_hash_pool_too() -> None:
    model, same = net(), net()
    secateur.prune(model, Changeable(0.5))
    secateur.prune(same, Magnitude(0.5, "global"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])


def test_norms_must_be_asked_for() -> None:
    with pytest.raises(Error, match=r'needs must be "norms" or "gram" where a criterion reads norms \(of weight\)'):
        secateur.prune(nn.Linear(4, 4), Answer(lambda v: Decision(v.norms > 0)))


def test_criteria_that_make_no_thresholds_are_refused_for_activations() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    for criterion in (Wanda(0.5), Wanda):
        with pytest.raises(Error, match="prune_activations: criterion must be MeanStd or Magnitude, got"):
            secateur.prune_activations(model, [normal(3, 4)], criterion, progress=False)


def test_a_subclass_that_decides_is_asked() -> None:
    """Not the in-place operator of MeanStd, which knows nothing of it."""

    class Careful(MeanStd):
        def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
            return [Decision(view.weight.abs() > 0.1) for view in pool]

    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.2, 0.21, 64).reshape(8, 8))
    expected = layer.weight.abs() > 0.1
    secateur.prune(layer, Careful(-1.0))
    assert torch.equal(layer.weight != 0, expected)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda v: [v.weight * torch.nan], r"scores of weight must be finite floats \[4, 6, 1\], got NaN or Inf"),
        (lambda v: [v.weight[0]], r"scores of weight must be finite floats .*, got torch.float32 \[6, 1\]"),
        (lambda v: [0.5], "scores of weight must be finite floats .*, got float"),
        (lambda v: [], "scores must be one a weight, got 0 for 1"),
    ],
)
def test_bad_scores_are_named(scores: Callable[[WeightView], Any], message: str) -> None:
    class Scored(Criterion):
        def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
            return drop_lowest(pool, scores(pool[0]), 0.5)

    with pytest.raises(Error, match=f"drop_lowest: {message}"):
        secateur.prune(nn.Linear(6, 4), Scored())
