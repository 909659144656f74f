"""SECATEUR_PLANNER=random: what the gate that runs the engine's tests with random kernels relies on."""

from __future__ import annotations

import pytest
import torch
from compiling import assert_near, compiled, in_torch, prune
from programs import NONE, engine, sizes, weights
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread", "engine_wins")


def test_compile_takes_random_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prune(nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 24, 3)).eval())
    x = torch.randn(2, 16, 12, 12)
    found = set()
    for seed in range(12):
        monkeypatch.setenv("SECATEUR_PLANNER", f"random:{seed}")
        fast = compiled(model, x, budget=0.01)
        assert in_torch(fast) == []
        rows = [row for row in fast.report if row["kind"] == "conv2d"]
        assert all("chosen at random" in row["why"] for row in rows), rows
        found |= {row["kernel"] for row in rows}
        assert_near(fast(x), model, x)
        assert_near(fast(x[:, :, :7]), model, x[:, :, :7])
    assert found == {"sparse", "dense", "active"}
    monkeypatch.delenv("SECATEUR_PLANNER")
    assert not any("random" in row["why"] for row in compiled(model, x).report)


def test_a_wrong_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights(4, 4, 1, 1)
    x = torch.randn(1, 4, 5, 5)
    program = engine(lambda p, x: p.conv2d(x, weight, None, (1, 1), (0,) * 4, (1, 1), 1, -1, NONE, "conv"), [x])
    monkeypatch.setenv("SECATEUR_PLANNER", "fast")
    with pytest.raises(ValueError, match='SECATEUR_PLANNER must be "random" or "random:SEED", got "fast"'):
        program.prepare(sizes([x]), 0.0)
