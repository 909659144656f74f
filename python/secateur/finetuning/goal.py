"""What is minimised: cross-entropy to the labels, divergence from the teacher, both, or the caller's own loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._base.errors import Error
from .._base.wrappers import unwrapped
from ..engine.compiled import CompiledModel
from ..training.distillation import DistillationLoss
from ..training.logits import checked_labels, checked_logits, cross_entropy, divergence
from .example import CALLER, Example

Loss = Callable[..., Any]


class Goal:
    """The loss of a batch.

    Args:
        student: the caller's module. teacher: None, or the module that answers: copied, in evaluation mode.
        loss: None, a DistillationLoss, or a function of the outputs, the labels and the teacher's answer, as far as
            they are there.
        device: where the student is; the teacher's copy follows.
    """

    def __init__(self, student: nn.Module, teacher: Any, loss: Any, device: torch.device) -> None:
        if loss is not None and not callable(loss):
            raise Error(f"{CALLER}: loss must be a function, a module or a DistillationLoss, got {type(loss).__name__}")
        self.own: Loss | None = None
        self.hints = False
        distill: DistillationLoss | None = None
        if isinstance(loss, DistillationLoss):
            if teacher is not None:
                raise Error(f"{CALLER}: teacher must be None where loss is a DistillationLoss, which has one")
            distill = loss
            self.hints = bool(loss.hints)
        elif teacher is not None:
            if not isinstance(teacher, nn.Module):
                raise Error(f"{CALLER}: teacher must be a torch.nn.Module, got {type(teacher).__name__}")
            if unwrapped(teacher) is unwrapped(student):
                raise Error(
                    f"{CALLER}: teacher must be another module than student: give a copy.deepcopy made before pruning"
                )
            distill = DistillationLoss(teacher)
        if loss is not None and loss is not distill:
            self.own = loss
        self.distill = distill
        self.teacher = None if distill is None else distill.teacher
        self.compiled_teacher = isinstance(self.teacher, CompiledModel)
        if self.teacher is not None and not self.compiled_teacher and distill is not loss:
            self.teacher.to(device)

    def check(self, example: Example) -> None:
        """An Error where there is nothing to learn from."""
        if self.own is None and self.distill is None and example.labels is None:
            raise Error(
                f"{CALLER}: there must be something to learn from: batches with labels (x, y), a teacher=, or a loss= "
                "of the student's output; got batches without labels and neither"
            )

    def answer(self, example: Example) -> Any:
        """What the teacher says; None without one."""
        if self.teacher is None:
            return None
        with torch.no_grad():
            return example.run(_Asked(self.distill), "teacher")  # type: ignore[arg-type]

    def loss(self, runner: nn.Module, example: Example, answer: Any) -> Tensor:
        """The loss, a float scalar."""
        if self.hints:
            assert self.distill is not None
            return self._scalar(self.distill(runner, self._one(example), example.labels))
        return self.of(example.run(runner, "student"), example, answer)

    def of(self, output: Any, example: Example, answer: Any) -> Tensor:
        """The loss of an output that is there already."""
        if self.own is not None:
            given = [value for value in (example.labels, answer) if value is not None]
            return self._scalar(self.own(output, *given))
        z = checked_logits(logits_of(output), "student", CALLER)
        counted = None if example.labels is None else checked_labels(example.labels, z, CALLER)
        if self.distill is None:
            return cross_entropy(z, example.labels, counted)
        alpha, temperature = (1.0 if example.labels is None else self.distill.alpha), self.distill.temperature
        loss = z.new_zeros(())
        if alpha > 0:
            loss = loss + alpha * temperature**2 * divergence(z, self._like(answer, z), temperature, counted)
        if alpha < 1:
            loss = loss + (1 - alpha) * cross_entropy(z, example.labels, counted)
        return loss

    def measures(self, output: Any, example: Example, answer: Any) -> dict[str, tuple[float, float]]:
        """What an output is judged by, each with its weight: "held_out_loss", of the caller's own loss; "kl",
        "cross_entropy", "accuracy"; as they apply."""
        rows = float(example.rows)
        if self.own is not None:
            found = {"held_out_loss": (float(self.of(output, example, answer)), rows)}
            if isinstance(output, Tensor) and _are_classes(output, example.labels):
                found["accuracy"] = _accuracy(output, example.labels)
            return found
        z = checked_logits(logits_of(output), "student", CALLER)
        counted = None if example.labels is None else checked_labels(example.labels, z, CALLER)
        found = {}
        if answer is not None:
            found["kl"] = (float(divergence(z, self._like(answer, z), 1.0, counted)), rows)
        if example.labels is not None:
            found["cross_entropy"] = (float(cross_entropy(z, example.labels, counted)), rows)
            if not example.labels.is_floating_point():
                found["accuracy"] = _accuracy(z, example.labels)
        return found

    @property
    def judged_by(self) -> str:
        """The measure that chooses the best where no ``evaluate`` does."""
        return "held_out_loss" if self.own is not None else "cross_entropy" if self.distill is None else "kl"

    def _like(self, answer: Any, z: Tensor) -> Tensor:
        t = checked_logits(logits_of(answer), "teacher", CALLER).to(z)
        if z.shape != t.shape:
            raise Error(f"{CALLER}: the student's logits must be {list(t.shape)} as the teacher's, got {list(z.shape)}")
        return t

    def _one(self, example: Example) -> Any:
        if len(example.args) != 1 or example.kwargs:
            raise Error(f"{CALLER}: a DistillationLoss with hints takes batches of one input")
        return example.args[0]

    def _scalar(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise Error(f"{CALLER}: loss must return a floating-point scalar, got {got}")
        return value.reshape(())


class _Asked(nn.Module):
    """The teacher by way of its loss, which gives it inputs on its device and of its dtype."""

    def __init__(self, distill: DistillationLoss) -> None:
        super().__init__()
        self.__dict__["distill"] = distill

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        distill = self.__dict__["distill"]
        if len(args) == 1 and not kwargs:
            return distill.answer(args[0])
        return distill.teacher(*args, **kwargs)


def logits_of(output: Any) -> Any:
    """The tensor, or what models that give several values call ``logits``."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if hasattr(output, "logits"):
        return output.logits
    raise Error(
        f"{CALLER}: a network's output must be one tensor of logits, or have it as .logits, got "
        f"{type(output).__name__}: give a loss= of the outputs"
    )


def _are_classes(z: Tensor, labels: Any) -> bool:
    return (
        isinstance(labels, Tensor)
        and labels.dtype in (torch.int64, torch.int32, torch.uint8)
        and z.dim() >= 2
        and list(labels.shape) == [z.shape[0], *z.shape[2:]]
    )


def _accuracy(z: Tensor, labels: Tensor) -> tuple[float, float]:
    counted = labels >= 0
    right = (z.argmax(1) == labels.to(z.device)) & counted.to(z.device)
    count = float(counted.sum())
    return float(right.sum()) / max(count, 1.0), count


__all__ = ["Goal", "Loss", "logits_of"]
