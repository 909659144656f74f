"""A caller's batches as calls of the model: checked, on its device, and at hand more than once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from .._base.errors import Error
from .._base.tensors import clones

#: Batches that cannot be gone through again are kept up to so many bytes.
KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class Call:
    """One batch, as the arguments of a call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    caller: str  # what errors name: the function and its argument

    def tensors(self) -> list[Tensor]:
        return [t for t in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors())

    def on(self, device: torch.device | None) -> Call:
        def move(value: Any) -> Any:
            return value.detach().to(device) if isinstance(value, Tensor) and device is not None else value

        return Call(pytree.tree_map(move, self.args), pytree.tree_map(move, self.kwargs), self.caller)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Copies of them, for a model may overwrite its input."""
        values = clones([*self.args, *self.kwargs.values()])
        return values[: len(self.args)], dict(zip(self.kwargs, values[len(self.args) :], strict=True))

    def run(self, model: nn.Module) -> Any:
        """``model`` called with it; an Error for what the model does not take."""
        args, kwargs = self.arguments()
        try:
            return model(*args, **kwargs)
        except Error:
            raise
        except Exception as error:
            raise self.refused(error) from error

    def refused(self, error: Exception) -> Error:
        got = " and ".join(f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in self.tensors())
        return Error(f"{self.caller} must be what the model takes, got {got}: {type(error).__name__}: {error}")


class Calls:
    """The calls of all batches, in order. Going through them again gives the same ones, if the batches do.

    Args:
        batches: an iterable of batches: a tensor; a tuple or list, whose first ``inputs`` values are the model's
            arguments; a dict, whose values are its keyword arguments.
        caller: the function and its argument, which errors name: "prune: data".
        device: where the model is.

    Raises:
        Error: what is no iterable of batches; when gone through: a batch that is none of these, or not finite, none at
            all, or more than ``KEPT_BYTES`` from an iterator when they are needed ``again``.
    """

    def __init__(self, batches: Any, caller: str, model: nn.Module, inputs: int = 1, *, again: bool = False) -> None:
        if isinstance(batches, Tensor):
            raise Error(f"{caller} must be an iterable of batches, got one tensor: write [tensor]")
        if isinstance(batches, dict | str | bytes) or not isinstance(batches, Iterable):
            raise Error(f"{caller} must be an iterable of batches, got {type(batches).__name__}")
        if isinstance(inputs, bool) or not isinstance(inputs, int) or inputs < 1:
            function = caller.partition(":")[0]
            raise Error(f"{function}: inputs must be a whole number from 1 up, got {inputs!r}")
        self.caller, self.inputs = caller, inputs
        self.device = next((t.device for t in itertools.chain(model.parameters(), model.buffers())), None)
        self.batches: Iterable[Any] = self._kept(batches) if again and isinstance(batches, Iterator) else batches
        try:
            self.count: int | None = len(self.batches)  # type: ignore[arg-type]
        except TypeError:
            self.count = None

    def __iter__(self) -> Iterator[Call]:
        number = -1
        for number, batch in enumerate(self.batches):
            yield self._call(batch, number).on(self.device)
        self.count = number + 1
        if number < 0:
            raise Error(f"{self.caller} must hold at least one batch, got none (an iterator that was used up, perhaps)")

    def shown(self, title: str, progress: bool) -> Iterable[Call]:
        """Going through them, with a progress bar."""
        bar: Iterable[Call] = tqdm(self, desc=title, total=self.count, disable=not progress, leave=False)
        return bar

    def _kept(self, batches: Iterator[Any]) -> list[Any]:
        kept: list[Any] = []
        held = 0
        for number, batch in enumerate(batches):
            held += self._call(batch, number).nbytes
            if held > KEPT_BYTES:
                raise Error(
                    f"{self.caller} is an iterator, which cannot be gone through again, and of its batches "
                    f"{KEPT_BYTES / 2**30:g} GiB at most are kept: give a list, a DataLoader or fewer batches"
                )
            kept.append(batch)
        return kept

    def _call(self, batch: Any, number: int) -> Call:
        if isinstance(batch, dict):
            if not all(isinstance(key, str) for key in batch):
                raise Error(
                    f"{self.caller}: a batch that is a dict must map argument names to values, got {batch!r:.80}"
                )
            call = Call((), dict(batch), self.caller)
        elif isinstance(batch, tuple | list):
            if len(batch) < self.inputs:
                raise Error(
                    f"{self.caller}: a batch must hold inputs={self.inputs} arguments of the model, got {len(batch)}"
                )
            call = Call(tuple(batch[: self.inputs]), {}, self.caller)
        else:
            call = Call((batch,), {}, self.caller)
        first = call.args[0] if call.args else next(iter(call.kwargs.values()), None)
        if not call.tensors() or (call.args and not isinstance(first, Tensor | list | tuple | dict)):
            raise Error(
                f"{self.caller}: a batch must be a tensor, or a tuple or list that starts with one, or a dict of "
                f"arguments, got {type(first if isinstance(batch, tuple | list) and batch else batch).__name__}"
            )
        for t in call.tensors():
            if t.is_meta:
                raise Error(f"{self.caller}: a batch must have values, got a tensor on the meta device")
            if t.is_floating_point() and not bool(torch.isfinite(t).all()):
                raise Error(f"{self.caller}: a batch must hold finite numbers, got NaN or Inf in batch {number}")
        return call
