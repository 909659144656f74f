"""``secateur.load``."""

from __future__ import annotations

import copy
import os

from torch import nn

from .._base.errors import Error
from .._base.wrappers import unwrapped
from ..engine.compiled import CompiledModel
from .content import Content, opened_content
from .filling import Filling
from .graph.restoring import quantized_form, restored
from .paths import path_of


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Fill ``model`` from a file that :func:`secateur.save` wrote; without a model, make one of the file alone.

    Afterwards the model is as it was saved: weights that were masked are masked again (fine-tuning goes on without
    their coming back), and a mask that the file does not hold is gone. Tensors stay on the model's devices. A compiled
    model takes the file of the model that was compiled, or its own, and is refreshed.

    The file is read twice. First all that it says is checked, its digest too, which covers every bit of it; then the
    tensors are made one after the other where they belong: beside the model at most one layer's size is needed (and the
    compiled model's copy). Nothing is pickled.

    Without a model, what the file says of it is made of this package's own tables of modules and operations: nothing is
    imported, looked up or called because a file names it. The new model is on the CPU and in evaluation mode, has the
    same state_dict and computes the same. Its class is another: plain attributes, methods, ``model[0]`` and arguments
    with defaults are not there. A compiled model's file gives the model that was compiled:
    ``secateur.compile(secateur.load(path), example)``.

    Args:
        path: the file. model: of the architecture that was saved, pruned or not. A plain model takes the file of its
            quantized form too: it stays as it is, and a new, quantized one is returned. None: the file alone.
            Wrappers (torch.compile, DataParallel, DistributedDataParallel) around it or its parts are looked through.

    Returns:
        The model given, or the new one.

    Raises:
        Error: not such a file, a damaged one or one of a later version; no model is given, and the file does not say
            what its own computes (``save`` could not follow it, or the file is older); tensors missing, unexpected, or
            of another shape or dtype than the model's; a scale that is not finite and positive. The model is then
            exactly as it was. One exception is said in words: a file larger than the model's largest tensor that
            another program changes, or that the disk cannot give again, between the first reading and the second.
        OSError: the file cannot be read.
    """
    if isinstance(path, nn.Module) and not isinstance(model, nn.Module):
        raise Error("load: the path comes first, then the model: secateur.load(path, model)")
    if model is None:
        with opened_content(path_of(path, "load")) as content:
            return _fill_new(content, restored(content.file, content.tensors))
    if not isinstance(model, nn.Module):
        raise Error(f"load: model must be a torch.nn.Module, got {type(model).__name__}")
    inner = unwrapped(model)
    with opened_content(path_of(path, "load")) as content:
        if isinstance(inner, CompiledModel):
            source = copy.deepcopy(inner.source)  # running calls keep the old one; after an error it stays
            _fill(content, unwrapped(source))
            inner.refresh(source)
        elif (quantized := quantized_form(content.file, content.tensors, inner)) is not None:
            return _fill_new(content, quantized)
        else:
            _fill(content, inner)
    return model


def _fill_new(content: Content, model: nn.Module) -> nn.Module:
    """Fill a model that the file made: whatever does not fit, it is the file that is wrong."""
    try:
        return _fill(content, model)
    except Error as error:
        if str(content.file.path) in str(error):
            raise
        raise Error(f"load: {content.file.path} must hold what its own layers take, but {error}") from None


def _fill(content: Content, model: nn.Module) -> nn.Module:
    masked = content.masks()
    filling = Filling(model, content.tensors, set(masked), "load")
    if content.file.size <= filling.largest:
        content.file.hold()
    content.check()
    filling.prepare({key: (tensor.mask(), theta) for key, (tensor, theta) in masked.items()})
    try:
        filling.commit()
    except (Error, OSError) as error:
        raise Error(
            f"load: {content.file.path} must not change while it is read, but it was sound at first and then was not; "
            f"the model is filled in part: {error}"
        ) from error
    return model
