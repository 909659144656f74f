"""Layers that own their mask: for people who write sparsity into their model instead of pruning it afterwards.

They are the plain layers plus a mask ``weight_mask``. While training, forward applies the mask by the fused
operator: pruned weights take no part and their gradient is zero, whatever changed the weight (any optimizer, a copy by
hand). In evaluation the zeros are in the weight itself and forward is the plain layer's.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from .. import masks, ops
from .._base.errors import Error
from ..masks.marks import stored_mask, was_written
from ..ops.packing import mask_shape, rows_and_columns

L = TypeVar("L", bound="_Masked")


class _Masked(nn.Module):
    """The base of both layers; it stands before the plain layer among their bases."""

    owns_mask = True  # its mask may be None ("not masked"), where a plain layer has no such attribute
    weight: Tensor
    weight_mask: Tensor | None

    def _begin(self, mask: Tensor | None) -> None:
        self.weight_mask = None
        if mask is None:
            rows, columns = rows_and_columns(self.weight.shape)
            full = ops.mask_pack(torch.ones(rows, columns, dtype=torch.bool, device="cpu"))
            masks.attach(self, "weight", full.to(self._mask_device))
        else:
            self.set_mask(mask)

    @property
    def _mask_device(self) -> torch.device:
        """The weight's; the CPU for a layer on the meta device, whose mask is known before its weights are."""
        return self.weight.device if self.weight.device.type != "meta" else torch.device("cpu")

    def set_mask(self, mask: Tensor) -> None:
        """Set which weights stay, and zero the others now.

        Args:
            mask: bool of the weight's shape (true stays), or packed, uint8 [rows, ceil(columns / 8)].

        Raises:
            Error: a mask of another shape or dtype.
        """
        name = type(self).__name__
        columns = rows_and_columns(self.weight.shape)[1]
        fitting = mask_shape(self.weight.shape)
        if not isinstance(mask, Tensor):
            raise Error(f"{name}: mask must be a tensor, got {type(mask).__name__}")
        if mask.dtype == torch.bool and mask.shape == self.weight.shape:
            packed = ops.mask_pack(mask.to(self._mask_device))
        elif mask.dtype == torch.uint8 and tuple(mask.shape) == fitting:
            if columns % 8 and bool((mask[:, -1] >> (columns % 8)).any()):
                raise Error(f"{name}: mask must have zeros in the unused bits of a row's last byte")
            packed = mask.detach().to(self._mask_device, copy=True)
        else:
            raise Error(
                f"{name}: mask must be bool {list(self.weight.shape)} or packed uint8 {list(fitting)}, "
                f"got {str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}"
            )
        masks.attach(self, "weight", packed)
        self._bake()

    def _bake(self) -> None:
        """Zero the pruned weights in the weight itself."""
        if self.weight_mask is not None and self.weight.device.type != "meta":
            masks.apply(self)

    def train(self: L, mode: bool = True) -> L:
        """As in torch; going to evaluation bakes the zeros in."""
        super().train(mode)
        if not mode:
            self._bake()
        return self

    def _effective_weight(self) -> Tensor:
        if not self.training or self.weight_mask is None:
            return self.weight
        if torch.compiler.is_compiling():
            return ops.mask_apply(self.weight, self.weight_mask)
        if was_written(self, "weight"):  # by an average of models, say
            masks.get_mask(self, "weight")
        return ops.mask_apply(self.weight, cast(Tensor, stored_mask(self, "weight")))

    @classmethod
    def _from(cls: type[L], layer: Any, plain: type[nn.Module], mask: Tensor | None, **arguments: Any) -> L:
        name = cls.__name__
        if not isinstance(layer, plain):
            raise Error(f"{name}.from_dense: layer must be a {plain.__name__}, got {type(layer).__name__}")
        if not _is(layer._parameters.get("weight"), Tensor) or _is(layer.weight, nn.parameter.UninitializedParameter):
            raise Error(f"{name}.from_dense: the layer's weight must be an initialized Parameter")
        weight: Tensor = layer.get_parameter("weight")
        bias = layer._parameters["bias"]
        new = cls(**arguments, bias=bias is not None, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            new.weight.copy_(weight)
            new.weight.requires_grad_(weight.requires_grad)
            if bias is not None:
                new._parameters["bias"].copy_(bias)  # type: ignore[union-attr]
                new._parameters["bias"].requires_grad_(bias.requires_grad)  # type: ignore[union-attr]
        if mask is None:
            mask = masks.get_mask(layer, "weight")
        new.set_mask(weight.detach() != 0 if mask is None else mask)
        new.train(layer.training)
        return new


class MaskedLinear(_Masked, nn.Linear):
    """:class:`torch.nn.Linear` with a mask of its own.

    Args:
        in_features, out_features, bias, device, dtype: as in ``torch.nn.Linear``.
        mask: bool [out_features, in_features], true stays, or packed uint8; None keeps every weight.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self._begin(mask)

    @classmethod
    def from_dense(cls, layer: nn.Linear, mask: Tensor | None = None) -> MaskedLinear:
        """A copy of a Linear; without ``mask`` its own mask holds, else the zeros that its weight has."""
        sizes = {"in_features": layer.in_features, "out_features": layer.out_features} if _is(layer, nn.Linear) else {}
        return cls._from(layer, nn.Linear, mask, **sizes)

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self._effective_weight(), self.bias)


class MaskedConv2d(_Masked, nn.Conv2d):
    """:class:`torch.nn.Conv2d` with a mask of its own.

    Args:
        in_channels ... dtype: as in ``torch.nn.Conv2d``.
        mask: bool [out_channels, in_channels / groups, R, S], true stays, or packed uint8; None keeps every weight.
    """

    def __init__(self, *args: Any, mask: Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begin(mask)

    @classmethod
    def from_dense(cls, layer: nn.Conv2d, mask: Tensor | None = None) -> MaskedConv2d:
        """A copy of a Conv2d; without ``mask`` its own mask holds, else the zeros that its weight has."""
        names = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        sizes = {name: getattr(layer, name) for name in names} if _is(layer, nn.Conv2d) else {}
        return cls._from(layer, nn.Conv2d, mask, **sizes)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(input, self._effective_weight(), self.bias)
        return output


def _is(layer: object, kind: type) -> bool:
    return isinstance(layer, kind)
