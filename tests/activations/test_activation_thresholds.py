"""Which values the statistics are of, and who shares a threshold: every combination against stored activations."""

import copy

import numpy as np
import pytest
import torch
from secateur import Error, Magnitude, MeanStd, prune_activations
from secateur.activations.calibration import ChannelStatistics
from secateur.activations.thresholds import Group, Moments
from secateur.nn import ThresholdReLU
from torch import nn

NAMES = ["1", "3", "6"]


@pytest.fixture
def model():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(96, 7), nn.ReLU()
    )


@pytest.fixture
def batches():
    g = torch.Generator().manual_seed(0)
    return [4 * torch.randn(n, 1, 8, 8, generator=g) for n in (40, 25, 1)]


def stored(model, batches):
    """The activations themselves, [C, n] float64, by running the model up to each ReLU."""
    model = copy.deepcopy(model).eval()
    found = {}
    with torch.no_grad():
        for name in NAMES:
            parts = [model[: int(name) + 1](x).transpose(0, 1).flatten(1).double().numpy() for x in batches]
            found[name] = np.concatenate(parts, 1)
    return found


def pools(activations, granularity):
    """For each layer the sets of values that share statistics: a list, one set a threshold."""
    if granularity == "channel":
        return {name: list(a) for name, a in activations.items()}
    if granularity == "layer":
        return {name: [a.ravel()] for name, a in activations.items()}
    every = np.concatenate([a.ravel() for a in activations.values()])
    return {name: [every] for name in activations}


def zeros(a, theta):
    return (a < np.maximum(theta.reshape(-1, 1), 1e-30)).mean()


EVERY = pytest.mark.parametrize("over", ["all", "positive"])
SHARED = pytest.mark.parametrize("granularity", ["channel", "layer", "scalar"])


@EVERY
@SHARED
@pytest.mark.parametrize("k", [0.5, -0.5])
def test_mean_and_std_are_those_of_the_values_that_count(model, batches, over, granularity, k):
    thin = prune_activations(model, batches, MeanStd(k=k), over=over, granularity=granularity, progress=False)
    for name, sets in pools(stored(model, batches), granularity).items():
        sets = [values[values > 0] if over == "positive" else values for values in sets]
        raw = np.array([values.mean() - k * values.std() if values.size else 0.0 for values in sets])
        layer = thin.get_submodule(name)
        expected = np.broadcast_to(np.maximum(raw, 0), layer.theta.shape)
        # Positive moments come from those of all values: float64 cancellation, then one rounding to float32.
        np.testing.assert_allclose(layer.theta.numpy(), expected, rtol=1e-6, atol=1e-9)
        assert thin.report[name]["clamped"] == int((raw < 0).sum()) * (
            1 if granularity == "channel" else len(layer.theta)
        )
        assert thin.report[name]["k"] == k


@EVERY
@SHARED
@pytest.mark.parametrize("share", [0.75, 0.95])
def test_a_solved_k_reaches_the_zeros(model, batches, over, granularity, share):
    criterion = MeanStd(sparsity=share)
    thin = prune_activations(model, batches, criterion, over=over, granularity=granularity, progress=False)
    activations = stored(model, batches)
    counts = {name: (zeros(a, thin.get_submodule(name).theta.numpy()), a.size) for name, a in activations.items()}
    off = max(row["sparsity_error"] for row in thin.report)
    assert off < 0.03
    if granularity == "scalar":
        assert len({float(t) for name in NAMES for t in thin.get_submodule(name).theta}) == 1
        total = sum(z * n for z, n in counts.values()) / sum(n for _, n in counts.values())
        assert total == pytest.approx(share, abs=off)
        assert thin.report.sparsity == pytest.approx(share, abs=1e-6)
        return
    for name, (found, size) in counts.items():
        assert found == pytest.approx(share, abs=thin.report[name]["sparsity_error"] + 1 / size)
        if granularity == "layer":
            assert len(thin.get_submodule(name).theta.unique()) == 1


