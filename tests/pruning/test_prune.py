"""secateur.prune and secateur.sparsity: layers, patterns, who is pruned, what is said, errors that change nothing."""

from __future__ import annotations

import copy
import warnings

import pytest
import secateur
import torch
import torch.nn.utils.parametrizations as parametrizations
import torch.nn.utils.prune as torch_prune
from secateur import Error, Magnitude, MeanStd, Random, masks
from secateur.ops import mask_unpack
from torch import nn


def cnn() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(64, 10))


def literal(weight: torch.Tensor, k: float) -> torch.Tensor:
    """The definition, on [neurons, weights], in float64."""
    magnitude = weight.double().abs()
    theta = magnitude.mean(1, keepdim=True) - k * magnitude.std(1, keepdim=True, correction=0)
    return magnitude >= theta


def mask_of(module: nn.Module, name: str = "weight") -> torch.Tensor:
    mask = masks.get_mask(module, name)
    assert mask is not None
    return mask_unpack(mask, getattr(module, name).shape)


LAYERS = {
    "linear": lambda: nn.Linear(24, 12),
    "conv1d": lambda: nn.Conv1d(8, 12, 3),
    "conv2d": lambda: nn.Conv2d(8, 12, 3),
    "conv2d channels_last": lambda: nn.Conv2d(8, 12, 3).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "conv3d": lambda: nn.Conv3d(4, 6, 3),
    "grouped": lambda: nn.Conv2d(8, 12, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "transposed 1d": lambda: nn.ConvTranspose1d(8, 12, 3),
    "transposed 2d": lambda: nn.ConvTranspose2d(8, 12, 3),
    "transposed grouped": lambda: nn.ConvTranspose2d(8, 12, 3, groups=2),
    "transposed 3d": lambda: nn.ConvTranspose3d(4, 6, 2),
    "linear bf16": lambda: nn.Linear(24, 12).to(torch.bfloat16),  # torch 2.10 draws zeros in bfloat16
    "conv f16": lambda: nn.Conv2d(8, 12, 3, dtype=torch.float16),
    "conv f64": lambda: nn.Conv2d(8, 12, 3, dtype=torch.float64),
}


def neurons(layer: nn.Module) -> torch.Tensor:
    """The weight as [neurons, weights], written out by hand, group by group."""
    weight = layer.weight.detach()
    if "Transpose" in type(layer).__name__:
        groups, inputs = layer.groups, weight.shape[0] // layer.groups
        return torch.stack(
            [
                weight[g * inputs : (g + 1) * inputs, out].reshape(-1)
                for g in range(groups)
                for out in range(weight.shape[1])
            ]
        )
    return weight.reshape(weight.shape[0], -1)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("k", [-1.0, 0.0, 0.5])
def test_mean_std_is_the_definition(name: str, k: float) -> None:
    layer = LAYERS[name]()
    before = copy.deepcopy(layer)
    keep = literal(neurons(before), k)
    report = secateur.prune(layer, MeanStd(k))
    after = neurons(layer)
    assert torch.equal(after, torch.where(keep, neurons(before), torch.zeros((), dtype=after.dtype)))
    assert report[0]["zeros"] == int((after == 0).sum()) == report[0]["pruned"]
    assert torch.equal(mask_of(layer), layer.weight != 0)
    assert torch.equal(layer.bias, before.bias)
    magnitude = neurons(before).double().abs()
    theta = magnitude.mean(1) - k * magnitude.std(1, correction=0)
    assert report[0]["theta_min"] == pytest.approx(theta.min().item(), rel=1e-6)
    assert report[0]["theta_mean"] == pytest.approx(theta.mean().item(), rel=1e-6)
    assert report[0]["theta_max"] == pytest.approx(theta.max().item(), rel=1e-6)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("pattern", ["1x1", "1x2", "1x4", "1x5", "neuron"])
@pytest.mark.parametrize(
    "rule", [MeanStd(-0.5), MeanStd(sparsity=0.5), Magnitude(0.5), Magnitude(0.5, "global"), Random(0.5)]
)
def test_every_rule_with_every_pattern_on_every_layer(
    name: str, pattern: str, rule: secateur.pruning.criteria.Criterion
) -> None:
    layer = LAYERS[name]()
    groups = getattr(layer, "groups", 1)
    report = secateur.prune(layer, rule, pattern=pattern)
    zero = neurons(layer) == 0  # [J, C * T]
    inputs = (layer.in_channels if hasattr(layer, "in_channels") else layer.in_features) // groups
    zero = zero.reshape(zero.shape[0], inputs, -1)  # [J, C, T]
    size = {"1x1": 1, "neuron": inputs}.get(pattern) or int(pattern[2:])
    for start in range(0, inputs, size):
        block = zero[:, start : start + size] if pattern != "neuron" else zero.reshape(zero.shape[0], 1, -1)
        whole = (block.all(1), block.any(1)) if pattern != "neuron" else (block.all(-1), block.any(-1))
        assert torch.equal(*whole)
    assert 0 < int(zero.sum()) < zero.numel()
    assert report.total is not None
    assert report.total["zeros"] == int(zero.sum())
    if rule.sparsity is not None:
        step = min(size, inputs) if pattern != "neuron" else zero[0].numel()
        assert abs(int(zero.sum()) - 0.5 * zero.numel()) <= step


def test_shares_of_a_whole_model() -> None:
    """Layer by layer each reaches the share; global reaches it in all, with the same threshold everywhere."""
    for rule in (MeanStd(sparsity=0.9), Magnitude(0.9), Random(0.9)):
        model = cnn()
        report = secateur.prune(model, rule)
        for row in report:
            assert abs(row["zeros"] - 0.9 * row["weights"]) <= 1
    model = cnn()
    report = secateur.prune(model, Magnitude(0.9, scope="global"))
    assert report.total is not None
    assert report.total["zeros"] == round(0.9 * report.total["weights"])
    assert len({row["theta_mean"] for row in report}) == 1
    assert len({row["sparsity"] for row in report}) == 3


def test_random_neurons_is_the_tutorials_code() -> None:
    model = cnn()
    secateur.prune(model, Random(0.5, "neuron", seed=1))
    empty = (neurons(model[2]) == 0).all(1)
    assert int(empty.sum()) == 8
    assert torch.equal((neurons(model[2]) == 0).any(1), empty)
    same = cnn()
    secateur.prune(same, Random(0.5, "neuron", seed=1), exclude=["0"])
    assert torch.equal((neurons(same[2]) == 0).all(1), empty)  # whatever else is pruned
    with pytest.raises(Error, match=r'pattern must be "1x1" or "neuron" for Random\(sparsity=0.5, unit=\'neuron\'\)'):
        secateur.prune(cnn(), Random(0.5, "neuron"), pattern="1x4")


def test_pruning_again_takes_the_survivors() -> None:
    layer = nn.Linear(200, 20)
    secateur.prune(layer, MeanStd(0.0))
    first = layer.weight.detach().clone()
    report = secateur.prune(layer, MeanStd(0.0))
    for row, now in zip(first, layer.weight.detach(), strict=True):
        alive = row[row != 0].double().abs()
        theta = alive.mean()
        assert torch.equal(now != 0, row.double().abs() >= theta)
    assert report[0]["pruned"] == int((first != 0).sum() - (layer.weight != 0).sum())
    secateur.prune(layer, Magnitude(0.95))
    assert int((layer.weight == 0).sum()) == 3800


def test_zeros_without_a_mask() -> None:
    """For a share they are zeros of the total; for a k they are weights, and the report says so; adopt changes that."""
    layer = nn.Linear(100, 10)
    with torch.no_grad():
        layer.weight[:, :50] = 0
    shared, literally, adopted = copy.deepcopy(layer), copy.deepcopy(layer), masks.adopt(copy.deepcopy(layer))
    secateur.prune(shared, Random(0.6))
    assert int((shared.weight == 0).sum()) == 600
    report = secateur.prune(literally, MeanStd(-0.5))
    assert torch.equal(literally.weight != 0, literal(layer.weight.detach(), -0.5))
    assert any("held 500 zeros without a mask" in note for note in report.notes)
    secateur.prune(adopted, MeanStd(-0.5))
    assert torch.equal(adopted.weight[:, 50:] != 0, literal(layer.weight.detach()[:, 50:], -0.5))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights(kind: type[nn.RNNBase]) -> None:
    model = kind(6, 8, num_layers=2, bidirectional=True)
    before = copy.deepcopy(model)
    report = secateur.prune(model, MeanStd(-1.0), overrides={"weight_hh_l1": None})
    named = {row["layer"] for row in report}
    assert {"weight_ih_l0", "weight_hh_l0_reverse", "weight_ih_l1_reverse"} < named
    assert "weight_hh_l1" not in named
    assert "weight_hh_l0_reverse_mask" in model.state_dict()
    assert torch.equal(model.weight_ih_l0 != 0, literal(before.weight_ih_l0.detach(), -1.0))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(3, 2, 6))[0].square().sum().backward()
    optimizer.step()
    assert torch.equal(model.weight_ih_l0 != 0, literal(before.weight_ih_l0.detach(), -1.0))
    assert not torch.equal(model.weight_ih_l0, before.weight_ih_l0)
    kind(6, 8, num_layers=2, bidirectional=True).load_state_dict(secateur.strip(model).state_dict())


