"""The text of a model's graph, for its file."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import kinds
from .building import build
from .description import MOST_TEXT, is_input, is_path, metadata_of, parse
from .follow import followed
from .skeleton import CannotFollow


def described(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, str], str]:
    """What a file's metadata says of what a model computes; and, where that is nothing, why.

    The forward is followed twice, in evaluation mode, on a copy of the model's structure without values; and a model is
    made of the text on the meta device and compared, so that what is written can be read. Nothing of it takes memory
    worth mentioning.

    Args:
        model: the model; it is left alone, whatever its forward does. state: its tensors as the file has them, without
            masks.
    """
    drawn = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            return metadata_of(_text(model, state)), ""
    except CannotFollow as reason:
        return {}, str(reason)
    except Exception as error:  # of the model's own forward, for which a value is no tensor
        return {}, f"its forward cannot be followed: {type(error).__name__}{_said(error)}"
    finally:
        random.setstate(drawn)


def _text(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    log, output = followed(model)
    again, same_output = followed(model)
    if (log.inputs, log.nodes, output) != (again.inputs, again.nodes, same_output):
        raise CannotFollow("its forward does not do the same twice")
    named = dict(model.named_modules(remove_duplicate=False))
    called = {node[1] for node in log.nodes if node[0] == "module"}
    modules: dict[str, Any] = {}
    same: dict[str, str] = {}
    tensors: dict[str, str] = {}
    first: dict[nn.Module, str] = {}
    for path, module in named.items():
        kind = kinds.kind_of(module)
        if kind is None:
            for name in _names(module):
                key = f"{path}.{name}" if path else name
                if key in state:
                    tensors[key] = "parameter" if name in module._parameters else "buffer"
        elif path in called or any((f"{path}.{name}" if path else name) in state for name in _names(module)):
            if module in first:
                same[path] = first[module]
            else:
                first[module] = path
                modules[path] = [kind.word, kind.describe(module)]
    for path in (*modules, *same, *tensors):
        if path and not is_path(path):
            raise CannotFollow(f"{path!r:.100} is no name that a model made of a file could have")
    for name in log.inputs:
        if not is_input(name):
            raise CannotFollow(f"{name!r:.100} is no name that an input could have")
    about = {
        "inputs": log.inputs, "modules": modules, "same": same, "tensors": tensors, "nodes": log.nodes,
        "output": output,
    }  # fmt: skip
    text = json.dumps(about, separators=(",", ":"), allow_nan=False)
    if len(text) > MOST_TEXT:
        raise CannotFollow(f"its graph takes {len(text)} characters, more than {MOST_TEXT}")
    built = build(parse(text), state)
    own = [f"{path}.weight_values".lstrip(".") for path, (word, _) in modules.items() if word.startswith("sparse_")]
    if len({state[key].data_ptr() for key in own if state[key].numel()}) < sum(state[key].numel() > 0 for key in own):
        raise CannotFollow("its sparse layers share tensors")
    for path in modules:
        if why := kinds.why_not_alike(named[path], built.get_submodule(path)):
            raise CannotFollow(f"{path}: {why}")
    return text


def _names(module: nn.Module) -> list[str]:
    return [*module._parameters.keys(), *module._buffers.keys()]


def _said(error: Exception) -> str:
    try:
        return f": {(str(error).splitlines() or [''])[0]:.200}"
    except CannotFollow:  # it holds a value
        return ""
