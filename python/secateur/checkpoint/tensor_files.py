"""Files of named tensors, written by any library: their kind, and their contents."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from .._base.errors import Error
from .format.container import DTYPES, Container, Damaged, UnknownDtype, check_is_file, opened, write
from .format.description import FORMAT
from .paths import path_of

#: "torch": written by torch.save or torch.export.save; "safetensors": plain; "packed": written by secateur.save.
Kind = Literal["torch", "safetensors", "packed"]


def kind_of(path: Path, caller: str) -> Kind:
    """What ``path`` is, by its first bytes and its metadata.

    Raises:
        Error: none of the three. OSError: it cannot be opened.
    """
    check_is_file(path_of(path, caller), caller)
    if is_torch(path):
        return "torch"
    with _container(path, caller) as container:
        return "packed" if container.metadata.get("format") == FORMAT else "safetensors"


def is_torch(path: Path) -> bool:
    """Whether a file begins as those of torch.save do."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a")


@contextmanager
def _container(path: Path, caller: str) -> Iterator[Container]:
    try:
        with opened(path, caller) as container:
            yield container
    except UnknownDtype as reason:
        known = ", ".join(DTYPES)
        raise Error(f"{caller}: {path} must hold dtypes that are known here ({known}): {reason.why}") from None
    except Damaged as reason:
        raise Error(
            f"{caller}: {path} must be a safetensors file or a torch state_dict, it is neither ({reason.why})"
        ) from None


def torch_tensors(path: Path, caller: str) -> dict[str, Any]:
    """The tensors of a torch.save'd state_dict, also of one inside a training script's checkpoint."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as reason:  # a damaged pickle may raise anything; of a zip that was cut off it is EINVAL
        if isinstance(reason, MemoryError) or (isinstance(reason, OSError) and reason.errno != errno.EINVAL):
            raise
        said = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
        raise Error(
            f"{caller}: {path} must be a state_dict of tensors (whole pickled models run code when they are opened): "
            f"{said}"
        ) from reason
    for key in ("state_dict", "model"):  # how training scripts wrap it
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = {k: v for k, v in found.items() if isinstance(v, torch.Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise Error(f"{caller}: {path} must hold tensors by name, got {type(found).__name__}")
    for key in tensors:
        if not isinstance(key, str):
            raise Error(f"{caller}: {path} must hold tensors by name, got one by {key!r:.100} ({type(key).__name__})")
    return tensors


def tensors_of(path: Path, caller: str) -> dict[str, Any]:
    """The tensors of a plain file, torch's or safetensors'.

    Raises:
        Error: neither, or a file of :func:`secateur.save`. OSError: it cannot be opened.
    """
    kind = kind_of(path, caller)
    if kind == "packed":
        raise Error(f"{caller}: {path} must be a plain checkpoint, but secateur.save wrote it: use secateur.load")
    if kind == "torch":
        return torch_tensors(path, caller)
    with _container(path, caller) as container:
        return {name: container.read(part).reshape(part.shape) for name, part in container.parts.items()}


def write_plain(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """An ordinary safetensors file of dense tensors."""
    write(path, tensors, {}, signed=False)
