"""The rules by themselves: what they keep, how near they come to a share of zeros, what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from secateur import Criterion, Error, Magnitude, MeanStd, Random
from secateur.masks.layout import Layout
from secateur.pruning import WeightView
from secateur.pruning.criteria.patterns import Pattern, SemiStructured, parse
from secateur.pruning.criteria.ranking import Field, counted, lowest, statistics

ONE = Pattern(1)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def view(
    weight: torch.Tensor, pattern: Pattern = ONE, alive: torch.Tensor | None = None, name: str = "w"
) -> WeightView:
    return WeightView(name, weight, alive, Layout(), pattern)


def kept(weight: torch.Tensor, rule: Criterion, pattern: Pattern = ONE) -> torch.Tensor:
    (decision,) = rule.decide([view(weight, pattern)])
    return decision.keep.reshape(weight.shape)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeanStd(), "MeanStd: exactly one of k and sparsity must be given, got neither"),
        (
            lambda: MeanStd(1.0, sparsity=0.5),
            r"exactly one of k and sparsity must be given, got k=1.0 and sparsity=0.5",
        ),
        (lambda: MeanStd(float("nan")), "MeanStd: k must be a finite number, got nan"),
        (lambda: MeanStd("1"), "MeanStd: k must be a finite number, got '1'"),
        (lambda: MeanStd(10**400), "MeanStd: k must be a finite number, got 1000"),
        (lambda: MeanStd(True), "MeanStd: k must be a finite number, got True"),
        (lambda: MeanStd(sparsity=1.1), "MeanStd: sparsity must be a number from 0 to 1, got 1.1"),
        (lambda: MeanStd(sparsity=90), "MeanStd: sparsity must be a number from 0 to 1, got 90"),
        (lambda: MeanStd(1, of="square"), "MeanStd: of must be 'abs' or 'signed', got 'square'"),
        (lambda: Magnitude(-0.1), "Magnitude: sparsity must be a number from 0 to 1, got -0.1"),
        (lambda: Magnitude(0.5, scope="model"), "Magnitude: scope must be 'layer' or 'global', got 'model'"),
        (lambda: Random(0.5, unit="row"), "Random: unit must be 'element' or 'neuron', got 'row'"),
        (lambda: Random(0.5, seed=1.5), "Random: seed must be an int or None, got 1.5"),
    ],
)
def test_bad_arguments_are_named(make, message: str) -> None:
    with pytest.raises(Error, match=message):
        make()


def test_rules_are_values() -> None:
    assert repr(MeanStd(-1)) == "MeanStd(k=-1)"
    assert repr(MeanStd(sparsity=0.9, of="signed")) == "MeanStd(sparsity=0.9, of='signed')"
    assert repr(Magnitude(0.9, "global")) == "Magnitude(sparsity=0.9, scope='global')"
    assert repr(Random(0.5, "neuron", 3)) == "Random(sparsity=0.5, unit='neuron', seed=3)"
    assert MeanStd(1) == MeanStd(k=1.0)
    assert hash(MeanStd(1)) == hash(MeanStd(1.0))
    assert MeanStd(torch.tensor(0.5)).k == 0.5  # a 0-d tensor is a number
    with pytest.raises(AttributeError):
        MeanStd(1).k = 2  # type: ignore[misc]


# The tutorial's rule on Gaussian weights: the share below mean - k * std of a half normal.
@pytest.mark.parametrize(
    ("k", "share"), [(1.0, 0.155), (0.0, 0.575), (-1.0, 0.839), (-2.0, 0.955), (1.33, 0.0), (2.0, 0.0)]
)
def test_gaussian_shares(k: float, share: float) -> None:
    keep = kept(gaussian(64, 20000), MeanStd(k))
    pruned = 1 - keep.double().mean().item()
    assert pruned == pytest.approx(share, abs=0.002)  # 1.28 M draws: a standard error below 0.0005
    if share == 0:
        assert pruned < 1e-3


def test_signed_is_the_literal_reading() -> None:
    w = gaussian(8, 500) + 0.5
    keep = kept(w, MeanStd(0.25, of="signed"))
    theta = w.double().mean(1) - 0.25 * w.double().std(1, correction=0)
    assert torch.equal(keep, w.double().abs() >= theta[:, None])


def test_equal_weights_are_kept() -> None:
    w = torch.full((3, 7), 0.1)  # the float64 mean of seven 0.1f is not 0.1f: std must still be exactly 0
    w[1] = gaussian(7)
    for rule in (MeanStd(-5.0), MeanStd(sparsity=1.0), MeanStd(-5.0, of="signed")):
        keep = kept(w, rule)
        assert keep[0].all()
        assert keep[2].all()
    assert not kept(w, MeanStd(sparsity=1.0))[1].any()
    _, std = statistics(w, torch.ones(3, 7, dtype=torch.bool))
    assert std[0] == 0
    assert std[2] == 0
    assert std[1] > 0


def test_statistics_of_the_living() -> None:
    w = gaussian(4, 50)
    alive = gaussian(4, 50, seed=1) > 0
    alive[3] = False
    mean, std = statistics(w, alive)
    for row in range(3):
        assert mean[row] == pytest.approx(w[row][alive[row]].double().mean().item())
        assert std[row] == pytest.approx(w[row][alive[row]].double().std(correction=0).item())
    assert math.isnan(mean[3])
    assert std[3] == 0


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 7), columns=st.integers(1, 40), sparsity=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_solved_k_is_exact(rows: int, columns: int, sparsity: float, seed: int) -> None:
    """To within one weight, and the k found gives the same weights by the definition."""
    w = gaussian(rows, columns, seed=seed).double()
    (decision,) = MeanStd(sparsity=sparsity).decide([view(w)])
    zeros = int((~decision.keep).sum())
    if columns > 2:  # one weight has std 0, and two lie at z = -1 and +1 whatever they are
        assert abs(zeros - round(sparsity * w.numel())) <= 1
        assert sparsity == 1 or zeros < w.numel()
    if decision.k is not None:
        again = kept(w, MeanStd(decision.k))
        assert torch.equal(again, decision.keep.reshape(w.shape))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    block=st.integers(0, 5),
    sparsity=st.floats(0, 1),
    rule=st.sampled_from(["magnitude", "random", "meanstd"]),
)
def test_patterns_hold(shape: list[int], block: int, sparsity: float, rule: str) -> None:
    """Blocks go whole, whichever rule; the count is within half a block where blocks may part freely."""
    w = gaussian(*shape)
    pattern = Pattern(block)
    criterion = {
        "magnitude": Magnitude(sparsity),
        "random": Random(sparsity, seed=1),
        "meanstd": MeanStd(sparsity=sparsity),
    }
    keep = kept(w, criterion[rule], pattern)
    assert keep.shape == w.shape
    size = shape[1] if block == 0 else block
    for start in range(0, shape[1], size):
        part = keep[:, start : start + size]
        if block == 0:
            part = part.reshape(shape[0], -1)
            assert torch.equal(part.all(1), part.any(1))
        else:
            assert torch.equal(part.all(1), part.any(1))
    largest = w[0].numel() if block == 0 else min(block, shape[1])
    if rule != "meanstd":
        assert abs(int((~keep).sum()) - sparsity * w.numel()) <= largest
        assert sparsity == 1 or keep.any()


def test_block_scores() -> None:
    """mean |w| of N channels at one tap; the last block is shorter and counts as what it is."""
    w = gaussian(2, 5, 3, 3)
    f = view(w, Pattern(2)).blocks()
    assert f.score.shape == (2, 3 * 9)
    scores = f.score.reshape(2, 3, 9)
    assert scores[1, 0, 4] == pytest.approx(w[1, 0:2, 1, 1].abs().mean().item())
    assert scores[0, 2, 8] == pytest.approx(w[0, 4, 2, 2].abs().item())
    assert f.cost is not None
    assert f.cost.reshape(2, 3, 9)[0, :, 0].tolist() == [2, 2, 1]


def test_a_block_longer_than_the_channels_is_one_block() -> None:
    """And costs no more memory than that: 10**12 channels of padding would not fit."""
    w = gaussian(2, 5, 3, 3)
    short, long = (view(w, Pattern(n)) for n in (5, 10**30))
    scores = short.blocks().score
    assert torch.equal(scores, long.blocks().score)
    keep = scores > scores.median()
    assert torch.equal(short.weights(keep), long.weights(keep))


def test_neuron_of_a_transposed_convolution() -> None:
    """Output unit = dim 1 within a group; the layout's inverse brings everything back."""
    w = gaussian(4, 3, 2, 2)  # groups = 2: 2 inputs and 3 outputs a group
    layout = Layout(groups=2)
    neurons = layout.neurons(w)
    assert neurons.shape == (6, 2, 4)
    assert torch.equal(neurons[4], w[2:4, 1].reshape(2, 4))  # neuron 4 = group 1, output 1
    assert torch.equal(layout.stored(neurons, w.shape), w)


