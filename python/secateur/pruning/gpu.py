"""Zeros on a GPU: which of them its kernels skip, and which weights others' kernels for 2:4 take.

Sources. NVIDIA, "TensorRT Developer Guide", section Structured Sparsity: weights [K, C, R, S] with C % 4 == 0, at most
two nonzeros in four input channels at one tap, float16 or int8. ``torch.sparse.to_sparse_semi_structured``: 2-d weights
in float16, bfloat16 or int8, both sizes in multiples that depend on the type (float32 would be 1:2, in CUTLASS alone).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..nn.quantized import QuantizedConv2d, QuantizedLinear
from .criteria.patterns import Pattern, SemiStructured

#: What torch.sparse.to_sparse_semi_structured wants both sizes of a weight to be multiples of (cuSPARSELt, its default;
#: ``tests/pruning/test_verify.py`` holds it against torch's own table).
TORCH_MULTIPLE = {torch.float16: 16, torch.bfloat16: 16, torch.int8: 32}

#: Output channels, and input channels times taps, from which TensorRT's sparse kernels were faster than its dense ones
#: in its maintainers' experiments (github.com/NVIDIA/TensorRT, issues 3849 and 4065).
TENSORRT_GAINS_FROM = 256


def zeros_save_nothing(pruned: Iterable[tuple[Tensor, Pattern]]) -> list[str]:
    """The note of a report on weights that live on a GPU, under patterns that its kernels cannot skip.

    It has no figures, for none were measured; they belong here, and nowhere else, when they are.
    """
    idle = {
        str(pattern)
        for weight, pattern in pruned
        if weight.is_cuda and not (isinstance(pattern, SemiStructured) and pattern.two_of_four)
    }
    if not idle:
        return []
    which = " and ".join(f'"{pattern}"' for pattern in sorted(idle))
    return [
        f"on a GPU, zeros in pattern {which} save no time: its kernels multiply them like other numbers. They save "
        'time on a CPU (secateur.compile); a GPU can skip pattern "2:4", in TensorRT or with '
        "torch.sparse.to_sparse_semi_structured"
    ]


def obstacles(module: nn.Module, neurons: torch.Size, dtype: torch.dtype) -> list[str]:
    """Why engines that skip the zeros of 2:4 would not take a weight for its sizes, or not gain from it.

    Args:
        module: the layer. neurons: the weight's sizes [J, C, T], as criteria see it. dtype: the weight's; for float32
            and float64 it is judged by float16.
    """
    J, C, _ = neurons
    found = []
    if _runs_in_tensorrt(module) and C % 4:
        found.append(f"TensorRT takes input channels (of a group) in fours, not {C}")
    if isinstance(module, nn.Linear | QuantizedLinear):
        dtype = dtype if dtype in TORCH_MULTIPLE else torch.float16
        multiple, name = TORCH_MULTIPLE[dtype], str(dtype).removeprefix("torch.")
        if J % multiple or C % multiple:
            found.append(f"to_sparse_semi_structured takes sizes in multiples of {multiple} ({name}), not {J}x{C}")
    if narrow(module, neurons):
        found.append("too narrow to gain in TensorRT")
    return found


def narrow(module: nn.Module, neurons: torch.Size) -> bool:
    """Whether a layer of which TensorRT takes the weight has too few channels for its sparse kernels to be faster."""
    J, C, T = neurons
    taken = _runs_in_tensorrt(module) and C % 4 == 0
    return taken and (J < TENSORRT_GAINS_FROM or C * T < TENSORRT_GAINS_FROM)


def notes_on(too_narrow: int, wide_types: bool) -> list[str]:
    """The notes of a report that has looked for 2:4: how many layers are :func:`narrow`; float32 or float64 seen."""
    notes = []
    if too_narrow:
        notes.append(
            f"{too_narrow} too narrow: TensorRT's maintainers saw its sparse kernels win from about "
            f"{TENSORRT_GAINS_FROM} output channels, and {TENSORRT_GAINS_FROM} input channels times taps, on"
        )
    if wide_types:
        notes.append("engines skip the zeros of 2:4 in float16, bfloat16 and int8: convert float32 weights first")
    return notes


def _runs_in_tensorrt(module: nn.Module) -> bool:
    """Convolutions and fully connected layers: what TensorRT's rule speaks of."""
    kinds = (nn.Linear, _ConvNd, QuantizedLinear, QuantizedConv2d)
    return isinstance(module, kinds) and not isinstance(module, _ConvTransposeNd)
