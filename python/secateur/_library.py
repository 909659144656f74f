"""Loads the compiled operators, once, at import."""

from __future__ import annotations

from pathlib import Path

import torch

from ._errors import Error

try:
    from . import _host
except ImportError as cause:  # pragma: no cover - needs a broken installation
    raise ImportError(
        f"secateur: its compiled library does not load with torch {torch.__version__} ({cause}); "
        "it needs torch >= 2.10: reinstall with `pip install --force-reinstall --no-deps secateur`"
    ) from cause

LIBRARY_DIR = Path(_host.__file__).parent / "lib"

torch.ops.load_library(LIBRARY_DIR / "libsecateur.so")

_cuda_library = LIBRARY_DIR / "libsecateur_cuda.so"
HAS_CUDA = torch.version.cuda is not None and _cuda_library.exists()
if HAS_CUDA:
    torch.ops.load_library(_cuda_library)

__all__ = ["HAS_CUDA", "LIBRARY_DIR", "Error"]