@EVERY
@SHARED
@pytest.mark.parametrize("share", [0.8, 0.9])
def test_a_fraction_is_one_of_the_values_that_count(model, batches, over, granularity, share):
    thin = prune_activations(model, batches, Magnitude(share), over=over, granularity=granularity, progress=False)
    activations = stored(model, batches)

    def gone(sets):  # [(values, theta)]: the share of those that count, and the bound of the histogram
        count = sum((v > 0).sum() if over == "positive" else v.size for v, _ in sets)
        below = sum(((v < t) & (v > 0)).sum() if over == "positive" else ((v < t) | (v == 0)).sum() for v, t in sets)
        own = 0 if over == "positive" else sum((v == 0).sum() for v, _ in sets)
        return below / count, max(share, own / count), count

    for name, a in activations.items():
        theta = thin.get_submodule(name).theta.double().numpy()
        if granularity == "channel":
            for values, t in zip(a, theta, strict=True):
                if (values > 0).any():
                    found, wanted, count = gone([(values, t)])
                    assert found == pytest.approx(wanted, abs=0.03 + 1 / count)  # a bin of one channel may hold 3 %
        elif granularity == "layer":
            found, wanted, count = gone([(a.ravel(), theta[0])])
            assert found == pytest.approx(wanted, abs=0.02 + 1 / count)
    if granularity == "scalar":
        found, wanted, count = gone(
            [(a.ravel(), float(thin.get_submodule(n).theta[0])) for n, a in activations.items()]
        )
        assert found == pytest.approx(wanted, abs=0.02 + 1 / count)


def test_the_defaults_are_a_threshold_a_channel_and_one_a_layer(model, batches):
    def thetas(criterion, **options):
        thin = prune_activations(model, batches, criterion, progress=False, **options)
        return torch.cat([thin.get_submodule(name).theta for name in NAMES])

    assert torch.equal(thetas(MeanStd(k=0.0)), thetas(MeanStd(k=0.0), over="all", granularity="channel"))
    assert torch.equal(thetas(Magnitude(0.8)), thetas(Magnitude(0.8), granularity="layer"))
    assert torch.equal(thetas(Magnitude(0.8, scope="global")), thetas(Magnitude(0.8), granularity="scalar"))
    assert torch.equal(thetas(Magnitude(0.8, scope="global")), thetas(Magnitude(0.8, "global"), granularity="scalar"))


def test_a_channel_that_is_dead_or_constant_is_left_alone():
    values = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.3, 0.3], [0.7, 0.7, 0.7], [0.0, 1.0, 2.0]])  # [C, n]
    s = ChannelStatistics(4, torch.device("cpu"))
    s.update(values)
    positive = Moments.of(s, "positive")
    assert positive.count.tolist() == [0, 2, 3, 2]
    theta = positive.theta(-100.0)
    assert theta[:3].tolist() == [0, pytest.approx(0.3), pytest.approx(0.7)]
    assert theta[1].float() == values[1, 1]  # it passes its own threshold
    every = Moments.of(s, "all").theta(-100.0)
    assert (every[0], every[2].float()) == (0, values[2, 0])
    assert every[1] > 1
    pooled = Moments.pooled([positive])
    kept = values[values > 0].double()
    assert float(pooled.mean) == pytest.approx(float(kept.mean()), rel=1e-12)
    assert float(pooled.std) == pytest.approx(float(kept.std(correction=0)), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"over": "some"}, "over must be 'all' or 'positive', got 'some'"),
        ({"granularity": "row"}, "granularity must be 'channel', 'layer', 'scalar' or None, got 'row'"),
        ({"criterion": Magnitude(0.5, "global"), "granularity": "layer"}, "granularity must be 'scalar' or None with"),
        ({"criterion": MeanStd}, "criterion must be MeanStd or Magnitude, got <class .*only under max_accuracy_drop"),
        ({"criterion": None}, "criterion must be MeanStd or Magnitude, got None"),
    ],
)
def test_refuses(model, batches, options, match):
    options = {"criterion": MeanStd(k=0.0), **options}
    with pytest.raises(Error, match="prune_activations: " + match):
        prune_activations(model, batches, options.pop("criterion"), progress=False, **options)


def test_an_excluded_threshold_stays(model, batches):
    thin = prune_activations(model, batches, MeanStd(k=0.0), progress=False)
    again = prune_activations(thin, batches, MeanStd(k=-1.0), exclude=["3"], progress=False)
    assert isinstance(again[3], ThresholdReLU)
    assert torch.equal(again[3].theta, thin[3].theta)
    assert not torch.equal(again[1].theta, thin[1].theta)


def test_a_std_that_is_only_rounding_does_not_spoil_the_search():
    """All positive values of channel 0 lie within one part in 10^13: float64 leaves nothing of their variance."""
    values = torch.rand(2, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[0] = 1.0
    values[0, :500] += 1e-13
    s = ChannelStatistics(2, torch.device("cpu"))
    s.update(values)
    chosen = Group({"a": s}, "positive", "channel").apply(MeanStd(sparsity=0.4))["a"]
    assert float(chosen.theta[1]) == pytest.approx(0.8, abs=0.02)
    assert abs(chosen.k) < 10
