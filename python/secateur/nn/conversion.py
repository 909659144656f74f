"""Layer by layer: Conv2d and Linear with zeros become layers that skip them, where that is faster on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .._base import timing
from .._base.copies import drop_hooks, evaluating, own_copy
from .._base.errors import Error
from .._base.held import every_module, holders_of
from .._base.modules import M, why_not_replaceable, with_current_weight
from .._base.signals import keeps_grad_mode
from .._base.state import random_state_kept
from .._base.tensors import clones, close, unusual_form
from .._base.wrappers import unwrapped
from ..report import Column, Report
from .chains import chain_thresholds
from .masked import MaskedConv2d, MaskedLinear
from .quantized import QuantizedConv2d, QuantizedLinear
from .sparse import Trial
from .sparse_conv2d import SparseConv2d
from .sparse_linear import SparseLinear

COLUMNS = (
    Column("layer", "layer", "text"),
    Column("shape", "shape", "shape"),
    Column("sparsity", "zeros %", "percent"),
    Column("kernel", "kernel", "text"),
    Column("ms", "ms", "ms"),
    Column("dense_ms", "dense ms", "ms"),
    Column("bytes_dense", "dense", "bytes"),
    Column("bytes_packed", "packed", "bytes"),
    Column("why", "why", "text"),
)

# Exactly these: a subclass may do something else in its forward.
_LINEAR = (nn.Linear, MaskedLinear)
_CONV2D = (nn.Conv2d, MaskedConv2d)
# Layers with weights that have no sparse kernel yet: named in the report, left as they are.
_OTHERS = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_INTEGERS = (QuantizedConv2d, QuantizedLinear)

_WRITTEN = "the forward writes into its weight, which a sparse layer does not hold"
_ROUNDS = 9
_BUDGET_S = 1.0


@keeps_grad_mode
@random_state_kept()
def convert(model: M, example_input: Any = None) -> M:
    """A copy of ``model`` whose Conv2d and Linear layers skip their zeros, for running it.

    Any model with zeros will do, whatever made them; ``model`` itself is left alone. A layer that is not faster
    sparse stays dense: with ``example_input`` both forms are timed now, in turns, on what reaches the layer; without it
    each layer times both at its first call. Batch size and image size matter, so let the example be like the real ones.

    Args:
        model: the model; float32 on the CPU gets sparse kernels, other layers stay as they are (the report says so).
        example_input: a tensor, or a tuple of the model's positional arguments.

    Returns:
        The new model, of the same class; its ``report`` has one row a layer: zeros, kernel, times, bytes, and why.

    Raises:
        Error: model is not a module, or it does not run on the example.
    """
    if not isinstance(model, nn.Module):
        raise Error(f"convert: model must be a torch.nn.Module, got {type(model).__name__}")
    model = unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise Error("convert: model must be the module itself, got what TorchScript made of it")
    layers = _layers(model)
    for layer in layers:
        if layer.sparse is not None:
            _fill_row(layer)
    if example_input is not None:
        _time(model, layers, example_input)
    # Layers that are replaced are never copied: the copy finds their successors already made.
    memo: dict[int, Any] = {
        id(layer.module): successor for layer in layers if (successor := _successor(layer, example_input is not None))
    }
    keep_alive = list(memo.values())
    fast = cast(M, memo[id(model)] if id(model) in memo else own_copy(model, "convert", memo))
    del keep_alive
    chain_thresholds(fast)
    fast.report = Report("converted", COLUMNS, [])  # type: ignore[assignment]
    # The rows themselves, not copies: a layer that decides at its first call writes its decision there.
    cast(Report, fast.report).rows = [layer.row for layer in layers]
    return fast


@dataclass
class _Layer:
    name: str
    module: nn.Module
    row: dict[str, Any]
    sparse: SparseConv2d | SparseLinear | None = None  # the candidate
    ms: float = 0.0  # summed over the example's calls
    dense_ms: float = 0.0
    calls: int = 0
    failed: str = ""


def _layers(model: nn.Module) -> list[_Layer]:
    """Every layer with weights, once (a module used under two names is one layer)."""
    layers = []
    modules = every_module(model)
    users = Counter(id(p) for module in modules.values() for p in _parameters_of(module))
    hanging = holders_of(model)
    for name, module in modules.items():
        if not isinstance(module, (*_OTHERS, *_INTEGERS)):
            continue
        row: dict[str, Any] = {"layer": name or type(module).__name__, "kernel": "dense", "why": ""}
        layer = _Layer(name, module, row)
        layers.append(layer)
        if isinstance(module, _INTEGERS):
            held = module.weight_int8
            row.update(kernel="int8", shape=tuple(held.shape), bytes_dense=held.numel())
            row["sparsity"] = 1 - int(torch.count_nonzero(held)) / max(held.numel(), 1)
            row["why"] = "computes integers in torch's operators; secateur.compile runs it in bytes"
            continue
        if isinstance(module, SparseConv2d | SparseLinear):
            layer.row.update(
                kernel="sparse", why="already converted", shape=module.weight_shape, sparsity=module.sparsity
            )
            continue
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or nn.parameter.is_lazy(weight):
            row["why"] = f"{type(module).__name__} has no sparse kernel"
            continue
        if (unusual := unusual_form(weight)) and not weight.is_meta:
            row["why"] = f"its weight is {unusual}, which has no sparse kernel"
            continue
        zeros = weight.numel() - int(torch.count_nonzero(weight)) if weight.device.type != "meta" else 0
        row.update(shape=tuple(weight.shape), sparsity=zeros / max(weight.numel(), 1))
        row["bytes_dense"] = weight.numel() * weight.element_size()
        if type(module) not in _LINEAR + _CONV2D:
            row["why"] = f"{type(module).__name__} has no sparse kernel"
        elif weight.dtype != torch.float32 or weight.device.type != "cpu":
            dtype = str(weight.dtype).removeprefix("torch.")
            row["why"] = f"sparse kernels run float32 on the CPU, this is {dtype} on {weight.device.type}"
        elif zeros == 0:
            row["why"] = "no zeros"
        elif users[id(weight)] > 1:
            row["why"] = "its weight is tied to another layer's, and a sparse copy would untie them"
        elif hanging.get(id(weight)):
            row["why"] = "its weight hangs in a plain attribute too, and a sparse copy would untie them"
        elif more := why_not_replaceable(module):
            row["why"] = more
        elif isinstance(module, nn.Conv2d):
            layer.sparse = SparseConv2d.from_dense(with_current_weight(module))
        else:
            layer.sparse = SparseLinear.from_dense(with_current_weight(cast(nn.Linear, module)))
    return layers


def _fill_row(layer: _Layer) -> None:
    sparse = cast(SparseConv2d | SparseLinear, layer.sparse)
    mask, values = sparse.weight_mask, sparse.weight_values
    layer.row["bytes_packed"] = mask.numel() + values.numel() * values.element_size()
    layer.row["kernel"] = "undecided"
    layer.row["why"] = "decides at its first call"


def _parameters_of(module: nn.Module) -> list[nn.Parameter]:
    if isinstance(module, torch.jit.ScriptModule):
        return list(module.parameters(recurse=False))
    return [p for p in module._parameters.values() if p is not None]


def _time(model: nn.Module, layers: Iterable[_Layer], example: Any) -> None:
    """Run the example through a copy of the model; each candidate times itself on what it is given."""
    work = evaluating(drop_hooks(own_copy(model, "convert")))
    modules = every_module(work)
    candidates = [(layer, modules[layer.name]) for layer in layers if layer.sparse is not None]
    arguments = example if isinstance(example, tuple) else (example,)
    with torch.no_grad():
        for layer, module in candidates:
            module.register_forward_pre_hook(_sees_writes(layer), prepend=True)
            module.register_forward_hook(_timer(layer), prepend=True)
        try:
            work(*clones(arguments))
        except (Error, MemoryError):
            raise
        except Exception as error:
            raise Error(
                f"convert: example_input must be what the model takes: {type(error).__name__}: {error}"
            ) from error
        for layer, module in candidates:
            if not torch.equal(cast(Tensor, module.weight), cast(Tensor, with_current_weight(layer.module).weight)):
                layer.failed = _WRITTEN


def _sees_writes(layer: _Layer) -> Callable[[nn.Module, Any], None]:
    """Before a hook of ``torch.nn.utils.prune`` makes the weight anew, and what the forward wrote into it is gone."""

    def hook(module: nn.Module, inputs: Any) -> None:
        if not close(cast(Tensor, module.weight), cast(SparseConv2d | SparseLinear, layer.sparse).weight):
            layer.failed = _WRITTEN

    return hook


def _timer(layer: _Layer) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        x, sparse = inputs[0], cast(SparseConv2d | SparseLinear, layer.sparse)
        layer.calls += 1
        forward = type(module).forward
        sparse._choose_form(x)
        # Both forms must agree: a difference is a bug here, or an input with Inf or NaN.
        if not close(sparse(x), forward(module, x)):
            layer.failed = "sparse and dense outputs differ on the example (Inf or NaN in it?)"
            return
        ms, dense_ms = timing.medians([lambda: sparse(x), lambda: forward(module, x)], _ROUNDS, _BUDGET_S)
        layer.ms += 1e3 * ms
        layer.dense_ms += 1e3 * dense_ms

    return hook


def _successor(layer: _Layer, timed: bool) -> nn.Module | None:
    """The layer's replacement in the copy; None: a copy of the layer."""
    sparse, row = layer.sparse, layer.row
    if sparse is None:
        return None
    if layer.calls == 0 and not timed:
        sparse.trial = Trial(row)
        return sparse
    if layer.calls == 0:
        row.update(kernel="dense", why="the example never called it")
        return None
    row.update(ms=layer.ms, dense_ms=layer.dense_ms)
    if layer.failed:
        row.update(kernel="dense", why=layer.failed, ms=None, dense_ms=None)
        return None
    if layer.ms < layer.dense_ms:
        row.update(kernel="sparse", why=f"{layer.dense_ms / layer.ms:.2f}x as fast as dense")
        return sparse
    row.update(kernel="dense", why=f"sparse would take {layer.ms / layer.dense_ms:.2f}x as long")
    dense = sparse.to_dense()  # a plain layer: masks and pruning hooks are for training
    for parameter, original in ((dense.weight, layer.module.weight), (dense.bias, layer.module.bias)):
        if parameter is not None:
            parameter.requires_grad_(cast(Tensor, original).requires_grad)
    return dense
