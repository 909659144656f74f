"""Masks in distributed training: two processes on the CPU (gloo), replicated (DDP) and sharded (FSDP, fully_shard)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from secateur import CubicSchedule, Error, GradualPruner, Magnitude, MeanStd, Random
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")

State = dict[str, Tensor]


def _net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(180, 11))


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 2, after: Any = None) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(8, 1, 8, 8)).square().mean().backward()
        optimizer.step()
        if after is not None:
            after()


Work = Callable[[int, str], Any]


def _enter(rank: int, folder: str, works: Sequence[Work]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    patience = timedelta(seconds=300)  # where one process has failed, the other must not wait forever
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2, timeout=patience)
    try:
        for work in works:
            own = Path(folder) / work.__name__
            own.mkdir(exist_ok=True)
            dist.barrier()
            result = work(rank, str(own))
            torch.save(result, own / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Work], tuple[Any, Any]]:
    """What a work gives in each of two processes. They do all works one after another: starting them, with all that is
    imported, takes longer than what they do."""
    folder = tmp_path_factory.mktemp("ranks")
    works: list[Work] = [_pruned_on_all, _pruned_by_chance, _pruned_on_one, _gradually, _fsdp2, _state_dicts, _fsdp1]
    if not _has_fully_shard():
        works.remove(_fsdp2)
        works.remove(_state_dicts)
    ended: list[Exception] = []
    try:
        mp.start_processes(_enter, (str(folder), works), nprocs=2, start_method="spawn")
    except Exception as error:  # of the first work that fails, and of those after it; the ones before it have results
        ended.append(error)

    def results(work: Work) -> tuple[Any, Any]:
        files = [folder / work.__name__ / f"{rank}.pt" for rank in (0, 1)]
        if ended and not all(file.exists() for file in files):
            raise ended[0]
        first, second = (torch.load(file, weights_only=True) for file in files)
        return first, second

    return results


def _has_fully_shard() -> bool:
    try:
        from torch.distributed.fsdp import fully_shard  # noqa: F401
    except ImportError:
        return False
    return True


def _assert_same(one: State, two: State) -> None:
    assert list(one) == list(two)
    for key, value in one.items():
        if "running" not in key and "num_batches" not in key:  # BatchNorm's statistics are each rank's own
            assert torch.equal(value, two[key]), key


def _assert_zeros(state: State, share: float) -> None:
    """The masks say that so many weights are zero, and they are."""
    zeros = total = 0
    for key in [key for key in state if key.endswith("_mask")]:
        weight = state[key.removesuffix("_mask")]
        keep = secateur.ops.mask_unpack(state[key], weight.shape)
        assert not bool(weight[~keep].any()), key
        assert bool(weight[keep].all()), key
        zeros += int((~keep).sum())
        total += keep.numel()
    assert zeros / total == pytest.approx(share, abs=2e-3)


# ---- replicated ----


def _pruned_on_all(rank: int, folder: str) -> Any:
    model = _net()
    secateur.prune(model, MeanStd(sparsity=0.8))
    wrapped = DistributedDataParallel(model)
    optimizer = _sgd(wrapped)
    torch.manual_seed(rank)
    _steps(wrapped, optimizer)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    secateur.prune(wrapped, MeanStd(sparsity=0.9), optimizer=optimizer)  # by now inside the wrapper
    _steps(wrapped, optimizer)
    return before, model.state_dict()


def test_pruned_on_all_ranks(both: Any) -> None:
    one, two = both(_pruned_on_all)
    for share, a, b in zip((0.8, 0.9), one, two, strict=True):
        _assert_same(a, b)
        _assert_zeros(a, share)


def _pruned_by_chance(rank: int, folder: str) -> Any:
    torch.manual_seed(100 + rank)
    model = _net(seed=rank)  # other weights, other zeros: DDP takes rank 0's of both
    secateur.prune(model, Random(sparsity=0.8, seed=rank) if _takes_seed() else Random(sparsity=0.8))
    wrapped = DistributedDataParallel(model)
    _steps(wrapped, _sgd(wrapped))
    return model.state_dict()


def _takes_seed() -> bool:
    import inspect

    return "seed" in inspect.signature(Random).parameters


def test_other_masks_on_each_rank_become_those_of_rank_0(both: Any) -> None:
    one, two = both(_pruned_by_chance)
    _assert_same(one, two)
    _assert_zeros(one, 0.8)


def _pruned_on_one(rank: int, folder: str) -> Any:
    model = _net(seed=rank)
    if rank == 0:
        secateur.prune(model, MeanStd(sparsity=0.8))
    else:
        secateur.prune(model, MeanStd(sparsity=0.5), exclude=["4"])
        secateur.masks.detach(model[0], "weight")
    secateur.masks.broadcast(model)
    wrapped = DistributedDataParallel(model)
    torch.manual_seed(rank)
    _steps(wrapped, _sgd(wrapped))
    return model.state_dict()


def test_pruned_on_one_rank_and_broadcast(both: Any) -> None:
    one, two = both(_pruned_on_one)
    _assert_same(one, two)
    _assert_zeros(one, 0.8)


def test_broadcast_without_a_group() -> None:
    with pytest.raises(Error, match=r"broadcast: torch.distributed must have a process group"):
        secateur.masks.broadcast(_net())


def _gradually(rank: int, folder: str) -> Any:
    model = _net()
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), 0.01)
    schedule = CubicSchedule(final=0.9, end=6, every=2)
    pruner = GradualPruner(wrapped, Magnitude(sparsity=0.9), schedule, optimizer=optimizer)
    torch.manual_seed(rank)
    _steps(wrapped, optimizer, 4, pruner.step)
    # Both kinds of checkpoint, as rank 0 writes them; both ranks resume.
    if rank == 0:
        torch.save({"model": model.state_dict(), "pruner": pruner.state_dict()}, f"{folder}/torch.pt")
        secateur.save(model, f"{folder}/packed.safetensors")
    dist.barrier()
    results = []
    for packed in (False, True):
        other = _net(seed=7 + rank)
        state = torch.load(f"{folder}/torch.pt", weights_only=True)
        if packed:
            secateur.load(f"{folder}/packed.safetensors", other)
        else:
            secateur.masks.match_state_dict(other, state["model"]).load_state_dict(state["model"])
        resumed = {k: v.clone() for k, v in other.state_dict().items()}
        again = DistributedDataParallel(other)
        optimizer = torch.optim.AdamW(again.parameters(), 0.01)
        pruner = GradualPruner(again, Magnitude(sparsity=0.9), schedule, optimizer=optimizer)
        pruner.load_state_dict(state["pruner"])
        torch.manual_seed(10 + rank)
        _steps(again, optimizer, 4, pruner.step)
        results.append((resumed, other.state_dict()))
    return model.state_dict(), results


def test_gradual_pruning_and_resuming(both: Any) -> None:
    (before, one), (same, two) = both(_gradually)
    _assert_same(before, same)
    for (resumed, end), (other, other_end) in zip(one, two, strict=True):
        _assert_same(resumed, before)
        _assert_same(other, before)
        _assert_same(end, other_end)
        _assert_zeros(end, 0.9)


# ---- sharded ----

# One weight whose rows do not divide by two, one with fewer weights a row than a byte, rows that end within a byte.


def _shards() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 11), nn.ReLU(), nn.Linear(11, 1), nn.Linear(1, 4)
    )


def _reference() -> State:
    """The same training in one process: the batch of both ranks, whose gradients FSDP averages."""
    model = _shards()
    secateur.prune(model, MeanStd(sparsity=0.6), exclude=["5", "6"])
    optimizer = _sgd(model)
    for step in range(3):
        optimizer.zero_grad()
        model(torch.cat([_batch(step, 0), _batch(step, 1)])).square().mean().backward()
        optimizer.step()
    return model.state_dict()


def _batch(step: int, rank: int) -> Tensor:
    return torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(10 * step + rank))


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
    for step in range(3):
        optimizer.zero_grad()
        model(_batch(step, rank)).square().mean().backward()
        optimizer.step()


def _refusal(model: nn.Module) -> str:
    try:
        secateur.prune(model, MeanStd(sparsity=0.9))
    except Error as error:
        return str(error)
    return "it was pruned"


def _fsdp1(rank: int, folder: str) -> Any:
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of the CPU and of its future
        model = _shards()
        secateur.prune(model, MeanStd(sparsity=0.6), exclude=["5", "6"])
        model[3] = FSDP(model[3], use_orig_params=True, device_id=torch.device("cpu"))  # a unit of its own
        wrapped = FSDP(model, use_orig_params=True, device_id=torch.device("cpu"))
        optimizer = _sgd(wrapped)
        refusal = _refusal(wrapped)
        uncounted = secateur.sparsity(wrapped).notes
        _train(wrapped, optimizer, rank)
        with FSDP.summon_full_params(wrapped):
            whole = _plain({k: v.clone() for k, v in wrapped.state_dict().items()})
        with FSDP.summon_full_params(wrapped, writeback=True):  # weights are whole here, on all ranks
            secateur.prune(wrapped, MeanStd(sparsity=0.9), exclude=["*5*", "*6*"])
        with pytest.warns(UserWarning, match="SGD is older than the pruning"):
            _train(wrapped, optimizer, rank)
        with FSDP.summon_full_params(wrapped):
            later = _plain({k: v.clone() for k, v in wrapped.state_dict().items()})
    return whole, later, refusal, len(uncounted)


def _plain(state: State) -> State:
    return {key.replace("_fsdp_wrapped_module.", ""): value for key, value in state.items()}


def _fsdp2(rank: int, folder: str) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    model = _shards()
    secateur.prune(model, MeanStd(sparsity=0.6), exclude=["5", "6"])
    fully_shard(model[3], mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = _sgd(model)
    refusal = _refusal(model)
    uncounted = secateur.sparsity(model).notes
    _train(model, optimizer, rank)
    full = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in model.state_dict().items()}
    return full, refusal, len(uncounted)


def _state_dicts(rank: int, folder: str) -> Any:
    """The whole state_dict on each rank; on rank 0 alone; on rank 0 alone, into other masks; with masks worn down."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    model = _shards()
    secateur.prune(model, MeanStd(sparsity=0.6), exclude=["5", "6"])
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def load(other: nn.Module, given: State, broadcast: bool) -> nn.Module:
        fully_shard(other, mesh=mesh)
        how = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
        set_model_state_dict(other, dict(given), options=how)
        return other

    def full(other: nn.Module) -> State:
        return {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in other.state_dict().items()}

    def other(share: float) -> nn.Module:
        torch.manual_seed(5)
        made = _shards()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.normal_()
        secateur.prune(made, MeanStd(sparsity=share), exclude=["5", "6"])
        return made

    everywhere = full(load(other(0.8), state, broadcast=False))
    sent = _shards()
    if rank == 0:
        secateur.masks.match_state_dict(sent, state)
    secateur.masks.broadcast(sent)
    sent_state = full(load(sent, state if rank == 0 else {}, broadcast=True))
    complaints = []
    for given, broadcast in ((state if rank == 0 else {}, True), ({**state, **_worn(state)}, False)):
        try:
            load(other(0.8), given, broadcast)
            complaints.append("")
        except RuntimeError as error:
            complaints.append(str(error))
        dist.barrier()
    return state, everywhere, sent_state, complaints


