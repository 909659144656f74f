"""Least squares on the survivors, the sweep, exact prices, shared zeros, runs: by torch's solvers and brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from secateur.pruning.criteria.optimal_brain import choose_lowest
from secateur.reconstruction import curves, surgeon, survivors
from secateur.reconstruction.blocks import channel_blocks, channel_runs
from secateur.reconstruction.curves import Curve, allocated
from secateur.reconstruction.problem import Problem, problem
from secateur.reconstruction.surgeon import _priced, first_share, pruned
from secateur.reconstruction.survivors import solved
from secateur.reconstruction.sweep import swept
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")


def made(G: int = 1, R: int = 6, F: int = 12, n: int = 40, seed: int = 0) -> tuple[Problem, Tensor]:
    """A problem without damping worth the name, and its inputs [G, F, n]."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.eye(F) + 0.4 * torch.randn(F, F, generator=generator)
    x = (mixed @ torch.randn(G, F, n, generator=generator)).double()
    w = torch.randn(G, R, F, generator=generator, dtype=torch.float64)
    return Problem(w, x @ x.transpose(1, 2) / n, torch.ones(G, R, F, dtype=torch.bool)), x


def random_mask(shape: tuple[int, ...], share: float) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) >= share


@pytest.mark.parametrize("chunk", [1, 1 << 27])
def test_survivors_are_what_lstsq_finds(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survivors, "CHUNK_BYTES", chunk)
    task, x = made(G=2)
    keep = random_mask((2, 6, 12), 0.6)
    keep[0, 1] = False  # a row that is empty, and one that is full
    keep[1, 2] = True
    w = solved(task, keep)
    assert (w[~keep] == 0).all()
    for g, r in itertools.product(range(2), range(6)):
        s = keep[g, r]
        if s.any():
            best = torch.linalg.lstsq(x[g, s].T, (task.target[g, r] @ x[g])[:, None]).solution[:, 0]
            torch.testing.assert_close(w[g, r, s], best)


def test_other_inputs_are_aimed_at() -> None:
    """Weights for x that compute what the dense ones compute on d."""
    task, _ = made()
    x = torch.randn(1, 12, 500, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    d = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    moved = problem(task.target, x @ x.transpose(1, 2) / 500, d @ x.transpose(1, 2) / 500, task.alive)
    best = torch.linalg.lstsq(x[0].T, (task.target[0] @ d[0]).T).solution.T
    torch.testing.assert_close(moved.target[0], best, rtol=0.1, atol=0.03)  # 1 % damping
    assert (moved.target[0] - best).norm() < 0.2 * (task.target[0] - best).norm()


def blocks_by_hand(C: int, T: int, N: int) -> list[list[int]]:
    return [[c * T + t for c in range(p, min(p + N, C))] for p in range(0, C, N) for t in range(T)]


@pytest.mark.parametrize("N", [1, 2, 4, 5])
def test_blocks_lie_side_by_side(N: int) -> None:
    blocks = channel_blocks(6, 2, N)
    assert [blocks.order[blocks.of == b].tolist() for b in range(blocks.count)] == blocks_by_hand(6, 2, N)
    values = torch.arange(12.0)
    assert blocks.sums(values[blocks.order]).tolist() == [float(sum(b)) for b in blocks_by_hand(6, 2, N)]
    chunks = blocks.chunks(3)
    assert chunks[0][0] == 0
    assert chunks[-1][1] == 12
    assert all(a[1] == b[0] and blocks.of[a[1]] != blocks.of[a[1] - 1] for a, b in itertools.pairwise(chunks))


@pytest.mark.parametrize("N", [1, 2, 3])
def test_prices_are_what_the_loss_costs(N: int) -> None:
    """Optimal brain surgeon: each block dropped by brute force, the row solved again."""
    task, _ = made()
    blocks = channel_blocks(6, 2, N)
    for share in (0.0, 0.3):
        whole = random_mask((6, blocks.count), share)
        keep = torch.empty(1, 6, 12, dtype=torch.bool)
        keep[0][:, blocks.order] = blocks.spread(whole)
        price, cost = _priced(task, blocks, keep)
        before = task.error(solved(task, keep))
        for r, b in itertools.product(range(6), range(blocks.count)):
            columns = blocks.order[blocks.of == b]
            if not keep[0, r, columns].any():
                assert price[r, b] == torch.inf
                continue
            assert cost[r, b] == len(columns)
            without = keep.clone()
            without[0, r, columns] = False
            torch.testing.assert_close(float(price[r, b]), task.error(solved(task, without)) - before)


def test_one_weight_goes_as_brute_force_says() -> None:
    task, _ = made(R=1)
    errors = []
    for c in range(12):
        keep = task.alive.clone()
        keep[0, 0, c] = False
        errors.append(task.error(solved(task, keep)))
    w, keep = pruned(task, channel_blocks(12, 1, 1), choose_lowest, 1 / 12)
    assert keep.sum() == 11
    assert int((~keep[0, 0]).nonzero()) == min(range(12), key=errors.__getitem__)
    assert task.error(w) == pytest.approx(min(errors))


@pytest.mark.parametrize("N", [1, 4, 5])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.95])
def test_stages_beat_the_sweep_and_magnitude(N: int, share: float) -> None:
    task, _ = made(R=16, F=96, n=300)
    blocks = channel_blocks(12, 8, N)
    size = blocks.sums(task.target[0].abs()[:, blocks.order]) / blocks.sums(torch.ones(16, 96)[:, blocks.order])
    gone = choose_lowest(size, blocks.sums(torch.ones(16, 96, dtype=torch.int64)), round(share * 16 * 96))
    plain = torch.empty(1, 16, 96, dtype=torch.bool)
    plain[0][:, blocks.order] = ~blocks.spread(gone)
    sweep = swept(task, blocks, choose_lowest, share)
    w, keep = pruned(task, blocks, choose_lowest, share)
    assert (w[~keep] == 0).all()
    for one in (sweep, keep):
        assert abs(int((~one).sum()) - round(share * one.numel())) <= N
        together = blocks.sums(one[0][:, blocks.order].long())
        assert ((together == 0) | (together == blocks.sums(torch.ones(16, 96, dtype=torch.int64)))).all()
    assert task.error(w) < min(task.error(solved(task, one)) for one in (sweep, plain))
    assert task.error(solved(task, sweep)) < task.error(torch.where(sweep, task.target, 0.0))


