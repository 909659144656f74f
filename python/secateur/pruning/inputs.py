"""Statistics of layers' inputs for criteria, summed up while the caller's batches stream through the model.

No input is kept: sums, squares and (where asked) Gram matrices of every layer are added up in float64 in one
pass. Gram matrices of all layers are in memory together: F * F * 8 bytes a group, F inputs a neuron.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._base.batches import inputs_of
from .._base.errors import Error
from .._base.signals import held_signals, keeps_grad_mode
from .._base.wrappers import unwrapped
from ..masks.weights import Weight
from .criteria import Inputs

#: Gram matrices of one call may take so many bytes together.
_MOST_GRAM_BYTES = 4 << 30
#: Inputs are unfolded so many bytes at a time.
_CHUNK_BYTES = 1 << 26

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Sums:
    """The sums over one weight's inputs, in all the modules that hold the weight."""

    def __init__(self, weight: Weight, gram: bool) -> None:
        self.label = weight.label
        G, width = _groups(weight.module), weight.value[0].numel()
        self.count = 0
        zeros = torch.zeros(G, width, dtype=torch.float64, device=weight.value.device)
        self.sum, self.squares = zeros, torch.zeros_like(zeros)
        self.gram = zeros.new_zeros(G, width, width) if gram else None

    def add(self, columns: Tensor) -> None:
        """Take in float64 ``columns`` [G, F, n], one a position."""
        self.count += columns.shape[2]
        self.sum += columns.sum(2)
        self.squares += columns.square().sum(2)
        if self.gram is not None:
            self.gram.baddbmm_(columns, columns.transpose(1, 2))

    def result(self) -> Inputs:
        if self.count == 0:
            raise Error(f"prune: data must reach {self.label}, but the model never calls it with an input (exclude it)")
        # NaN and Inf of any input are in its squares; values that float64 cannot square are refused as well.
        if not bool(torch.isfinite(self.squares).all()):
            raise Error(f"prune: data must give {self.label} finite inputs, got NaN or Inf")
        return Inputs(self.count, self.sum, self.squares, self.gram)


def check(weights: Sequence[Weight], needs: Sequence[str]) -> None:
    """An Error for a layer whose inputs cannot be summed up."""
    most = 0
    for weight, need in zip(weights, needs, strict=True):
        if not isinstance(weight.module, (nn.Linear, *_CONVOLUTIONS)):
            raise Error(
                f"prune: {weight.label} must be a Linear, Conv1d, Conv2d or Conv3d for a criterion that needs its "
                f"inputs; {type(weight.module).__name__} is not supported yet (exclude it)"
            )
        if need == "gram":
            most += 8 * _groups(weight.module) * weight.value[0].numel() ** 2
    if most > _MOST_GRAM_BYTES:
        raise Error(
            f"prune: Gram matrices of all layers must fit {_MOST_GRAM_BYTES / 2**30:g} GiB, got {most / 2**30:.1f} GiB "
            "(exclude the widest layers)"
        )


@keeps_grad_mode
def collect(model: nn.Module, weights: Sequence[Weight], needs: Sequence[str], data: Any) -> list[Inputs]:
    """Run ``data`` through the model, and return the sums over each weight's inputs.

    The model runs in evaluation mode without gradients. Its training flags are put back and the hooks are removed,
    whatever happens.

    Args:
        weights: whose inputs to sum up. needs: "norms" or "gram" for each. data: batches, gone through once.
    """
    model = unwrapped(model)
    if isinstance(data, Tensor):
        raise Error("prune: data must be an iterable of batches, got one tensor: write [tensor]")
    if not isinstance(data, Iterable):
        raise Error(f"prune: data must be an iterable of batches, got {type(data).__name__}")
    sums = [_Sums(weight, need == "gram") for weight, need in zip(weights, needs, strict=True)]
    flags = [(module, module.training) for module in model.modules()]
    hooks = []
    batches = 0
    try:
        for weight, into in zip(weights, sums, strict=True):
            for module, _ in weight.places:
                hooks.append(module.register_forward_pre_hook(_watcher(into), with_kwargs=True))
        for module, _ in flags:
            module.training = False
        with torch.no_grad(), _eager(model):
            for batch in inputs_of(model, data, "prune"):
                _run(model, batch)
                batches += 1
    finally:
        with held_signals():
            for hook in hooks:
                hook.remove()
            for module, training in flags:
                module.training = training
    if batches == 0:
        raise Error("prune: data must hold at least one batch, got none (an iterator that was used up, perhaps)")
    return [into.result() for into in sums]


def _eager(model: nn.Module) -> AbstractContextManager[Any]:
    """Parts that torch.compile compiled run uncompiled: compiled code does not look for hooks that came later."""
    compiled = any(
        getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules
        for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _run(model: nn.Module, batch: Tensor) -> None:
    try:
        model(batch)
    except Error:
        raise
    except Exception as error:
        got = f"{str(batch.dtype).removeprefix('torch.')} {list(batch.shape)}"
        raise Error(f"prune: data must be what the model takes, got {got}: {type(error).__name__}: {error}") from error


def _watcher(into: _Sums) -> Any:
    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor):
            raise Error(f"prune: {into.label} must be called with a tensor, got {type(x).__name__}")
        for columns in _columns(module, x.detach()):
            into.add(columns)

    return watch


def _groups(module: nn.Module) -> int:
    return module.groups if isinstance(module, _CONVOLUTIONS) else 1


def _columns(module: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """The inputs of a layer as its weights see them, float64 [G, F, n], some positions at a time."""
    if not isinstance(module, _CONVOLUTIONS):
        rows = x.reshape(-1, x.shape[-1])  # [n, F]
        for part in rows.split(max(1, _CHUNK_BYTES // (8 * max(rows.shape[1], 1)))):
            yield part.to(torch.float64).t().unsqueeze(0)
        return
    spatial = len(module.kernel_size)
    if x.dim() == spatial + 1:  # without a batch
        x = x.unsqueeze(0)
    for image in _parts(module, x):
        windows = _padded(module, image.to(torch.float64))  # [N, C, ...]
        for dim, (size, step, apart) in enumerate(
            zip(module.kernel_size, module.stride, module.dilation, strict=True), 2
        ):
            windows = windows.unfold(dim, (size - 1) * apart + 1, step)[..., ::apart]
        # [N, C, outputs..., taps...] -> [C, taps..., N, outputs...]
        taps = range(2 + spatial, 2 + 2 * spatial)
        order = (1, *taps, 0, *range(2, 2 + spatial))
        columns = windows.permute(order)
        yield columns.reshape(module.groups, module.in_channels // module.groups * _taps(module), -1)


def _taps(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> int:
    return torch.Size(module.kernel_size).numel()


def _parts(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Iterator[Tensor]:
    """Some samples at a time: an unfolded image is as many times its size as there are taps."""
    each = 8 * max(x[:1].numel(), 1) * _taps(module)
    yield from x.split(max(1, _CHUNK_BYTES // each))


def _padded(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return F.pad(x, [p for size in reversed(module.padding) for p in (size, size)])
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
