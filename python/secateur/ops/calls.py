"""The operators: what each takes, gives and refuses.

``secateur.ops.X`` is ``torch.ops.secateur.X`` with errors as :class:`secateur.Error`. Functional forms carry gradients;
in-place forms (trailing underscore) are for no-grad use. Dims as in the glossary of ``csrc/README.md``.

Every operator runs on CPU tensors (scalar, AVX2, AVX-512 or NEON, chosen at run time, see :mod:`secateur.cpu`) and,
where the CUDA library was built, on CUDA tensors. Its plain-torch twin of the same name is in
:mod:`secateur.ops.reference`; it is what runs on devices without kernels (:mod:`secateur.ops.twins`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base import library  # noqa: F401  (operators, fakes, gradients, other devices)
from .._base.errors import Error
from . import register, register_sparse, twins  # noqa: F401  (operators, fakes, gradients, other devices)

_ops = torch.ops.secateur


def _call(op: Callable[..., Any], *args: Any) -> Any:
    """Call an operator; its complaints about arguments are the caller's errors."""
    if torch.compiler.is_compiling():
        return op(*args)
    try:
        if torch.is_grad_enabled():
            return op(*args)
        # No gradient to record: skip the gradient formulas, which are Python and cost 4 us even when they do nothing.
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)
    except RuntimeError as error:
        name = op.__name__.removesuffix(".default")
        if (refusal := _refusal(name, error) or _misfit(op, name, args)) is not None:
            raise Error(refusal) from None
        raise


def _refusal(name: str, error: RuntimeError) -> str | None:
    """The message of the operator's own checks, if the error is theirs: one line that begins with its name."""
    line = str(error).partition("\n")[0]
    return line if type(error) is RuntimeError and line.startswith(f"{name}: ") else None


def _misfit(op: Any, name: str, args: tuple[Any, ...]) -> str | None:
    """Which argument does not fit the schema, so that the dispatcher could not take it; None where all do.

    Looked into only after a call has failed.
    """
    for argument, value in zip(op._schema.arguments, args, strict=False):
        kind = str(argument.type)
        plain = kind.removeprefix("Optional[").removesuffix("]") if kind.startswith("Optional[") else kind
        if value is None and plain != kind:
            continue
        if plain == "List[Tensor]" and isinstance(value, list | tuple):
            named = [(f"{argument.name}[{i}]", one) for i, one in enumerate(value)]
        elif plain == "Tensor":
            named = [(argument.name, value)]
        elif plain in _FITS and _FITS[plain](value):
            named = []
        else:
            got = repr(value) if isinstance(value, int | list) else type(value).__name__
            return f"{name}: {argument.name} must be {kind}, got {got}"
        for which, tensor in named:
            if not isinstance(tensor, Tensor):
                return f"{name}: {which} must be a Tensor, got {type(tensor).__name__}"
            if tensor.layout != torch.strided or tensor.is_quantized:
                layout = "a quantized one" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
                return f"{name}: {which} must be an ordinary (strided) Tensor, got {layout}"
    return None


def _is_number(value: Any) -> bool:
    return value.numel() == 1 if isinstance(value, Tensor) else hasattr(value, "__float__")


