"""train_thresholds and freeze_thresholds: the same values, the stated gradient, and back again."""

import copy
import pickle

import pytest
import torch
from secateur import ActivationSparsityLoss, Error, MeanStd, freeze_thresholds, prune_activations, train_thresholds
from secateur.nn import ThresholdReLU
from torch import nn


@pytest.mark.parametrize("limit", [None, 1.0])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("shape", "theta"),
    [
        ((4, 3, 5, 5), torch.tensor([0.0, 0.3, 0.9])),
        ((4, 3), torch.tensor([0.0, 0.3, 0.9])),
        ((2, 3, 7), torch.tensor([0.0, 0.3, 1.2])),
        ((3,), torch.tensor([0.0, 0.3, 0.9])),
        ((4, 3, 5), torch.tensor(0.4)),
    ],
)
def test_values_are_those_of_the_frozen_layer_and_gradients_as_stated(shape, theta, inplace, limit):
    x = torch.randn(shape)
    frozen, learning = ThresholdReLU(theta, limit, inplace), ThresholdReLU(theta, limit, inplace)
    (parameter,) = train_thresholds(learning)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, got = frozen(a * 1), learning(b * 1)
    assert torch.equal(got, expected)
    weights = torch.randn(shape)
    (expected * weights).sum().backward()
    (got * weights).sum().backward()
    torch.testing.assert_close(b.grad, a.grad)
    by_channel = theta if theta.dim() == 0 else theta.view(-1, *[1] * max(len(shape) - 2, 0))
    near = ((x > by_channel / 2) & (x < 1.5 * by_channel)).float()
    spread = -(weights * near)
    dims = [d for d in range(len(shape)) if d != (1 if len(shape) > 1 else 0)]
    wanted = spread.sum() if theta.dim() == 0 else spread.sum(dims) if dims else spread
    torch.testing.assert_close(parameter.grad, wanted, rtol=1e-5, atol=1e-6)
    assert theta.dim() == 0 or float(parameter.grad[0]) == 0  # a plain ReLU stays one


def test_nan_stays_and_channels_are_checked():
    layer = ThresholdReLU(torch.tensor([0.5, 0.5]))
    train_thresholds(layer)
    y = layer(torch.tensor([[float("nan"), 1.0]]))
    assert y[0, 0].isnan()
    assert y[0, 1] == 1
    with pytest.raises(Error, match="ThresholdReLU: x must have 2 channels"):
        layer(torch.zeros(1, 3))


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU6(), nn.Linear(8, 3))
    x = torch.randn(32, 1, 8, 8)
    return prune_activations(model, [x], MeanStd(k=0.0), progress=False), x


def test_there_and_back():
    thin, x = make()
    keys, before = list(thin.state_dict()), thin(x)
    thetas = train_thresholds(thin)
    assert [len(theta) for theta in thetas] == [4, 8]
    assert {id(t) for t in thetas} <= {id(p) for p in thin.parameters()}
    assert set(thin.state_dict()) == set(keys)
    assert torch.equal(thin(x), before)
    assert [id(t) for t in train_thresholds(thin)] == [id(t) for t in thetas]  # once is enough
    for other in (copy.deepcopy(thin), pickle.loads(pickle.dumps(thin))):
        assert torch.equal(other(x), before)
        assert type(freeze_thresholds(other)[1]) is ThresholdReLU
        assert torch.equal(other(x), before)
    assert freeze_thresholds(thin) is thin
    assert torch.equal(thin(x), before)
    assert not any(name.endswith("theta") for name, _ in thin.named_parameters())
    assert set(thin.state_dict()) == set(keys)
    freeze_thresholds(thin)


def test_half_precision_leaves_theta_float32():
    thin, _ = make()
    thetas = [theta.detach().clone() for theta in train_thresholds(thin)]
    thin.half()
    for layer, theta in zip((thin[1], thin[4]), thetas, strict=True):
        assert layer.theta.dtype == torch.float32
        assert torch.equal(layer.theta, theta)
    assert thin[0].weight.dtype == torch.float16


def test_it_learns_with_the_term_and_never_below_zero():
    thin, x = make()
    y = torch.randint(3, (32,))
    start = [theta.detach().clone() for theta in train_thresholds(thin)]
    optimizer = torch.optim.SGD(thin.parameters(), 0.3)
    thin.train()
    with ActivationSparsityLoss(thin, weight=3.0) as reg:
        for _ in range(20):
            optimizer.zero_grad()
            (nn.functional.cross_entropy(thin(x), y) + reg()).backward()
            optimizer.step()
    with torch.no_grad():
        thin[1].theta[0] = -5.0
    thin(x)
    assert float(thin[1].theta[0].detach()) == 0
    with torch.no_grad():
        thin[1].theta[0] = -5.0
    freeze_thresholds(thin)
    assert bool((thin[1].theta >= 0).all())
    assert not torch.equal(thin[1].theta[1:], start[0][1:])
    thin.load_state_dict(thin.state_dict())


def test_pruning_again_starts_from_frozen_ones():
    thin, x = make()
    other = prune_activations(thin, [x], MeanStd(k=-1.0), progress=False)
    train_thresholds(thin)
    again = prune_activations(thin, [x], MeanStd(k=-1.0), exclude=["4"], progress=False)
    assert torch.equal(again[1].theta, other[1].theta)
    assert torch.equal(again[4].theta, thin[4].theta)
    assert type(again[1]) is type(again[4]) is ThresholdReLU
    assert not again[4].theta.requires_grad
    assert thin[4].theta.requires_grad  # the given model is left as it is


def test_refuses():
    with pytest.raises(Error, match=r"train_thresholds: model must be a torch\.nn\.Module, got int"):
        train_thresholds(3)
    with pytest.raises(Error, match="train_thresholds: model must have a ThresholdReLU, found none"):
        train_thresholds(nn.ReLU())
    with pytest.raises(Error, match=r"freeze_thresholds: model must be a torch\.nn\.Module, got int"):
        freeze_thresholds(3)
