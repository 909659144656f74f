"""finetune of a student on a GPU: batches follow it, masks hold, products are bfloat16 where the GPU has them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from secateur.finetuning.precision import has_bfloat16
from tuning import X, assert_same, labelled, net, plain, pruned, tune, values

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_a_student_on_a_gpu() -> None:
    dense = net()
    tune(dense, labelled(), steps=200, lr=3e-3)
    student = pruned(dense).cuda()
    before, state = values(student), torch.cuda.get_rng_state()
    report = tune(student, labelled(), copy.deepcopy(dense), steps=120, lr=3e-3)  # a teacher on the CPU
    assert report.improved
    assert report.mixed_precision == has_bfloat16(torch.device("cuda"))
    after = values(student)
    assert all(t.is_cuda for t in after.values())
    for name in ("0.weight", "5.weight"):
        assert torch.equal(after[f"{name}_mask"], before[f"{name}_mask"])
        assert torch.equal(after[name] == 0, before[name] == 0)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert student(X.cuda()).isfinite().all()


def test_a_checkpoint_goes_from_one_device_to_another(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    there, here = pruned(net()).cuda(), pruned(net())
    tune(there, plain(), net(1).cuda(), checkpoint=path, mixed_precision=False)
    tune(here, plain(), net(1), checkpoint=path, mixed_precision=False)
    assert_same(values(here), {name: t.cpu() for name, t in values(there).items()})
