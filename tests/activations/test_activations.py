"""prune_activations: thresholds are those of the definition, every ReLU is found, the result is a model like any."""

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from secateur import Error, prune, prune_activations
from secateur.activations.calibration import ChannelStatistics
from secateur.nn import ThresholdReLU
from secateur.pruning.criteria import Magnitude, MeanStd, Random
from torch import nn


class Functional(nn.Module):
    """The tutorial's shape: every ReLU is a function."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.fc1 = nn.Linear(6 * 4, 8)
        self.fc2 = nn.Linear(8, 3)
        self.classes = 3
        self.register_buffer("unused", torch.ones(2))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv1(x))), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = F.dropout(self.fc1(x.view(x.size(0), -1)).relu(), 0.5, training=self.training)
        return self.fc2(x)


class Modules(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU6(inplace=True))
        self.head = nn.Linear(6 * 16, 3)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


class Reused(nn.Module):
    """torchvision's habit: one nn.ReLU, called at several places."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv2(self.relu(self.conv1(x)))).mean((2, 3))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 8)
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.act(self.fc(x.flatten(1)))
        return F.relu(x - 0.1) if float(x.sum()) > -1 else x


@pytest.fixture
def batches():
    g = torch.Generator().manual_seed(0)
    return [torch.randn(n, 1, 8, 8, generator=g) for n in (8, 5, 1)]


def make(kind):
    torch.manual_seed(1)
    return kind()


def stored(model, batches, names):
    """The activations themselves, [C, n] float64 numpy, by running the model up to each ReLU: the oracle."""
    out = {}
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for x in batches:
            if isinstance(model, Functional):
                a = F.relu(model.norm(model.conv1(x)))
                b = F.relu(model.conv2(F.max_pool2d(a, 2)))
                c = F.relu(model.fc1(F.max_pool2d(b, 2).flatten(1)))
                values = (a, b, c)
            elif isinstance(model, Modules):
                a = F.relu(model.body[0](x))
                values = (a, F.relu6(model.body[2](a)))
            else:
                a = F.relu(model.conv1(x))
                values = (a, F.relu(model.conv2(a)))
            for name, v in zip(names, values, strict=True):
                out.setdefault(name, []).append(v.transpose(0, 1).flatten(1).double().numpy())
    return {name: np.concatenate(parts, 1) for name, parts in out.items()}


NAMES = {
    Functional: ["norm_relu", "conv2_relu", "fc1_relu"],
    Modules: ["body.1", "body.3"],
    Reused: ["relu", "relu_1"],
}


@pytest.mark.filterwarnings("ignore:prune_activations. MeanStd.k=1. prunes nothing")
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("k", [1.0, 0.0, -1.0])
def test_thresholds_are_mean_minus_k_std_clamped_at_zero(kind, k, batches):
    model = make(kind)
    thin = prune_activations(model, batches, MeanStd(k=k), progress=False)
    oracle = stored(model, batches, NAMES[kind])
    assert [row["layer"] for row in thin.report] == NAMES[kind]
    for row in thin.report:
        a = oracle[row["layer"]]
        raw = a.mean(1) - k * a.std(1)
        layer = thin.get_submodule(row["layer"])
        assert isinstance(layer, ThresholdReLU)
        assert layer.max == (6.0 if row["layer"] == "body.3" else None)
        # float64 statistics, rounded once to float32
        np.testing.assert_allclose(layer.theta.numpy(), np.maximum(raw, 0), rtol=2e-7, atol=1e-12)
        assert row["clamped"] == int((raw < -1e-12).sum())
        assert row["channels"] == a.shape[0]
        assert row["zeros_before"] == pytest.approx((a == 0).mean(), abs=1e-12)
        theta = np.where(a.min(1) == a.max(1), 0, layer.theta.double().numpy())
        exact = ((a == 0) | (a < theta[:, None])).mean()
        assert abs(row["sparsity"] - exact) <= row["sparsity_error"] + 1e-12
        assert (row["theta_min"], row["theta_max"]) == (layer.theta.min(), layer.theta.max())


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("sparsity", [0.7, 0.9, 0.97])
@pytest.mark.parametrize("rule", ["MeanStd", "Magnitude"])
def test_solved_thresholds_reach_the_zeros_within_the_stated_error(kind, sparsity, rule, batches):
    model = make(kind)
    criterion = MeanStd(sparsity=sparsity) if rule == "MeanStd" else Magnitude(sparsity)
    # a one-shot generator: nothing needs a second pass
    thin = prune_activations(model, (x for x in batches), criterion, progress=False)
    oracle = stored(model, batches, NAMES[kind])
    for row in thin.report:
        a = oracle[row["layer"]]
        theta = thin.get_submodule(row["layer"]).theta.double().numpy()[:, None]
        zeros = ((a == 0) | (a < theta)).mean()
        assert row["sparsity_error"] < 0.02
        assert abs(zeros - sparsity) <= row["sparsity_error"] + 1 / a.size
        if rule == "MeanStd":  # one k for the whole layer
            live = (a.std(1) > 0) & (theta[:, 0] > 0)
            k = (a.mean(1) - theta[:, 0])[live] / a.std(1)[live]
            np.testing.assert_allclose(k, k[0], rtol=1e-4, atol=1e-5)
        else:
            assert len(set(theta.ravel())) == 1


