"""``secateur.save``."""

from __future__ import annotations

import copy
import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import masks, ops
from .._base.errors import Error
from .._base.wrappers import unwrapped
from ..engine.compiled import CompiledModel
from ..engine.unit import undressed
from ..masks import Theta, buffer_name
from . import rules
from .format import encode
from .format.container import WORDS, write
from .format.description import Description, name_of
from .graph.writing import described
from .names import Names, modules_of
from .ordinary import check_ordinary
from .paths import path_of

_SUFFIXES = ("_mask", "_gaps", "_values", "_codes", "_palette", "_signs")
_Packed = tuple[dict[str, Tensor], Description, dict[str, str]]
_NARROW = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def save(model: nn.Module, path: str | os.PathLike[str], *, values: str | None = None, share: bool = False) -> None:
    """Write a model's state_dict to ``path``: one safetensors file, pruned weights as an index and the kept values.

    Loading gives every bit back, the signs of zeros and the bits of NaNs too, unless ``values`` gives some up. Any
    tensor of two dims or more is packed where that is smaller, whatever made its zeros; a masked weight always is. A
    compiled model is saved as the model that was compiled. Where the forward can be followed (FORMAT.md), the file says
    what it computes too, and :func:`secateur.load` needs no model. The file appears whole or not at all: it is written
    beside ``path``, synced, and then renamed. The permissions of a file that is replaced stay. A symbolic link is
    followed. A digest in the file tells :func:`load` of damage. The format: FORMAT.md.

    Args:
        model: any module; its masks are stored too. Wrappers (torch.compile, DataParallel, DistributedDataParallel)
            around it or its parts are looked through: the file is the plain model's.
        path: where to; an existing file is replaced.
        values: "float16" or "bfloat16" stores the values of wider floating-point tensors of two dims or more in this
            type: smaller, and not exact any more (a warning names a tensor of which more than a hundredth becomes 0).
            They load in their own type. None: exactly.
        share: store each distinct value of a tensor once, and short numbers that name it, where that is smaller.
            Exact: for weights that were clustered or rounded.

    Raises:
        Error: something in the state_dict is no tensor (there is no pickle to hold it), is not initialized, or is no
            ordinary tensor (sparse, nested, quantized, on the meta device); a pruned weight is not zero (the update
            went by no ``torch.optim`` optimizer: :func:`secateur.masks.apply` zeroes it); a scale or a threshold is one
            that :func:`secateur.load` would refuse; a value is too large for ``values``; path is no path, or names
            something that is no file.
        OSError: the file cannot be written. What was there is there still.
    """
    if isinstance(path, nn.Module) and not isinstance(model, nn.Module):
        raise Error("save: the model comes first, then the path: secateur.save(model, path)")
    if not isinstance(model, nn.Module):
        raise Error(f"save: model must be a torch.nn.Module, got {type(model).__name__}")
    if values is not None and (not isinstance(values, str) or values not in _NARROW):
        raise Error(f'save: values must be None, "float16" or "bfloat16", got {values!r}')
    if not isinstance(share, bool):
        raise Error(f"save: share must be True or False, got {share!r}")
    place = path_of(path, "save")
    model = unwrapped(model)
    if isinstance(model, CompiledModel):
        # Reading the original's packed weights would unpack them for good.
        model = unwrapped(undressed(copy.deepcopy(model.source)))
    tensors, description, graph = _packed(model, None if values is None else _NARROW[values], share)
    about = description.metadata()
    try:
        write(place, tensors, about | graph, signed=True)
    except Error:  # too long together
        write(place, tensors, about, signed=True)


