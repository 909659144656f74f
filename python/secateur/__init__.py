"""Prune a trained PyTorch network, and have it run faster."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

from ._base.errors import Error
from ._base.version import installed_version as _installed_version
from .activations.prune import prune_activations
from .activations.sensitivity import activation_sensitivity
from .calibration.recalibrate import recalibrate
from .checkpoint import import_checkpoint, load, save, to_dense_state_dict
from .engine import compile, profile
from .finetuning import finetune
from .masks import strip
from .nn.conversion import convert
from .nn.trainable_threshold import freeze_thresholds, train_thresholds
from .pruning.counting import sparsity
from .pruning.criteria import Criterion, Magnitude, MeanStd, OptimalBrain, Random, Wanda
from .pruning.prune import prune
from .pruning.restore import restore
from .pruning.verify import verify
from .quantization import prepare_qat, quantization_sensitivity, quantize
from .report import Report
from .training.activation_loss import ActivationSparsityLoss
from .training.distillation import DistillationLoss
from .training.gradual import CubicSchedule, GradualPruner

__all__ = [
    "ActivationSparsityLoss",
    "Criterion",
    "CubicSchedule",
    "DistillationLoss",
    "Error",
    "GradualPruner",
    "Magnitude",
    "MeanStd",
    "OptimalBrain",
    "Random",
    "Report",
    "Wanda",
    "activation_sensitivity",
    "compile",
    "convert",
    "finetune",
    "freeze_thresholds",
    "import_checkpoint",
    "load",
    "prepare_qat",
    "profile",
    "prune",
    "prune_activations",
    "quantization_sensitivity",
    "quantize",
    "recalibrate",
    "restore",
    "save",
    "sparsity",
    "strip",
    "to_dense_state_dict",
    "train_thresholds",
    "verify",
]

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> _Any:
        """``__version__`` is looked up when it is asked for: to read the metadata takes time that an import has not."""
        if name == "__version__":
            return _installed_version()
        if name == "cli":  # where the command line stood
            return _import_module("secateur.commands.cli")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