def test_lstm_with_projection_and_cells() -> None:
    assert [r["layer"] for r in secateur.prune(nn.LSTM(4, 8, proj_size=3), Magnitude(0.5))] == [
        "weight_ih_l0",
        "weight_hh_l0",
        "weight_hr_l0",
    ]
    assert [r["layer"] for r in secateur.prune(nn.Sequential(nn.GRUCell(4, 8)), Magnitude(0.5))] == [
        "0.weight_ih",
        "0.weight_hh",
    ]


def test_embeddings_only_when_asked() -> None:
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 4))
    report = secateur.prune(copy.deepcopy(model), Magnitude(0.5))
    assert [row["layer"] for row in report] == ["1"]
    assert any("0 (Embedding) is left out by default" in note for note in report.notes)
    for included in (["0"], [nn.Embedding], "0"):
        report = secateur.prune(copy.deepcopy(model), Magnitude(0.5), include=included)
        assert [row["layer"] for row in report] == ["0", "1"]
    report = secateur.prune(copy.deepcopy(model), Magnitude(0.5), overrides={"0": Magnitude(0.25)})
    assert report["0"]["sparsity"] == 0.25
    with pytest.raises(Error, match="include must name layers that are left out by default, but '1' is pruned anyway"):
        secateur.prune(model, Magnitude(0.5), include=["1"])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(8, 10)


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["head"], {"features.0", "features.2"}),
        ("head", {"features.0", "features.2"}),
        (["features"], {"head"}),
        (["feat*.0", "h*"], {"features.2"}),
        (["features.0.weight"], {"features.2", "head"}),
        ([nn.Conv2d], {"head"}),
        (nn.Linear, {"features.0", "features.2"}),
        ([nn.Sequential], {"head"}),
        ((), {"features.0", "features.2", "head"}),
    ],
)
def test_exclude_by_name_pattern_and_type(exclude: object, left: set[str]) -> None:
    report = secateur.prune(Net(), Magnitude(0.5), exclude=exclude)  # type: ignore[arg-type]
    assert {row["layer"] for row in report} == left


