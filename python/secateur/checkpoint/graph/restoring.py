"""Models made of what a file says, their tensors still to be filled in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..._base.errors import Error
from ..format.container import Container
from .belongs import why_not_of
from .building import Sized, build, take_memory
from .description import Description, parse, text_in


def restored(file: Container, tensors: Mapping[str, Sized]) -> nn.Module:
    """The model that a file describes, on the CPU, in evaluation mode. Its tensors have memory, and no values yet.

    Raises:
        Error: the file says nothing of what its model computes, or what it says is damaged.
    """
    about = _read(file)
    if about is None:
        raise Error(
            f"load: {file.path} does not say what its model computes, so it must be loaded into a model of the same "
            "architecture: secateur.load(path, model)"
        )
    return _with_memory(file, _built(file, about, tensors), tensors, torch.device("cpu"))


def quantized_form(file: Container, tensors: Mapping[str, Sized], model: nn.Module) -> nn.Module | None:
    """For a file of quantized layers and a model without: the quantized model, as :func:`restored` makes it, on the
    model's device. None: the file goes into the model as it is.

    Raises:
        Error: the file does not say what its model computes, or is of another model.
    """
    int8 = [key.rpartition(".")[0] for key in tensors if key.rpartition(".")[2] == "weight_int8"]
    if not int8 or any(key.rpartition(".")[2] == "weight_int8" for key in model.state_dict()):
        return None
    about = _read(file)
    if about is None:
        return None  # the names differ, and the error says what to do
    made = _built(file, about, tensors)
    if why := why_not_of(made, model):
        raise Error(
            f"load: {file.path} must be of a quantized form of the model given, but {why} (secateur.load(path), "
            "without a model, makes the one that the file is of)"
        )
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None or first.is_meta else first.device
    return _with_memory(file, made, tensors, device)


def _read(file: Container) -> Description | None:
    try:
        text = text_in(file.metadata)
        return None if text is None else parse(text)
    except ValueError as error:
        raise _damaged(file, error) from None


def _built(file: Container, about: Description, tensors: Mapping[str, Sized]) -> nn.Module:
    try:
        return build(about, tensors)
    except ValueError as error:
        raise _damaged(file, error) from None


def _with_memory(file: Container, model: nn.Module, tensors: Mapping[str, Sized], device: torch.device) -> nn.Module:
    try:
        take_memory(model, tensors, device)
    except ValueError as error:
        raise _damaged(file, error) from None
    return model


def _damaged(file: Container, why: ValueError) -> Error:
    return Error(f"load: {file.path} must describe what its model computes, but that part is damaged: {why!s:.300}")
