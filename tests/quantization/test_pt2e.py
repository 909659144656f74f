"""Models of PyTorch's PT2E flow in the words of secateur.nn: the same values, and named where they stay fp32."""

import copy
import pickle
import warnings

import pytest
import secateur
import torch
import torch.nn.functional as F
from compiling import INT8_KERNELS
from secateur.nn import Quantize, QuantizedConv2d, QuantizedLinear
from secateur.pt2e import FP32, from_pt2e, is_pt2e
from torch import fx, nn
from torch.utils import _pytree as pytree

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch of its own modules
    import torch.ao.quantization.fx._decomposed

Q, ATEN = torch.ops.quantized_decomposed, torch.ops.aten
U8 = (0.02, 100, 0, 255, torch.uint8)


class Graph:
    """A graph as convert_pt2e leaves it, written by hand."""

    def __init__(self):
        self.graph, self.root = fx.Graph(), {}
        self.x = self.graph.placeholder("x")

    def constant(self, value):
        name = f"_frozen_param{len(self.root)}"
        self.root[name] = value
        return self.graph.get_attr(name)

    def call(self, op, *args, **kwargs):
        return self.graph.call_function(op, args, kwargs)

    def pair(self, x, grid=U8):
        return self.call(Q.dequantize_per_tensor.default, self.call(Q.quantize_per_tensor.default, x, *grid), *grid)

    def weight(self, shape, axis=0, zero_point=0):
        scales, zeros = torch.rand(shape[axis]) * 0.01 + 0.005, torch.full((shape[axis],), zero_point)
        values = torch.randint(-127, 128, shape, dtype=torch.int8)
        held = [self.constant(t) for t in (values, scales, zeros)]
        return self.call(Q.dequantize_per_channel.default, *held, axis, -127, 127, torch.int8)

    def model(self, output):
        self.graph.output(output)
        return fx.GraphModule(self.root, self.graph)


def kinds(model, *types):
    return [m for m in model.modules() if isinstance(m, types)]


def operators(model):
    return {str(n.target).split(".")[0] for n in model.graph.nodes if isinstance(n.target, torch._ops.OpOverload)}


def same_but_for_steps(made, model, x, step, least=0.95):
    """All within one step of the last rounding, nearly all the same."""
    with torch.no_grad():
        got, expected = made(x), model(x)
    assert got.shape == expected.shape
    off = ((got - expected) / step).abs()
    assert off.max() < 1.01
    assert (off < 1e-3).double().mean() > least
    assert expected.unique().numel() > 20  # not saturated, not constant


@pytest.mark.parametrize(
    ("grid", "zero_point"),
    [
        ((0.02, 100, 0, 255, torch.uint8), 100),
        ((0.02, -5, -128, 127, torch.int8), 123),
        ((0.02, 3, 0, 127, torch.uint8), 3),  # observers with reduce_range
        ((0.02, 0, -127, 127, torch.int8), 128),
    ],
)
def test_activations_of_any_range(grid, zero_point):
    g = Graph()
    model = g.model(g.pair(g.x, grid))
    made = from_pt2e(model)
    assert [int(m.zero_point) for m in kinds(made, Quantize)] == [zero_point]
    assert operators(made) == set()
    x = torch.linspace(-8, 8, 4001)  # well past both ends
    torch.testing.assert_close(made(x), model(x), rtol=0, atol=1e-6)
    assert made(x).min() == pytest.approx((grid[2] - grid[1]) * grid[0], abs=1e-6)
    assert made(x).max() == pytest.approx((grid[3] - grid[1]) * grid[0], abs=1e-6)


