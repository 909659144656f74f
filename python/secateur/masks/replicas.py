"""Masks of replicas: DistributedDataParallel and FullyShardedDataParallel take them from rank 0, as they do marks.

Both wrappers send the buffers of one process to the others when they are made, so that all begin alike. A mask is no
buffer; it is sent where a wrapper takes its model in, which every process does at the same point.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from . import marks


def _taken_in(wrapper: nn.Module, name: str, model: nn.Module | None) -> None:
    if name == "_fsdp_wrapped_module" or (
        name == "module" and isinstance(wrapper, nn.parallel.DistributedDataParallel)
    ):
        group = wrapper.__dict__.get("process_group")
        if isinstance(model, nn.Module) and group is not None and group.size() > 1:
            _send(model, group, wrapper.__dict__.get("parameters_to_ignore", ()))


def _send(model: nn.Module, group: Any, ignored: Any) -> None:
    for path, module in model.named_modules():
        for parameter in marks.masked_parameters(module):
            name = marks.buffer_name(parameter)
            mask = marks.get_mask(module, parameter)
            if mask is None or mask.device.type == "meta" or (f"{path}.{name}" if path else name) in ignored:
                continue
            sent = mask.detach().clone()
            torch.distributed.broadcast(sent, group=group, group_src=0)
            marks.note(module, parameter, marks.write(module, parameter, mask, sent))


register_module_module_registration_hook(_taken_in)
