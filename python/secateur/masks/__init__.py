"""Masks: zeros baked into a plain Parameter, one bit a weight beside it, re-applied after each optimizer step.

``marks`` is what a masked module carries, ``agreement`` notices masks whose bits were changed, ``states`` is their part
in a state_dict; ``buffers`` gives them to modules and takes them away; ``models`` takes them from a model's zeros, a
state_dict, another process; ``optimizer_hooks`` re-applies them; ``weights`` finds the weights of a model by name;
``sharding`` is for FSDP, ``replicas`` for DistributedDataParallel.
"""

from . import optimizer_hooks, replicas  # noqa: F401  (they register their hooks with torch)
from .buffers import apply, attach, check_room, detach, masked_modules, strip
from .marks import Mark, Theta, buffer_name, get_mask, mark_of, masked_parameters
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
