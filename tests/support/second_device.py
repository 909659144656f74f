"""A device that is not the CPU, without its hardware: tensors that say they are elsewhere, and copies that are counted.

A tensor of this device holds a CPU tensor, which its operators run on; to everyone else it is on ``second:0``, as
torch's dispatcher, modules and autograd see it. As on a GPU, one operator does not take tensors of both devices, and
what comes to the host comes by a copy: :class:`Watch` notes each with its size.

torch takes a backend written in Python once a process, and then thinks that the machine has an accelerator: only a
process of its own may import this module.
"""

from __future__ import annotations

from typing import Any

import torch
from secateur._base import tensors
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("second")
SECOND = torch.device("second:0")
_aten = torch.ops.aten


class There(Tensor):
    """A tensor of the second device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        made: There = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=SECOND, requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> There:
        if id(self) not in memo:
            made: Any = There(self.held.detach().clone())
            memo[id(self)] = nn.Parameter(made, self.requires_grad) if isinstance(self, nn.Parameter) else made
        return memo[id(self)]  # type: ignore[no-any-return]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"There({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} on the second device outside of Watch")


tensors.PLAIN.add(There)


class Watch(TorchDispatchMode):
    """Runs the second device's operators. ``copies``: (operator, elements) of every value that came to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[tuple[str, int]] = []

    def largest(self) -> int:
        return max((size for _, size in self.copies), default=0)

    def large(self, limit: int) -> list[tuple[str, int]]:
        return [(name, size) for name, size in self.copies if size > limit]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        there = [t for t in tree_leaves((args, kwargs)) if isinstance(t, There)]
        wanted = kwargs.get("device")
        goes_there = torch.device(wanted).type == SECOND.type if wanted is not None else bool(there)
        if not there and not goes_there:
            return function(*args, **kwargs)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        name = function.overloadpacket._qualified_op_name
        if function in (_aten._local_scalar_dense.default, _aten.equal.default):
            self.copies.append((name, 1))
        elif there and not goes_there:
            self.copies.append((name, max(t.numel() for t in there)))
        if function is _aten.copy_.default and not isinstance(args[0], There):
            self.copies.append((name, args[1].numel()))
            goes_there = False
        elif function not in (_aten.copy_.default, _aten._to_copy.default) and there:
            here = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and not isinstance(t, There)]
            for t in here:
                if t.dim() > 0 and t.device.type != "meta":  # as on a GPU, numbers come along with their operator
                    raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {SECOND} and cpu")
        out = function(*tree_map_only(There, lambda t: t.held, args), **tree_map_only(There, lambda t: t.held, kwargs))
        return tree_map_only(Tensor, lambda t: _again(t, there), out) if goes_there else out


def _again(made: Tensor, there: list[There]) -> There:
    """An operator in place returns the very tensor that it was given."""
    for tensor in there:
        if tensor.held is made:
            return tensor
    return There(made)
