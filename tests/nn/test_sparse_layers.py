"""SparseConv2d and SparseLinear stand where Conv2d and Linear stood."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from secateur import Error
from secateur.nn import SparseConv2d, SparseLinear
from torch import Tensor, nn

CONVS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": (2, 5), "padding": "same"},
    {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"},
    {"kernel_size": (3, 1), "groups": 2, "stride": (2, 1)},
    {"kernel_size": 5, "dilation": 2, "padding": "valid", "bias": False},
    {"kernel_size": 3, "groups": 4},
]
conv_cases = pytest.mark.parametrize("kwargs", CONVS, ids=str)
# torch says so of its own even "same" padding.
quiet = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def sparse_conv(**kwargs: Any) -> nn.Conv2d:
    return zeroed(nn.Conv2d(4, 8, **kwargs))


def zeroed(layer: Any, zeros: float = 0.7) -> Any:
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) >= zeros)
    return layer


@quiet
@conv_cases
def test_conv2d_stands_in(kwargs: dict[str, Any]) -> None:
    dense = sparse_conv(**kwargs)
    layer = SparseConv2d.from_dense(dense)
    x = torch.randn(2, 4, 12, 13)
    assert isinstance(layer, nn.Conv2d)
    for name in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ):
        assert getattr(layer, name) == getattr(dense, name)
    torch.testing.assert_close(layer(x), dense(x))
    torch.testing.assert_close(layer(x[0]), dense(x[0]))
    assert torch.equal(layer.weight, dense.weight)
    again = layer.to_dense()
    assert type(again) is nn.Conv2d
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), dense.state_dict().values(), strict=True))


@quiet
@conv_cases
def test_conv2d_gradients(kwargs: dict[str, Any]) -> None:
    dense = sparse_conv(**kwargs)
    layer = SparseConv2d.from_dense(dense)
    layer.weight_values.requires_grad_()
    x = torch.randn(2, 4, 12, 13, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    layer(x).square().sum().backward()
    dense(y).square().sum().backward()
    close = {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(x.grad, y.grad, **close)
    assert dense.weight.grad is not None
    torch.testing.assert_close(layer.weight_values.grad, dense.weight.grad[dense.weight != 0], **close)
    if dense.bias is not None:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad, **close)


@pytest.mark.parametrize("shape", [(10,), (3, 10), (2, 5, 10), (0, 10)])
def test_linear_stands_in(shape: tuple[int, ...]) -> None:
    dense = zeroed(nn.Linear(10, 7))
    layer = SparseLinear.from_dense(dense)
    x = torch.randn(shape)
    assert isinstance(layer, nn.Linear)
    assert layer(x).shape == dense(x).shape
    torch.testing.assert_close(layer(x), dense(x))
    assert torch.equal(layer.to_dense().weight, dense.weight)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: through_file(m)])
def test_copies_are_whole_and_their_own(make: Any) -> None:
    layer = SparseLinear.from_dense(zeroed(nn.Linear(10, 7)))
    x = torch.randn(3, 10)
    expected = layer(x)
    other = make(layer)
    assert torch.equal(other(x), expected)
    with torch.no_grad():
        other.weight_values.zero_()
    assert torch.equal(layer(x), expected)
    assert not torch.equal(other(x), expected)


def through_file(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_new_values_are_seen_at_once() -> None:
    layer = SparseConv2d.from_dense(sparse_conv(kernel_size=3)).eval()
    x = torch.randn(1, 4, 8, 8)
    before = layer(x)
    with torch.no_grad():
        layer.weight_values.mul_(2)
        bias = layer.bias
        assert bias is not None
        bias.zero_()
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    assert not torch.equal(layer(x), before)
    layer.weight_values = nn.Parameter(layer.weight_values.detach() * 3)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


def test_a_training_layer_learns() -> None:
    layer = SparseLinear.from_dense(zeroed(nn.Linear(10, 1)))
    layer.weight_values.requires_grad_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    x, target = torch.randn(64, 10), torch.randn(64, 1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_state_dict_of_another_number_of_nonzeros_loads() -> None:
    source = SparseLinear.from_dense(zeroed(nn.Linear(10, 7), 0.9))
    target = SparseLinear.from_dense(zeroed(nn.Linear(10, 7), 0.3))
    x = torch.randn(2, 10)
    target(x)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x), source(x))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("weight_values", torch.randn(3), "weight_values must hold the .* weights of weight_mask, got 3"),
        (
            "weight_mask",
            torch.zeros(7, 3, dtype=torch.uint8),
            r"weight_mask must be uint8 \[7, 2\], got uint8 \[7, 3\]",
        ),
        ("weight_mask", torch.zeros(7, 2), r"weight_mask must be uint8 \[7, 2\], got float32 \[7, 2\]"),
        ("weight_mask", torch.full((7, 2), 255, dtype=torch.uint8), "zeros in the unused bits"),
    ],
)
def test_a_bad_state_dict_changes_nothing(key: str, value: Tensor, message: str) -> None:
    layer = SparseLinear.from_dense(zeroed(nn.Linear(10, 7)))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict({**layer.state_dict(), key: value})
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_other_dtypes_run_the_twin() -> None:
    dense = sparse_conv(kernel_size=3)
    layer = SparseConv2d.from_dense(dense).double()
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense.double()(x))


@pytest.mark.parametrize("train", [True, False])
def test_compiles_as_one_graph(train: bool) -> None:
    net = nn.Sequential(
        SparseConv2d.from_dense(sparse_conv(kernel_size=3)), nn.ReLU(), nn.Flatten(),
        SparseLinear.from_dense(zeroed(nn.Linear(8 * 36, 5))),
    ).train(train)  # fmt: skip
    x = torch.randn(2, 4, 8, 8)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x))


def test_exports_without_a_plan_of_this_process() -> None:
    layer = SparseLinear.from_dense(zeroed(nn.Linear(10, 7))).eval()
    x = torch.randn(3, 10)
    layer(x)  # a plan exists
    program = torch.export.export(layer, (x,))
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert [node.target for node in calls] == [torch.ops.secateur.sparse_linear.default]
    assert len(calls[0].args) == 4  # x, mask, values, bias: the plan is left at 0
    torch.testing.assert_close(program.module()(x), layer(x))


def test_layers_say_what_is_wrong() -> None:
    with pytest.raises(Error, match=r"layer must be an nn\.Linear, got Conv2d"):
        SparseLinear.from_dense(nn.Conv2d(1, 1, 1))  # type: ignore[arg-type]
    with pytest.raises(Error, match=r"SparseLinear: weight must be \[out, in\], got \[3\]"):
        SparseLinear(torch.randn(3))
    with pytest.raises(Error, match="must be divisible by groups"):
        SparseConv2d(torch.randn(3, 1, 1, 1), groups=2)
    with pytest.raises(Error, match="SparseLinear: weight must be a floating-point tensor, got list"):
        SparseLinear([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(Error, match=r"SparseLinear: weight must be a floating-point tensor, got torch\.int64"):
        SparseLinear(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(Error, match=r"SparseLinear: bias must be \[3\], got \[2\]"):
        SparseLinear(torch.randn(3, 3), torch.randn(2))
    with pytest.raises(Error, match="SparseLinear: input must be a tensor, got list"):
        SparseLinear(torch.randn(3, 3))([1.0])
    with pytest.raises(Error, match="SparseConv2d: input must be a tensor, got NoneType"):
        SparseConv2d(torch.randn(3, 3, 1, 1))(None)
    with pytest.raises(AttributeError):
        SparseLinear(torch.randn(3, 3)).weight = torch.randn(3, 3)


def test_a_convolution_in_blocks_is_the_same_layer_and_follows_its_weights() -> None:
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1)
    with torch.no_grad():
        conv.weight.mul_(torch.rand_like(conv.weight) > 0.7)
    layer = SparseConv2d.from_dense(conv)
    layer.in_blocks = True
    x = torch.randn(3, 6, 13, 9)
    with torch.no_grad():
        assert torch.allclose(layer(x), conv(x), atol=1e-5)
        assert layer._program is not None, "the engine did not run it"
        layer.weight_values.mul_(2)
        layer.bias.zero_()  # type: ignore[union-attr]
        expected = nn.functional.conv2d(x, 2 * conv.weight, None, 2, 1)
        assert torch.allclose(layer(x), expected, atol=1e-5)
        assert torch.allclose(copy.deepcopy(layer)(x), expected, atol=1e-5)
        assert torch.allclose(pickle.loads(pickle.dumps(layer))(x), expected, atol=1e-5)
        assert layer(x[0]).shape == (8, 7, 5)
        with pytest.raises(Error, match="sparse_conv2d"):
            layer(torch.randn(1, 5, 8, 8))
    grad = x.clone().requires_grad_()
    layer(grad).sum().backward()  # gradients go through the operator
    assert grad.grad is not None
