"""What a file of ``secateur.save`` holds: which tensors there are, under which names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from .._base.errors import Error
from ..masks import Theta
from . import rules
from .format.container import Container, Damaged, Part, opened
from .format.description import Description, Entry, parse
from .paths import path_of
from .stored import Packed, Plain
from .tensor_files import is_torch


class Content:
    """An open file. ``tensors``: by state_dict key, their sizes checked; aliases are the same object twice."""

    def __init__(self, file: Container) -> None:
        self.file = file
        self.description: Description = parse(file.metadata, file.path, file.caller)
        self.tensors: dict[str, Plain | Packed] = {}
        parts = dict(file.parts)
        for key, entry in self.description.packed.items():
            self.tensors[key] = Packed(key, entry, self._take(parts, key, entry), file)
        for key in self.description.packed:
            if key in parts:
                raise file.error(f"must hold {key} packed or dense, but has both")
        for key, part in parts.items():
            self.tensors[key] = Plain(key, part, file)
        aliases = self.description.aliases
        for name, key in aliases.items():
            if key not in self.tensors or key in aliases or name in self.tensors:
                raise file.error(f"says that {name} shares {key}, which must be there once, and is not")
        self.tensors |= {name: self.tensors[key] for name, key in aliases.items()}
        for tensor in self.tensors.values():
            if isinstance(tensor, Packed):
                tensor.check_sizes()

    def _take(self, parts: dict[str, Part], key: str, entry: Entry) -> dict[str, Part]:
        suffixes = ["_codes", "_palette"] if entry.codes else ["_values"]
        if entry.index.kind != "all":
            suffixes.insert(0, "_gaps" if entry.index.kind == "gaps" else "_mask")
        if entry.signs is not None:
            suffixes.append("_signs")
        names = " and ".join(key + suffix for suffix in suffixes)
        if any(key + suffix not in parts for suffix in suffixes):
            raise self.file.error(f"must hold {names}, but one is missing")
        return {suffix: parts.pop(key + suffix) for suffix in suffixes}

    def masks(self) -> dict[str, tuple[Packed, Theta | None]]:
        """The tensors that are masked, and the theta of their pruning."""
        return {
            key: (tensor, tensor.entry.theta)
            for key, tensor in self.tensors.items() if isinstance(tensor, Packed) and tensor.entry.masked
        }  # fmt: skip

    def check(self) -> None:
        """Read and check everything: the positions, the codes and the scales; then all bytes, by the digest."""
        for tensor in {id(tensor): tensor for tensor in self.tensors.values()}.values():
            tensor.check()
        rules.check(self.description.layers, self.small, f"{self.file.caller}: {self.file.path}")
        self.file.check_digest()

    def small(self, key: str) -> Tensor | None:
        """One tensor by its key, if it is there."""
        return dense(self.tensors[key]) if key in self.tensors else None


def dense(tensor: Plain | Packed) -> Tensor:
    """The tensor itself; its check must have passed."""
    made = torch.empty(tensor.shape, dtype=tensor.dtype)
    tensor.fill(made.reshape(-1))
    return made


@contextmanager
def opened_content(path: Path, caller: str = "load") -> Iterator[Content]:
    """Open a file, and check what it says of its tensors; :meth:`Content.check` reads what they hold."""
    try:
        with opened(path, caller) as file:
            yield Content(file)
    except Damaged:
        if is_torch(path):
            raise Error(
                f"{caller}: {path} must be a safetensors file of secateur.save, but looks like one of torch.save: call "
                "secateur.import_checkpoint(path, model), or torch.load and the model's load_state_dict"
            ) from None
        raise


def read(
    path: str | os.PathLike[str], caller: str = "load"
) -> tuple[dict[str, Tensor], dict[str, Theta | None], dict[str, int]]:
    """All tensors of a file, dense, by state_dict key; the theta of those that are masked; the bytes that each takes in
    the file."""
    with opened_content(path_of(path, caller), caller) as content:
        content.check()
        made = {id(tensor): dense(tensor) for tensor in content.tensors.values()}
        tensors = {key: made[id(tensor)] for key, tensor in content.tensors.items()}
        thetas = {key: theta for key, (_, theta) in content.masks().items()}
        return tensors, thetas, {key: tensor.size for key, tensor in content.tensors.items()}


def to_dense_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """A file of :func:`secateur.save` as plain tensors, for people without this package's layers.

    Keys are the model's own, without masks: pruned weights are dense, with their zeros. Where the file holds layers of
    :func:`secateur.quantize`, each gives the real weights that it stands for, float32, under ``weight`` (the integers
    times their scales), and its ``bias``; what is only about integers (``weight_int8``, scales, zero points) is left
    out. Names that share a tensor share it here too. Nothing is pickled; files of every version are read.

    Returns:
        Tensors on the CPU, by name. They take at most 1,024 times the bytes of the file, and usually ten.

    Raises:
        Error, OSError: as :func:`secateur.load`.
    """
    caller = "to_dense_state_dict"
    with opened_content(path_of(path, caller), caller) as content:
        content.check()
        made: dict[int, Tensor] = {}
        found: dict[str, Tensor] = {}
        kinds = content.description.layers
        for key, tensor in content.tensors.items():
            module, _, name = key.rpartition(".")
            kind = kinds.get(module, "")
            if kind in rules.QUANTIZED and name == "weight_int8":
                scale = content.small(rules.joined(module, "weight_scale"))
                found[rules.joined(module, "weight")] = _real(content.file, key, dense(tensor), scale)
            elif (kind in rules.QUANTIZED and name != "bias") or kind == "Quantize":
                continue
            else:
                if id(tensor) not in made:
                    made[id(tensor)] = dense(tensor)
                found[key] = made[id(tensor)]
        return found


def _real(file: Container, key: str, integers: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None or not integers.dim() or scale.shape != integers.shape[:1] or integers.dtype != torch.int8:
        got = "none" if scale is None else str(list(scale.shape))
        raise file.error(f"{key} must be int8 with one scale a row, got {integers.dtype} and {got}")
    return integers.to(torch.float32) * scale.reshape(-1, *[1] * (integers.dim() - 1))
