"""The student: what cannot be trained is refused in words, and its zeros hold while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._base.checks import names_of
from .._base.errors import Error
from .._base.signals import held_signals
from .._base.wrappers import unwrapped
from ..engine.compiled import CompiledModel
from ..masks import attach, detach, get_mask, masked_modules, masked_parameters
from ..masks.weights import weights_of
from ..nn import QATConv2d, QATLinear, Quantize, QuantizedConv2d, QuantizedLinear
from ..nn.sparse import SparseBase
from .example import CALLER

#: Exact zeros without a mask are held where they are this share of a weight or more: pruning leaves so many.
_PRUNED_SHARE = 0.1


def checked_student(student: Any) -> nn.Module:
    """The network inside the student's wrappers, if it can be trained."""
    if not isinstance(student, nn.Module):
        raise Error(f"{CALLER}: student must be a torch.nn.Module, got {type(student).__name__}")
    net: nn.Module = unwrapped(student)
    qat = is_qat(net)
    for name, module in net.named_modules():
        made = _made_by(module, qat)
        if made:
            where = f"but {name} is" if name else "got"
            raise Error(
                f"{CALLER}: student must be a network that trains, {where} a {type(module).__name__}, which {made} "
                "made for inference: fine-tune the network that it was made of, and make it again"
            )
    for name, t in [*net.named_parameters(), *net.named_buffers()]:
        if nn.parameter.is_lazy(t):
            raise Error(f"{CALLER}: student must be initialized, but {name} is not: run it once on real data")
        if t.is_meta:
            raise Error(f"{CALLER}: student must have values, but {name} is on the meta device")
    _check_trainable(net)
    return net


def _check_trainable(net: nn.Module) -> None:
    trainable = {name: p for name, p in net.named_parameters() if p.requires_grad}
    if not trainable:
        raise Error(f"{CALLER}: student must have a parameter that requires grad, all are frozen (or it has none)")
    for name, p in trainable.items():
        if type(p.data) is not Tensor or p.layout != torch.strided:
            raise Error(
                f"{CALLER}: student must have ordinary parameters, but {name} is a {type(p.data).__name__} (sharded, "
                "perhaps; DistributedDataParallel is supported, FullyShardedDataParallel is not)"
            )
        if p.is_inference():
            raise Error(f"{CALLER}: student must be made outside of torch.inference_mode, but {name} was made in it")
        if p.dtype not in (torch.float32, torch.float64):
            raise Error(
                f"{CALLER}: student must be float32 or float64, in which small steps are not lost, but {name} is "
                f"{str(p.dtype).removeprefix('torch.')}: call student.float() (bfloat16 is used for products where it "
                "helps)"
            )
        if not bool(torch.isfinite(p).all()):
            raise Error(f"{CALLER}: student must have finite weights, but {name} holds NaN or Inf")
    devices = sorted({str(t.device) for t in (*net.parameters(), *net.buffers())})
    if len(devices) > 1:
        raise Error(f"{CALLER}: student must be on one device, got {', '.join(devices)}")


def _made_by(module: nn.Module, qat: bool) -> str:
    if isinstance(module, CompiledModel):
        return "secateur.compile"
    if isinstance(module, SparseBase):
        return "secateur.convert"
    if isinstance(module, QuantizedConv2d | QuantizedLinear) or (isinstance(module, Quantize) and not qat):
        return "secateur.quantize"
    return ""


def is_qat(net: nn.Module) -> bool:
    return any(isinstance(module, QATConv2d | QATLinear) for module in net.modules())


def masks_of(net: nn.Module) -> dict[str, Tensor]:
    """The packed masks, by the names that a state_dict gives them."""
    return {
        f"{name}.{parameter}_mask".lstrip("."): mask
        for name, module in masked_modules(net)
        for parameter in masked_parameters(module)
        if (mask := get_mask(module, parameter)) is not None
    }


def mask_by_parameter(net: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Each masked parameter that trains, with its mask."""
    found = {}
    for _, module in masked_modules(net):
        for parameter in masked_parameters(module):
            value, mask = module._parameters.get(parameter), get_mask(module, parameter)
            if value is not None and value.requires_grad and mask is not None:
                found[id(value)] = (value, mask)
    return list(found.values())


@contextmanager
def zeros_held(net: nn.Module) -> Iterator[list[str]]:
    """Gives weights that were pruned and have no mask one for the time of the block; their names."""
    given: list[tuple[nn.Module, str]] = []
    names = []
    try:
        with held_signals(repeated=True):
            for weight in weights_of(net, CALLER):
                value = weight.module._parameters.get(weight.parameter)
                if weight.problem is not None or value is None or get_mask(weight.module, weight.parameter) is not None:
                    continue
                keep = value.detach() != 0
                zeros = 1 - float(keep.to(torch.float32).mean()) if keep.numel() else 0.0
                if not _PRUNED_SHARE <= zeros < 1 or hasattr(weight.module, weight.parameter + "_mask"):
                    continue
                names.append(weight.label)
                mask = ops.mask_pack(keep)
                for module, parameter in weight.places:
                    attach(module, parameter, mask)
                    given.append((module, parameter))
        yield names
    finally:
        with held_signals(repeated=True):
            for module, parameter in given:
                detach(module, parameter)


def held_note(names: list[str]) -> str:
    return f"zeros without a mask were held as if pruned: {names_of(names)}"


__all__ = ["checked_student", "held_note", "is_qat", "mask_by_parameter", "masks_of", "zeros_held"]
