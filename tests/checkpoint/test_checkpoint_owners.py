"""Whose a tensor of the file is: what the model shares, what a layer restores itself, what a hook makes; and the file's
own permissions and paths."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import secateur
import torch
from secateur import Error
from torch import Tensor, nn


class Tied(nn.Module):
    def __init__(self, tie: bool) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        if tie:
            self.head.weight = self.embedding.weight


def test_two_tensors_do_not_fit_into_one(tmp_path: Path) -> None:
    apart, tied = Tied(False), Tied(True)
    secateur.save(apart, tmp_path / "apart.safetensors")
    before = tied.head.weight.detach().clone()
    message = r"embedding\.weight and head\.weight must be equal, for they are one tensor in the model"
    with pytest.raises(Error, match="load: " + message):
        secateur.load(tmp_path / "apart.safetensors", tied)
    with pytest.raises(Error, match="import_checkpoint: " + message):
        secateur.import_checkpoint(apart.state_dict(), tied)
    assert torch.equal(tied.head.weight, before)
    apart.head.weight.data.copy_(apart.embedding.weight)  # equal ones do
    secateur.save(apart, tmp_path / "equal.safetensors")
    secateur.load(tmp_path / "equal.safetensors", tied)
    assert torch.equal(tied.head.weight, apart.head.weight)


class Counting(nn.Linear):
    calls = 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        self.calls = int(state)


def test_extra_state_is_given_back(tmp_path: Path) -> None:
    model, other = nn.Sequential(Counting(2, 2)), nn.Sequential(Counting(2, 2))
    model[0].calls = 5
    secateur.save(model, tmp_path / "x.safetensors")
    secateur.load(tmp_path / "x.safetensors", other)
    assert other[0].calls == 5


def test_what_a_state_dict_hook_makes_is_not_lost_silently(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model._register_state_dict_hook(lambda module, state, prefix, meta: state.update(more=torch.ones(1)))
    secateur.save(model, tmp_path / "x.safetensors")
    with pytest.raises(Error, match="load: more must be a parameter or a buffer of the model to be filled"):
        secateur.load(tmp_path / "x.safetensors", model)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_permissions_stay(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x.safetensors"
    path.touch()
    path.chmod(mode)
    secateur.save(nn.Linear(2, 2), path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_folders_loops_and_null_characters(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(Error, match=r"save: .* must be a file or not be there yet, but is a folder"):
        secateur.save(model, tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        secateur.save(model, tmp_path / "loop")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loop"]
    with pytest.raises(Error, match="load: path must not hold a null character"):
        secateur.load("a\0b", model)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Error, match=r"import_checkpoint: .* must be a file, but is a pipe"):
        secateur.import_checkpoint(tmp_path / "pipe", model)


def test_values_that_a_narrow_type_loses_are_said(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight.mul_(1e-9)
    with pytest.warns(UserWarning, match=r"save: 0\.weight: 64 of 64 values are too small for float16 and become 0"):
        secateur.save(model, tmp_path / "x.safetensors", values="float16")
