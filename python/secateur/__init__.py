"""Prune a trained PyTorch network, and have it run faster."""

from ._errors import Error
from .activation_loss import ActivationSparsityLoss
from .activations import prune_activations
from .checkpoint import import_checkpoint, load, save, to_dense_state_dict
from .conversion import convert
from .criteria import Magnitude, MeanStd, Random
from .distillation import DistillationLoss
from .engine import compile, profile
from .masks import strip
from .nn.trainable_threshold import freeze_thresholds, train_thresholds
from .pruning import prune, sparsity
from .report import Report
from .schedule import CubicSchedule, GradualPruner
from .sensitivity import activation_sensitivity

__all__ = [
    "ActivationSparsityLoss",
    "CubicSchedule",
    "DistillationLoss",
    "Error",
    "GradualPruner",
    "Magnitude",
    "MeanStd",
    "Random",
    "Report",
    "activation_sensitivity",
    "compile",
    "convert",
    "freeze_thresholds",
    "import_checkpoint",
    "load",
    "profile",
    "prune",
    "prune_activations",
    "save",
    "sparsity",
    "strip",
    "to_dense_state_dict",
    "train_thresholds",
]