def test_magnitude_counts_exactly_even_with_ties() -> None:
    keep = kept(torch.ones(4, 5), Magnitude(0.35))
    assert int((~keep).sum()) == 7
    assert not keep.reshape(-1)[:7].any()  # the first ones go


def test_global_magnitude_has_one_threshold() -> None:
    small, large = gaussian(10, 10) * 0.1, gaussian(10, 10, seed=1)
    decisions = Magnitude(0.5, "global").decide([view(small, name="a"), view(large, name="b")])
    both = torch.cat([small.reshape(-1), large.reshape(-1)]).abs()
    cut = both.kthvalue(100).values
    assert torch.equal(decisions[0].keep.reshape(10, 10), small.abs() > cut)
    assert torch.equal(decisions[1].keep.reshape(10, 10), large.abs() > cut)
    assert decisions[0].theta == decisions[1].theta


def test_sparsity_means_zeros_of_the_total() -> None:
    w = gaussian(10, 30)
    alive = w.abs() > 0.7
    gone = int((~alive).sum())
    for rule in (MeanStd(sparsity=0.8), Magnitude(0.8), Random(0.8, seed=0)):
        (decision,) = rule.decide([view(w, alive=alive)])
        assert abs(int((~decision.keep).sum()) - 240) <= 1
        assert not (decision.keep.reshape(w.shape) & ~alive).any()
    for rule in (MeanStd(sparsity=0.1), Magnitude(0.1)):
        (decision,) = rule.decide([view(w, alive=alive)])
        assert int((~decision.keep).sum()) == gone
        assert decision.theta is None


