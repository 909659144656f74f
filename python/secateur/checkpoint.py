"""One safetensors file: a bit mask and the kept values of pruned tensors, everything else dense. No pickle.

A packed tensor ``t`` is stored as ``t_mask`` (uint8 [rows, ceil(columns / 8)], :func:`secateur.ops.mask_pack`'s bits)
and ``t_values`` (the kept values, in logical row-major order). At 90 % zeros a float32 tensor takes 0.13 of its dense
bytes. Any tensor of two dims or more is packed where that is smaller, whoever made its zeros; a masked parameter always
is, for its bits are its mask. The file's metadata holds the format's name and version, and one JSON object: shape and
dtype of what is packed, which of it is masked (with the theta of its pruning), and which names share one tensor.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from . import masks, ops
from ._errors import Error
from .masks import Theta, buffer_name
from .reference import rows_and_columns
from .selection import unwrapped, weights_of

FORMAT = "secateur"
VERSION = 1

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}


@dataclass
class _Packed:
    """What the metadata says of one packed tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    masked: bool
    theta: Theta | None


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's state_dict to ``path``: one safetensors file, pruned weights as bit mask and values.

    The file appears whole or not at all: it is written beside ``path`` and then renamed. A symbolic link is followed.

    Args:
        model: any module; its masks are stored too. Wrappers (torch.compile, DataParallel) are looked through.
        path: where to; an existing file is replaced.

    Raises:
        Error: something in the state_dict is no tensor (there is no pickle to hold it), is not initialized or on the
            meta device, or a pruned weight that is not zero (the update went by no ``torch.optim`` optimizer:
            :func:`secateur.masks.apply` zeroes it); path is no path, or names something that is no file.
        OSError: the file cannot be written.
    """
    if not isinstance(model, nn.Module):
        raise Error(f"save: model must be a torch.nn.Module, got {type(model).__name__}")
    place = _path(path, "save")
    model = unwrapped(model)
    state = _state(model, "save")
    masked = _masked(model)  # parameter key -> theta
    own_masks = {buffer_name(key) for key in masked}
    tensors: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Any]] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for key, value in state.items():
        if key in own_masks:
            continue  # its bits come with the weight
        memory = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and memory in seen and (key in masked) == (seen[memory] in masked):
            aliases[key] = seen[memory]
            continue
        seen[memory] = key
        keep = _kept(key, value, state.get(buffer_name(key)) if key in masked else None)
        taken = {f"{key}_values", f"{key}_mask"} & (state.keys() - own_masks)
        if taken and key in masked:
            raise Error(f"save: {taken.pop()} must not be in the state_dict: the masked {key} is stored by that name")
        if keep is None or taken:
            tensors[key] = value.detach().cpu().contiguous()
            continue
        tensors[f"{key}_mask"] = ops.mask_pack(keep).cpu()
        tensors[f"{key}_values"] = value.detach()[keep].cpu()
        entry: dict[str, Any] = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if key in masked:
            entry |= {"masked": True, "theta": masked[key]}
        packed[key] = entry
    about = {"packed": packed, "aliases": aliases}
    metadata = {"format": FORMAT, "version": str(VERSION), FORMAT: json.dumps(about, separators=(",", ":"))}
    _write(tensors, metadata, place)


def load(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Fill ``model`` from a file that :func:`save` wrote.

    Afterwards the model is as it was saved: weights that were masked are masked again (fine-tuning goes on without
    their coming back), and a mask that the file does not hold is gone. Tensors stay on the model's devices.

    Args:
        path: the file. model: of the architecture that was saved, pruned or not.

    Returns:
        The model given.

    Raises:
        Error: not such a file, a damaged one or one of a later version; tensors missing, unexpected, or of another
            shape or dtype than the model's. The model is then exactly as it was.
        OSError: the file cannot be read.
    """
    if not isinstance(model, nn.Module):
        raise Error(f"load: model must be a torch.nn.Module, got {type(model).__name__}")
    given, model = model, unwrapped(model)
    tensors, bits = read(path)
    state = _state(model, "load")
    old_masks = {buffer_name(key) for key in _masked(model)}
    target = {key: value for key, value in state.items() if key not in old_masks}
    _compare(tensors, target)
    by_place = {(id(module), name): w for w in weights_of(model, "load") for module, name in w.places}
    weights = {
        f"{path}.{name}" if path else name: by_place.get((id(module), name))
        for path, module in model.named_modules(remove_duplicate=False)
        for name in module._parameters
    }
    for key, value in target.items():
        if any(stride == 0 and n > 1 for stride, n in zip(value.stride(), value.shape, strict=True)):
            raise Error(f"load: {key} must be a tensor of its own to be filled, but it is an expanded view")
    for key in bits:
        weight = weights.get(key)
        if weight is None or weight.problem is not None or weight.foreign is not None:
            why = (
                "the model has no such weight" if weight is None else weight.problem or "torch.nn.utils.prune holds it"
            )
            raise Error(f"load: {key} is masked in the file and must be able to take its mask: {why}")
        for module, parameter in weight.places:
            masks.check_room(module, parameter, weight.label, "load")
    # Nothing below fails for the caller's reasons.
    with torch.no_grad():
        for key, value in target.items():
            value.copy_(tensors[key])
        for module_name, module in list(masks.masked_modules(model)):
            for parameter in masks.masked_parameters(module):
                if (f"{module_name}.{parameter}" if module_name else parameter) not in bits:
                    masks.detach(module, parameter)
        for key, (mask, theta) in bits.items():
            weight = weights[key]
            assert weight is not None
            here = mask.to(weight.value.device)
            for module, parameter in weight.places:
                masks.attach(module, parameter, here, theta)
    return given


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Theta | None]]]:
    """Read and check a file of :func:`save`.

    Returns:
        The dense tensors by state_dict key (aliases share one tensor), and the packed masks, with their theta, of the
        parameters that were masked.

    Raises:
        Error, OSError: as :func:`load`.
    """
    path = _path(path, "load")
    with open(path, "rb"):
        pass  # an OSError, where safetensors has errors of its own kind
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except SafetensorError as error:
        raise Error(f"load: {path} must be a safetensors file, but it is damaged or another kind: {error}") from None
    packed, aliases = _about(metadata, path)
    tensors: dict[str, Tensor] = {}
    bits: dict[str, tuple[Tensor, Theta | None]] = {}
    for key, entry in packed.items():
        mask, values = stored.pop(f"{key}_mask", None), stored.pop(f"{key}_values", None)
        if mask is None or values is None:
            raise Error(f"load: {path} must hold {key}_mask and {key}_values, but one is missing")
        if key in stored:
            raise Error(f"load: {path} must hold {key} packed or dense, but has both")
        tensors[key] = _unpack(key, entry, mask, values)
        if entry.masked:
            bits[key] = (mask, entry.theta)
    tensors |= stored
    for name, key in aliases.items():
        if key not in tensors or name in tensors:
            raise Error(f"load: {path} says that {name} shares {key}, which must be there once, and is not")
    for name, key in aliases.items():
        tensors[name] = tensors[key]
        if key in bits:
            bits[name] = bits[key]
    return tensors, bits


