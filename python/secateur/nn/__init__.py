"""Drop-in layers."""

from .masked import MaskedConv2d, MaskedLinear
from .threshold_relu import ThresholdReLU

__all__ = ["MaskedConv2d", "MaskedLinear", "ThresholdReLU"]
