"""Drop-in layers."""

from .threshold_relu import ThresholdReLU

__all__ = ["ThresholdReLU"]