@pytest.mark.parametrize("how", ["exclude", "include", "overrides"])
@pytest.mark.parametrize("entry", ["haed", "*.conv", nn.LSTM])
def test_an_entry_that_matches_nothing_is_an_error(how: str, entry: str | type) -> None:
    model = Net()
    value = {entry: Magnitude(0.1)} if how == "overrides" else [entry]
    with pytest.raises(Error, match=f"prune: {how} must name layers of the model, but .* matches none of: features.0"):
        secateur.prune(model, Magnitude(0.5), **{how: value})  # type: ignore[arg-type]
    assert secateur.sparsity(model).sparsity == 0


def test_overrides() -> None:
    """Name over pattern over type; a criterion, a pattern, both, or None."""
    report = secateur.prune(
        Net(),
        Magnitude(0.5),
        overrides={
            "features.0": (MeanStd(sparsity=0.25), "1x1"),
            "features.*": Magnitude(0.75),
            nn.Conv2d: None,
            "head": "neuron",
        },
    )
    assert report["features.0"]["criterion"] == "MeanStd(sparsity=0.25)"
    assert report["features.0"]["sparsity"] == 0.25
    assert report["features.2"]["sparsity"] == 0.75
    assert report["head"]["pattern"] == "neuron"
    assert report["head"]["criterion"] == "Magnitude(sparsity=0.5)"
    for bad, message in [
        (
            {"head": 0.5},
            "a criterion in overrides must be a MeanStd, Magnitude, Random or another secateur.Criterion, got 0.5",
        ),
        ({"head": "2x2"}, "pattern must be"),
        ({"head": (Magnitude(0.5),)}, "overrides must map to"),
        ({3: None}, "overrides must hold names, glob patterns or module types, got 3"),
    ]:
        with pytest.raises(Error, match=message):
            secateur.prune(Net(), Magnitude(0.5), overrides=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: secateur.prune(m, 0.5),
            "prune: criterion must be a MeanStd, Magnitude, Random or another secateur.Criterion, got 0.5",
        ),
        (lambda m: secateur.prune(m, MeanStd), r"got <class .*MeanStd'> \(write MeanStd\(...\)\)"),
        (lambda m: secateur.prune(m, MeanStd(0), pattern="2x2"), 'prune: pattern must be "1x1", "1xN" .* got \'2x2\''),
        (lambda m: secateur.prune(m, MeanStd(0), exclude=[3]), "prune: exclude must hold names"),
        (lambda m: secateur.prune(m, MeanStd(0), exclude=3), "prune: exclude must be names"),
        (lambda m: secateur.prune(m, MeanStd(0), exclude=["*"]), "must leave a layer to prune, but none is left"),
        (lambda m: secateur.prune(m, MeanStd(0), optimizer="sgd"), "prune: optimizer must be a torch.optim.Optimizer"),
        (
            lambda m: secateur.prune(m.state_dict(), MeanStd(0)),
            "prune: model must be a torch.nn.Module, got OrderedDict",
        ),
        (
            lambda m: secateur.prune(nn.ReLU(), MeanStd(0)),
            "prune: model must hold a layer that can be pruned, got a ReLU",
        ),
        (
            lambda m: secateur.prune(m, MeanStd(0), overrides="fc"),
            "prune: overrides must map layers to rules, got 'fc'",
        ),
        (lambda m: secateur.prune(m, MeanStd(0), overrides=5), "prune: overrides must map layers to rules, got 5"),
        (lambda m: secateur.strip(m.state_dict()), "strip: model must be a torch.nn.Module, got OrderedDict"),
        (lambda m: secateur.masks.apply(None), "apply: model must be a torch.nn.Module, got NoneType"),
        (lambda m: secateur.sparsity(None), "sparsity: model must be a torch.nn.Module, got NoneType"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    model = cnn()
    with pytest.raises(Error, match=message):
        call(model)
    assert list(model.state_dict()) == list(cnn().state_dict())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rule", [MeanStd(0.0), MeanStd(sparsity=0.5), Magnitude(0.5), Random(0.5)])
def test_weights_that_are_not_finite_change_nothing(bad: float, rule: secateur.pruning.criteria.Criterion) -> None:
    """The last layer is the bad one: the first ones must not have been pruned."""
    model = cnn()
    with torch.no_grad():
        model[4].weight[3, 7] = bad
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(Error, match=r"prune: 4 must hold finite weights, got -?(nan|inf) at \[3, 7\] \(1 such\)"):
        secateur.prune(model, rule)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) or k == "4.weight" for k, v in model.state_dict().items())