def _packed(model: nn.Module, narrow: torch.dtype | None, share: bool) -> _Packed:
    """The tensors of the file by name, what is said about them, and what the metadata says of the model's graph."""
    state = state_of(model, "save")
    for name, module in modules_of(model):
        if isinstance(module, torch.jit.ScriptModule) and not hasattr(module, "training"):
            raise Error(
                f"save: {name or 'model'} must hold its weights, but torch.jit.freeze has made constants of them: save "
                "the model that was frozen"
            )
    masked = masked_keys(model)
    own_masks = {buffer_name(key) for key in masked}
    about = Description(layers=rules.layers_of(modules_of(model)))
    rules.check(about.layers, state.get, "save")
    tensors: dict[str, Tensor] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for key, value in state.items():
        if key in own_masks:
            continue  # its bits come with the weight
        memory = memory_of(value)
        if value.numel() and memory in seen and (key in masked) == (seen[memory] in masked):
            about.aliases[key] = seen[memory]
            continue
        seen[memory] = key
        taken = sorted({key + suffix for suffix in _SUFFIXES} & (state.keys() - own_masks))
        if taken and key in masked:
            raise Error(f"save: {taken[0]} must not be in the state_dict: the masked {key} is stored by that name")
        made = None
        if key in masked or (value.dim() >= 2 and value.dtype in encode.PACKABLE and not taken):
            made = _encoded(key, value.detach(), state.get(buffer_name(key)) if key in masked else None, narrow, share)
        if made is None:
            tensors[key] = value.detach()
            continue
        about.packed[key] = dataclasses.replace(made.entry, theta=masked.get(key))
        tensors |= {key + suffix: part for suffix, part in made.parts.items()}
    graph, _ = described(model, {key: value for key, value in state.items() if key not in own_masks})
    return tensors, about, graph


def _encoded(
    key: str, value: Tensor, mask: Tensor | None, narrow: torch.dtype | None, share: bool
) -> encode.Packed | None:
    keep = None
    value = value.cpu()
    if mask is not None:
        keep = ops.mask_unpack(mask.cpu(), value.shape)
        if bool(((value != 0) & ~keep).any()):
            raise Error(
                f"save: {key} must be zero where it is pruned, and is not: it was changed by something else than a "
                "torch.optim optimizer; call secateur.masks.apply(model) first"
            )
    if narrow is not None and (not value.is_floating_point() or value.element_size() <= narrow.itemsize):
        narrow = None
    if narrow is not None:
        short = value.to(narrow)
        if bool((torch.isfinite(value) & ~torch.isfinite(short)).any()):
            raise Error(f"save: {key} must fit into {name_of(narrow)}, but reaches {float(value.abs().max()):.6g}")
        nonzero, lost = int((value != 0).sum()), int(((value != 0) & (short == 0)).sum())
        if 100 * lost > nonzero:
            said = f"save: {key}: {lost} of {nonzero} values are too small for {name_of(narrow)} and become 0"
            warnings.warn(said, UserWarning, stacklevel=4)
    return encode.packed(value, keep, narrow, share)


def memory_of(value: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are one, whatever their names."""
    return (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())


def state_of(model: nn.Module, caller: str) -> dict[str, Tensor]:
    """The state_dict, all tensors with values, without the names of wrappers."""
    state = model.state_dict()
    if not isinstance(state, Mapping):
        raise Error(f"{caller}: state_dict() of the model must give tensors by name, got {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str):
            raise Error(f"{caller}: names in the state_dict must be strings, got {key!r}")
        if not isinstance(value, Tensor):
            raise Error(f"{caller}: {key} must be a tensor, for nothing is pickled, got {type(value).__name__}")
        if isinstance(value, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            raise Error(f"{caller}: {key} must be initialized (a lazy layer: run one batch through the model first)")
        check_ordinary(key, value, caller)
        if value.dtype not in WORDS:
            raise Error(f"{caller}: {key} must have a dtype that safetensors knows, got {value.dtype}")
        if key == "__metadata__" or not _is_text(key):
            raise Error(f"{caller}: {key!r} must be a name that safetensors can hold")
    names = Names(model)
    return {names.plain(key): value for key, value in state.items()}


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def masked_keys(model: nn.Module) -> dict[str, Theta | None]:
    """The keys of the masked parameters, under every name that they have in the state_dict."""
    found: dict[str, Theta | None] = {}
    for name, module in modules_of(model):
        for parameter, theta in masks.masked_parameters(module).items():
            if masks.get_mask(module, parameter) is not None:
                found[rules.joined(name, parameter)] = theta
    return found
