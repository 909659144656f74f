"""ThresholdReLU, the module: drop-in for nn.ReLU and nn.ReLU6, its buffer, its checks."""

import copy
import pickle

import pytest
import torch
from secateur import Error
from secateur.nn import ThresholdReLU
from torch import nn


def twin(x, theta, limit=None):
    """The definition, written out: a <- 0 if a < theta else a, after the clamp from above."""
    shape = [1] * x.dim()
    if x.dim() and theta.numel() > 1:
        shape[1 if x.dim() > 2 else -1] = -1
    y = torch.where(x < theta.reshape(shape if theta.numel() > 1 else ()), torch.zeros_like(x), x)
    return y if limit is None else y.clamp(max=limit)


@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (3, 4), (4,), (2, 4, 7), (2, 4, 3, 3, 3), (0, 4, 2, 2)])
@pytest.mark.parametrize("limit", [None, 1.0])
@pytest.mark.parametrize("inplace", [False, True])
def test_computes_the_definition(shape, limit, inplace):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    theta = torch.tensor([0.0, 0.2, 0.7, 1e9])
    expected = twin(x, theta, limit)
    given = x.clone()
    y = ThresholdReLU(theta, limit, inplace)(given)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    torch.testing.assert_close(given, expected if inplace else x, rtol=0, atol=0)
    assert (y is given) == inplace


def test_theta_zero_is_relu_and_max_6_is_relu6():
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 5
    assert torch.equal(ThresholdReLU()(x), nn.ReLU()(x))
    assert torch.equal(ThresholdReLU(max=6)(x), nn.ReLU6()(x))


def test_nan_stays_nan():
    y = ThresholdReLU(0.5)(torch.tensor([[float("nan"), -1.0, 1.0]]))
    assert y.isnan().tolist() == [[True, False, False]]


@pytest.mark.parametrize("inplace", [False, True])
def test_gradient(inplace):
    x = torch.tensor([[-1.0, 0.1, 0.6, 9.0]], requires_grad=True)
    y = ThresholdReLU(0.5, 6.0, inplace)(x * 1)
    y.sum().backward()
    assert y.tolist() == [[0.0, 0.0, pytest.approx(0.6), 6.0]]
    assert x.grad.tolist() == [[0.0, 0.0, 1.0, 0.0]]


def test_inplace_is_seen_by_others_that_hold_the_input_in_training_too():
    """nn.ReLU(inplace=True) on a residual's source changes the residual; so must what takes its place."""
    x = torch.tensor([[-1.0, 0.1, 0.6]], requires_grad=True)
    for layer in (nn.ReLU(inplace=True), ThresholdReLU(0.0, inplace=True)):
        h = x * 1
        out = layer(h) + h
        assert out.tolist() == [[0.0, pytest.approx(0.2), pytest.approx(1.2)]]
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert gradient.tolist() == [[0.0, 2.0, 2.0]]


@pytest.mark.parametrize(
    ("theta", "limit", "match"),
    [
        (-0.1, None, "theta must be finite and >= 0, got -0.1"),
        (float("nan"), None, "theta must be finite and >= 0, got nan"),
        (torch.tensor([1.0, float("inf")]), None, "theta must be finite and >= 0, got inf"),
        (torch.zeros(1, 3, 1, 1), None, r"theta must be one value or \[C\], got \[1, 3, 1, 1\]"),
        (torch.zeros(0), None, "theta must hold at least one value"),
        ("0.5", None, "theta must be a number or a tensor, got str"),
        (0.0, 0, "max must be > 0 and finite, or None, got 0"),
        (0.0, float("nan"), "max must be > 0 and finite"),
        (0.0, float("inf"), "max must be > 0 and finite"),
    ],
)
def test_refuses(theta, limit, match):
    with pytest.raises(Error, match=match):
        ThresholdReLU(theta, limit)


def test_refuses_another_number_of_channels():
    layer = ThresholdReLU(torch.zeros(4))
    with pytest.raises(Error, match=r"x must have 4 channels \(dim 1\), got \[2, 3, 5, 5\]"):
        layer(torch.zeros(2, 3, 5, 5))
    with pytest.raises(Error, match=r"x must have 4 channels \(dim -1\), got \[4, 3\]"):
        layer(torch.zeros(4, 3))


def test_state_dict_round_trip_and_a_scalar_module_takes_the_channels_of_the_checkpoint():
    source = ThresholdReLU(torch.tensor([0.1, 0.2, 0.3]))
    assert list(source.state_dict()) == ["theta"]
    for target in (ThresholdReLU(torch.zeros(3)), ThresholdReLU()):
        target.load_state_dict(source.state_dict())
        assert torch.equal(target.theta, source.theta)
    with pytest.raises(RuntimeError, match="size mismatch for theta"):
        ThresholdReLU(torch.zeros(5)).load_state_dict(source.state_dict())


@pytest.mark.parametrize("bad", [[-1.0, 0.0], [float("nan"), 0.0]])
def test_thresholds_of_a_checkpoint_are_checked(bad):
    model = nn.Sequential(nn.Linear(2, 2), ThresholdReLU(torch.zeros(2)))
    state = model.state_dict() | {"1.theta": torch.tensor(bad)}
    with pytest.raises(Error, match=r"cannot load '1.theta': theta must be finite and >= 0"):
        model.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_theta_stays_float32_when_the_model_is_cast(dtype):
    theta = torch.tensor([0.1, 1 / 3])
    model = nn.Sequential(nn.Linear(2, 2), ThresholdReLU(theta)).to(dtype)
    assert model[1].theta.dtype == torch.float32
    assert torch.equal(model[1].theta, theta)
    assert model(torch.ones(1, 2, dtype=dtype)).dtype == dtype
    model[1].load_state_dict({"theta": theta.to(dtype)}, assign=True)
    assert model[1].theta.dtype == torch.float32


def test_copies_and_pickles():
    layer = ThresholdReLU(torch.tensor([0.1, 0.2]), max=6, inplace=True)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other.theta, layer.theta)
        assert (other.max, other.inplace) == (6.0, True)
        assert other.theta.data_ptr() != layer.theta.data_ptr()


@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_without_a_graph_break(inplace):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), ThresholdReLU(torch.tensor([0.0, 0.1, 0.2, 0.3]), inplace=inplace))
    x = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    assert model[0].weight.grad is not None


def test_repr_is_short():
    assert repr(ThresholdReLU(0.5)) == "ThresholdReLU(theta=0.5)"
    assert repr(ThresholdReLU(torch.zeros(3), 6, True)) == "ThresholdReLU(theta=[3], max=6, inplace=True)"
