"""A linear layer that holds only its nonzeros."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .._base.errors import Error
from .sparse import SparseBase, check_weight, fill


class SparseLinear(SparseBase, nn.Linear):  # type: ignore[override]  # weight can be read, not set
    """``nn.Linear`` that stores and multiplies only the nonzeros.

    Made by :meth:`from_dense`. Input ``[..., in_features]``, output ``[..., out_features]``, as ``nn.Linear``.
    State: ``weight_mask`` uint8 ``[out, ceil(in / 8)]``, ``weight_values`` ``[nnz]``, ``bias`` ``[out]`` or None.
    A zero weight is skipped: zero times Inf or NaN in the input counts for nothing here, where a dense layer gives NaN.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        nn.Module.__init__(self)
        check_weight("SparseLinear", weight, "[out, in]", 2)
        self.out_features, self.in_features = weight.shape
        self._begin(weight, bias)

    @classmethod
    def from_dense(cls, layer: nn.Linear) -> SparseLinear:
        """The same layer with its zeros left out; ``layer`` stays as it is and shares nothing with the result."""
        if not isinstance(layer, nn.Linear):
            raise Error(f"SparseLinear.from_dense: layer must be an nn.Linear, got {type(layer).__name__}")
        made = cls(layer.weight, layer.bias)
        made.train(layer.training)
        return made

    def to_dense(self) -> nn.Linear:
        """A plain ``nn.Linear`` with the zeros written out."""
        layer = nn.Linear(
            self.in_features,
            self.out_features,
            self.bias is not None,
            self.weight_values.device,
            self.weight_values.dtype,
        )
        return cast(nn.Linear, fill(layer, self))

    def _geometry(self) -> dict[str, Any]:
        return {"shape": (self.out_features, self.in_features, 1, 1)}

    def _sparse(self, x: Tensor) -> Tensor:
        plan, _held = self._plan_id()
        return ops.sparse_linear(x, self.weight_mask, self.weight_values, self.bias, plan)

    def _dense(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return self._run(input)

    def extra_repr(self) -> str:
        return f"{nn.Linear.extra_repr(self)}, sparsity={self.sparsity:.3f}"
