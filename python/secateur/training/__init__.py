"""Parts of a training loop: losses and schedules."""

from .activation_loss import ActivationSparsityLoss
from .distillation import DistillationLoss
from .gradual import CubicSchedule, GradualPruner

__all__ = ["ActivationSparsityLoss", "CubicSchedule", "DistillationLoss", "GradualPruner"]
