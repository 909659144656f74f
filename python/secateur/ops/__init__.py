"""The operators: ``secateur.ops.X`` is ``torch.ops.secateur.X`` with errors as :class:`secateur.Error`.

``calls`` is the contract; ``reference`` holds each operator's twin in plain torch; ``register``, ``register_sparse``
and ``twins`` give torch the fakes, the gradients, and the twins for devices without kernels.
"""

from .calls import (
    mask_apply,
    mask_apply_,
    mask_apply_many_,
    mask_pack,
    mask_unpack,
    sparse_conv2d,
    sparse_linear,
    sparse_values,
    sparse_weight,
    statistics_threshold,
    statistics_threshold_,
    threshold_relu,
    threshold_relu_,
)

__all__ = [
    "mask_apply",
    "mask_apply_",
    "mask_apply_many_",
    "mask_pack",
    "mask_unpack",
    "sparse_conv2d",
    "sparse_linear",
    "sparse_values",
    "sparse_weight",
    "statistics_threshold",
    "statistics_threshold_",
    "threshold_relu",
    "threshold_relu_",
]
