"""What finetune refuses, in words, with everything as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import secateur
import torch
from secateur import DistillationLoss, Error, Magnitude
from torch import nn
from tuning import X, assert_same, labelled, net, plain, pruned, tune, values

pytestmark = pytest.mark.usefixtures("one_thread")


def frozen() -> nn.Module:
    return net().requires_grad_(False)


def with_nan() -> nn.Module:
    model = net()
    with torch.no_grad():
        model[5].bias[0] = torch.nan
    return model


def made_in_inference() -> nn.Module:
    with torch.inference_mode():
        return net()


STUDENTS: list[tuple[Callable[[], Any], str]] = [
    (lambda: 3, "student must be a torch.nn.Module, got int"),
    (frozen, "student must have a parameter that requires grad, all are frozen"),
    (lambda: nn.ReLU(), "student must have a parameter that requires grad"),
    (lambda: secateur.compile(pruned(net()), X[:4]), "got a CompiledModel, which secateur.compile made for inference"),
    (lambda: nn.Sequential(secateur.nn.SparseLinear.from_dense(nn.Linear(4, 4))), "a SparseLinear, which secateur"),
    (lambda: secateur.quantize(net(), plain(), progress=False), "but 0 is a QuantizedConv2d, which secateur.quantize"),
    (lambda: net().half(), r"but 0.weight is float16: call student.float\(\)"),
    (lambda: net().bfloat16(), "but 0.weight is bfloat16"),
    (lambda: nn.Sequential(nn.LazyLinear(4)), "student must be initialized, but 0.weight is not"),
    (lambda: net().to("meta"), "but 0.weight is on the meta device"),
    (with_nan, "student must have finite weights, but 5.bias holds NaN or Inf"),
    (made_in_inference, "student must be made outside of torch.inference_mode"),
]


@pytest.mark.parametrize(("make", "message"), STUDENTS, ids=[message[:40] for _, message in STUDENTS])
def test_students(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(Error, match="finetune: .*" + message):
        tune(make(), labelled())


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"steps": 0}, "steps must be a whole number from 1 up, got 0"),
    ({"steps": 2.5}, "steps must be a whole number from 1 up, got 2.5"),
    ({"evaluations": 0}, "evaluations must be a whole number from 1 up"),
    ({"minutes": 0}, "minutes must be a finite number above 0, got 0"),
    ({"minutes": float("nan")}, "minutes must be a finite number above 0, got nan"),
    ({"lr": -1.0}, "lr must be a number from 0 to inf, got -1"),
    ({"lr": "fast"}, "lr must be a number from 0 to inf, got 'fast'"),
    ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
    ({"inputs": 0}, "inputs must be a whole number from 1 up, got 0"),
    ({"teacher": 3}, "teacher must be a torch.nn.Module, got int"),
    ({"loss": 3}, "loss must be a function, a module or a DistillationLoss, got int"),
    ({"loss": lambda z, y: z}, r"loss must return a floating-point scalar, got torch.*float.* \[\d+, 5\]"),
    ({"loss": lambda z, y: z.detach().sum()}, "loss must depend on the student's parameters"),
    ({"loss": lambda z, y: 3.0}, "loss must return a floating-point scalar, got float"),
    ({"loss": DistillationLoss(net(1)), "teacher": net(1)}, "teacher must be None where loss is a DistillationLoss"),
    ({"optimizer": 3}, "optimizer must be a torch Optimizer, a function that makes one of para.*got int"),
    ({"optimizer": lambda groups: 3}, "optimizer must make a torch Optimizer, got int"),
    ({"optimizer": _sgd(net(1))}, "optimizer must hold parameters of student that require grad, it holds none"),
    ({"optimizer": _sgd(net(1)), "lr": 0.1}, "lr must be None where optimizer is an Optimizer"),
    ({"optimizer": lambda groups: torch.optim.LBFGS(net().parameters())}, "got LBFGS, which asks for the loss again"),
    ({"evaluate": 3}, "evaluate must be a function of the model, got int"),
    ({"evaluate": lambda m: "good"}, "evaluate must return a finite number, got 'good'"),
    ({"evaluate": lambda m: float("nan")}, "evaluate must return a finite number, got nan"),
    ({"mixed_precision": "bf16"}, "mixed_precision must be True, False or None, got 'bf16'"),
]


@pytest.mark.parametrize(("given", "message"), ARGUMENTS, ids=[message[:50] for _, message in ARGUMENTS])
def test_arguments(given: dict[str, Any], message: str) -> None:
    student = pruned(net())
    before, flags = values(student), [m.training for m in student.modules()]
    state = torch.get_rng_state()
    with pytest.raises(Error, match="finetune: .*" + message):
        tune(student, labelled(), **given)
    assert_same(values(student), before)
    assert [m.training for m in student.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)


def test_a_student_that_is_its_own_teacher() -> None:
    model = net()
    with pytest.raises(Error, match=r"teacher must be another module than student: give a copy\.deepcopy"):
        tune(model, plain(), model)
    with pytest.raises(Error, match="teacher must be another module"):
        tune(torch.compile(model, backend="eager"), plain(), model)  # type: ignore[arg-type]


def test_mixed_precision_of_a_student_that_rounds() -> None:
    student = secateur.prepare_qat(net(), plain(), progress=False)
    with pytest.raises(Error, match="got True: a student of prepare_qat rounds to a grid"):
        tune(student, labelled(), mixed_precision=True)


def test_a_layer_of_zeros_alone_is_not_taken_for_pruned() -> None:
    """As adapters begin."""
    model = net(norm=False)
    nn.init.zeros_(model[5].weight)  # type: ignore[arg-type]
    report = tune(model, labelled(), lr=3e-3)
    assert not any("held as if pruned" in note for note in report.notes)
    assert bool(model[5].weight.any())  # type: ignore[operator]
    assert secateur.sparsity(model) is not None
    secateur.prune(model, Magnitude(0.5))
