"""finetune: what is learned, what is kept, what holds."""

from __future__ import annotations

import copy
import functools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import secateur
import torch
from secateur import DistillationLoss, Error, Magnitude, MeanStd, masks
from secateur.finetuning import precision
from secateur.finetuning.averages import Average
from secateur.finetuning.optimizers import parameter_groups, rate_at
from secateur.finetuning.seeds import mixed
from torch import Tensor, nn
from tuning import X, Y, assert_same, labelled, net, plain, pruned, tune, values

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = net()
    tune(model, labelled(), steps=200, lr=3e-3)
    torch.set_num_threads(threads)
    return model


# ---- what is learned, what is kept ----


def test_labels_alone() -> None:
    model = net()
    report = tune(model, labelled(), steps=150, lr=3e-3)
    assert report.judged_by == "cross_entropy"
    assert report.improved
    assert report.best["cross_entropy"] < 0.8 * report.start["cross_entropy"]
    assert report.best["accuracy"] > report.start["accuracy"] + 0.2
    assert [row["weights"] for row in report.rows] == ["start", "average", "average", "average", "average", "last"]
    assert report.rows[-2]["loss"] < report.rows[1]["loss"]
    assert (report.steps, report.stopped) == (150, "steps")


@pytest.mark.parametrize("labels", [False, True])
def test_a_teacher_with_and_without_labels(dense: nn.Module, labels: bool) -> None:
    student, before = pruned(dense), values(dense)
    report = tune(student, labelled() if labels else plain(), dense, steps=120, lr=3e-3)
    assert report.judged_by == "kl"
    assert report.best["kl"] < 0.9 * report.start["kl"]
    assert ("accuracy" in report.best) == labels
    assert_same(values(dense), before)