def test_large_finite_weights_are_finite() -> None:
    """The quick check sums; a sum that overflows is looked at again."""
    layer = nn.Linear(8, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.fill_(1.5e308)
        layer.weight[0, 0] = 1.0
    secateur.prune(layer, Magnitude(0.1))
    assert int((layer.weight == 0).sum()) == 2


def test_lazy_meta_and_parametrized_layers_are_errors() -> None:
    lazy = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(4))
    with pytest.raises(Error, match=r"prune: 1 cannot be pruned: it is not initialized yet \(a lazy layer\)"):
        secateur.prune(lazy, Magnitude(0.5))
    assert secateur.prune(lazy, Magnitude(0.5), exclude=["1"])[0]["layer"] == "0"
    with pytest.raises(Error, match="on the meta device"):
        secateur.prune(nn.Linear(3, 3, device="meta"), Magnitude(0.5))
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(
        Error, match=r"its weight is parametrized \(_WeightNorm\) and computed anew .*remove_parametrizations"
    ):
        secateur.prune(normed, Magnitude(0.5))
    spectral = nn.utils.spectral_norm(nn.Linear(3, 3))
    with pytest.raises(Error, match="its weight is no Parameter"):
        secateur.prune(nn.Sequential(spectral), Magnitude(0.5))


