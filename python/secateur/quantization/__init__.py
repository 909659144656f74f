"""int8 quantization: after training (PTQ), or with training (QAT)."""

from .ptq import quantize
from .qat import prepare_qat
from .sensitivity import quantization_sensitivity

__all__ = ["prepare_qat", "quantization_sensitivity", "quantize"]
