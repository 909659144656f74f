"""FORMAT.md is right: its example is the file that ``save`` writes, its drawings decode as they say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import secateur
import torch
from secateur import masks, ops
from secateur.checkpoint import VERSION
from secateur.checkpoint.format import decode
from secateur.checkpoint.format.description import Index
from torch import nn

TEXT = (Path(__file__).resolve().parents[2] / "FORMAT.md").read_text()


def example() -> bytes:
    """The example's bytes, put together from the document."""
    section = TEXT.split("## An example")[1].split("\n## ")[0]
    found = b""
    for kind, block in re.findall(r"```(hex|json)\n(.*?)```", section, re.S):
        if kind == "json":
            found += block.replace("\n", "").encode()
            continue
        for line in block.splitlines():
            found += bytes.fromhex(re.match(r"((?:[0-9a-f]{2} ?)+)", line)[1])  # type: ignore[index]
    return found


def test_the_example_is_what_save_writes(tmp_path: Path) -> None:
    model = nn.Linear(11, 2, bias=False)
    keep = torch.zeros(2, 11, dtype=torch.bool)
    keep[0, [0, 1, 3, 8, 10]] = keep[1, 2] = True
    with torch.no_grad():
        model.weight.zero_()
        model.weight[keep] = torch.tensor([1.0, -2.0, 0.5, 3.0, -0.25, 8.0])
    masks.attach(model, "weight", ops.mask_pack(keep), (0.125, 0.25, 0.5))
    secateur.save(model, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == example()
    assert len(example()) == 404
    assert f"# The file format, version {VERSION}\n" in TEXT


def test_the_drawings_decode_as_they_say() -> None:
    gaps = np.array([0x02, 0x6F, 0xFF], np.uint8)
    (found,) = decode.units(Index("gaps", 1, 4), (40,), lambda first, count: gaps[first : first + count], 3)
    assert found.tolist() == [2, 3, 25]
    bits = np.array([0x0B, 0x05], np.uint8)
    (found,) = decode.units(Index("bits"), (1, 11), lambda first, count: bits[first : first + count], 2)
    assert found.tolist() == [0, 1, 3, 8, 10]
    # channels 0-3 of tap 1, then channels 4-5 of tap 0: an element is channel * 2 + tap
    assert decode.positions(np.array([1, 2]), (1, 6, 1, 2), 4).tolist() == [1, 3, 5, 7, 8, 10]
