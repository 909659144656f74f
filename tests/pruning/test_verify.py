"""secateur.verify: patterns in the weights as they are, and what the engines that skip 2:4 say of a layer's sizes."""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any

import pytest
import secateur
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from secateur import Error, Magnitude, Report
from secateur.nn import MaskedConv2d, MaskedLinear
from secateur.pruning import gpu
from torch import nn
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, _semi_structured_conversions

pytestmark = pytest.mark.usefixtures("one_thread")


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 16)
    )


def pruned(pattern: str = "2:4") -> nn.Sequential:
    model = net()
    keep, run = map(int, pattern.split(":"))
    secateur.prune(model, Magnitude(1 - keep / run), pattern=pattern)
    return model


X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def violations(weight: torch.Tensor, keep: int, run: int) -> int:
    """TensorRT's check, spelled out: weights [K, C, R, S]."""
    K, C, R, S = weight.shape
    return sum(
        int(torch.count_nonzero(weight[k, c : c + run, r, s])) > keep
        for k in range(K)
        for r in range(R)
        for s in range(S)
        for c in range(0, C, run)
    )


def test_the_report() -> None:
    model = pruned()
    report = secateur.verify(model, "2:4")
    assert isinstance(report, Report)
    assert report.holds is True
    assert [row["layer"] for row in report] == ["0", "2", "5"]
    for row in report:
        assert {"layer", "shape", "holds", "violations", "why"} <= row.keys()
        assert row["holds"] is True
        assert row["violations"] == 0
    assert report["0"]["shape"] == (32, 4, 3, 3)
    assert report["0"]["runs"] == 32 * 9
    with torch.no_grad():
        model[0].weight[3, :3, 0, 1] = 1.0
        model[0].weight[7, :, 2, 2] = -1.0
    report = secateur.verify(model, "2:4")
    assert report.holds is False
    assert report["0"]["holds"] is False
    assert report["0"]["violations"] == 2 == violations(model[0].weight, 2, 4)
    assert report["0"]["why"].startswith("2 of 288 runs of 4 input channels hold more than 2 nonzeros; ")
    assert report["2"]["holds"] is True
    assert report.total is not None
    assert report.total["violations"] == 2
    assert report.total["holds"] is False
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["holds"] is False
    for line in ("0      32x4x3x3  False", "2 of 288 runs"):
        assert line in str(report)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, n) for n in (4, 12, 3, 3)]),
    run=st.integers(2, 9),
    data=st.data(),
    density=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
)
def test_violations_are_counted_as_the_definition_has_it(
    shape: tuple[int, int, int, int], run: int, data: st.DataObject, density: float
) -> None:
    keep = data.draw(st.integers(1, run - 1))
    layer = nn.Conv2d(shape[1], shape[0], shape[2:])
    with torch.no_grad():
        layer.weight.mul_(torch.rand(shape) < density)
    (row,) = secateur.verify(layer, f"{keep}:{run}")
    assert row["violations"] == violations(layer.weight, keep, run)
    assert row["holds"] == (row["violations"] == 0)


def test_the_axis_is_the_input_channels() -> None:
    """Of a group, and in a transposed convolution dim 0 within it; not the output units, not the taps."""
    linear = nn.Linear(8, 8)
    with torch.no_grad():
        linear.weight.fill_(1.0)
        linear.weight[:, ::2] = 0
    assert secateur.verify(linear, "2:4").holds
    with torch.no_grad():
        linear.weight.copy_(linear.weight.T.clone())
    assert not secateur.verify(linear, "2:4").holds
    for kind, sizes in ((nn.Conv2d, (8, 4)), (nn.ConvTranspose2d, (4, 8))):
        layer = kind(*sizes, 2)
        inputs = 1 if kind is nn.Conv2d else 0
        with torch.no_grad():
            layer.weight.fill_(1.0)
            layer.weight.index_fill_(inputs, torch.arange(0, layer.weight.shape[inputs], 2), 0.0)
        assert secateur.verify(layer, "2:4").holds
        with torch.no_grad():
            layer.weight.fill_(1.0)
            layer.weight.index_fill_(1 - inputs, torch.arange(0, layer.weight.shape[1 - inputs], 2), 0.0)
        assert not secateur.verify(layer, "2:4").holds


def of_another_library() -> nn.Module:
    import torch.nn.utils.prune as torch_prune

    model = pruned()
    secateur.strip(model)
    for layer in (model[0], model[2], model[5]):
        torch_prune.custom_from_mask(layer, "weight", layer.weight != 0)
    return model