def test_masks_only_grow() -> None:
    task, _ = made(R=16, F=96, n=300)
    alive = random_mask((1, 16, 96), 0.4)
    task = Problem(task.target, task.hessian, alive)
    for share in (0.2, 0.7):
        _, keep = pruned(task, channel_blocks(12, 8, 1), choose_lowest, share)
        assert not (keep & ~alive).any()
        assert int((~keep).sum()) == max(round(share * 16 * 96), int((~alive).sum()))


def test_work_is_bounded() -> None:
    assert first_share(100, 500, 0.9) == 0
    assert first_share(256, 2304, 0.9) == pytest.approx(0.8)
    assert first_share(512, 4608, 0.5) == 0.5  # rows of 4,608 are left to the sweep until few are left
    assert 0.8 < first_share(512, 4608, 0.9) < 0.9


def ideal(scale: float, weights: int) -> Curve:
    return Curve((0.0, *curves.LADDER, 1.0), (0.0, *(scale * s**4 for s in curves.LADDER), 1.0), weights)


@pytest.mark.parametrize("share", [0.3, 0.8, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("gone", [(), (0.9, 0.1, 0.0)])
def test_zeros_are_shared_out_at_one_price(share: float, gone: tuple[float, ...]) -> None:
    layers = [ideal(0.9, 1000), ideal(0.6, 1000), ideal(0.01, 100)]
    shares = allocated(layers, share, gone)
    total = sum(s * c.weights for s, c in zip(shares, layers, strict=True)) / 2100
    assert total == pytest.approx(
        max(share, 0.9 * 1000 / 2100 + 100 / 2100 if gone and share < 0.48 else share), abs=0.02
    )
    if not gone and share < 0.9:
        assert shares[0] < shares[1]
        slopes = [(c.at(s + 0.004) - c.at(s - 0.004)) / c.weights for s, c in zip(shares[:2], layers[:2], strict=True)]
        assert slopes[0] == pytest.approx(slopes[1], rel=0.5)


def test_a_curve_rises_from_0_to_1() -> None:
    task, _ = made(R=16, F=96, n=300)
    curve = curves.measured(task, channel_blocks(12, 8, 1), choose_lowest)
    assert list(curve.errors) == sorted(curve.errors)
    assert (curve.at(0.0), curve.at(1.0)) == (0.0, 1.0)
    keep = swept(task, channel_blocks(12, 8, 1), choose_lowest, 0.8)
    assert curve.at(0.8) == pytest.approx(task.error(solved(task, keep)) / task.reference)
    assert curve.at(0.75) < curve.at(0.77) < curve.at(0.8)


def runs_by_hand(C: int, T: int, M: int) -> list[list[int]]:
    return blocks_by_hand(C, T, M)  # the same columns, of which some stay


@pytest.mark.parametrize(
    ("C", "T", "keep", "M"), [(8, 3, 2, 4), (7, 2, 2, 4), (3, 5, 1, 4), (12, 1, 3, 5), (2, 2, 2, 4)]
)
def test_the_best_of_each_run_are_held_back(C: int, T: int, keep: int, M: int) -> None:
    blocks = channel_runs(C, T, keep, M, 1 - keep / M)
    score = torch.randint(0, 4, (6, C * T), generator=torch.Generator().manual_seed(1)).double()  # ties
    score[random_mask((6, C * T), 0.7)] = torch.inf  # gone
    stays = torch.zeros(6, C * T, dtype=torch.bool)
    for row, run in itertools.product(range(6), runs_by_hand(C, T, M)):
        there = [c for c in run if score[row, c] < torch.inf]
        for c in sorted(there, key=lambda c: (float(score[row, c]), c))[-keep:]:
            stays[row, c] = True
    offered = torch.empty_like(score)
    offered[:, blocks.order] = blocks.offered(score[:, blocks.order])
    assert torch.equal(offered, score.masked_fill(stays, torch.inf))
    for size in (1, 3, 64):
        ranges = blocks.chunks(size)
        steps = [step for chunk in ranges for step in blocks.steps(*chunk)]
        assert [blocks.order[a:b].tolist() for a, b in steps] == runs_by_hand(C, T, M)


def sparse_gpt(task: Problem, runs: list[list[int]], keep: int) -> Tensor:
    """The paper's algorithm, one row, one column and one run at a time."""
    order = [c for run in runs for c in run]
    stays = torch.ones_like(task.alive)
    for g in range(len(task.target)):
        U = torch.linalg.cholesky(torch.linalg.inv(task.hessian[g][order][:, order]), upper=True)
        for r in range(task.target.shape[1]):
            w, at = task.target[g, r, order].clone(), 0
            for run in runs:
                here = range(at, at + len(run))
                price = {c: float((w[c] / U[c, c]) ** 2) for c in here}
                goes = sorted(here, key=price.__getitem__)[: max(len(run) - keep, 0)]
                for c in goes:
                    stays[g, r, order[c]] = False
                for c in here:
                    if c in goes:
                        w[c:] -= w[c] / U[c, c] * U[c, c:]
                at += len(run)
    return stays


@pytest.mark.parametrize(("C", "T", "keep", "M"), [(8, 3, 2, 4), (24, 1, 4, 8), (7, 3, 1, 4), (80, 1, 2, 4)])
def test_the_sweep_takes_runs_as_sparse_gpt_does(C: int, T: int, keep: int, M: int) -> None:
    task, _ = made(G=2, R=4, F=C * T, n=300)
    share = 1 - keep / M
    kept = swept(task, channel_runs(C, T, keep, M, share), choose_lowest, share)
    assert torch.equal(kept, sparse_gpt(task, runs_by_hand(C, T, M), keep))


@pytest.mark.parametrize("bound", [2e11, 0.0])  # by exact prices in stages; all by the sweep
@pytest.mark.parametrize("gone", [0.0, 0.4])
def test_runs_keep_as_many_as_may_stay(bound: float, gone: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.reconstruction.surgeon.MOST_WORK", bound)
    task, _ = made(R=16, F=96, n=300)
    task = Problem(task.target, task.hessian, random_mask((1, 16, 96), gone))
    priced = []
    monkeypatch.setattr(surgeon, "_priced", lambda *given: priced.append(given) or _priced(*given))
    w, keep = pruned(task, channel_runs(12, 8, 2, 4, 0.5), choose_lowest, 0.5)
    assert bool(priced) == (bound > 0)  # nothing is priced that may not go
    assert torch.equal(w != 0, keep)
    lives, stays = (each.reshape(16, 3, 4, 8).sum(2) for each in (task.alive, keep))
    assert torch.equal(stays, lives.clamp(max=2))
    # On the way every run keeps as many, and the count is exact.
    _, partly = pruned(task, channel_runs(12, 8, 2, 4, 0.5), choose_lowest, max(0.3, gone + 0.02))
    assert (partly.reshape(16, 3, 4, 8).sum(2) >= lives.clamp(max=2)).all()
    assert int((~partly).sum()) == max(round(max(0.3, gone + 0.02) * 16 * 96), int((~task.alive).sum()))


@pytest.mark.parametrize("seed", [0, 1])
def test_runs_lose_less_than_by_size_or_by_the_sweep(seed: int) -> None:
    task, _ = made(R=16, F=96, n=300, seed=seed)
    blocks = channel_runs(12, 8, 2, 4, 0.5)
    plain = torch.empty(1, 16, 96, dtype=torch.bool)
    plain[0][:, blocks.order] = torch.isinf(blocks.offered(task.target[0].abs()[:, blocks.order]))
    sweep = swept(task, blocks, choose_lowest, 0.5)
    w, _ = pruned(task, blocks, choose_lowest, 0.5)
    assert task.error(w) < 0.95 * min(task.error(solved(task, one)) for one in (sweep, plain))


def test_in_runs_of_independent_inputs_the_sweep_may_be_taken() -> None:
    x = torch.randn(1, 96, 200, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    w = torch.randn(1, 16, 96, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    task = Problem(w, x @ x.transpose(1, 2) / 200, torch.ones(1, 16, 96, dtype=torch.bool))
    for T in (1, 2, 4, 8):
        blocks = channel_runs(96 // T, T, 2, 4, 0.5)
        found, _ = pruned(task, blocks, choose_lowest, 0.5)
        assert task.error(found) <= task.error(solved(task, swept(task, blocks, choose_lowest, 0.5)))