def test_what_cannot_be_pruned_is_said() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.complex64), nn.Bilinear(3, 4, 5))
    with pytest.warns(UserWarning, match="prune: 1 is left as it is: its weight is complex64, not float32"):
        report = secateur.prune(model, Magnitude(0.5))
    assert [row["layer"] for row in report] == ["0"]
    assert any("layer types are unknown here: 2.weight [5, 3, 4]" in note for note in report.notes)
    assert any("1 is not counted" in note for note in secateur.sparsity(model).notes)


class QuantizedLinear(nn.Module):
    """Stands for torch.ao.nn.quantized.Linear, whose weight is a method."""

    def weight(self) -> None: ...


def test_quantized_layers_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QuantizedLinear, "__module__", "torch.ao.nn.quantized.modules.linear")
    with pytest.warns(UserWarning, match=r"prune: 1 \(QuantizedLinear\): quantized already, left as it is"):
        secateur.prune(nn.Sequential(nn.Linear(4, 4), QuantizedLinear()), Magnitude(0.5))


def test_a_rule_that_prunes_nothing_is_loud() -> None:
    model = cnn()
    with pytest.warns(
        UserWarning, match=r"prune: MeanStd\(k=3\) pruned nothing in 0, 2, 4: no weight lies below theta"
    ):
        report = secateur.prune(model, MeanStd(3))
    assert report.sparsity == 0
    assert "pruned nothing" in report.notes[0]
    with pytest.warns(
        UserWarning, match=r"MeanStd\(sparsity=0\) pruned nothing in 0, 2, 4: that many zeros are there already"
    ):
        secateur.prune(model, MeanStd(sparsity=0.0))
    with pytest.warns(UserWarning, match=r"scope='global'\) pruned nothing: that many zeros"):
        secateur.prune(model, Magnitude(0.0, "global"))
    constant = nn.Linear(4, 4)
    nn.init.constant_(constant.weight, 0.5)
    for rule in (MeanStd(-1), MeanStd(sparsity=0.5)):
        with pytest.warns(UserWarning, match="pruned nothing"):
            secateur.prune(constant, rule)
    assert (constant.weight == 0.5).all()


@pytest.mark.parametrize(
    "rule", [MeanStd(-50), MeanStd(sparsity=1.0), Magnitude(1.0), Random(1.0), Magnitude(1.0, "global")]
)
def test_a_layer_emptied_whole_is_loud(rule: secateur.pruning.criteria.Criterion) -> None:
    model = cnn()
    with pytest.warns(UserWarning, match="prune: no weight is left in 0, 2, 4: emptied whole"):
        report = secateur.prune(model, rule)
    assert report.sparsity == 1


