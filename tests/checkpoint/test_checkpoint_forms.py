"""How one tensor is stored: every form, every bit back, the smallest one chosen, and the specification's own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
from format_reader import read as read_by_the_book
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from secateur import Error, Magnitude, masks, ops
from torch import Tensor, nn

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


def bits(value: Tensor) -> Tensor:
    return value.detach().contiguous().view(_INTEGERS[value.element_size()])


def holding(**tensors: Tensor) -> nn.Module:
    model = nn.Module()
    for name, tensor in tensors.items():
        model.register_buffer(name, tensor)
    return model


def entries(path: Path) -> dict[str, dict[str, Any]]:
    with safe_open(path, "pt") as file:
        found: dict[str, dict[str, Any]] = json.loads(file.metadata()["secateur"])["packed"]
    return found


def round_trip(path: Path, value: Tensor, **options: Any) -> Tensor:
    """Through a file, and through the reader that was written from the specification alone."""
    secateur.save(holding(t=value), path, **options)
    other = holding(t=torch.ones_like(value))
    secateur.load(path, other)
    found: Tensor = other.t  # type: ignore[assignment]
    by_the_book = b"".join(read_by_the_book(path)["t"])
    assert by_the_book == bits(found).numpy().tobytes()
    return found


shapes = st.lists(st.integers(0, 12), min_size=2, max_size=4) | st.just([5, 70]) | st.just([3, 33, 3, 3])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=shapes, dtype=st.sampled_from(FLOATS + INTEGERS), kept=st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.9, 1.0]),
    block=st.sampled_from([1, 2, 3, 4, 8]), distinct=st.sampled_from([1, 2, 5, 300, 10**6]), negative=st.booleans(),
    share=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_every_bit_comes_back(
    tmp_path: Path, shape: list[int], dtype: torch.dtype, kept: float, block: int, distinct: int, negative: bool,
    share: bool, seed: int,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    size = _INTEGERS[dtype.itemsize]
    value = torch.randint(-(2**7), 2**7, (torch.Size(shape).numel() * dtype.itemsize,), generator=generator)
    value = value.to(torch.int8).view(size).reshape(shape)  # any bits: NaNs, infinities, subnormals
    value = value % distinct if distinct < 2**7 else value
    keep = torch.rand([shape[0], -(-shape[1] // block), *shape[2:]], generator=generator) < kept
    keep = keep.repeat_interleave(block, 1)[:, : shape[1]]
    zero = torch.tensor(torch.iinfo(size).min if negative and dtype.is_floating_point else 0, dtype=size)
    value = torch.where(keep, value, zero).to(size).view(dtype)
    assert torch.equal(bits(round_trip(tmp_path / "f", value, share=share)), bits(value))


def zeros(shape: tuple[int, ...], share: float, block: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(shape[0], -(-shape[1] // block), *shape[2:], generator=generator) >= share
    keep = keep.repeat_interleave(block, 1)[:, : shape[1]]
    return torch.randn(shape, generator=generator) * keep + 0.0


@pytest.mark.parametrize(
    ("value", "form", "most"),
    [  # bits of the index for each element: a bit; gaps come close to the entropy, 0.47 at 90 % and 0.081 at 99 %
        (zeros((128, 1152), 0.5), {}, 1.01),
        (zeros((128, 1152), 0.9), {"index": "gaps", "width": 4}, 0.51),
        (zeros((128, 1152), 0.99), {"index": "gaps", "width": 8}, 0.092),
        (zeros((128, 64, 3, 3), 0.5, block=4), {"block": 4}, 0.26),
        (zeros((128, 64, 3, 3), 0.9, block=4), {"index": "gaps", "block": 4, "width": 4}, 0.13),
        (zeros((128, 66, 3, 3), 0.9, block=8), {"index": "gaps", "block": 8, "width": 4}, 0.07),
        (zeros((128, 1152), 1.0), {"index": "gaps", "width": 8}, 0.035),
        (zeros((128, 1152), 0.0), None, 0),
    ],
)  # fmt: skip
def test_the_smallest_index_is_chosen(tmp_path: Path, value: Tensor, form: dict[str, Any] | None, most: float) -> None:
    secateur.save(holding(t=value), tmp_path / "f")
    assert torch.equal(secateur.to_dense_state_dict(tmp_path / "f")["t"], value)
    if form is None:
        assert entries(tmp_path / "f") == {}
        return
    entry = entries(tmp_path / "f")["t"]
    assert {k: v for k, v in entry.items() if k not in ("shape", "dtype")} == form
    size = (tmp_path / "f").stat().st_size
    assert 8 * (size - 4 * int(value.count_nonzero()) - 450) <= most * value.numel()  # 450: the header


def test_a_mask_comes_back_whose_kept_weights_are_zero(tmp_path: Path) -> None:
    """In blocks, in gaps, in bits: the mask is what is stored, not what happens to be zero."""
    for block, share in ((1, 0.5), (1, 0.9), (4, 0.9), (4, 0.97)):
        layer = nn.Conv2d(18, 40, 3)
        with torch.no_grad():
            layer.weight.copy_(zeros((40, 18, 3, 3), share, block))
            keep = layer.weight != 0
            layer.weight[keep & (torch.rand(keep.shape) < 0.3)] = 0
        masks.attach(layer, "weight", ops.mask_pack(keep), (0.25, 0.5, 1.0))
        secateur.save(layer, tmp_path / "f")
        assert entries(tmp_path / "f")["weight"].get("block", 1) == block
        other = secateur.load(tmp_path / "f", nn.Conv2d(18, 40, 3))
        assert torch.equal(other.weight_mask, layer.weight_mask)  # type: ignore[arg-type]
        assert torch.equal(other.weight, layer.weight)  # type: ignore[arg-type]
        assert masks.masked_parameters(other) == {"weight": (0.25, 0.5, 1.0)}


def test_the_demo_cnn_in_int8_takes_a_twentieth(tmp_path: Path) -> None:
    """421,642 parameters, 90 % zeros in 1x4 blocks: 1,687,168 bytes dense; with a bit a weight, 95,000."""
    model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3), nn.Linear(3136, 128), nn.Linear(128, 10))
    secateur.prune(model, Magnitude(0.9), pattern="1x4")
    layers = nn.ModuleList()
    for layer in model:
        weight: Tensor = layer.weight.detach()  # type: ignore[union-attr, operator]
        scale = weight.abs().flatten(1).amax(1).clamp_min(1e-3) / 127
        q = torch.round(weight / scale.reshape(-1, *[1] * (weight.dim() - 1))).to(torch.int8)
        kind = secateur.nn.QuantizedLinear if weight.dim() == 2 else secateur.nn.QuantizedConv2d
        layers.append(kind(q, scale, layer.bias.detach(), 0.01))  # type: ignore[union-attr, operator]
    secateur.save(layers, tmp_path / "f")
    assert (tmp_path / "f").stat().st_size < 60_000


def test_shared_values(tmp_path: Path) -> None:
    value = zeros((256, 256), 0.5)
    levels = torch.linspace(-1, 1, 16)
    for count, codes in ((2, 1), (4, 2), (16, 4), (200, 8), (3000, 16)):
        levels = torch.linspace(-1, 1.01, count)
        clustered = torch.where(value != 0, levels[torch.arange(value.numel()).reshape(value.shape) % count], value)
        assert torch.equal(bits(round_trip(tmp_path / "f", clustered, share=True)), bits(clustered))
        assert entries(tmp_path / "f")["t"]["codes"] == codes
        shared = (tmp_path / "f").stat().st_size
        secateur.save(holding(t=clustered), tmp_path / "f")
        assert shared < (tmp_path / "f").stat().st_size - int((value != 0).sum()) * (32 - codes) / 8 + 4 * count + 100
    secateur.save(holding(t=value), tmp_path / "f", share=True)
    assert "codes" not in entries(tmp_path / "f")["t"]  # all values differ: nothing to gain
    dense = torch.linspace(1, 2, 16)[torch.arange(65536).reshape(256, 256) % 16]
    assert torch.equal(round_trip(tmp_path / "f", dense, share=True), dense)
    assert (tmp_path / "f").stat().st_size < 65536 / 2 + 600


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_narrow_values_where_asked(tmp_path: Path, narrow: torch.dtype) -> None:
    name = str(narrow).removeprefix("torch.")
    value = zeros((64, 64), 0.8)
    value[0, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
    for each in (value, value.double(), value.bfloat16(), torch.randn(64, 64)):
        found = round_trip(tmp_path / "f", each, values=name)
        expected = each if each.element_size() <= narrow.itemsize else each.to(narrow).to(each.dtype)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(torch.signbit(found), torch.signbit(expected))
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    secateur.prune(model, Magnitude(0.9))
    secateur.save(model, tmp_path / "f", values=name)
    other = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    secateur.load(tmp_path / "f", other)
    assert torch.equal(other[0].weight_mask, model[0].weight_mask)  # type: ignore[arg-type]
    assert torch.equal(other[0].bias, model[0].bias)  # type: ignore[arg-type]  # one-dim tensors stay exact
    big = holding(t=torch.full((4, 4), 3.4e38))
    if narrow == torch.float16:
        with pytest.raises(Error, match=r"save: t must fit into float16, but reaches 3.4e\+38"):
            secateur.save(big, tmp_path / "g", values=name)
        assert not (tmp_path / "g").exists()
    for wrong in ("float32", 16, torch.float16):
        with pytest.raises(Error, match='save: values must be None, "float16" or "bfloat16", got'):
            secateur.save(model, tmp_path / "f", values=wrong)  # type: ignore[arg-type]
    with pytest.raises(Error, match="save: share must be True or False, got 4"):
        secateur.save(model, tmp_path / "f", share=4)  # type: ignore[arg-type]


def test_nans_keep_their_payload(tmp_path: Path) -> None:
    value = torch.zeros(64, 64)
    value.view(torch.int32)[0, :4] = torch.tensor([0x7F800001, 0x7FC12345, -0x400000, 0x7FFFFFFF])
    assert torch.equal(bits(round_trip(tmp_path / "f", value)), bits(value))
    assert torch.equal(bits(round_trip(tmp_path / "f", value, share=True)), bits(value))


def test_kinds_that_are_never_packed(tmp_path: Path) -> None:
    tensors = {
        "flags": torch.zeros(40, 40, dtype=torch.bool), "complex": torch.zeros(40, 40, dtype=torch.complex64),
        "conj": torch.randn(4, 4, dtype=torch.complex64).conj(), "short": torch.zeros(300, dtype=torch.uint16),
        "eight": torch.zeros(40, 40, dtype=torch.float8_e4m3fn), "bias": torch.zeros(500),
    }  # fmt: skip
    secateur.save(holding(**tensors), tmp_path / "f")
    assert entries(tmp_path / "f") == {}
    found = secateur.to_dense_state_dict(tmp_path / "f")
    for name, tensor in tensors.items():
        raw = found[name].view(torch.uint8)
        assert torch.equal(raw, tensor.resolve_conj().view(torch.uint8)), name
    with pytest.raises(Error, match=r"save: t must have a dtype that safetensors knows, got torch.complex128"):
        secateur.save(holding(t=torch.zeros(2, dtype=torch.complex128)), tmp_path / "f")


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_names_that_the_container_cannot_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(Error, match="must be a name that safetensors can hold"):
        secateur.save(holding(**{name: torch.zeros(2)}), tmp_path / "f")
