"""One of the caller's batches: the arguments of a call, and the labels that came with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .._base.errors import Error
from .._base.tensors import clones

CALLER = "finetune"
#: What labels are called in a batch that is a dict.
LABEL_NAMES = ("labels", "label", "targets", "target")


@dataclass(frozen=True)
class Example:
    """``labels`` is None where there are none; a tuple of all that follows the inputs where that is several values."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Any = None

    def tensors(self) -> list[Tensor]:
        return [t for t in pytree.tree_leaves((self.args, self.kwargs, self.labels)) if isinstance(t, Tensor)]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors())

    @property
    def rows(self) -> int:
        """How many samples, by the first tensor among the inputs."""
        first = next((t for t in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)), None)
        return 1 if first is None or first.dim() == 0 else first.shape[0]

    @property
    def separable(self) -> bool:
        """Whether each tensor has the samples along its first dim."""
        return all(t.dim() > 0 and t.shape[0] == self.rows for t in self.tensors())

    def finite(self) -> bool:
        return all(bool(torch.isfinite(t).all()) for t in self.tensors() if t.is_floating_point())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Example:
        parts = (self.args, self.kwargs, self.labels)
        args, kwargs, labels = pytree.tree_map(lambda v: change(v) if isinstance(v, Tensor) else v, parts)
        return Example(args, kwargs, labels)

    def take(self, rows: Tensor) -> Example:
        """These samples alone."""
        return self._mapped(lambda t: t.index_select(0, rows.to(t.device)))

    def on(self, device: torch.device) -> Example:
        return self._mapped(lambda t: t.detach().to(device, non_blocking=device.type != "cpu"))

    def same(self, other: Example) -> bool:
        ours, theirs = self.tensors(), other.tensors()
        return len(ours) == len(theirs) and all(
            a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b.to(a.device))
            for a, b in zip(ours, theirs, strict=True)
        )

    def run(self, model: nn.Module, whose: str) -> Any:
        """``model`` called with copies of the arguments, which it may overwrite."""
        values = clones([*self.args, *self.kwargs.values()])
        try:
            return model(*values[: len(self.args)], **dict(zip(self.kwargs, values[len(self.args) :], strict=True)))
        except (Error, torch.OutOfMemoryError):
            raise
        except Exception as error:
            inputs = [t for t in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]
            got = " and ".join(f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in inputs)
            raise Error(
                f"{CALLER}: batches must be what the {whose} takes, got {got}: {type(error).__name__}: {error}"
            ) from error


class Reader:
    """Makes an :class:`Example` of a batch.

    Args:
        inputs: how many of a tuple's first values are arguments of the model.
        student: whose forward is asked which names it must have: a dict's "target" is an argument where it asks for it.
        several: whether more than one value may follow the inputs (a loss of the caller's takes them as a tuple).
    """

    def __init__(self, inputs: int, student: nn.Module, several: bool) -> None:
        if isinstance(inputs, bool) or not isinstance(inputs, int) or inputs < 1:
            raise Error(f"{CALLER}: inputs must be a whole number from 1 up, got {inputs!r}")
        self.inputs, self.several = inputs, several
        self.needed = _needed(student)

    def __call__(self, batch: Any) -> Example:
        if isinstance(batch, dict):
            example = self._of_dict(batch)
        elif isinstance(batch, tuple | list):
            example = self._of_values(batch)
        else:
            example = Example((batch,), {})
        if not any(isinstance(t, Tensor) for t in pytree.tree_leaves((example.args, example.kwargs))):
            got = type(batch[0] if isinstance(batch, tuple | list) and batch else batch).__name__
            raise Error(
                f"{CALLER}: a batch must be a tensor, a tuple or list that starts with one, or a dict of arguments, "
                f"got {got}"
            )
        if any(t.is_meta for t in example.tensors()):
            raise Error(f"{CALLER}: a batch must have values, got a tensor on the meta device")
        return example

    def _of_dict(self, batch: dict[Any, Any]) -> Example:
        if not all(isinstance(key, str) for key in batch):
            raise Error(f"{CALLER}: a batch that is a dict must map argument names to values, got {batch!r:.80}")
        label = next((name for name in LABEL_NAMES if name in batch and name not in self.needed), None)
        labels = None if label is None else batch[label]
        return Example((), {key: value for key, value in batch.items() if key != label}, labels)

    def _of_values(self, batch: tuple[Any, ...] | list[Any]) -> Example:
        if len(batch) < self.inputs:
            raise Error(f"{CALLER}: a batch must hold inputs={self.inputs} arguments of the model, got {len(batch)}")
        rest = tuple(batch[self.inputs :])
        if len(rest) > 1 and not self.several:
            raise Error(
                f"{CALLER}: a batch must be inputs={self.inputs} arguments of the model and at most one value of "
                f"labels, got {len(batch)} values: say inputs=, or give a loss that takes the rest as a tuple"
            )
        return Example(tuple(batch[: self.inputs]), {}, rest[0] if len(rest) == 1 else rest or None)


def _needed(student: nn.Module) -> frozenset[str]:
    try:
        parameters: Iterable[inspect.Parameter] = inspect.signature(student.forward).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(p.name for p in parameters if p.kind in named and p.default is inspect.Parameter.empty)


__all__ = ["CALLER", "Example", "Reader"]
