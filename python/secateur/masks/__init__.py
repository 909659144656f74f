"""Masks: zeros baked into a plain Parameter, one bit a weight beside it, re-applied after each optimizer step.

``buffers`` keeps them on modules; ``models`` takes them from a model's zeros, a state_dict, another process;
``optimizer_hooks`` re-applies them; ``weights`` finds the weights of a model by name; ``sharding`` is for FSDP.
"""

from . import optimizer_hooks, replicas  # noqa: F401  (they register their hooks with torch)
from .buffers import (
    Mark,
    Theta,
    apply,
    attach,
    buffer_name,
    check_room,
    detach,
    get_mask,
    mark_of,
    masked_modules,
    masked_parameters,
    strip,
)
from .models import adopt, broadcast, match_state_dict

__all__ = [
    "Mark",
    "Theta",
    "adopt",
    "apply",
    "attach",
    "broadcast",
    "buffer_name",
    "check_room",
    "detach",
    "get_mask",
    "mark_of",
    "masked_modules",
    "masked_parameters",
    "match_state_dict",
    "strip",
]
