"""Integers in place of real numbers: after training, or with training."""

from .ptq import quantize
from .qat import prepare_qat
from .sensitivity import quantization_sensitivity

__all__ = ["prepare_qat", "quantization_sensitivity", "quantize"]