def test_a_share_below_one_never_empties_a_layer() -> None:
    for rule in (MeanStd(sparsity=0.99), Magnitude(0.99), Random(0.99, "neuron")):
        layer = nn.Linear(3, 3)
        secateur.prune(layer, rule)
        assert (layer.weight != 0).any()


def test_a_share_that_ties_forbid_is_loud() -> None:
    layer = nn.Linear(10, 4)
    with torch.no_grad():
        layer.weight[:3] = 0.5  # std 0: these keep all
    with pytest.warns(UserWarning, match="prune: weight has 25.0 %, not 90.0 %: weights that tie"):
        secateur.prune(layer, MeanStd(sparsity=0.9))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.middle = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_are_pruned_once_and_said() -> None:
    model = Tied()
    with pytest.warns(
        UserWarning, match="prune: embed, head are one tied weight: it is pruned once, and all of them change"
    ):
        report = secateur.prune(model, Magnitude(0.5))
    assert len(report) == 2
    assert model.head.weight is model.embed.weight
    state = model.state_dict()
    assert torch.equal(state["head.weight_mask"], state["embed.weight_mask"])
    with pytest.warns(UserWarning, match="excluding one leaves it alone under every name"):
        report = secateur.prune(Tied(), Magnitude(0.5), exclude=["embed"])
    assert [row["layer"] for row in report] == ["middle"]
    assert any("also head" in note for note in secateur.sparsity(model).notes)


def test_parameters_over_the_same_memory_are_tied() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = nn.Parameter(model[0].weight.data)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="0, 1 are one tied weight"):
        report = secateur.prune(model, MeanStd(-1.0), optimizer=optimizer)
    assert [row["layer"] for row in report] == ["0"]
    for layer in model:
        assert torch.equal(mask_of(layer), model[0].weight != 0)
        assert (optimizer.state[layer.weight]["momentum_buffer"][model[0].weight == 0] == 0).all()


def test_expanded_weights_are_left() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = nn.Parameter(torch.randn(1, 8).expand(8, 8))
    with pytest.warns(UserWarning, match="prune: 1 is left as it is: its weight is an expanded view"):
        secateur.prune(model, Magnitude(0.5))


def test_sparse_layers_are_counted_and_left() -> None:
    """A stand-in with secateur.nn.SparseLinear's state: values and a mask, weight a property."""

    class Sparse(nn.Linear):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.weight_values = nn.Parameter(torch.ones(3), requires_grad=False)
            self.register_buffer("weight_mask", torch.tensor([[1], [3]], dtype=torch.uint8))

        @property
        def weight(self) -> torch.Tensor:  # type: ignore[override]
            return torch.tensor([[1.0, 0, 0], [1, 1, 0]])

    model = nn.Sequential(nn.Linear(3, 3), Sparse())
    assert secateur.sparsity(model)["1"]["zeros"] == 3
    with pytest.warns(UserWarning, match="prune: 1 is left as it is: it is a Sparse and holds only its nonzeros"):
        secateur.prune(model, Magnitude(0.5))
    with pytest.raises(Error, match="none is left: weight is left as it is: it is a Sparse"):
        secateur.prune(model[1], Magnitude(0.5))


def test_multihead_attention() -> None:
    """out_proj is read past its forward; the zeros are in the weight, so they count; a warning says what would not."""
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    with pytest.warns(UserWarning, match="out_proj: MultiheadAttention reads this weight without calling the layer"):
        report = secateur.prune(attention, Magnitude(0.5))
    assert [row["layer"] for row in report] == ["in_proj_weight", "out_proj"]
    plain = nn.MultiheadAttention(16, 4, batch_first=True)
    plain.load_state_dict({k: v for k, v in attention.state_dict().items() if not k.endswith("_mask")})
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(attention(x, x, x)[0], plain(x, x, x)[0])
    optimizer = torch.optim.SGD(attention.parameters(), 0.1)
    attention(x, x, x)[0].square().sum().backward()
    optimizer.step()
    assert secateur.sparsity(attention).sparsity == 0.5
    with pytest.warns(UserWarning, match="out_proj"):
        report = secateur.prune(nn.MultiheadAttention(16, 4, kdim=6, vdim=7), Magnitude(0.5))
    assert {"q_proj_weight", "k_proj_weight", "v_proj_weight"} < {row["layer"] for row in report}


