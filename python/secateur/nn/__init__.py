"""Drop-in layers."""

from .masked import MaskedConv2d, MaskedLinear
from .qat import QATConv2d, QATLinear
from .quantized import Quantize, QuantizedConv2d, QuantizedLinear
from .sparse_conv2d import SparseConv2d
from .sparse_linear import SparseLinear
from .threshold_relu import ThresholdReLU

__all__ = [
    "MaskedConv2d",
    "MaskedLinear",
    "QATConv2d",
    "QATLinear",
    "Quantize",
    "QuantizedConv2d",
    "QuantizedLinear",
    "SparseConv2d",
    "SparseLinear",
    "ThresholdReLU",
]
