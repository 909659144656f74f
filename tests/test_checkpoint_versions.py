"""Files of every version that was ever written load forever: tests/data keeps one of each, made by the code of its day.

They are never made anew. The models that they hold are computed here from formulas, not from a random generator, whose
numbers may change with torch.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import secateur
import torch
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


def version1() -> Version1:
    model = Version1()
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
    masks.apply(model)
    return model


def check_same(found: nn.Module, expected: nn.Module) -> None:
    a, b = found.state_dict(), expected.state_dict()
    assert list(a) == list(b)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["version1"])
def test_it_loads_as_it_was_saved(name: str) -> None:
    model = Version1()
    secateur.load(DATA / f"{name}.safetensors", model)
    check_same(model, version1())
    assert masks.masked_parameters(model.conv) == {"weight": (0.125, 0.25, 0.5)}
    assert masks.masked_parameters(model.fc) == {"weight": None}