def test_random_depends_on_seed_and_name_alone() -> None:
    a, b = (view(gaussian(6, 50), name=name) for name in ("a", "b"))
    first, second = Random(0.5, seed=7).decide([a, b])
    (again,) = Random(0.5, seed=7).decide([b])
    (other,) = Random(0.5, seed=8).decide([b])
    assert not torch.equal(first.keep, second.keep)
    assert torch.equal(second.keep, again.keep)
    assert not torch.equal(again.keep, other.keep)
    torch.manual_seed(3)
    (once,) = Random(0.5).decide([a])
    torch.manual_seed(3)
    (twice,) = Random(0.5).decide([a])
    assert torch.equal(once.keep, twice.keep)


@pytest.mark.parametrize("text", ["2x2", "1x0", "1xN", "1x", "filter", "x4", "1x4 ", None, 4, "1x" + "9" * 5000])
def test_bad_patterns(text: object) -> None:
    with pytest.raises(
        Error, match=r'prune: pattern must be "1x1", "1xN" \(N a whole number, as in "1x4"\), "N:M" .* or "neuron", got'
    ):
        parse(text)
    assert parse("1x16") == Pattern(16)
    assert parse("neuron") == Pattern(0)
    assert parse("2:4") == SemiStructured(2, 4) != Pattern(1)
    assert [str(parse(text)) for text in ("1x1", "1x4", "2:4", "neuron")] == ["1x1", "1x4", "2:4", "neuron"]


@pytest.mark.parametrize(
    "text", ["N:M", "2:", ":4", "2:2", "4:2", "0:4", "02:4", "2:4 ", "-1:4", "2:4:8", "2.0:4", "\u0662:\u0664", (2, 4)]
)
def test_bad_patterns_of_runs(text: object) -> None:
    with pytest.raises(Error, match=r'"N:M" \(whole numbers, N below M, as in "2:4"\) or "neuron", got'):
        parse(text)


def test_lowest_keeps_ties_together_or_parts_them() -> None:
    values = torch.tensor([1.0, 2.0, 2.0, 2.0, 3.0])
    apart, cut = lowest(values, None, 2, spare_one=True, split_ties=True)
    assert apart.tolist() == [True, True, False, False, False]
    assert cut == 2.0
    near_none, cut = lowest(values, None, 2, spare_one=True, split_ties=False)
    assert near_none.tolist() == [True, False, False, False, False]
    assert cut == 1.5
    near_all, cut = lowest(values, None, 3, spare_one=True, split_ties=False)
    assert near_all.tolist() == [True, True, True, True, False]
    assert cut == 2.5
    cost = torch.tensor([1, 3, 3, 3, 1])
    assert lowest(values, cost, 5, spare_one=True, split_ties=True)[0].tolist() == [True, True, False, False, False]
    assert lowest(values, cost, 5, spare_one=True, split_ties=False)[0].tolist() == [True, False, False, False, False]
    everything, cut = lowest(values, None, 5, spare_one=False, split_ties=False)
    assert everything.all()
    assert cut is not None
    assert cut > 3
    assert lowest(values, None, 0, spare_one=True, split_ties=True)[1] is None


def test_counted_mixes_blocks_of_different_sizes() -> None:
    a = Field(torch.tensor([[0.1, 0.9]]), torch.tensor([[0.1, 0.9]]), torch.ones(1, 2, dtype=torch.bool),
              torch.tensor([[4, 2]]), 6, 0)  # fmt: skip
    b = Field(torch.tensor([[0.2, 0.3]]), torch.tensor([[0.2, 0.3]]), torch.ones(1, 2, dtype=torch.bool), None, 2, 0)
    decisions = counted([a, b], [a.score, b.score], 5 / 8)
    assert decisions[0].keep.tolist() == [[False, True]]
    assert decisions[1].keep.tolist() == [[False, True]]
