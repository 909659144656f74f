"""Loads the compiled operators, once, at import."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

try:
    from .. import _host
except ImportError as cause:  # pragma: no cover - needs a broken installation
    raise ImportError(
        f"secateur: its compiled library does not load with torch {torch.__version__} ({cause}); "
        "it needs torch >= 2.10: reinstall with `pip install --force-reinstall --no-deps secateur`"
    ) from cause

#: The pybind11 module (all that is not a tensor). Every other module imports it from here.
host = _host

LIBRARY_DIR = Path(host.__file__).parent / "lib"

torch.ops.load_library(LIBRARY_DIR / "libsecateur.so")


def load_cuda(library: Path) -> bool:
    """Load the CUDA operators; False where they were not built, and, with a warning, where they do not load.

    The library brings its own CUDA runtime and links nothing of torch's CUDA, so no missing libcudart can stop it. Only
    a damaged file can, or a torch older than it was built for.
    """
    if not library.exists():
        return False
    try:
        torch.ops.load_library(library)
    except OSError as cause:
        warnings.warn(
            f"secateur: {library} does not load with torch {torch.__version__} ({cause}): operators on CUDA "
            "tensors will fail, CPU tensors are not affected; "
            "reinstall with `pip install --force-reinstall --no-deps secateur`",
            stacklevel=2,
        )
        return False
    return True


# A torch without CUDA has no CUDA tensors to serve.
HAS_CUDA = torch.version.cuda is not None and load_cuda(LIBRARY_DIR / "libsecateur_cuda.so")

__all__ = ["HAS_CUDA", "LIBRARY_DIR", "host", "load_cuda"]
