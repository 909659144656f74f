"""What the matrices of RNN, LSTM and GRU see: each layer's input and the state before each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .._base.errors import Error


def inputs_of(module: nn.RNNBase, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The inputs [steps, F] of one matrix, such as ``weight_hh_l1_reverse``: its layers below are run one by one."""
    given = dict(zip(("input", "hx"), args, strict=False)) | dict(kwargs)
    x, hx = given["input"], given.get("hx")
    if isinstance(x, PackedSequence):
        raise Error(
            f"prune: {type(module).__name__} must be called with a tensor for its inputs to be known, got packed"
        )
    if x.dim() == 2:  # without a batch
        x = x.unsqueeze(0 if module.batch_first else 1)
        hx = None if hx is None else tuple(h.unsqueeze(1) for h in hx) if isinstance(hx, tuple) else hx.unsqueeze(1)
    if module.batch_first:
        x = x.transpose(0, 1)  # [L, N, F]
    parts = parameter.removeprefix("weight_").split("_")  # ih or hh, l0, reverse
    wanted, backwards = int(parts[1][1:]), len(parts) > 2
    directions = 2 if module.bidirectional else 1
    for layer in range(wanted):
        x = torch.cat([_run(module, layer, d, x, hx) for d in range(directions)], -1)
    if parts[0] == "ih":
        return [x.reshape(-1, x.shape[-1])]
    state = _run(module, wanted, int(backwards), x, hx)  # [L, N, H]
    first = _state(module, wanted, int(backwards), hx, state)
    before = torch.cat([state[1:], first]) if backwards else torch.cat([first, state[:-1]])
    return [before.reshape(-1, before.shape[-1])]


def cell_input(module: nn.RNNCellBase, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    given = dict(zip(("input", "hx"), args, strict=False)) | dict(kwargs)
    x: Tensor = given["input"]
    if parameter == "weight_ih":
        return x
    hx = given.get("hx")
    hx = hx[0] if isinstance(hx, tuple) else hx
    return x.new_zeros(*x.shape[:-1], module.hidden_size) if hx is None else hx


def _state(module: nn.RNNBase, layer: int, direction: int, hx: Any, like: Tensor) -> Tensor:
    """The hidden state before the first step, [1, N, H]."""
    if hx is None:
        return like.new_zeros(1, like.shape[1], module.hidden_size)
    number = layer * (2 if module.bidirectional else 1) + direction
    h: Tensor = (hx[0] if isinstance(hx, tuple) else hx)[number : number + 1]
    return h


def _run(module: nn.RNNBase, layer: int, direction: int, x: Tensor, hx: Any) -> Tensor:
    """One layer in one direction over x [L, N, F]: its states [L, N, H], in the order of the input."""
    number = layer * (2 if module.bidirectional else 1) + direction
    weights = [getattr(module, name) for name in module._all_weights[number]]
    x = x.flip(0) if direction else x
    if hx is None:
        zero = x.new_zeros(1, x.shape[1], module.hidden_size)
        state = (zero, zero) if isinstance(module, nn.LSTM) else zero
    elif isinstance(hx, tuple):
        state = tuple(h[number : number + 1] for h in hx)
    else:
        state = hx[number : number + 1]
    kernel: Any = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}[
        module.mode
    ]
    out: Tensor = kernel(x, state, weights, module.bias, 1, 0.0, False, False, False)[0]
    return out.flip(0) if direction else out
