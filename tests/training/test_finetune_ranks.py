"""finetune in two processes (gloo): each brings its share of the batches, both end with the same student."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from secateur import Error
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    patience = timedelta(seconds=120)  # where one process has failed, the other must not wait forever
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=patience)
    try:
        torch.save(_results(rank, Path(folder)), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def _results(rank: int, folder: Path) -> dict[str, Any]:
    from tuning import X, Y, labelled, net, plain, pruned, tune, values

    found: dict[str, Any] = {}
    teacher = net(1)

    def rows(report: secateur.Report) -> list[list[float]]:
        return [[row["step"], row["loss"] or 0.0, row.get("kl", row.get("evaluate", 0.0))] for row in report.rows]

    # Unwrapped: rank 1 begins with other values, which rank 0's replace; BatchNorm.
    student = pruned(net())
    if rank == 1:
        student[5].bias.data.add_(1.0)
    share = labelled()[rank::2]
    report = tune(student, share, teacher, checkpoint=folder / "run.pt", lr=3e-3)
    found["unwrapped"] = values(student), rows(report)
    again = tune(pruned(net()), share, teacher, checkpoint=folder / "run.pt", lr=3e-3)
    found["again"] = rows(again) == rows(report)

    # The same without BatchNorm, wrapped and not.
    for name in ("by hand", "wrapped"):
        student = pruned(net(norm=False))
        runner = DistributedDataParallel(student) if name == "wrapped" else student
        report = tune(runner, share, teacher, lr=3e-3, mixed_precision=False)
        found[name] = values(student), rows(report)

    # A DataLoader that shares among the ranks; held-out samples are known to both.
    data = TensorDataset(X, Y)
    loader = DataLoader(data, 20, sampler=DistributedSampler(data, num_replicas=2, rank=rank))
    student = pruned(net())
    found["loader"] = values(student), rows(tune(student, loader, teacher))

    # Ranks that measure different things, and time that only rank 0 keeps.
    student = pruned(net())
    report = tune(student, plain()[rank::2], teacher, evaluate=lambda m: float(rank), steps=None, minutes=0.01)
    found["evaluate"] = values(student), rows(report)

    try:
        tune(pruned(net(), 0.5 + 0.2 * rank), share)
    except Error as refused:
        found["refused"] = str(refused)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(_work, (str(folder),), nprocs=2, start_method="spawn")
    one, two = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    return one, two


def _same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return list(one) == list(two) and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("case", ["unwrapped", "by hand", "wrapped", "loader", "evaluate"])
def test_both_end_with_the_same_student_and_report(both: tuple[Any, Any], case: str) -> None:
    (one, first), (two, second) = both[0][case], both[1][case]
    assert _same(one, two)
    assert [row[2] for row in first] == [row[2] for row in second]
    assert bool((one["5.weight"] == 0).any())
    if case == "evaluate":
        assert first[0][2] == 0.5
    else:
        assert min(row[2] for row in first) < first[0][2], "nothing was learned"


def test_wrapped_or_not_gives_the_same_weights(both: tuple[Any, Any]) -> None:
    one, two = both[0]["by hand"][0], both[0]["wrapped"][0]
    for name in one:
        # Gradients are summed in another order.
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)


def test_a_checkpoint_is_read_by_all(both: tuple[Any, Any]) -> None:
    assert both[0]["again"]
    assert both[1]["again"]


def test_other_masks_on_another_rank_are_refused(both: tuple[Any, Any]) -> None:
    for found in both:
        assert "must have the same masks on all ranks" in found["refused"]