def _worn(state: State) -> State:
    return {key: (value * 0.999).byte() for key, value in state.items() if key.endswith("_mask")}


@pytest.mark.skipif(not _has_fully_shard(), reason="this torch has no fully_shard")
def test_state_dicts_of_sharded_models(both: Any) -> None:
    one, two = both(_state_dicts)
    for state, everywhere, sent, _ in (one, two):
        _assert_same(everywhere, state)
        _assert_same(sent, state)
    assert one[3][0] == ""
    assert 'Missing key(s) in state_dict: "0.weight_mask", "3.weight_mask"' in two[3][0]  # rank 0's do not come along
    for complaints in (one[3], two[3]):
        assert "3.weight_mask: the mask prunes weights that are not zero" in complaints[1]


def _assert_trained_alike(one: State, want: State) -> None:
    assert list(one) == list(want)
    for key, value in one.items():
        torch.testing.assert_close(value, want[key], rtol=1e-4, atol=1e-5, msg=key)
    _assert_zeros({k: v for k, v in one.items() if k.startswith(("0.", "3."))}, 0.6)


@pytest.mark.filterwarnings("ignore")
def test_fully_sharded_data_parallel(both: Any) -> None:
    one, two = both(_fsdp1)
    _assert_same(one[0], two[0])
    _assert_trained_alike(one[0], _reference())
    _assert_same(one[1], two[1])
    _assert_zeros({k: v for k, v in one[1].items() if k.startswith(("0.", "3."))}, 0.9)
    for refusal, uncounted in (one[2:], two[2:]):
        assert "is spread over processes by FullyShardedDataParallel, and a threshold needs whole weights" in refusal
        assert uncounted >= 1


@pytest.mark.skipif(not _has_fully_shard(), reason="this torch has no fully_shard")
def test_fully_shard(both: Any) -> None:
    one, two = both(_fsdp2)
    _assert_same(one[0], two[0])
    _assert_trained_alike(one[0], _reference())
    for refusal, uncounted in (one[1:], two[1:]):
        assert "is spread over processes by fully_shard" in refusal
        assert "prune the model in every process before wrapping it" in refusal
        assert uncounted == 4
