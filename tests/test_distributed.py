"""Masks under DistributedDataParallel: two processes on the CPU (gloo), pruned before and after wrapping."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import secateur
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from secateur import MeanStd
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        secateur.prune(model, MeanStd(sparsity=0.8))
        wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(wrapped.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
        torch.manual_seed(rank)

        def steps() -> None:
            for _ in range(2):
                optimizer.zero_grad()
                wrapped(torch.randn(8, 1, 8, 8)).square().mean().backward()
                optimizer.step()

        steps()
        shares = [secateur.sparsity(wrapped).sparsity]
        secateur.prune(wrapped, MeanStd(sparsity=0.9), optimizer=optimizer)  # by now inside the wrapper
        steps()
        shares.append(secateur.sparsity(wrapped).sparsity)
        torch.save((shares, model.state_dict()), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")
def test_two_processes_keep_the_same_zeros() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_work, (folder,), nprocs=2, start_method="spawn")
        (first, one), (second, two) = (torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first == second == [pytest.approx(0.8, abs=1e-3), pytest.approx(0.9, abs=1e-3)]
    for key, value in one.items():
        if not key.startswith("1."):  # BatchNorm's running statistics are each rank's own
            assert torch.equal(value, two[key])