def _state(model: nn.Module, caller: str) -> dict[str, Tensor]:
    """The state_dict, all tensors with values."""
    state = model.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise Error(f"{caller}: {key} must be a tensor, for nothing is pickled, got {type(value).__name__}")
        if isinstance(value, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            raise Error(f"{caller}: {key} must be initialized (a lazy layer: run one batch through the model first)")
        if value.device.type == "meta" or value.layout != torch.strided or value.is_quantized:
            raise Error(f"{caller}: {key} must be an ordinary tensor with values, got {value.device} {value.layout}")
    return dict(state)


def _masked(model: nn.Module) -> dict[str, Theta | None]:
    """The keys of the masked parameters, under every name that they have in the state_dict."""
    found: dict[str, Theta | None] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter, theta in masks.masked_parameters(module).items():
            if masks.get_mask(module, parameter) is not None:
                found[f"{name}.{parameter}" if name else parameter] = theta
    return found


def _kept(key: str, value: Tensor, mask: Tensor | None) -> Tensor | None:
    """Which values to store, bool of the tensor's shape; None where dense is smaller."""
    if mask is not None:
        keep = ops.mask_unpack(mask.to(value.device), value.shape)
        if bool((value[~keep] != 0).any()):
            raise Error(
                f"save: {key} must be zero where it is pruned, and is not: it was changed by something else than a "
                "torch.optim optimizer; call secateur.masks.apply(model) first"
            )
        return keep
    if value.dtype not in _DTYPES.values() or value.dim() < 2:
        return None
    keep = value != 0  # -0.0 too becomes 0: weight * mask, as other libraries prune, leaves it for negative weights
    rows, columns = rows_and_columns(value.shape)
    small = rows * -(-columns // 8) + int(keep.sum()) * value.element_size()
    return keep if small < value.numel() * value.element_size() else None


def _path(path: Any, caller: str) -> Path:
    try:
        return Path(os.fsdecode(path))
    except TypeError:
        raise Error(f"{caller}: path must be a str or os.PathLike, got {type(path).__name__}") from None


def _write(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    path = Path(os.path.realpath(path))  # a rename would replace the link, not the file that it stands for
    if path.exists() and not path.is_file() and not path.is_dir():  # a directory is an OSError of the rename
        raise Error(f"save: {path} must be a file or not be there yet, but is a device or a pipe: it would be replaced")
    beside = path.with_name(f".{secrets.token_hex(8)}.tmp")  # short: path's own name may be as long as names can be
    try:
        with open(beside, "wb") as file:  # an OSError names the reason; safetensors would wrap it
            mode = os.stat(file.fileno()).st_mode & 0o777  # what the umask allows
        save_file(tensors, beside, metadata)
        os.chmod(beside, mode)  # safetensors makes its files readable by their owner alone
        os.replace(beside, path)
    except SafetensorError as error:
        raise OSError(f"save: {path} cannot be written: {error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)


def _about(metadata: dict[str, str], path: Any) -> tuple[dict[str, _Packed], dict[str, str]]:
    """The metadata, checked: what is packed, and which names share a tensor."""
    if metadata.get("format") != FORMAT:
        raise Error(f"load: {path} must be a file that secateur.save wrote, got format {metadata.get('format')!r}")
    version = metadata.get("version", "")
    if not re.fullmatch("[1-9][0-9]{0,8}", version):
        raise Error(f"load: {path} must have a version, got {version!r:.40}")
    if int(version) > VERSION:
        raise Error(f"load: {path} has version {version}, and this secateur reads up to {VERSION}: update it")
    try:
        about = json.loads(metadata[FORMAT])
        aliases = {str(name): str(key) for name, key in about["aliases"].items()}
        packed = {str(key): _entry(entry) for key, entry in about["packed"].items()}
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise Error(f"load: {path} must describe its packed tensors, but that part is damaged: {error!r}") from None
    return packed, aliases


def _entry(entry: dict[str, Any]) -> _Packed:
    shape = tuple(entry["shape"])
    if not all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**40 for size in shape):
        raise ValueError(f"shape {shape}")
    theta = entry.get("theta")
    if theta is not None:
        low, mean, high = (float(value) for value in theta)
        theta = (low, mean, high)
    masked = entry.get("masked", False)
    if not isinstance(masked, bool):
        raise ValueError(f"masked {masked!r}")
    return _Packed(shape, _DTYPES[entry["dtype"]], masked, theta)


def _unpack(key: str, entry: _Packed, mask: Tensor, values: Tensor) -> Tensor:
    """The dense tensor, after every claim about it has been checked."""
    rows, columns = rows_and_columns(entry.shape)
    size = -(-columns // 8)
    if mask.dtype != torch.uint8 or tuple(mask.shape) != (rows, size):
        raise Error(f"load: {key}_mask must be uint8 [{rows}, {size}], got {mask.dtype} {list(mask.shape)}")
    if values.dtype != entry.dtype or values.dim() != 1:
        raise Error(f"load: {key}_values must be {entry.dtype} [n], got {values.dtype} {list(values.shape)}")
    if columns % 8 and mask.numel() and bool((mask[:, -1] >> (columns % 8)).any()):
        raise Error(f"load: {key}_mask must have zeros in the unused bits of a row's last byte")
    # Count before unpacking: the claimed shape is bounded by the mask's real size, so no huge tensor is made up.
    count = _popcount(mask)
    if count != values.numel():
        raise Error(f"load: {key}_values must hold one value a set bit, {count}, got {values.numel()}")
    keep = ops.mask_unpack(mask, entry.shape)
    dense = torch.zeros(entry.shape, dtype=entry.dtype)
    dense[keep] = values
    return dense


def _popcount(mask: Tensor) -> int:
    table = torch.tensor([bin(byte).count("1") for byte in range(256)], dtype=torch.int64)
    return int((torch.bincount(mask.reshape(-1).to(torch.int64), minlength=256) * table).sum()) if mask.numel() else 0


def _compare(tensors: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """The file's tensors against the model's: names, shapes, dtypes."""
    missing, unexpected = sorted(target.keys() - tensors.keys()), sorted(tensors.keys() - target.keys())
    if missing or unexpected:
        parts = [f"the file lacks {_few(missing)}"] if missing else []
        parts += [f"the model lacks {_few(unexpected)}"] if unexpected else []
        raise Error(f"load: file and model must hold the same names, but {' and '.join(parts)}")
    for key, value in target.items():
        if tensors[key].shape != value.shape:
            raise Error(f"load: {key} must be {list(value.shape)} as in the model, got {list(tensors[key].shape)}")
        if tensors[key].dtype != value.dtype:
            raise Error(
                f"load: {key} must be {value.dtype} as in the model, got {tensors[key].dtype} "
                "(convert the model with .to(dtype) first)"
            )


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
