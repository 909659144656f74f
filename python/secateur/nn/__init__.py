"""Drop-in layers."""

from .masked import MaskedConv2d, MaskedLinear
from .sparse import SparseConv2d, SparseLinear
from .threshold_relu import ThresholdReLU

__all__ = ["MaskedConv2d", "MaskedLinear", "SparseConv2d", "SparseLinear", "ThresholdReLU"]