def test_takes_over_torch_nn_utils_prune() -> None:
    model = cnn()
    torch_prune.l1_unstructured(model[4], "weight", amount=0.5)
    assert secateur.sparsity(model)["4"]["sparsity"] == 0.5
    parameter = model[4].weight_orig
    dense = parameter.detach().clone()
    kept = model[4].weight_mask.bool()
    report = secateur.prune(model, MeanStd(sparsity=0.75))
    assert abs(report["4"]["zeros"] - 480) <= 1
    assert report["4"]["pruned"] in range(159, 162)
    assert model[4].weight is parameter  # the optimizer's parameter
    assert not hasattr(model[4], "weight_orig")
    assert not model[4]._forward_pre_hooks
    assert ((model[4].weight == 0) | (model[4].weight == dense)).all()
    assert (model[4].weight[~kept] == 0).all()
    assert any("4: took over the mask of torch.nn.utils.prune" in note for note in report.notes)


def test_a_bad_layer_leaves_foreign_pruning_alone() -> None:
    model = cnn()
    torch_prune.l1_unstructured(model[0], "weight", amount=0.5)
    with torch.no_grad():
        model[4].weight[0, 0] = float("nan")
    with pytest.raises(Error, match="finite"):
        secateur.prune(model, Magnitude(0.9))
    assert hasattr(model[0], "weight_orig")


def test_an_attribute_in_the_masks_place_is_an_error() -> None:
    model = cnn()
    model[4].register_buffer("weight_mask", torch.ones(10, 64))
    before = model[0].weight.clone()
    with pytest.raises(Error, match="prune: 4 must leave the name 'weight_mask' free for its mask"):
        secateur.prune(model, Magnitude(0.5))
    assert torch.equal(model[0].weight, before)


def test_optimizer_that_holds_nothing_of_it_is_said() -> None:
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    with pytest.warns(UserWarning, match="optimizer= was given a SGD that holds none of the pruned weights"):
        secateur.prune(cnn(), Magnitude(0.5), optimizer=other)


def test_report_and_sparsity() -> None:
    model = cnn()
    report = secateur.prune(model, MeanStd(sparsity=0.9))
    counted = secateur.sparsity(model)
    for key in ("layer", "shape", "weights", "zeros", "sparsity", "theta_mean", "bytes_dense", "bytes_packed"):
        assert [row[key] for row in report] == [row[key] for row in counted]
    assert [row["layer"] for row in report] == ["0", "2", "4"]
    row = report["4"]
    assert row["bytes_dense"] == 2560
    assert row["bytes_packed"] == 10 * 8 + 4 * (640 - row["zeros"])
    assert row["k"] < 0
    assert "total" in str(report)
    assert secateur.sparsity(cnn()).sparsity == 0
    by_hand = cnn()
    with torch.no_grad():
        by_hand[4].weight[:, ::2] = 0
    assert secateur.sparsity(by_hand)["4"]["sparsity"] == 0.5
    assert secateur.sparsity(by_hand)["4"]["theta_mean"] is None


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")
def test_scripted_modules_are_stepped_over() -> None:
    scripted = torch.jit.script(nn.Linear(8, 8))
    with pytest.raises(Error, match="prune: model must hold a layer that can be pruned, got a RecursiveScriptModule"):
        secateur.prune(scripted, Magnitude(0.5))
    report = secateur.prune(nn.Sequential(nn.Linear(8, 8), scripted), Magnitude(0.5))
    assert [row["layer"] for row in report.rows] == ["0"]
    assert "not pruned, for their layer types are unknown here: 1.weight [8, 8]" in report.notes


def test_an_ordinary_call_is_quiet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = secateur.prune(cnn(), MeanStd(-1.0))
    assert report.notes == []
