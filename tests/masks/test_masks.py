"""Masks through training: whatever optimizer, whatever happens to the model, no pruned weight comes back."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import secateur
import torch
from secateur import Error, Magnitude, MeanStd, masks
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def pruned() -> nn.Sequential:
    model = net()
    secateur.prune(model, MeanStd(sparsity=0.8))
    return model


def zeros(model: nn.Module) -> list[torch.Tensor]:
    return [w.value == 0 for w in secateur.masks.weights.weights_of(model)]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    dtype, device = next((p.dtype, p.device) for p in model.parameters())
    for _ in range(steps):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(torch.randn(8, 1, 8, 8, dtype=dtype, device=device)).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]


def check_training(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Training moves the kept weights and leaves the pruned ones zero."""
    before = zeros(model)
    assert any(z.any() for z in before)
    values = [w.value.detach().clone() for w in secateur.masks.weights.weights_of(model)]
    train(model, optimizer or torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01))
    for z, old, weight in zip(before, values, secateur.masks.weights.weights_of(model), strict=True):
        assert (weight.value[z] == 0).all()
        assert not torch.equal(weight.value, old)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD momentum wd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "AdamW capturable": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True, foreach=False),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("first", [True, False])
def test_no_pruned_weight_comes_back(name: str, first: bool) -> None:
    """Whether the optimizer is made before the pruning (and handed over) or after it."""
    model = net()
    if first:
        optimizer = OPTIMIZERS[name](model.parameters())
        train(model, optimizer)
        secateur.prune(model, MeanStd(sparsity=0.8), optimizer=optimizer)
    else:
        secateur.prune(model, MeanStd(sparsity=0.8))
        optimizer = OPTIMIZERS[name](model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_training(model, optimizer)


def test_two_hundred_steps_of_sgd_and_adamw() -> None:
    for make in (OPTIMIZERS["SGD momentum wd"], OPTIMIZERS["AdamW"]):
        model = nn.Linear(30, 20)
        secateur.prune(model, MeanStd(sparsity=0.8))
        before = model.weight == 0
        optimizer = make(model.parameters())
        for _ in range(200):
            optimizer.zero_grad()
            model(torch.randn(8, 30)).square().mean().backward()
            optimizer.step()
        assert torch.equal(before, model.weight == 0)


def test_optimizer_clears_momentum_and_gradients() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, amsgrad=True)
    train(model, optimizer)
    kept = optimizer.state[model[3].weight]["exp_avg"].clone()
    secateur.prune(model, MeanStd(sparsity=0.8), optimizer=optimizer)
    gone = model[3].weight == 0
    for value in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert (optimizer.state[model[3].weight][value][gone] == 0).all()
    assert (model[3].weight.grad[gone] == 0).all()
    assert torch.equal(optimizer.state[model[3].weight]["exp_avg"][~gone], kept[~gone])
    lbfgs = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=3)
    train(model, lbfgs, 1)
    assert lbfgs.state
    secateur.prune(model, MeanStd(sparsity=0.9), optimizer=[lbfgs, optimizer])
    assert not lbfgs.state


def test_a_stale_optimizer_is_reported_at_its_first_step() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer)
    secateur.prune(model, MeanStd(sparsity=0.8))
    before = zeros(model)
    with pytest.warns(UserWarning, match="this SGD is older than the pruning .* pass optimizer= to prune"):
        train(model, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, zeros(model), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough; and a fresh one is no news
        train(model, optimizer, 2)
        train(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), 2)
        train(model, torch.optim.SGD(net().parameters(), 0.1, momentum=0.9), 0)


