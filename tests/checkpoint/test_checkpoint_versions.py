"""Files of every version that was ever written load forever: ``data`` keeps one of each, made by the code of its day.

They are never made anew. The models that they hold are computed here from formulas, not from a random generator, whose
numbers may change with torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import secateur
import torch
from safetensors import safe_open
from secateur import masks, ops
from torch import Tensor, nn

DATA = Path(__file__).parent / "data"


def numbers(*shape: int) -> Tensor:
    """Distinct, exact in every float type used here, none of them 0."""
    n = torch.Size(shape).numel()
    return ((torch.arange(n) * 7 % 101 - 50.5) / 8).reshape(shape)


class Version1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.bn = nn.BatchNorm2d(5)
        self.lstm = nn.LSTM(5, 4)
        self.fc = nn.Linear(11, 9)
        self.small = nn.Linear(16, 16, dtype=torch.bfloat16)
        self.embed = nn.Embedding(12, 8)
        self.head = nn.Linear(8, 12)
        self.head.weight = self.embed.weight  # one tensor, two names
        self.act = secateur.nn.ThresholdReLU(torch.tensor([0.5, 0.25, 0.0]))
        self.register_buffer("zeros", torch.empty(16, 16))  # packed for its zeros, without a mask
        self.register_buffer("wide", torch.empty(2, 3, dtype=torch.float64))
        self.register_buffer("one", torch.empty(()))
        self.register_buffer("nothing", torch.empty(0, 3))
        self.register_buffer("flags", torch.empty(3, dtype=torch.bool))


V = TypeVar("V", bound=Version1)


def version1() -> Version1:
    return filled(Version1())


def filled(model: V) -> V:
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point() and value.shape != (3,):
                value.copy_(numbers(*value.shape))
        model.bn.num_batches_tracked.fill_(2**40 + 1)
        model.flags.copy_(torch.tensor([True, False, True]))  # type: ignore[operator]
        model.zeros.mul_(torch.arange(256).reshape(16, 16) % 9 == 0)  # type: ignore[operator]
    for module, parameter, every in (
        (model.conv, "weight", 4), (model.fc, "weight", 3), (model.lstm, "weight_hh_l0", 5), (model.embed, "weight", 2),
        (model.small, "weight", 7),
    ):  # fmt: skip
        weight = module.get_parameter(parameter)
        keep = (torch.arange(weight.numel()) % every == 1).reshape(weight.shape)
        theta = (0.125, 0.25, 0.5) if module is model.conv else None
        masks.attach(module, parameter, ops.mask_pack(keep), theta)
    masks.attach(model.head, "weight", masks.get_mask(model.embed, "weight"))  # type: ignore[arg-type]
    return masks.apply(model)  # type: ignore[return-value]


def check_same(found: nn.Module, expected: nn.Module, signs: bool) -> None:
    a, b = found.state_dict(), expected.state_dict()
    assert list(a) == list(b)
    for key in a:
        assert a[key].dtype == b[key].dtype, key
        assert torch.equal(a[key], b[key]), key
        if signs and a[key].is_floating_point():
            assert torch.equal(torch.signbit(a[key]), torch.signbit(b[key])), key


class Version2(Version1):
    """What version 2 added: gaps, blocks, integers, negative zeros, a palette."""

    def __init__(self) -> None:
        super().__init__()
        self.wide_conv = nn.Conv2d(18, 16, 3)
        self.quantize = secateur.nn.Quantize(0.5, 3)
        self.int8 = secateur.nn.QuantizedConv2d(torch.zeros(16, 24, 3, 3, dtype=torch.int8), torch.ones(16), None, 0.25)
        self.register_buffer("sparse", torch.empty(40, 30))
        self.register_buffer("signs", torch.empty(40, 30, dtype=torch.float64))
        self.register_buffer("levels", torch.empty(30, 30))


def version2() -> Version2:
    model = filled(Version2())
    with torch.no_grad():
        model.quantize.scale.fill_(0.5)
        model.int8.input_scale.fill_(0.25)
        blocks = torch.arange(16 * 5 * 9).reshape(16, 5, 3, 3) % 11 == 4
        keep = blocks.repeat_interleave(4, 1)[:, :18]
        model.int8.weight_int8.copy_(numbers(16, 24, 3, 3) * (torch.arange(16 * 24 * 9).reshape(16, 24, 3, 3) % 7 == 0))
        model.int8.weight_scale.copy_(torch.arange(1, 17) / 64)
        model.sparse.mul_(torch.arange(1200).reshape(40, 30) % 83 == 80).add_(0.0)  # type: ignore[operator, union-attr]
        model.signs.mul_(torch.arange(1200).reshape(40, 30) % 5 == 0)  # type: ignore[operator, union-attr]
        model.levels.copy_(numbers(30, 30) % 4)  # type: ignore[operator]
    masks.attach(model.wide_conv, "weight", ops.mask_pack(keep), (0.0, 1.0, 2.0))
    return masks.apply(model)  # type: ignore[return-value]


@pytest.mark.parametrize(("name", "make"), [("version1", version1), ("version2", version2)])
def test_it_loads_as_it_was_saved(name: str, make: Callable[[], Version1]) -> None:
    model = type(make())()
    secateur.load(DATA / f"{name}.safetensors", model)
    check_same(model, make(), signs=name != "version1")  # which lost those of zeros
    assert masks.masked_parameters(model.conv) == {"weight": (0.125, 0.25, 0.5)}
    assert masks.masked_parameters(model.fc) == {"weight": None}
    plain = secateur.to_dense_state_dict(DATA / f"{name}.safetensors")
    weights = {key: value for key, value in make().state_dict().items() if not key.endswith("_mask")}
    for key in plain.keys() & weights.keys():
        assert torch.equal(plain[key], weights[key]), key
    left_out = {key for key in weights if key.startswith(("quantize.", "int8."))}
    assert weights.keys() - left_out == plain.keys() - {"int8.weight"}


def test_the_file_of_version_2_has_every_form() -> None:
    with safe_open(DATA / "version2.safetensors", "pt") as file:
        packed = json.loads(file.metadata()["secateur"])["packed"]
    assert packed["wide_conv.weight"]["block"] == 2
    assert packed["int8.weight_int8"]["dtype"] == "int8"
    assert packed["sparse"]["index"] == "gaps"
    assert packed["signs"]["signs"] == {}
    assert packed["levels"]["codes"] == 8