def test_magnitude_global_uses_one_threshold_for_all_layers(batches):
    model = make(Functional)
    thin = prune_activations(model, batches, Magnitude(0.9, scope="global"), progress=False)
    thetas = torch.cat([thin.get_submodule(row["layer"]).theta for row in thin.report])
    assert len(thetas.unique()) == 1
    assert thin.report.sparsity == pytest.approx(0.9, abs=0.005)
    assert len({round(row["sparsity"], 3) for row in thin.report}) > 1


@pytest.mark.parametrize("cuts", [[100], [1, 99], [33, 33, 34], [1] * 100])
def test_moments_do_not_depend_on_the_cut(cuts):
    values = torch.randn(3, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 1e4
    s = ChannelStatistics(3, torch.device("cpu"))
    for part in values.split(cuts, dim=1):
        s.update(part)
    assert s.count == 100
    # a mean of 1e4 costs 8 of float64's 16 digits in the squares of a naive sum; Chan's update keeps them
    np.testing.assert_allclose(s.mean.numpy(), values.numpy().mean(1), rtol=1e-14)
    np.testing.assert_allclose(s.std.numpy(), values.numpy().std(1), rtol=1e-11)


def test_the_histogram_counts_within_its_bound():
    values = torch.rand(5, 4000, generator=torch.Generator().manual_seed(4)) ** 3 * 7
    values[values < 0.01] = 0
    s = ChannelStatistics(5, torch.device("cpu"))
    s.update(values)
    for level in (0.0, 1e-9, 0.01, 0.5, 1.0, 3.3, 6.9, 50.0):
        theta = torch.full((5,), level)
        exact = int(((values == 0) | (values < level)).sum())
        counted, off = s.zeros_below(theta)
        assert abs(counted - exact) <= off
        assert off <= 0.02 * values.numel()


@pytest.mark.parametrize("kind", NAMES)
def test_the_given_model_is_untouched(kind, batches):
    model = make(kind).train()
    before = copy.deepcopy(model.state_dict())
    children = dict(model.named_modules())
    data = [x.clone() for x in batches]
    thin = prune_activations(model, batches, MeanStd(k=0.0), progress=False)
    assert dict(model.named_modules()) == children
    assert all(m.training for m in model.modules())
    assert all(m.training for m in thin.modules())
    assert all(torch.equal(v, before[key]) for key, v in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(data, batches, strict=True))
    assert not any(hook for m in model.modules() for hook in (m._forward_hooks, m._forward_pre_hooks))
    assert {p.data_ptr() for p in thin.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())


def test_the_mode_of_each_module_is_kept(batches):
    model = make(Functional).train()
    model.norm.eval()
    thin = prune_activations(model, batches, MeanStd(k=0.0), progress=False)
    assert thin.training
    assert thin.conv1.training
    assert thin.norm_relu.training
    assert not thin.norm.training


@pytest.mark.parametrize("kind", NAMES)
def test_it_computes_the_thresholded_network(kind, batches):
    """With thresholds at 0 the same outputs; with the real ones, the definition applied layer by layer."""
    model = make(kind).eval()
    thin = prune_activations(model, batches, MeanStd(k=0.0), progress=False)
    layers = [thin.get_submodule(name) for name in NAMES[kind]]
    thetas = [layer.theta.clone() for layer in layers]

    def rule(a, i):
        return torch.where(a < thetas[i].reshape(-1, *[1] * (a.dim() - 2)), torch.zeros_like(a), a)

    x = batches[0]
    if kind is Functional:
        h = F.max_pool2d(rule(model.norm(model.conv1(x)), 0), 2)
        h = F.max_pool2d(rule(model.conv2(h), 1), 2)
        expected = model.fc2(rule(model.fc1(h.flatten(1)), 2))
    elif kind is Modules:
        h = rule(model.body[2](rule(model.body[0](x), 0)), 1).clamp(max=6)
        expected = model.head(h.flatten(1))
    else:
        expected = rule(model.conv2(rule(model.conv1(x), 0)), 1).mean((2, 3))
    torch.testing.assert_close(thin(x), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(thin(x), model(x))
    for layer in layers:
        layer.theta.zero_()
    torch.testing.assert_close(thin(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", NAMES)
def test_the_result_trains_copies_and_saves(kind, batches):
    thin = prune_activations(make(kind), batches, MeanStd(k=0.0), progress=False).train()
    names = [n for n, _ in make(kind).named_parameters()]
    assert [n for n, _ in thin.named_parameters()] == names
    optimizer = torch.optim.SGD(thin.parameters(), 0.1)
    before = {n: p.detach().clone() for n, p in thin.named_parameters()}
    thin(batches[0]).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, before[n]) for n, p in thin.named_parameters())

    thin.eval()
    file = io.BytesIO()
    torch.save(thin, file)
    file.seek(0)
    others = [copy.deepcopy(thin), pickle.loads(pickle.dumps(thin)), torch.load(file, weights_only=False)]
    others.append(copy.deepcopy(others[-1]))
    for other in others:
        assert type(other).__name__ == type(thin).__name__
        assert set(other.state_dict()) == set(thin.state_dict())
        assert torch.equal(other(batches[0]), thin(batches[0]))
        assert other.report.to_dict() == thin.report.to_dict()
        other.conv1.weight.data.zero_() if hasattr(other, "conv1") else other.head.weight.data.zero_()
        assert not torch.equal(other(batches[0]), thin(batches[0]))
    fresh = prune_activations(make(kind), batches, MeanStd(k=-1.0), progress=False).eval()
    fresh.load_state_dict(thin.state_dict())
    assert torch.equal(fresh(batches[0]), thin(batches[0]))


def test_everything_else_of_a_traced_module_is_kept(batches):
    model = make(Functional)
    model.fc1.register_buffer("weight_mask", torch.ones(8, 3, dtype=torch.uint8))
    thin = prune_activations(model, batches, MeanStd(k=0.0), progress=False)
    assert (thin.classes, thin.unused.tolist()) == (3, [1.0, 1.0])
    assert "fc1.weight_mask" in thin.state_dict()
    assert isinstance(thin.conv1, nn.Conv2d)
    new = {name + ".theta" for name in NAMES[Functional]}
    assert set(thin.state_dict()) - new == set(model.state_dict())
    assert type(thin).__name__ == "Functional"


def test_pruned_weights_stay_pruned(batches):
    model = make(Functional)
    prune(model, MeanStd(sparsity=0.8))
    thin = prune_activations(model, batches, MeanStd(k=0.0), progress=False)
    zeros = {n: p == 0 for n, p in thin.named_parameters() if n.endswith("weight") and "norm" not in n}
    assert sum(int(z.sum()) for z in zeros.values()) > 300
    for net in (thin, copy.deepcopy(thin), pickle.loads(pickle.dumps(thin))):
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            net.train()(batches[0]).square().sum().backward()
            optimizer.step()
        for name, was_zero in zeros.items():
            weight = net.get_parameter(name)
            assert not weight[was_zero].any()
            assert weight[~was_zero].any()


def test_a_pruned_layer_that_computes_its_own_relu_is_named(batches):
    class LinearReLU(nn.Linear):
        def forward(self, x):
            return F.relu(super().forward(x))

    model = nn.Sequential(nn.Flatten(), LinearReLU(64, 8), nn.Linear(8, 8), nn.ReLU())
    thin = prune_activations(model, batches, MeanStd(k=0.0), progress=False)
    assert [row["layer"] for row in thin.report] == ["1.relu", "3"]
    prune(model, MeanStd(k=0.0))
    with pytest.warns(UserWarning, match="it is a pruned layer that computes its own ReLU"):
        thin = prune_activations(model, batches, MeanStd(k=0.0), progress=False)
    assert [row["layer"] for row in thin.report] == ["3"]


def test_functional_dropout_still_follows_the_mode(batches):
    thin = prune_activations(make(Functional).train(), batches, MeanStd(k=0.0), progress=False)
    x = batches[0].repeat(8, 1, 1, 1)
    thin.norm.eval()
    assert not torch.equal(thin(x), thin(x))
    thin.eval()
    assert torch.equal(thin(x), thin(x))
    restored = pickle.loads(pickle.dumps(thin)).train()
    assert not torch.equal(restored(x), restored(x))


def test_a_model_of_modules_keeps_its_class_and_only_the_owner_is_traced(batches):
    assert type(prune_activations(make(Modules), batches, MeanStd(k=0.0), progress=False)) is Modules

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make(Functional)

        def forward(self, x):
            return self.inner(x) if float(x.sum()) > -1e9 else x  # control flow that fx can't follow

    thin = prune_activations(Outer(), batches, MeanStd(k=0.0), progress=False)
    assert type(thin) is Outer
    assert [row["layer"] for row in thin.report] == ["inner." + name for name in NAMES[Functional]]


def test_compiles_without_a_graph_break(batches):
    thin = prune_activations(make(Functional).eval(), batches, MeanStd(k=0.0), progress=False)
    compiled = torch.compile(thin, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(batches[0]), thin(batches[0]))


def test_thresholds_do_not_pile_up(batches):
    """Calibration looks at the network without thresholds, so a second call gives what a first one would."""
    once = prune_activations(make(Functional), batches, MeanStd(k=-0.5), progress=False)
    twice = prune_activations(
        prune_activations(make(Functional), batches, MeanStd(k=-2.0), progress=False),
        batches,
        MeanStd(k=-0.5),
        progress=False,
    )
    for name in NAMES[Functional]:
        assert torch.equal(once.get_submodule(name).theta, twice.get_submodule(name).theta)


def test_what_cannot_be_traced_is_said(batches):
    with pytest.warns(UserWarning, match=r"1 functional ReLU call in the forward of Untraceable could not be reached"):
        thin = prune_activations(make(Untraceable), batches, MeanStd(k=0.0), progress=False)
    assert isinstance(thin.act, ThresholdReLU)
    assert any("functional ReLU" in note for note in thin.report.notes)


def test_training_branches_are_not_frozen_silently(batches):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(64, 8), nn.ReLU()

        def forward(self, x):
            x = F.relu(self.act(self.fc(x.flatten(1))) - 0.1)
            return x * 2 if self.training else x

    with pytest.warns(UserWarning, match="it computes something else while training"):
        thin = prune_activations(Branching(), batches, MeanStd(k=0.0), progress=False)
    assert isinstance(thin.act, ThresholdReLU)


def test_one_module_with_different_channels_that_cannot_be_traced_stays_a_relu(batches):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu, self.act = nn.Linear(64, 8), nn.Linear(8, 4), nn.ReLU(), nn.ReLU()

        def forward(self, x):
            x = self.relu(self.a(x.flatten(1)))
            return self.act(self.relu(self.b(x))) if float(x.sum()) > -1 else x

    with (
        pytest.warns(UserWarning, match="'relu' is called with different numbers of channels"),
        pytest.warns(UserWarning, match="the several calls of one ReLU module in the forward of Both"),
    ):
        thin = prune_activations(Both(), batches, MeanStd(k=0.0), progress=False)
    assert type(thin.relu) is nn.ReLU
    assert isinstance(thin.act, ThresholdReLU)


def test_a_rule_that_prunes_nothing_says_so(batches):
    with pytest.warns(UserWarning, match=r"MeanStd\(k=50\) prunes nothing in body.1, body.3"):
        thin = prune_activations(make(Modules), batches, MeanStd(k=50.0), progress=False)
    assert thin.report.sparsity == thin.report.total["zeros_before"]
    assert all(row["clamped"] > 0 for row in thin.report)


def test_a_relu_that_never_runs_stays_and_is_named(batches):
    model = make(Modules)
    model.spare = nn.ReLU()
    with pytest.warns(UserWarning, match="'spare' never ran on the calibration data"):
        thin = prune_activations(model, batches, MeanStd(k=0.0), progress=False)
    assert type(thin.spare) is nn.ReLU


def test_a_constant_channel_keeps_its_value(batches):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU())
    with torch.no_grad():
        model[1].weight[1].zero_()
        model[1].bias[1] = 0.1
        model[1].weight[2].zero_()
        model[1].bias[2] = -1
    thin = prune_activations(model, batches, MeanStd(k=-1.0), progress=False)
    assert thin(batches[0])[:, 1].tolist() == [pytest.approx(0.1)] * 8
    assert float(thin[2].theta[2]) == 0


def test_exclude(batches):
    thin = prune_activations(make(Functional), batches, MeanStd(k=0.0), exclude=["conv*"], progress=False)
    assert [row["layer"] for row in thin.report] == ["norm_relu", "fc1_relu"]
    assert type(thin.conv2_relu) is nn.ReLU
    with pytest.raises(Error, match=r"exclude must match a ReLU, got \['nosuch'\]"):
        prune_activations(make(Modules), batches, MeanStd(k=0.0), exclude=["nosuch"], progress=False)
    with pytest.raises(Error, match="exclude must leave at least one ReLU"):
        prune_activations(make(Modules), batches, MeanStd(k=0.0), exclude=["*"], progress=False)
    with pytest.raises(Error, match="exclude must be a sequence"):
        prune_activations(make(Modules), batches, MeanStd(k=0.0), exclude="body.1", progress=False)


def test_batches_may_be_pairs(batches):
    pairs = [(x, torch.zeros(len(x))) for x in batches]
    a = prune_activations(make(Modules), pairs, MeanStd(k=0.0), progress=False)
    b = prune_activations(make(Modules), batches, MeanStd(k=0.0), progress=False)
    assert torch.equal(a.body[1].theta, b.body[1].theta)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ([], "batches must hold at least one batch, got none"),
        ([{"x": torch.zeros(1, 1, 8, 8)}], "a batch must be a tensor, or a tuple or list .* got dict"),
        (torch.zeros(4, 1, 8, 8), r"got one tensor: write \[tensor\]"),
        ([torch.full((1, 1, 8, 8), float("nan"))], "the activations of 'body.1' must be finite, got NaN or Inf"),
    ],
)
def test_refuses_batches(bad, match):
    with pytest.raises(Error, match=match):
        prune_activations(make(Modules), bad, MeanStd(k=0.0), progress=False)