FORMS = {
    "masked": pruned,
    "stripped": lambda: secateur.strip(pruned()),
    "of torch.nn.utils.prune": of_another_library,
    "converted": lambda: secateur.convert(pruned()),
    "compiled": lambda: secateur.compile(pruned(), X),
    "quantized": lambda: secateur.quantize(pruned(), [X]),
    "quantized and compiled": lambda: secateur.compile(secateur.quantize(pruned(), [X]), X),
    "with fake quantization": lambda: secateur.prepare_qat(pruned(), [X]),
    "wrapped": lambda: nn.DataParallel(pruned()),
    "half": lambda: pruned().half(),
    "double": lambda: pruned().double(),
    "channels_last": lambda: pruned().to(memory_format=torch.channels_last),
    "in inference mode": lambda: in_inference_mode(),
    "frozen": lambda: pruned().requires_grad_(False),
}


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return pruned()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_model_can_be_looked_at_and_stays_as_it_is(form: str) -> None:
    model = FORMS[form]()
    state = {key: value.clone() for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    versions = [p._version for p in model.parameters() if not p.is_inference()]
    keys = {name: sorted(module.__dict__) for name, module in model.named_modules()}
    random = torch.random.get_rng_state()
    report = secateur.verify(model, "2:4")
    assert report.holds
    assert len(report) == 3
    assert not secateur.verify(model, "1:4").holds
    assert torch.equal(random, torch.random.get_rng_state())
    assert versions == [p._version for p in model.parameters() if not p.is_inference()]
    assert keys == {name: sorted(module.__dict__) for name, module in model.named_modules()}
    after = {key: value for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    assert after.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in after.items())


def test_int8_layers_of_torch() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated there
        layer = torch.ao.nn.quantized.Linear(8, 4)
        weight = torch.ones(4, 8)
        weight[:, ::2] = 0
        layer.set_weight_bias(torch.quantize_per_tensor(weight, 0.1, 5, torch.qint8), None)
    assert secateur.verify(nn.Sequential(layer), "2:4").holds
    report = secateur.verify(nn.Sequential(layer), "1:4")
    assert report["0"]["violations"] == 8
    assert not report.holds


def test_int8_transposed_convolutions_and_embeddings_of_torch() -> None:
    weight = torch.ones(8, 4, 2, 2)  # [inputs, outputs, ...]
    weight[::2] = 0
    packed = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated there
        layer = torch.ao.nn.quantized.ConvTranspose2d(8, 4, 2)
        embedding = torch.ao.nn.quantized.Embedding(4, 8)
    layer.weight = lambda: packed  # to set it takes an engine that this machine may not have
    assert [row["layer"] for row in secateur.verify(nn.Sequential(layer, embedding), "2:4")] == ["0"]
    assert secateur.verify(nn.Sequential(layer), "2:4").holds
    assert not secateur.verify(nn.Sequential(layer), "1:4").holds


def test_layers_that_own_their_mask_are_seen_as_their_forward_sees_them() -> None:
    for layer in (MaskedLinear(8, 4), MaskedConv2d(8, 4, 3)):
        secateur.prune(layer, Magnitude(0.5), pattern="2:4")
        with torch.no_grad():
            layer.weight.add_(1.0)  # by hand: in training, forward masks it
        raw = layer.weight.detach().clone()
        assert secateur.verify(layer, "2:4").holds
        assert torch.equal(layer.weight, raw)
    plain = nn.Linear(8, 4)
    secateur.prune(plain, Magnitude(0.5), pattern="2:4")
    with torch.no_grad():
        plain.weight.add_(1.0)  # here nothing does before the next optimizer step
    assert not secateur.verify(plain, "2:4").holds


def test_nan_counts_as_a_weight() -> None:
    layer = nn.Linear(4, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[float("nan"), float("inf"), -0.0, 0.0]]))
    assert secateur.verify(layer, "2:4").holds
    with torch.no_grad():
        layer.weight[0, 2] = float("nan")
    assert secateur.verify(layer, "2:4")["weight"]["violations"] == 1