def test_an_optimizer_without_memory_is_not_stale() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    train(model, optimizer)
    secateur.prune(model, MeanStd(sparsity=0.8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer)


def test_deepcopy_and_pickle_train_on() -> None:
    model = pruned()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    copies.append(copy.deepcopy(copies[0]))
    del model
    gc.collect()
    for other in copies:
        assert list(other.state_dict()) == list(pruned().state_dict())
        check_training(other)


def test_a_copy_is_its_own() -> None:
    model = pruned()
    other = copy.deepcopy(model)
    secateur.prune(other, MeanStd(sparsity=0.95))
    assert secateur.sparsity(model).sparsity < 0.81
    secateur.strip(other)
    assert masks.masked_parameters(model[3]) == {"weight": masks.masked_parameters(model[3])["weight"]}
    assert not masks.masked_parameters(other[3])
    check_training(model)


def test_a_fresh_process_goes_on(tmp_path: Path) -> None:
    """Unpickling imports what the masks need: the other process never names secateur."""
    torch.save(pruned(), tmp_path / "model.pt")
    code = """
import sys, torch
model = torch.load(sys.argv[1], weights_only=False)
before = [p == 0 for p in model.parameters() if p.dim() > 1]
optimizer = torch.optim.AdamW(model.parameters(), 0.01)
for _ in range(3):
    model(torch.randn(4, 1, 8, 8)).square().mean().backward()
    optimizer.step()
after = [p == 0 for p in model.parameters() if p.dim() > 1]
assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
assert sum(int(z.sum()) for z in after) > 100
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt")], check=True, timeout=120)


def test_a_dropped_model_is_freed_at_once() -> None:
    """No cycle, no registry that holds it: memory (a GPU's, too) comes back without the collector."""
    gc.disable()
    try:
        model = pruned()
        watch = weakref.ref(model[3])
        del model
        assert watch() is None
    finally:
        gc.enable()


def test_conversions_keep_the_masks() -> None:
    check_training(pruned().double())
    check_training(pruned().to(torch.bfloat16))
    check_training(pruned().to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    cast = pruned().type(torch.float64)  # casts every buffer, the masks too
    check_training(cast)
    assert cast[3].weight_mask.dtype == torch.uint8


@pytest.mark.parametrize("swap", [True, False])
def test_conversions_that_replace_parameters(swap: bool) -> None:
    set_ = torch.__future__.set_swap_module_params_on_conversion if swap else (
        torch.__future__.set_overwrite_module_params_on_conversion
    )  # fmt: skip
    model = pruned()
    set_(True)
    try:
        model = model.double()
    finally:
        set_(False)
    check_training(model)


def test_load_state_dict() -> None:
    model = pruned()
    other = pruned()  # another mask
    secateur.prune(other, Magnitude(0.95))
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(zeros(model), zeros(other), strict=True))
    check_training(other)
    other.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    check_training(other)
    dense = net()
    missing = other.load_state_dict(dense.state_dict(), strict=False)
    assert missing.missing_keys == ["0.weight_mask", "3.weight_mask"]
    assert all(torch.equal(a, b) for a, b in zip(zeros(model), zeros(other), strict=True))  # they do not come back


def test_load_state_dict_into_a_plain_model() -> None:
    state = pruned().state_dict()
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"0.weight_mask", "3.weight_mask"'):
        net().load_state_dict(state)
    model = net()
    masks.match_state_dict(model, state).load_state_dict(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    check_training(model)
    before = net()
    with pytest.raises(
        Error, match=r"match_state_dict: the state_dict's '3.weight_mask' must name a weight of the model"
    ):
        masks.match_state_dict(before[:2], state)
    wrong = dict(state) | {"3.weight_mask": state["3.weight_mask"][:, :-1]}
    with pytest.raises(
        Error, match=r"'3.weight_mask' must be a packed mask, uint8 \[10, 18\] for a weight of \[10, 144\], got"
    ):
        masks.match_state_dict(before, wrong)
    assert not list(masks.masked_modules(before))


def test_resume_with_a_new_optimizer(tmp_path: Path) -> None:
    model = pruned()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    again = net()
    masks.match_state_dict(again, saved["model"]).load_state_dict(saved["model"])
    optimizer = torch.optim.SGD(again.parameters(), 0.1, momentum=0.9)
    optimizer.load_state_dict(saved["optimizer"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # this momentum is no older than the pruning
        check_training(again, optimizer)


def test_strip() -> None:
    model = pruned()
    expected = {k: v.clone() for k, v in model.state_dict().items() if not k.endswith("_mask")}
    assert secateur.strip(model) is model
    plain = net()
    plain.load_state_dict(model.state_dict())
    assert all(torch.equal(v, expected[k]) for k, v in plain.state_dict().items())
    assert set(vars(model[3])) == set(vars(nn.Linear(2, 2)))
    assert not model[3]._load_state_dict_post_hooks
    train(model, torch.optim.SGD(model.parameters(), 0.1))
    assert secateur.sparsity(model).sparsity < 0.1  # nothing holds them any more
    secateur.strip(model)  # twice does no harm


def test_strip_of_a_copy_leaves_no_trace() -> None:
    model = pruned()
    other = secateur.strip(copy.deepcopy(model))
    assert not other[3]._load_state_dict_post_hooks
    assert len(model[3]._load_state_dict_post_hooks) == 1
    shallow = copy.copy(model[3])
    del model, other
    gc.collect()
    copy.deepcopy(copy.deepcopy(shallow))  # its mark's owner is gone


def test_apply_and_adopt() -> None:
    model = pruned()
    before = zeros(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    masks.apply(model)
    assert all(torch.equal(a, b) for a, b in zip(before, zeros(model), strict=True))
    masks.adopt(secateur.strip(model))
    check_training(model)
    plain = net()
    assert not list(masks.masked_modules(masks.adopt(plain)))  # no zeros, no mask


def test_a_parameter_that_another_library_replaces_is_said() -> None:
    model = pruned()
    nn.utils.parametrizations.weight_norm(model[3])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(UserWarning, match="the pruned 'weight' of a .*Linear is no parameter any more"):
        train(model, optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, 1)


def test_other_models_optimizers_are_left_alone() -> None:
    """The hooks are global; they act on masked parameters that the optimizer holds, and on nothing else."""
    model, other = pruned(), net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    train(other, torch.optim.SGD(other.parameters(), 0.1))
    assert all((p == 1).all() for p in model.parameters())
    partly = torch.optim.SGD(model[3].parameters(), 0.1)
    train(model, partly, 1)
    assert (model[0].weight == 1).all()
    assert secateur.sparsity(model)["3"]["sparsity"] == pytest.approx(0.8, abs=1e-3)


def test_frozen_and_unused_weights() -> None:
    model = pruned()
    model[0].weight.requires_grad_(False)
    train(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01))
    assert secateur.sparsity(model).sparsity == pytest.approx(0.8, abs=1e-3)


def test_compiled_optimizer_step() -> None:
    """torch.compile around the step either runs the hook or breaks the graph; the zeros stay in both cases."""
    model = pruned()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    before = zeros(model)

    @torch.compile(backend="eager")
    def step() -> None:
        optimizer.step()

    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 1, 8, 8)).square().mean().backward()
        step()
    assert all(torch.equal(a, b) for a, b in zip(before, zeros(model), strict=True))


def test_swa_averages_stay_pruned() -> None:
    model = pruned()
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        train(model, optimizer, 1)
        average.update_parameters(model)
    assert all(torch.equal(a, b) for a, b in zip(zeros(model), zeros(average.module), strict=True))
