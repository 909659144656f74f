"""Tensors among a call's arguments and results: copies, and whether two results are alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

#: The types, other than tensors, that are compared by value.
BASES = (bool, int, float, str, type(None))
#: The classes of tensors that hold their values as torch's own does. Others (those of quantization libraries, DTensor)
#: may answer as they like.
PLAIN: set[type] = {Tensor, nn.Parameter}


def clones(args: Sequence[Any]) -> list[Any]:
    """Copies of the tensors: the model may overwrite its input."""
    return [pytree.tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, a) for a in args]


def same(got: Any, expected: Any) -> bool:
    """Whether two results are alike: the same structure, tensors equal but for rounding (NaN equals NaN)."""
    try:
        return alike(got, expected, _same)
    except RecursionError:  # an object that holds itself
        return False


def alike(got: Any, expected: Any, leaf: Callable[[Any, Any], bool]) -> bool:
    """Whether two results have the same structure, objects of the model's own included, and ``leaf`` holds of each pair
    of values."""
    ours, our_form = pytree.tree_flatten(got)
    theirs, their_form = pytree.tree_flatten(expected)
    if len(ours) != len(theirs) or str(our_form) != str(their_form):
        return False
    for a, b in zip(ours, theirs, strict=True):
        held = held_by(a) if type(a) is type(b) else None
        if not (leaf(a, b) if held is None else alike(held, held_by(b), leaf)):
            return False
    return True


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to the order of float32 sums: within 1e-3 of each value, or 1e-4 of the largest."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    finite = b[b.isfinite()]
    scale = float(finite.abs().amax()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return close(a, b)
    try:
        return type(a) is type(b) and (not isinstance(a, BASES) or bool(a == b))
    except Exception:
        return False


def held_by(value: Any) -> dict[str, Any] | None:
    """What an object of the model's own (a dataclass, a plain class) holds, by name; None of any other value."""
    if isinstance(value, (type, nn.Module, Tensor, *BASES)) or callable(value):
        return None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    held = getattr(value, "__dict__", None)
    return dict(held) if isinstance(held, dict) else None


def is_plain(t: Tensor) -> bool:
    """Whether a tensor, or the data of a Parameter, is of one of the classes :data:`PLAIN`."""
    return type(t.data) in PLAIN


def unusual_form(t: Tensor) -> str:
    """What keeps a tensor from being computed with like any other: ``sparse_coo``, ``float8_e4m3fn``; else empty."""
    if t.is_nested:
        return "a nested tensor"
    if t.layout != torch.strided:
        return f"{str(t.layout).removeprefix('torch.')}"
    if t.is_meta:
        return "on the meta device"
    if "float8" in str(t.dtype) or "float4" in str(t.dtype):
        return str(t.dtype).removeprefix("torch.")
    return ""