@pytest.mark.parametrize("pattern", ["1x1", "1x4", "1x3", "neuron"])
def test_patterns_of_blocks(pattern: str) -> None:
    model = net()
    assert secateur.verify(model, pattern).holds  # no zeros at all
    secateur.prune(model, Magnitude(0.5), pattern=pattern)
    report = secateur.verify(model, pattern)
    assert report.holds
    assert not report.notes
    with torch.no_grad():
        model[5].weight[:, 0] = 0.0
        model[5].weight[:, 1] = 1.0
        model[5].weight[:, 2] = 1.0
    report = secateur.verify(model, pattern)
    if pattern == "1x1":
        assert report.holds
    else:
        what = {"1x4": "16 of 2,048 blocks of 4 input channels", "1x3": "16 of 2,736 blocks of 3 input channels"}
        assert report["5"]["why"] == what.get(pattern, "16 of 16 output units") + " hold both zeros and nonzeros"
        assert report["5"]["violations"] == 16
        assert report["0"]["holds"] is True
        assert not report.holds


def test_exclude_and_include() -> None:
    model = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    secateur.prune(model, Magnitude(0.5), pattern="2:4", exclude="2")
    assert [row["layer"] for row in secateur.verify(model, "2:4")] == ["1", "2"]
    assert secateur.verify(model, "2:4", exclude="2").holds
    assert secateur.verify(model, "2:4", exclude=[nn.Linear], include="0")["0"]["holds"] is False
    q = secateur.quantize(pruned(), [X])
    assert [row["layer"] for row in secateur.verify(q, "2:4", exclude=["2"])] == ["0", "5"]
    bare = secateur.quantize(nn.Sequential(nn.Linear(8, 8)), [torch.randn(4, 8)])[0]
    assert [row["layer"] for row in secateur.verify(bare, "2:4")] == ["weight"]


def test_tied_and_unknown_weights() -> None:
    embedding, linear = nn.Embedding(8, 8), nn.Linear(8, 8, bias=False)
    linear.weight = embedding.weight
    assert len(secateur.verify(nn.Sequential(embedding, linear), "2:4")) == 1
    model = nn.Sequential(nn.Linear(8, 8), nn.Bilinear(4, 4, 4))
    assert any("not looked at, for their layer types are unknown here: 1.weight" in n for n in
               secateur.verify(model, "2:4").notes)  # fmt: skip


def test_what_cannot_be_read_does_not_hold() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    meta, lazy = nn.Linear(8, 8, device="meta"), nn.LazyLinear(8)
    for layer, why in (
        (normed, "not read: its weight is parametrized"),
        (meta, "not read: its weights are on the meta device"),
        (lazy, "not read: it is not initialized yet"),
    ):
        report = secateur.verify(nn.Sequential(layer, nn.Linear(8, 8)), "2:4")
        assert report["0"]["holds"] is None
        assert report["0"]["violations"] is None
        assert report["0"]["why"].startswith(why)
        assert not report.holds
        str(report)
    meta_int8 = secateur.quantize(nn.Sequential(nn.Linear(8, 8)), [torch.randn(4, 8)]).to("meta")
    assert secateur.verify(meta_int8, "2:4")["0"]["holds"] is None


def test_empty_and_odd_weights() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: to initialize them does nothing
        empties = nn.Linear(0, 4), nn.Linear(4, 0), nn.Conv2d(4, 0, 3)
    for empty in empties:
        for pattern in ("2:4", "1x4", "neuron"):
            report = secateur.verify(nn.Sequential(empty), pattern)
            assert report.holds
            assert report["0"]["runs"] == 0
    expanded = nn.Linear(8, 4)
    expanded.weight = nn.Parameter(torch.tensor([0.0, 1.0] * 4).expand(4, 8))
    assert secateur.verify(expanded, "2:4").holds
    bare = nn.Linear(8, 4, dtype=torch.complex64)
    assert not secateur.verify(bare, "2:4").holds


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: secateur.verify(net(), "2x2"), 'verify: pattern must be "1x1", .* "N:M" .* got \'2x2\''),
        (lambda: secateur.verify(net(), "4:2"), "verify: pattern must be"),
        (lambda: secateur.verify(net(), None), "verify: pattern must be .* got None"),
        (lambda: secateur.verify("net", "2:4"), r"verify: model must be a torch\.nn\.Module, got str"),
        (lambda: secateur.verify("2:4", net()), "verify: pattern must be"),
        (lambda: secateur.verify(nn.ReLU(), "2:4"), "verify: model must hold a layer that can be pruned, got a ReLU"),
        (lambda: secateur.verify(net(), "2:4", exclude="typo"), "verify: exclude must name layers of the model"),
        (lambda: secateur.verify(net(), "2:4", exclude=3), "verify: exclude must be names"),
        (lambda: secateur.verify(net(), "2:4", include="typo"), "verify: include must name layers of the model"),
        (lambda: secateur.verify(net(), "2:4", exclude="*"), "verify: exclude must leave a layer to look at"),
        (lambda: secateur.verify(nn.Embedding(4, 4), "2:4"), "verify: exclude must leave a layer to look at"),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(Error, match=message):
        call()