def _is_integer(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return hasattr(value, "__index__") and -(2**63) <= value.__index__() < 2**63


#: The values that the dispatcher takes for each type of our schemas. Where it takes fewer, its own error stays.
_FITS: dict[str, Callable[[Any], bool]] = {
    "float": _is_number,
    "bool": _is_number,
    "int": _is_integer,
    "List[int]": lambda value: isinstance(value, Sequence) and all(map(_is_integer, value)),
}


def _call_in_place(op: Callable[..., Any], written: Tensor | Sequence[Tensor], *args: Any) -> Any:
    """Call an operator that writes its first argument, a tensor or a list of them, so that autograd cannot be fooled.

    These schemas carry no gradient. A write that autograd should have recorded is refused, and every write bumps the
    version counter: a backward that had saved the old values then complains, as it does for torch's own operators.
    """
    tensors = written if isinstance(written, list | tuple) else (written,)
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        return _call(op, written, *args)  # says what is wrong
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        name = op.__name__.removesuffix(".default")
        what = op._schema.arguments[0].name  # type: ignore[attr-defined]
        if tensors is written:
            what = f"{what}[{[tensor.requires_grad for tensor in tensors].index(True)}]"
        functional = name.removesuffix("_").removesuffix("_many")
        raise Error(
            f"{name}: {what} must not require a gradient here; use {functional}, or write under torch.no_grad()"
        )
    result = _call(op, written, *args)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version([tensor for tensor in tensors if not tensor.is_inference()])
    return result


def mask_apply(weight: Tensor, mask: Tensor) -> Tensor:
    """``weight`` where the mask's bit is set, +0 elsewhere.

    Args:
        weight: any shape, float32, float64, float16 or bfloat16, any strides.
        mask: packed bits, uint8 ``[rows, ceil(columns / 8)]`` as :func:`mask_pack` makes them; rows = ``shape[0]``.

    Returns:
        A new tensor like ``weight``. A pruned Inf or NaN becomes 0: values are selected, not multiplied.

    The gradient of ``weight`` is the incoming one under the same mask.

    Raises:
        Error: wrong dtype, shape or device.
    """
    return _call(_ops.mask_apply.default, weight, mask)  # type: ignore[no-any-return]


def mask_apply_(weight: Tensor, mask: Tensor) -> None:
    """:func:`mask_apply` in place: one read and one write of the weights."""
    _call_in_place(_ops.mask_apply_.default, weight, mask)


def mask_apply_many_(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """:func:`mask_apply_` on every weight of a list, in one call: what keeps a network's zeros after a training step.

    On the CPU, threads share the elements of all weights, however many are small. On CUDA, one launch masks up to 84
    weights of one element size (a second, a third follow where there are more); nothing waits for the device, and a
    CUDA graph can capture the call.

    Args:
        weights: tensors as :func:`mask_apply` takes them, of any shapes, dtypes and strides, all on one device. Ones
            that share memory (the same weight twice, say) are masked one after another.
        masks: the packed mask of each.

    Raises:
        Error: lists of different lengths; or, naming the place in the list, a wrong dtype, shape or device. Then every
            weight is as it was.
    """
    if isinstance(weights, list | tuple) and isinstance(masks, list | tuple) and not weights and not masks:
        return  # the dispatcher finds an operator's kernel by its tensors
    _call_in_place(_ops.mask_apply_many_.default, weights, masks)


def statistics_threshold(weight: Tensor, k: float, signed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Prune each neuron (row) by its own statistics: theta_j = mean(|w_j|) - k * std(|w_j|), keep |w| >= theta_j.

    The standard deviation is the biased one (divided by n). A neuron whose std is 0 keeps all its weights.

    Args:
        weight: ``[K, ...]``, float32, float64, float16 or bfloat16; a neuron is an index of dim 0.
        k: how many standard deviations below the mean theta lies; negative prunes more.
        signed: take mean and std of w instead of |w| (what is compared stays |w|).

    Returns:
        ``(weight, mask, theta)``: the zeroed weight; the packed mask; theta ``[K]``, float64 for float64 weights and
        float32 otherwise. The comparison uses theta as returned. Gradients reach only ``weight``, under the mask.

    Raises:
        Error: non-finite weights or k (and, for float64, squares beyond its range), wrong dtype.
    """
    return _call(_ops.statistics_threshold.default, weight, k, signed)  # type: ignore[no-any-return]


def statistics_threshold_(weight: Tensor, k: float, signed: bool = False) -> tuple[Tensor, Tensor]:
    """:func:`statistics_threshold` in place; returns ``(mask, theta)``. On an error ``weight`` is as it was."""
    return _call_in_place(_ops.statistics_threshold_.default, weight, k, signed)  # type: ignore[no-any-return]


def threshold_relu(x: Tensor, theta: Tensor, max: float | None = None) -> tuple[Tensor, Tensor]:
    """ReLU with a threshold (FATReLU, Kurtz et al. 2020, with one theta a channel): y = 0 where x < theta, else x.

    Args:
        x: ``[N, C, ...]`` (contiguous, channels_last or strided), ``[N, C]`` or ``[C]``; the channel is dim 1, or the
            last dim of a 1-d or 2-d tensor.
        theta: one value, or ``[C]``; float32 or float64, finite and >= 0. Compared in float32 (float64 for float64 x).
        max: upper clamp, as in ReLU6; > 0.

    Returns:
        ``(y, mask)``: y like ``x``; the packed mask (rows = dim 0 of ``x``) of what passes a gradient, which is all
        that the backward keeps. NaN stays NaN and passes; x == 0 and x >= max do not, as in ``torch.relu`` and
        ``relu6``.

    Raises:
        Error: theta negative, NaN, Inf (checked on the CPU) or of another length; max <= 0; wrong dtype.
    """
    return _call(_ops.threshold_relu.default, x, theta, max)  # type: ignore[no-any-return]


def threshold_relu_(x: Tensor, theta: Tensor, max: float | None = None) -> Tensor:
    """:func:`threshold_relu` in place; returns the mask."""
    return _call_in_place(_ops.threshold_relu_.default, x, theta, max)  # type: ignore[no-any-return]


def mask_pack(keep: Tensor) -> Tensor:
    """Pack a bool tensor into bits: uint8 ``[rows, ceil(columns / 8)]``, bit i of a row (least significant first) =
    element i of ``keep[row]`` in row-major order, unused bits zero."""
    return _call(_ops.mask_pack.default, keep)  # type: ignore[no-any-return]


def mask_unpack(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpack bits into a bool tensor of ``shape``; the inverse of :func:`mask_pack`."""
    if not isinstance(shape, Sequence):
        raise Error(f"mask_unpack: shape must be a sequence of sizes, got {shape!r}")
    return _call(_ops.mask_unpack.default, mask, list(shape))  # type: ignore[no-any-return]


def sparse_weight(mask: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """The dense weight of ``shape`` that packed nonzeros stand for.

    Args:
        mask: packed bits, uint8 ``[rows, ceil(columns / 8)]``.
        values: ``[nnz]``, float32, float64, float16 or bfloat16, in the order of the mask's bits.
        shape: of the weight; rows = ``shape[0]``.

    Gradients reach ``values`` (:func:`sparse_values` of the incoming one).

    Raises:
        Error: a mask of another shape, with other than nnz bits, or with an unused bit set.
    """
    return _call(_ops.sparse_weight.default, mask, values, list(shape))  # type: ignore[no-any-return]


def sparse_values(weight: Tensor, mask: Tensor, nonzeros: int) -> Tensor:
    """The elements of a dense ``weight`` at the mask's bits, ``[nonzeros]``: the inverse of :func:`sparse_weight`.

    ``nonzeros`` must be the number of bits set; it is an argument so that the shape of the result is known without
    looking at the mask. Gradients reach ``weight``.

    Raises:
        Error: as :func:`sparse_weight`.
    """
    return _call(_ops.sparse_values.default, weight, mask, nonzeros)  # type: ignore[no-any-return]


def sparse_linear(x: Tensor, mask: Tensor, values: Tensor, bias: Tensor | None, plan: int = 0) -> Tensor:
    """``F.linear`` with a weight of which only the nonzeros exist: work in proportion to their number.

    Args:
        x: ``[..., C]``, float32 on the CPU, or any floating dtype on CUDA (there the twin runs).
        mask: packed bits of the weight ``[K, C]``: uint8 ``[K, ceil(C / 8)]``.
        values: ``[nnz]``, the nonzeros in the order of the mask's bits; same dtype as x.
        bias: ``[K]`` or None.
        plan: id of a plan made beforehand from the same mask and values (:class:`secateur.nn.SparseLinear` keeps one),
            or 0: unpack and check the weight in this call.

    Returns:
        ``[..., K]``. Bitwise the same for any number of threads. A zero weight is skipped, so zero times Inf or NaN in
        x is 0 here. Gradients reach x, values and bias.

    Raises:
        Error: a mask that does not fit values or x, wrong dtype or shape, a dead plan.
    """
    return _call(_ops.sparse_linear.default, x, mask, values, bias, plan)  # type: ignore[no-any-return]


def sparse_conv2d(
    x: Tensor,
    mask: Tensor,
    values: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    plan: int = 0,
) -> Tensor:
    """``F.conv2d`` with a weight of which only the nonzeros exist: work in proportion to their number.

    Args:
        x: ``[N, C, H, W]``, any strides; dtype and device as in :func:`sparse_linear`.
        mask: packed bits of the weight ``[K, C / groups, R, S]``: uint8 ``[K, ceil(C / groups * R * S / 8)]``.
        values, bias, plan: as in :func:`sparse_linear`.
        kernel_size, stride, padding, dilation: two integers each (height, width); zero padding.

    Returns:
        ``[N, K, H', W']``, contiguous. Bitwise the same for any number of threads.

    Raises:
        Error: as :func:`sparse_linear`; a kernel larger than the padded image; one image beyond 2^31 padded values.
    """
    return _call(  # type: ignore[no-any-return]
        _ops.sparse_conv2d.default,
        x,
        mask,
        values,
        bias,
        list(kernel_size),
        list(stride),
        list(padding),
        list(dilation),
        groups,
        plan,
    )