def test_the_first_loss_is_that_of_the_formula(dense: nn.Module) -> None:
    """One step on one batch, of which 24 samples are held out, in float32."""
    student = pruned(dense, 0.5)
    report = tune(copy.deepcopy(student), labelled(240), dense, steps=1, mixed_precision=False)
    order = torch.randperm(240, generator=torch.Generator().manual_seed(mixed(0, "held out")))
    held, rest = order[:24].sort().values, order[24:].sort().values
    with torch.no_grad():
        start = nn.functional.kl_div(student(X[held]).log_softmax(1), dense(X[held]).softmax(1), reduction="batchmean")
        loss = DistillationLoss(dense)(student.train(), X[rest], Y[rest])
    assert report.start["kl"] == pytest.approx(float(start), rel=1e-5)
    assert report.rows[1]["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_the_best_weights_are_those_of_the_row_that_says_so(dense: nn.Module) -> None:
    student = pruned(dense)
    x, y = X[:60], Y[:60]

    def agreement(model: nn.Module) -> float:
        assert not model.training
        assert not torch.is_grad_enabled()
        return float((model(x).argmax(1) == y).double().mean())

    report = tune(student, labelled(), evaluate=agreement)
    assert report.judged_by == "evaluate"
    with torch.no_grad():
        assert agreement(student) == report.best["evaluate"] == max(row["evaluate"] for row in report.rows)


def test_an_overfitted_student_is_as_it_was() -> None:
    """Labels by chance: what is learned of them is worth nothing on those held out."""
    student = pruned(net(norm=False), 0.3)
    with torch.no_grad():
        student[5].weight.zero_()  # type: ignore[union-attr, operator]  # as good as chance allows
        student[5].bias.zero_()  # type: ignore[union-attr, operator]
    student.state_dict()
    before = values(student)
    chance = torch.randint(0, 5, (240,), generator=torch.Generator().manual_seed(1))
    report = tune(student, list(zip(X.split(20), chance.split(20), strict=True)), steps=60, lr=1e-2)
    assert not report.improved
    assert "as it was" in report.notes[0]
    assert report.rows[-1]["cross_entropy"] > report.start["cross_entropy"]
    assert_same(values(student), before)


def test_a_loss_of_the_callers_own(dense: nn.Module) -> None:
    given: list[tuple[Any, ...]] = []

    def loss(*args: Any) -> Tensor:
        given.append(args)
        return nn.functional.mse_loss(args[0], args[-1])

    report = tune(pruned(dense), plain(), dense, loss=loss)
    assert report.judged_by == "held_out_loss"
    assert report.best["held_out_loss"] < report.start["held_out_loss"]
    assert {len(args) for args in given} == {2}
    given.clear()
    tune(pruned(dense), labelled(), dense, loss=loss, steps=3)
    assert {len(args) for args in given} == {3}
    smooth = tune(pruned(dense), labelled(), loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    assert "accuracy" in smooth.best
    tune(net(), plain(), loss=lambda output: output.square().mean(), steps=3)


def test_a_distillation_loss_with_hints(dense: nn.Module) -> None:
    student = pruned(dense)
    distill = DistillationLoss(dense, temperature=2.0, alpha=0.9, hints=["0"], hint_weight=1.0)
    report = tune(student, labelled(), loss=distill)
    assert report.judged_by == "kl"
    assert report.improved
    tune(pruned(dense), labelled(), loss=DistillationLoss(dense, temperature=2.0), steps=3)


def test_a_term_for_sparse_activations() -> None:
    model = net()
    with secateur.ActivationSparsityLoss(model, weight=1.0) as term:
        loss = lambda z, y: nn.functional.cross_entropy(z, y) + term()  # noqa: E731
        with pytest.raises(Error, match="ActivationSparsityLoss: a forward pass in training mode"):
            tune(model, labelled(), loss=loss)
        report = tune(model, labelled(), loss=loss, evaluate=lambda m: float((m(X).argmax(1) == Y).double().mean()))
    assert report.improved


# ---- what holds ----


def test_masks_and_foreign_zeros_hold_bit_for_bit(dense: nn.Module) -> None:
    student = pruned(dense)
    before = values(student)
    tune(student, plain(), dense, optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2))
    after = values(student)
    for name in ("0.weight", "5.weight"):
        assert torch.equal(after[f"{name}_mask"], before[f"{name}_mask"])
        assert torch.equal(after[name] == 0, before[name] == 0)
        assert not torch.equal(after[name], before[name])
    stripped = secateur.strip(pruned(dense))
    report = tune(stripped, plain(), dense)
    assert any("held as if pruned: 0, 5" in note for note in report.notes)
    assert report.improved
    assert torch.equal(stripped[5].weight == 0, before["5.weight"] == 0)  # type: ignore[index, union-attr]
    assert not list(masks.masked_modules(stripped))
    assert not [key for key in stripped.state_dict() if key.endswith("_mask")]


def test_flags_random_state_and_gradients_are_as_before(dense: nn.Module) -> None:
    student = pruned(dense)
    student.train()
    student[1].eval()  # type: ignore[index, union-attr]
    student[0].bias.requires_grad_(False)  # type: ignore[index, union-attr]
    before, flags = values(student), [m.training for m in student.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    dense.train()
    try:
        report = tune(student, labelled(), dense, lr=1e-3)
        assert dense.training
    finally:
        dense.eval()
    assert report.improved
    assert [m.training for m in student.modules()] == flags
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # type: ignore[index]  # noqa: NPY002
    after = values(student)
    assert torch.equal(after["0.bias"], before["0.bias"])
    assert torch.equal(after["1.running_mean"], before["1.running_mean"]), "a BatchNorm that was frozen"
    assert all(p.grad is None for p in student.parameters())


def test_a_seed_gives_the_same_weights(dense: nn.Module) -> None:
    made = []
    for seed in (1, 1, 2):
        torch.rand(seed)
        student = pruned(net(dropout=0.3))
        tune(student, labelled(), dense, seed=seed)
        made.append(values(student))
    assert_same(made[0], made[1])
    assert not torch.equal(made[0]["5.weight"], made[2]["5.weight"])


def test_thresholds_learn_ten_times_as_fast(dense: nn.Module) -> None:
    thin = secateur.prune_activations(dense, plain(), MeanStd(k=0.0), progress=False)
    thetas = secateur.train_thresholds(thin)
    groups = parameter_groups(thin)
    assert groups[-1]["params"] == thetas
    before = [theta.detach().clone() for theta in thetas]
    made = []

    def optimizer(groups: Any, **more: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(groups, lr=1e-3, weight_decay=0.1))
        return made[-1]

    report = tune(thin, labelled(), dense, optimizer=optimizer)
    assert [group["lr"] for group in made[0].param_groups] == pytest.approx([1e-3, 1e-3, 1e-2])
    assert [group["weight_decay"] for group in made[0].param_groups] == [0.1, 0.0, 0.0]
    assert report.improved
    assert not torch.equal(thetas[0], before[0])


def test_a_student_of_prepare_qat(dense: nn.Module) -> None:
    sparse = pruned(dense, 0.5)
    student = secateur.prepare_qat(sparse, plain(), progress=False)
    zeros = {name: p == 0 for name, p in student.named_parameters() if name.endswith("weight")}
    report = tune(student, plain(), dense, steps=80)
    assert report.best["kl"] < report.start["kl"]
    assert not report.mixed_precision
    for name, p in student.named_parameters():
        if name in zeros:
            assert torch.equal(p == 0, zeros[name])
    q = secateur.quantize(student)
    with torch.no_grad():
        assert float((q(X).argmax(1) == dense(X).argmax(1)).double().mean()) > 0.8


def test_a_compiled_teacher(dense: nn.Module) -> None:
    report = tune(pruned(dense), plain(), secateur.compile(dense, X[:20]), steps=60)
    assert report.best["kl"] < report.start["kl"]


@pytest.mark.parametrize("kind", ["compiled", "data parallel"])
def test_a_student_in_torchs_wrappers(dense: nn.Module, kind: str) -> None:
    inner, same = pruned(dense), pruned(dense)
    wrapper: Any = torch.compile(inner, backend="eager") if kind == "compiled" else nn.DataParallel(inner)
    flags = [m.training for m in wrapper.modules()]
    report = tune(wrapper, plain(), dense, mixed_precision=False)
    assert report.improved
    assert [m.training for m in wrapper.modules()] == flags
    tune(same, plain(), dense, mixed_precision=False)
    torch.testing.assert_close(values(inner)["5.weight"], values(same)["5.weight"])


def test_inside_no_grad_and_autocast(dense: nn.Module) -> None:
    """Autocast's cache of an outer block would keep the first step's weights."""
    students = [pruned(dense), pruned(dense)]
    tune(students[0], plain(), dense)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tune(students[1], plain(), dense)
    assert_same(values(students[0]), values(students[1]))


# ---- the run ----


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [rate_at(step / 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[50] == 1.0
    assert rates == sorted(rates[:50]) + sorted(rates[50:], reverse=True)
    assert rates[525] == pytest.approx(0.5)
    assert rates[1000] == pytest.approx(0.0)


def test_an_optimizer_of_the_callers(dense: nn.Module) -> None:
    student = pruned(dense)
    optimizer = torch.optim.SGD(student[5].parameters(), lr=0.05, momentum=0.9)  # type: ignore[index, union-attr]
    before = values(student)
    report = tune(student, labelled(), dense, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert max(row["lr"] for row in report.rows[1:]) <= 0.05
    assert torch.equal(values(student)["0.weight"], before["0.weight"])
    assert any("not trained: 0.weight" in note for note in report.notes)
    momentum = optimizer.state[student[5].weight]["momentum_buffer"]  # type: ignore[index, union-attr]
    assert not momentum[student[5].weight == 0].any(), "pruned weights have no momentum"  # type: ignore[index, union-attr]
    tune(pruned(dense), labelled(), dense, optimizer=torch.optim.SGD, lr=0.01, steps=3)


def test_the_average_and_its_statistics(dense: nn.Module) -> None:
    student = pruned(dense)
    average, want, mean = Average(student), student[5].weight.detach().clone(), student[1].running_mean.clone()  # type: ignore[index, union-attr, operator]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    student.train()
    for step in range(1, 30):
        nn.functional.cross_entropy(student(X[:40]), Y[:40]).backward()
        optimizer.step()
        average.update(step)
        decay = (1 + step) / (10 + step)
        want = decay * want + (1 - decay) * student[5].weight.detach()  # type: ignore[index, union-attr]
        mean = decay * mean + (1 - decay) * student[1].running_mean  # type: ignore[index, union-attr, operator]
    before = values(student)
    with average.in_place():
        torch.testing.assert_close(student[5].weight.detach(), want)  # type: ignore[index, union-attr]
        torch.testing.assert_close(student[1].running_mean, mean)  # type: ignore[index, union-attr]
        assert torch.equal(student[5].weight == 0, before["5.weight"] == 0)  # type: ignore[index, union-attr]
    assert_same(values(student), before)


def test_statistics_of_the_kept_average_are_those_of_its_activations() -> None:
    model = net()
    report = tune(model, labelled(), steps=200, lr=3e-3)
    assert report.improved
    with torch.no_grad():
        x = model[0](X)
    kept, exact = model[1].running_var, x.var((0, 2, 3))
    # Of batches of 20 and of slowly moving weights: a fifth apart at most; the start's are 1, two thirds apart.
    assert float(((kept - exact) / exact).abs().max()) < 0.2  # type: ignore[operator]


def test_long_gradients_are_cut() -> None:
    """One step in 40 has a loss ten thousand times as large: it moves the weights no more than three others."""
    moved: list[float] = []
    count = iter(range(10_000))

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        scale = 1e4 if next(count) == 30 else 1.0
        return scale * nn.functional.cross_entropy(output, labels)

    model = net(norm=False)
    was = values(model)["5.weight"]

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            nonlocal was
            result = super().step()
            now = model[5].weight.detach().clone()
            moved.append(float((now - was).norm()) / self.param_groups[0]["lr"])
            was = now
            return result

    tune(model, labelled(), loss=loss, evaluate=lambda m: 0.0, optimizer=functools.partial(Watched, lr=1e-3))
    assert 0 < moved[30] <= 3.5 * max(moved[:30])


def test_minutes_end_the_run_and_its_cosine(dense: nn.Module) -> None:
    report = tune(pruned(dense), labelled(), dense, steps=None, minutes=0.02)
    assert report.stopped == "minutes"
    assert 0.3 < report.seconds < 2.5
    assert report.rows[-1]["lr"] < 0.1 * max(row["lr"] for row in report.rows[1:])
    both = tune(pruned(dense), labelled(), dense, steps=5, minutes=10)
    assert (both.steps, both.stopped) == (5, "steps")
    assert both.rows[-1]["lr"] < 0.2 * 2e-3
    assert tune(pruned(dense), labelled(), dense, steps=None, minutes=1e-6).steps == 0


@pytest.mark.parametrize("where", ["batch", "loss"])
def test_steps_that_are_not_finite_are_left_out(dense: nn.Module, where: str) -> None:
    batches = labelled()
    count = iter(range(10_000))

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(output, labels)
        return value * math.nan if where == "loss" and next(count) % 5 == 0 else value

    if where == "batch":
        batches[4] = (batches[4][0] * math.inf, batches[4][1])
    student = pruned(dense)
    report = tune(student, batches, loss=loss, evaluate=lambda m: float(m(X).isfinite().all()))
    assert report.steps == 40
    assert any("steps left out: NaN or Inf" in note for note in report.notes)
    assert all(bool(t.isfinite().all()) for t in student.state_dict().values())


def test_a_loss_that_stays_nan_ends_the_run(dense: nn.Module) -> None:
    count = iter(range(10_000))

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(output, labels)
        return value if next(count) < 25 else value * math.nan

    student = pruned(dense)
    with pytest.warns(UserWarning, match="ten steps in a row gave NaN or Inf"):
        report = tune(student, labelled(), loss=loss, evaluate=lambda m: float(m(X).isfinite().all()))
    assert (report.steps, report.stopped) == (25, "not finite")
    before = values(student)
    with pytest.raises(Error, match="the loss and its gradient must be finite"):
        tune(student, labelled(), loss=lambda z, y: z.mean() * math.nan, evaluate=lambda m: 1.0)
    assert_same(values(student), before)


def test_mixed_precision(dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[torch.dtype] = set()

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        seen.add(output.dtype)
        return nn.functional.cross_entropy(output.float(), labels)

    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    student = pruned(dense)
    report = tune(student, labelled(), loss=loss)
    assert report.mixed_precision
    assert any("bfloat16" in note for note in report.notes)
    assert seen == {torch.bfloat16, torch.float32}, "judged in float32"
    assert report.improved
    assert all(p.dtype == torch.float32 for p in student.parameters())
    assert not tune(pruned(dense), labelled(), steps=2, mixed_precision=False).mixed_precision
    assert not tune(pruned(dense.double()), [(x.double(), y) for x, y in labelled()], steps=2).mixed_precision
    dense.float()
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    assert not tune(pruned(dense), labelled(), steps=2).mixed_precision
    with pytest.raises(Error, match="mixed_precision must be False or None here, got True: this cpu has no products"):
        tune(pruned(dense), labelled(), mixed_precision=True)


def test_the_report_prints_and_draws(dense: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tune(pruned(dense), labelled(), dense, progress=True)
    assert "fine-tuning" in capsys.readouterr().err
    text = str(report)
    for word in ("held-out KL", "held-out accuracy %", "average", "best", "held out to judge by"):
        assert word in text
    plain_data = report.to_dict()
    assert plain_data["judged_by"] == "kl"
    assert plain_data["stopped"] == "steps"
    for name in ("run.svg", "run.png"):
        report.picture(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(Error, match=r"picture: path must end in \.png"):
        report.picture(tmp_path / "run.txt")


def test_pruned_gradually_then_tuned_keeps_the_last_masks(dense: nn.Module) -> None:
    student = copy.deepcopy(dense)
    for share in (0.5, 0.8):
        secateur.prune(student, Magnitude(share))
        tune(student, plain(), dense, steps=10)
    assert secateur.sparsity(student).sparsity == pytest.approx(0.8, abs=0.01)
