"""The operations that a file may name, and their words.

Those of :mod:`secateur.graph.operators`, in place or not, and a second, small table: numbers (sizes, and what is
computed of them), and what networks compute that no other part of this package has to know. Looking up is all that is
done with a file's word.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...graph import operators

#: (the words' first part, where functions of that name are found), in the order in which a writer prefers them.
_SPACES = (("operator", operator), ("F", F), ("torch", torch))

_MORE_FUNCTIONS: tuple[Any, ...] = (
    operator.floordiv, operator.mod, operator.matmul,  # of numbers, mostly
    torch.matmul, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum, torch.softmax, F.softmax, torch.log_softmax,
    F.log_softmax, torch.sum, torch.amax, torch.amin, torch.stack, torch.where, torch.cumsum, F.logsigmoid, F.softmin,
    F.layer_norm, F.group_norm, F.instance_norm, F.normalize, F.interpolate, F.scaled_dot_product_attention,
    F.embedding, F.glu, F.selu, F.celu, F.softsign, F.unfold, F.fold, F.conv1d, F.conv3d, F.conv_transpose1d,
    F.conv_transpose2d, F.conv_transpose3d, F.max_pool1d, F.max_pool3d, F.avg_pool1d, F.avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool3d, F.adaptive_max_pool1d,
)  # fmt: skip
_MORE_METHODS = (
    "size", "dim", "numel", "matmul", "bmm", "softmax", "log_softmax", "sum", "amax", "amin", "repeat", "masked_fill",
    "unfold", "cumsum", "half", "double", "bfloat16",
)  # fmt: skip
#: Attributes of a tensor that a file may ask for.
ATTRIBUTES = ("shape", "ndim", "dtype", "device", "T", "mT")


_NOTHING: Any = object()


def _functions() -> dict[str, Callable[..., Any]]:
    made: dict[str, Callable[..., Any]] = {}
    known: list[Any] = [f for row in operators.TABLE for f in operators.callables(row)]
    known.extend(_MORE_FUNCTIONS)
    for function in known:
        for word, space in _SPACES:  # the methods among them are in none
            if getattr(space, function.__name__, _NOTHING) is function:
                made[f"{word}.{function.__name__}"] = function
    return made


#: word -> function
FUNCTIONS = _functions()
#: function -> word
WORDS = {function: word for word, function in reversed(FUNCTIONS.items())}
#: methods of a tensor
METHODS = frozenset(
    name
    for row in operators.TABLE for plain in row.methods for name in (plain, f"{plain}_") if hasattr(Tensor, name)
) | frozenset(_MORE_METHODS)  # fmt: skip