@pytest.mark.parametrize("bias", [None, "float", "int32"])
@pytest.mark.parametrize(("groups", "stride", "padding"), [(1, [1, 1], [1, 1]), (6, [2, 1], [0, 2]), (2, [2], [1])])
def test_convolutions(bias, groups, stride, padding):
    torch.manual_seed(1)
    g = Graph()
    weight = g.weight((12, 6 // groups, 3, 3))
    b = None
    if bias == "float":
        b = g.constant(torch.randn(12))
    if bias == "int32":
        b = g.constant(torch.randint(-3000, 3000, (12,), dtype=torch.int32))
        b = g.call(Q.dequantize_per_tensor.default, b, 1e-4, 0, -(2**31), 2**31 - 1, torch.int32)
    y = g.call(ATEN.conv2d.default, g.pair(g.x), weight, b, stride, padding, [1, 1], groups)
    out = (0.1, 0, 0, 255, torch.uint8)
    model = g.model(g.pair(g.call(ATEN.relu_.default, y), out))
    made = from_pt2e(model)
    (layer,) = kinds(made, QuantizedConv2d)
    assert (layer.stride, layer.padding) == ((stride[0], stride[-1]), (padding[0], padding[-1]))
    assert (float(layer.input_scale), int(layer.input_zero_point)) == (pytest.approx(0.02), 100)
    assert operators(made) == set()
    assert made.meta[FP32] == {}
    same_but_for_steps(made, model, torch.randn(2, 6, 9, 9) * 1.5, out[0])


@pytest.mark.parametrize("rows", [(5,), (2, 3)])
def test_linear_layers_with_one_scale(rows):
    torch.manual_seed(2)
    g = Graph()
    values = g.constant(torch.randint(-128, 128, (7, 16), dtype=torch.int8))
    weight = g.call(Q.dequantize_per_tensor.default, values, 0.01, 0, -128, 127, torch.int8)
    y = g.call(ATEN.linear.default, g.pair(g.x), weight, g.constant(torch.randn(7)))
    out = (0.2, 128, 0, 255, torch.uint8)
    model = g.model(g.pair(y, out))
    made = from_pt2e(model)
    (layer,) = kinds(made, QuantizedLinear)
    assert layer.weight_scale.tolist() == pytest.approx([0.01] * 7)
    same_but_for_steps(made, model, torch.randn(64, *rows[1:], 16), out[0])


def test_weights_that_are_not_folded_yet():
    torch.manual_seed(3)
    g = Graph()
    real, scales, zeros = (g.constant(t) for t in (torch.randn(4, 8), torch.full((4,), 0.02), torch.zeros(4).long()))
    q = g.call(Q.quantize_per_channel.default, real, scales, zeros, 0, -127, 127, torch.int8)
    weight = g.call(Q.dequantize_per_channel.default, q, scales, zeros, 0, -127, 127, torch.int8)
    model = g.model(g.pair(g.call(ATEN.linear.default, g.pair(g.x), weight), U8))
    made = from_pt2e(model)
    assert len(kinds(made, QuantizedLinear)) == 1
    same_but_for_steps(made, model, torch.randn(50, 8), U8[0])


def stays(build):
    """The one operation that stays fp32, and why; it must give what it gave."""
    torch.manual_seed(4)
    g = Graph()
    model = g.model(build(g))
    made = from_pt2e(model)
    assert kinds(made, QuantizedConv2d, QuantizedLinear) == []
    x = torch.randn(3, 8)
    torch.testing.assert_close(made(x), model(x), rtol=1e-6, atol=1e-6)
    return made.meta[FP32]


def test_what_is_no_layer_of_bytes_stays_and_is_named():
    reason = stays(lambda g: g.call(ATEN.linear.default, g.pair(g.x), g.weight((4, 8), zero_point=3)))
    assert reason == {"linear_default": "its weight is not symmetric"}
    reason = stays(lambda g: g.call(ATEN.linear.default, g.pair(g.x), g.weight((4, 8), axis=1)))
    assert "along dim 1" in reason["linear_default"]
    assert "input is not quantized" in stays(lambda g: g.call(ATEN.linear.default, g.x, g.weight((4, 8))))[
        "linear_default"
    ]  # fmt: skip
    reason = stays(lambda g: g.call(ATEN.matmul.default, g.pair(g.x), g.weight((8, 4))))
    assert reason == {"matmul_default": "there is no integer form of aten.matmul.default"}
    wide = (0.001, 0, -32768, 32767, torch.int16)
    reason = stays(lambda g: g.pair(g.x, wide))
    assert reason == {"quantize_per_tensor_default": "it rounds to int16, not to bytes"}
    reason = stays(lambda g: g.call(ATEN.linear.default, g.pair(g.x), g.constant(torch.randn(4, 8))))
    assert reason == {"linear_default": "its weight is not quantized"}


def test_sums_of_more_than_32_bits_stay():
    def build(g):
        values, scale = g.constant(torch.ones(1, 8, dtype=torch.int8)), 1e-9
        weight = g.call(Q.dequantize_per_tensor.default, values, scale, 0, -128, 127, torch.int8)
        return g.call(ATEN.linear.default, g.pair(g.x), weight, g.constant(torch.ones(1)))

    assert "below 2^31" in stays(build)["linear_default"]


def test_a_value_is_rounded_once():
    g = Graph()
    once = g.pair(g.x)
    pooled = g.call(ATEN.max_pool2d.default, once, [2, 2], [2, 2])
    flat = g.call(ATEN.flatten.using_ints, g.pair(pooled), 1)  # the same grid: nothing to round
    other = g.pair(once, (0.05, 0, 0, 255, torch.uint8))
    model = g.model((flat, g.pair(flat), other))
    made = from_pt2e(model)
    assert len(kinds(made, Quantize)) == 2
    x = torch.randn(2, 3, 4, 4)
    for got, expected in zip(made(x), model(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("read_twice", [False, True])
def test_rounding_moves_before_a_pool_that_nobody_else_reads(read_twice):
    g = Graph()
    y = g.call(ATEN.relu.default, g.x)
    pooled = g.call(ATEN.max_pool2d.default, y, [3, 3], [2, 2], [1, 1])
    rounded = g.pair(pooled)
    model = g.model((rounded, pooled) if read_twice else (rounded,))
    made = from_pt2e(model)
    order = [n.target for n in made.graph.nodes if n.target == F.max_pool2d or n.op == "call_module"]
    assert order == ([F.max_pool2d, "max_pool2d_quantize"] if read_twice else ["relu_quantize", F.max_pool2d])
    x = torch.randn(2, 3, 9, 9)
    for got, expected in zip(made(x), model(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_bytes_can_be_read_themselves():
    g = Graph()
    q = g.call(Q.quantize_per_tensor.default, g.x, *U8)
    model = g.model((q, g.call(Q.dequantize_per_tensor.default, q, *U8)))
    made = from_pt2e(model)
    x = torch.randn(50)
    assert torch.equal(made(x)[0], model(x)[0])
    assert made(x)[0].dtype == torch.uint8
    torch.testing.assert_close(made(x)[1], model(x)[1])


def test_operators_without_other_words_stay_themselves():
    g = Graph()
    y = g.pair(g.x)
    z = g.call(ATEN.elu_.default, y)  # in place
    w = g.call(ATEN.slice.Tensor, g.call(ATEN.cat.default, [z, y], 1), 1, 2, 2**63 - 1)
    model = g.model(g.call(ATEN.logsumexp.default, w, [1]))
    made = from_pt2e(model)
    assert "aten" in operators(made)
    x = torch.randn(4, 5)
    torch.testing.assert_close(made(x), model(x))


def test_writing_in_place():
    def model(through_a_view):
        g = Graph()
        y = g.call(ATEN.add.Tensor, g.pair(g.x), 0.25)
        target = g.call(ATEN.view.default, y, [-1]) if through_a_view else y
        z = g.call(ATEN.relu_.default, target)
        flat = g.call(ATEN.flatten.using_ints, z)
        return g.model(g.call(ATEN.add.Tensor, flat, g.call(ATEN.reshape.default, y, [-1])))

    direct = model(False)
    x = torch.randn(3, 4)
    expected = 2 * F.relu(torch.fake_quantize_per_tensor_affine(x, 0.02, 100, 0, 255) + 0.25).flatten()
    torch.testing.assert_close(direct(x), expected)  # y is read after relu_ wrote into it
    torch.testing.assert_close(from_pt2e(direct)(x), expected)
    with pytest.raises(secateur.Error, match="from_pt2e: model must not write into views"):
        from_pt2e(model(True))


def test_other_models_are_refused():
    plain = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
    assert not is_pt2e(plain)
    assert not is_pt2e(nn.Linear(2, 2))
    with pytest.raises(secateur.Error, match="from_pt2e: model must be what convert_pt2e gives, got Linear"):
        from_pt2e(nn.Linear(2, 2))


def exported(model, args, kwargs=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export of itself
        return torch.export.export(model, args, kwargs or {}).module()


def by_hand(model):
    """Every addition of an exported graph rounded: what PT2E does to structures of inputs and outputs."""
    for node in [n for n in model.graph.nodes if n.target == ATEN.add.Tensor]:
        with model.graph.inserting_after(node):
            q = model.graph.call_function(Q.quantize_per_tensor.default, (node, *U8))
        with model.graph.inserting_after(q):
            dq = model.graph.call_function(Q.dequantize_per_tensor.default, (q, *U8))
        node.replace_all_uses_with(dq, delete_user_cb=lambda user, q=q: user is not q)
    model.recompile()
    return model


def test_it_is_called_as_the_original_is():
    class Nested(nn.Module):
        def forward(self, pair, *, scale):
            return {"sum": pair["a"] + pair["b"] * scale, "more": [pair["a"] + 1]}

    class Several(nn.Module):
        def forward(self, a, b):
            return a + b, a + 2

    a, b = torch.randn(4), torch.randn(4)
    model = by_hand(exported(Nested(), ({"a": a, "b": b},), {"scale": torch.tensor(2.0)}))
    made = from_pt2e(model)
    got, expected = (m({"a": b, "b": a}, scale=torch.tensor(0.5)) for m in (made, model))
    assert str(pytree.tree_structure(got)) == str(pytree.tree_structure(expected))
    torch.testing.assert_close(got, expected)
    several = from_pt2e(by_hand(exported(Several(), (a, b))))
    assert isinstance(several(a, b), tuple)
    torch.testing.assert_close(several(a, b)[0], torch.fake_quantize_per_tensor_affine(a + b, 0.02, 100, 0, 255))
    assert type(several.graph._codegen) is fx.graph.CodeGen  # no pytree: it can be traced again


# ---- networks that torchao has quantized ----


class Block(nn.Module):
    def __init__(self, c, k, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, k, 3, stride, 1, bias=False), nn.BatchNorm2d(k)
        self.conv2, self.bn2 = nn.Conv2d(k, k, 3, 1, 1, bias=False), nn.BatchNorm2d(k)
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU()
        self.down = nn.Sequential(nn.Conv2d(c, k, 1, stride, bias=False), nn.BatchNorm2d(k)) if c != k else None

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return self.relu2(y)


def residual():
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        Block(16, 16, 1), Block(16, 24, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, 10),
    )  # fmt: skip


def depthwise():
    def separable(c, k, stride):
        return [
            nn.Conv2d(c, c, 3, stride, 1, groups=c, bias=False), nn.BatchNorm2d(c), nn.ReLU6(inplace=True),
            nn.Conv2d(c, k, 1, bias=False), nn.BatchNorm2d(k), nn.ReLU6(inplace=True),
        ]  # fmt: skip

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU6(), *separable(8, 16, 1), *separable(16, 32, 2), nn.AvgPool2d(8),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def linear():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 32 * 32, 64), nn.ReLU(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10)
    )


def converted(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao and torch.export of themselves
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported(model, (x,)), quantizer)
        for _ in range(4):
            prepared(torch.randn_like(x))
        return convert_pt2e(prepared)


@pytest.fixture(scope="module", params=[residual, depthwise, linear], ids=lambda f: f.__name__)
def network(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchao.quantization.pt2e", reason="torchao is not installed", exc_type=ImportError)
    if torch.__version__ < (2, 11):
        pytest.skip("this torchao supports torch from 2.11 on: with 2.10 it puts no observers into the graph")
    torch.manual_seed(0)
    model = request.param()
    x = torch.randn(4, 3, 32, 32)
    for _ in range(5):
        model(torch.randn_like(x))  # running statistics
    model.eval()
    return model, converted(model, x), x


def sqnr(expected, found):
    return float(10 * torch.log10(expected.square().sum() / (expected - found).square().sum()))


@torch.no_grad()
def test_networks_of_torchao(network):
    model, quantized, x = network
    assert is_pt2e(quantized)
    before = quantized.code
    made = from_pt2e(quantized)
    assert quantized.code == before
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(kinds(made, QuantizedConv2d, QuantizedLinear)) == len(layers)
    assert operators(made) == set()
    assert made.meta[FP32] == {}
    x = torch.randn_like(x)
    # A sum on the edge of two steps may be rounded otherwise, since the bias is; int8 itself is off by more.
    assert sqnr(quantized(x), made(x)) > 35
    assert sqnr(quantized(x), made(x)) > sqnr(quantized(x), model(x)) + 3
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other(x), made(x))


@pytest.mark.usefixtures("engine_wins")
@torch.no_grad()
def test_networks_of_torchao_are_compiled(network):
    _, quantized, x = network
    fast = secateur.compile(quantized, x)
    assert sqnr(from_pt2e(quantized)(x), fast(x)) > 35
    assert not [row for row in fast.report.rows if "the engine has no" in row["why"]]
    assert INT8_KERNELS & {row["kernel"] for row in fast.report.rows}


@torch.no_grad()
def test_what_stays_real_is_in_the_report():
    g = Graph()
    y = g.call(ATEN.linear.default, g.pair(g.x), g.weight((6, 4)))
    model = g.model(g.call(ATEN.linear.default, g.pair(y), g.weight((3, 6), zero_point=5)))
    x = torch.randn(5, 4)
    fast = secateur.compile(model, x, budget=0.2)
    torch.testing.assert_close(fast(x), from_pt2e(model)(x), rtol=1e-4, atol=1e-4)
    assert "linear_default_1 computes with real values: its weight is not symmetric" in str(fast.report)
    assert fast.refresh(model) is fast


@torch.no_grad()
def test_what_has_no_other_words_is_compiled_as_it_is():
    g = Graph()
    y = g.call(ATEN.add.Tensor, g.pair(g.x), 0.25)
    z = g.call(ATEN.relu_.default, g.call(ATEN.view.default, y, [-1]))
    model = g.model(g.call(ATEN.add.Tensor, z, g.call(ATEN.reshape.default, y, [-1])))
    x = torch.randn(3, 4)
    with pytest.warns(UserWarning, match="compile: from_pt2e: model must not write into views .* in torch's operators"):
        fast = secateur.compile(model, x, budget=0.2)
    torch.testing.assert_close(fast(x), model(x))