# ---- engines that skip the zeros of 2:4 -----------------------------------------------------------------------------


NARROW = "too narrow to gain in TensorRT"
TORCH_TAKES = "to_sparse_semi_structured takes sizes in multiples of 16"


@pytest.mark.parametrize(
    ("layer", "why", "narrow"),
    [
        (nn.Conv2d(3, 64, 7), "TensorRT takes input channels (of a group) in fours, not 3", False),
        (nn.Conv2d(64, 64, 3, groups=64), "TensorRT takes input channels (of a group) in fours, not 1", False),
        (nn.Conv2d(64, 64, 3), NARROW, True),
        (nn.Conv2d(64, 256, 1), NARROW, True),
        (nn.Conv2d(64, 256, 3), "", False),
        (nn.Conv2d(256, 256, 1), "", False),
        (nn.Linear(256, 256), "", False),
        (nn.Linear(264, 256), f"{TORCH_TAKES} (float16), not 256x264", False),
        (nn.Linear(256, 10).bfloat16(), f"{TORCH_TAKES} (bfloat16), not 10x256; {NARROW}", True),
        (nn.ConvTranspose2d(3, 8, 3), "", False),  # TensorRT's rule does not speak of these
    ],
    ids=str,
)  # fmt: skip
def test_sizes_that_engines_do_not_take(layer: nn.Module, why: str, narrow: bool) -> None:
    layer = copy.deepcopy(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        secateur.prune(layer, Magnitude(0.5), pattern="2:4")
    report = secateur.verify(nn.Sequential(layer), "2:4")
    assert report["0"]["why"] == why
    assert report["0"]["narrow"] is narrow
    assert any(note.startswith("1 too narrow: ") for note in report.notes) == narrow
    assert any("convert float32 weights first" in note for note in report.notes) == (
        layer.weight.dtype == torch.float32
    )
    assert not any("in fours" in row["why"] or "multiples" in row["why"] for row in secateur.verify(layer, "4:8"))


def test_int8_has_other_multiples() -> None:
    model = nn.Sequential(nn.Linear(64, 16))
    secateur.prune(model, Magnitude(0.5), pattern="2:4")
    assert secateur.verify(model, "2:4")["0"]["why"] == NARROW
    q = secateur.quantize(model, [torch.randn(4, 64)])
    why = secateur.verify(q, "2:4")["0"]["why"]
    assert why == f"to_sparse_semi_structured takes sizes in multiples of 32 (int8), not 16x64; {NARROW}"


def test_the_multiples_are_torchs() -> None:
    for dtype, multiple in gpu.TORCH_MULTIPLE.items():
        sizes = SparseSemiStructuredTensorCUSPARSELT._DTYPE_SHAPE_CONSTRAINTS[dtype]
        assert (sizes.sparse_min_rows, sizes.sparse_min_cols) == (multiple, multiple)
    assert torch.float32 not in SparseSemiStructuredTensorCUSPARSELT._DTYPE_SHAPE_CONSTRAINTS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:2"])
def test_torchs_own_compression_loses_nothing(dtype: torch.dtype, pattern: str) -> None:
    """The conversion behind to_sparse_semi_structured keeps two of four: there and back gives the same weights."""
    keep, run = map(int, pattern.split(":"))
    layer = MaskedLinear(128, 32)
    secateur.prune(layer, Magnitude(1 - keep / run), pattern=pattern)
    assert secateur.verify(layer, "2:4").holds
    weight = layer.weight.detach()
    weight = (weight * 100).clamp(-127, 127).to(dtype) if dtype == torch.int8 else weight.to(dtype)
    packed, meta = _semi_structured_conversions.sparse_semi_structured_from_dense_cutlass(weight)
    assert packed.shape == (32, 64)
    there_and_back = _semi_structured_conversions.sparse_semi_structured_to_dense_cutlass(packed, meta)
    assert torch.equal(there_and_back, weight)
    with torch.no_grad():
        weight[3, :3] = 1
    packed, meta = _semi_structured_conversions.sparse_semi_structured_from_dense_cutlass(weight)
    lossy = _semi_structured_conversions.sparse_semi_structured_to_dense_cutlass(packed, meta)
    assert not torch.equal(lossy, weight)  # so the check can fail
