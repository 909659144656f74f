"""One test per complaint that pruning libraries get in their trackers.

Each name is the complaint. torch.nn.utils.prune fails deepcopy of a pruned model and doubles the file; torch.ao.pruning
fails pickle, fullgraph and Conv2d; masks by hooks lose their zeros with a second optimizer. Every complaint is checked
here from outside, on a small convolutional network with BatchNorm.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
from safetensors.torch import save_file
from secateur import MeanStd
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16 * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.bn(self.conv(x))).flatten(1))  # type: ignore[no-any-return]


def pruned() -> Net:
    model = Net()
    secateur.prune(model, MeanStd(sparsity=0.9))
    return model


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor = X) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def test_the_pruned_model_cannot_be_deep_copied() -> None:
    model = pruned()
    step(model, torch.optim.SGD(model.parameters(), 0.1))
    other = copy.deepcopy(model)
    torch.testing.assert_close(other.eval()(X), model.eval()(X), rtol=0, atol=0)


def test_the_pruned_model_cannot_be_pickled() -> None:
    model = pruned().eval()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        torch.testing.assert_close(other(X), model(X), rtol=0, atol=0)


def test_the_state_dict_has_strange_keys() -> None:
    """The plain keys, and one mask a pruned weight: no ``weight_orig``."""
    model = pruned()
    assert set(model.state_dict()) == set(Net().state_dict()) | {"conv.weight_mask", "fc.weight_mask"}
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in Net().named_parameters()]


def test_the_state_dict_does_not_load_into_the_plain_class() -> None:
    model = pruned()
    Net().load_state_dict(secateur.strip(copy.deepcopy(model)).state_dict(), strict=True)
    with pytest.raises(RuntimeError, match="weight_mask"):
        Net().load_state_dict(model.state_dict())
    secateur.masks.match_state_dict(Net(), model.state_dict()).load_state_dict(model.state_dict(), strict=True)


def test_pruning_makes_the_file_bigger(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Linear(256, 256))
    save_file(model.state_dict(), tmp_path / "dense.safetensors")
    secateur.prune(model, MeanStd(sparsity=0.9))
    secateur.save(model, tmp_path / "pruned.safetensors")
    dense, small = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("dense", "pruned"))
    assert small < 0.14 * dense
    masks = [v for k, v in model.state_dict().items() if k.endswith("_mask")]
    weights = [v for k, v in model.state_dict().items() if k.endswith("weight")]
    assert sum(m.nbytes for m in masks) * 32 == sum(w.nbytes for w in weights)


def test_pruned_weights_come_back_while_fine_tuning() -> None:
    for make in (
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, 0.01),
    ):
        model = pruned()
        zero = model.fc.weight == 0
        optimizer = make(model.parameters())
        for _ in range(20):
            step(model, optimizer)
            assert (model.fc.weight[zero] == 0).all()
        assert torch.equal(model.fc.weight == 0, zero)


def test_the_masks_are_lost_with_a_new_optimizer() -> None:
    model = pruned()
    for _ in range(2):
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        step(model, optimizer)
        step(model, optimizer)
    assert secateur.sparsity(model).sparsity == pytest.approx(0.9, abs=1e-3)


def test_an_old_optimizers_momentum_is_wrong_and_nobody_says_so() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    step(model, optimizer)
    secateur.prune(model, MeanStd(sparsity=0.9))
    with pytest.warns(UserWarning, match="older than the pruning"):
        step(model, optimizer)
    assert secateur.sparsity(model).sparsity == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_the_pruned_model_does_not_compile_in_one_graph(training: bool) -> None:
    model = pruned().train(training)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), model(X))
    if training:
        optimizer = torch.optim.SGD(compiled.parameters(), 0.1, momentum=0.9)
        for _ in range(2):
            step(compiled, optimizer)
        assert secateur.sparsity(compiled).sparsity == pytest.approx(0.9, abs=1e-3)
        report = secateur.prune(compiled, MeanStd(sparsity=0.95), optimizer=optimizer)
        assert report["fc"]["sparsity"] == pytest.approx(0.95, abs=1e-3)  # not "_orig_mod.fc"
        step(compiled, optimizer)


def test_the_exported_program_multiplies_by_the_mask() -> None:
    def targets(model: nn.Module) -> list[str]:
        program = torch.export.export(model.eval(), (X,))
        return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]

    assert targets(pruned()) == targets(Net())
    program = torch.export.export(pruned().eval(), (X,))
    assert program.module()(X).shape == (4, 10)


def test_the_pruned_model_cannot_be_traced() -> None:
    model = pruned().eval()
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(X), model(X))
    optimizer = torch.optim.SGD(traced.parameters(), 0.1)
    step(traced, optimizer)
    assert secateur.sparsity(traced).sparsity == pytest.approx(0.9, abs=1e-3)


def test_mixed_precision_breaks_the_masks() -> None:
    model = pruned()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu")
    for i in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(X).float().square().mean()
        scaler.scale(loss * (float("inf") if i == 1 else 1.0)).backward()  # the second step is skipped
        scaler.step(optimizer)
        scaler.update()
    assert secateur.sparsity(model).sparsity == pytest.approx(0.9, abs=1e-3)


def test_data_parallel_loses_the_masks() -> None:
    model = nn.DataParallel(pruned())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(2):
        step(model, optimizer)
    assert secateur.sparsity(model).sparsity == pytest.approx(0.9, abs=1e-3)
    replica: Any = model.module._replicate_for_data_parallel()  # what a second device would get
    assert replica.fc.weight_mask is model.module.fc.weight_mask


def test_pruning_in_rounds_counts_the_old_zeros_twice() -> None:
    model = Net()
    for share in (0.5, 0.8, 0.9):
        report = secateur.prune(model, MeanStd(sparsity=share))
        for row in report:
            assert abs(row["zeros"] - share * row["weights"]) <= 1


def test_a_rule_that_does_nothing_says_nothing() -> None:
    with pytest.warns(UserWarning, match="pruned nothing in conv, fc"):
        secateur.prune(Net(), MeanStd(5.0))


def test_importing_or_pruning_makes_noise_for_others() -> None:
    """Optimizers of models that nobody pruned never notice."""
    pruned()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        step(model, optimizer)
        step(model, optimizer)
    assert secateur.sparsity(model).sparsity == 0