def test_refuses_a_model_without_relu_and_other_criteria(batches):
    with pytest.raises(Error, match="must compute a ReLU that can be replaced, found none"):
        prune_activations(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), batches, MeanStd(k=0.0), progress=False)
    with pytest.raises(Error, match="criterion must be MeanStd or Magnitude, got Random"):
        prune_activations(make(Modules), batches, Random(0.5), progress=False)
    with pytest.raises(Error, match=r"model must be a torch\.nn\.Module, got int"):
        prune_activations(3, batches, MeanStd(k=0.0), progress=False)


def test_progress_is_shown_when_asked(batches, capsys):
    prune_activations(make(Modules), batches, MeanStd(k=0.0), progress=False)
    assert "calibrating" not in capsys.readouterr().err
    prune_activations(make(Modules), batches, MeanStd(k=0.0))
    assert "calibrating" in capsys.readouterr().err


def test_nothing_is_warned_about_when_all_is_well(batches):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune_activations(make(Functional), batches, MeanStd(k=0.0), progress=False)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (None, "batches must be an iterable of batches, got NoneType"),
        (5, "batches must be an iterable of batches, got int"),
        ([torch.randn(2, 9)], r"batches must be what the model takes, got float32 \[2, 9\]: RuntimeError"),
        ([torch.randn(2, 4).double()], r"batches must be what the model takes, got float64 \[2, 4\]"),
    ],
)
def test_batches_that_the_model_cannot_take(batches, message):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with pytest.raises(Error, match=message):
        prune_activations(model, batches, MeanStd(k=0.0), progress=False)


@pytest.mark.parametrize("exclude", [None, [1], "relu"])
def test_exclude_is_a_sequence_of_names(exclude):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with pytest.raises(Error, match="exclude must be a sequence of names or patterns"):
        prune_activations(model, [torch.randn(2, 4)], MeanStd(k=0.0), exclude=exclude, progress=False)


def test_sequences_say_which_dim_was_taken_for_the_channel():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with pytest.warns(UserWarning, match="3-d activations of 1: the channel is dim 1"):
        thin = prune_activations(model, [torch.randn(64, 5, 4)], MeanStd(k=0.0), progress=False)
    assert any("3-d activations" in note for note in thin.report.notes)
