"""Tensors into a model, all of them or none: everything that can be refused is refused before the first is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX as _EXTRA_STATE_KEY

from .. import masks
from .._base.checks import names_of
from .._base.errors import Error
from .._base.signals import held_signals
from ..engine.compiled import CompiledModel
from ..masks import Theta, buffer_name
from ..masks.weights import Weight, weights_of
from ..nn.sparse_conv2d import SparseConv2d
from ..nn.sparse_linear import SparseLinear
from ..nn.threshold_relu import ThresholdReLU
from . import rules
from .names import Names, modules_of, tensor_names
from .ordinary import kind_of_tensor
from .saving import masked_keys, memory_of, state_of


class Incoming(Protocol):
    """A tensor to be loaded: it knows its shape and dtype, and writes itself into a flat one on the CPU."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def fill(self, flat: Tensor) -> None: ...


def dense(tensor: Incoming) -> Tensor:
    made = torch.empty(tensor.shape, dtype=tensor.dtype)
    tensor.fill(made.reshape(-1))
    return made


class Filling:
    """A model to be filled. The constructor checks names, shapes and dtypes. :meth:`prepare` checks the contents, and
    takes all memory. :meth:`commit` writes."""

    def __init__(self, model: nn.Module, tensors: Mapping[str, Incoming], masked: set[str], caller: str) -> None:
        self.model, self.caller = model, caller
        state = state_of(model, caller)
        own_masks = {buffer_name(key) for key in masked_keys(model)}
        self.target = {key: value for key, value in state.items() if key not in own_masks}
        self._names = Names(model).matched(tensors, self.target)
        self.tensors = {self._names[key]: tensor for key, tensor in tensors.items()}
        modules = dict(modules_of(model))
        self._places = {
            rules.joined(name, tensor): (module, tensor)
            for name, module in modules.items() for tensor in tensor_names(module)
        }  # fmt: skip
        owned = {
            t.untyped_storage().data_ptr()
            for t in (*model.parameters(), *model.buffers()) if kind_of_tensor(t) is None
        }  # fmt: skip
        self._extra: dict[str, nn.Module] = {}
        for key, value in self.target.items():
            module, _, name = key.rpartition(".")
            if name == _EXTRA_STATE_KEY:
                self._extra[key] = modules[module]
            elif value.numel() and key not in self._places and value.untyped_storage().data_ptr() not in owned:
                raise Error(
                    f"{caller}: {key} must be a parameter or a buffer of the model to be filled, but a state_dict hook "
                    "makes it"
                )
        self._resized: dict[tuple[int, str], tuple[nn.Module, str, Tensor]] = {}
        self._compare()
        self._weights = self._maskable({self._names[key] for key in masked})

    @property
    def largest(self) -> int:
        """The bytes of the model's largest tensor."""
        return max((value.numel() * value.element_size() for value in self.target.values()), default=0)

    def prepare(self, bits: Mapping[str, tuple[Tensor, Theta | None]]) -> None:
        """Check the tensors that have rules of their own, and take all memory that will be needed.

        Args:
            bits: the packed masks of the masked parameters, by key.

        Raises:
            Error: a scale, threshold or packed weight that its layer cannot take.
        """
        tensors = self.tensors
        rules.check(
            rules.layers_of(modules_of(self.model)),
            lambda key: dense(tensors[key]) if key in tensors else None,
            self.caller,
        )
        self._bits: dict[str, tuple[Tensor, Theta | None]] = {}
        self._new: dict[tuple[int, str], Tensor] = {}
        for name, module in modules_of(self.model):
            if isinstance(module, SparseConv2d | SparseLinear):
                values = tensors[rules.joined(name, "weight_values")]
                module._check(
                    dense(tensors[rules.joined(name, "weight_mask")]),
                    torch.empty(values.shape, dtype=values.dtype, device="meta"),
                )
        first: dict[tuple[Any, ...], str] = {}
        for key, value in self.target.items():
            one = first.setdefault(memory_of(value), key)
            if value.numel() and not _same(tensors[one], tensors[key]):
                why = f"{one} and {key} must be equal, for they are one tensor in the model, but they differ"
                raise Error(f"{self.caller}: {why}")
        for key, value in self.target.items():
            if tuple(value.shape) != tensors[key].shape:
                module, name = self._places[key]
                self._new[id(module), name] = torch.empty(tensors[key].shape, dtype=value.dtype, device=value.device)
        for given, (mask, theta) in bits.items():
            key = self._names[given]
            self._bits[key] = mask.to(self._weights[key].value.device), theta
        through = [
            tensors[key].dtype.itemsize * value.numel() for key, value in self.target.items() if not _direct(value)
        ]
        self._staging = torch.empty(max(through, default=0), dtype=torch.uint8)

    def commit(self) -> None:
        """Write everything. Ctrl-C waits until it is done."""
        with held_signals(repeated=True), torch.no_grad():
            for key in self.target:
                place = self._places.get(key)
                if place is not None and (id(place[0]), place[1]) in self._new:
                    self.target[key] = _replace(*place, self._new[id(place[0]), place[1]])
            written: dict[tuple[Any, ...], Incoming] = {}
            for key, value in self.target.items():
                memory = memory_of(value)
                if value.numel() and written.get(memory) is not self.tensors[key]:
                    written[memory] = self.tensors[key]
                    self._write(value, self.tensors[key])
            self._mask()
            for key, module in self._extra.items():
                module.set_extra_state(self.target[key])
            for module in self.model.modules():
                if isinstance(module, SparseConv2d | SparseLinear):
                    module._plan = module.dense_weight = None
                elif isinstance(module, CompiledModel):
                    module._stale()

    def _write(self, value: Tensor, tensor: Incoming) -> None:
        if _direct(value):
            tensor.fill(value.detach().view(-1))
            if not value.is_inference():
                torch.autograd.graph.increment_version(value)
            return
        flat = self._staging[: value.numel() * value.element_size()].view(value.dtype)
        tensor.fill(flat)
        value.copy_(flat.reshape(value.shape))

    def _mask(self) -> None:
        first: dict[nn.Module, str] = {}
        for name, module in modules_of(self.model):
            first.setdefault(module, name)
        for module, name in first.items():
            for parameter in masks.masked_parameters(module):
                if rules.joined(name, parameter) not in self._bits:
                    masks.detach(module, parameter)
        for key, (mask, theta) in self._bits.items():
            for module, parameter in self._weights[key].places:
                masks.attach(module, parameter, mask, theta)

    def _maskable(self, masked: set[str]) -> dict[str, Weight]:
        by_place = {(id(m), name): w for w in weights_of(self.model, self.caller) for m, name in w.places}
        found: dict[str, Weight] = {}
        for key in masked:
            module, name = self._places.get(key, (None, ""))
            weight = by_place.get((id(module), name))
            if weight is None or weight.problem is not None or weight.foreign is not None:
                why = "the model has no such weight" if weight is None else None
                why = why or (weight and weight.problem) or "torch.nn.utils.prune holds it"
                raise Error(f"{self.caller}: {key} is masked in the file and must be able to take its mask: {why}")
            for owner, parameter in weight.places:
                masks.check_room(owner, parameter, weight.label, self.caller)
            found[key] = weight
        return found

    def _compare(self) -> None:
        """The tensors against the model's: names, shapes, dtypes."""
        tensors, target, caller = self.tensors, self.target, self.caller
        missing, unexpected = sorted(target.keys() - tensors.keys()), sorted(tensors.keys() - target.keys())
        if missing or unexpected:
            parts = [f"the file lacks {names_of(missing, 5)}"] if missing else []
            parts += [f"the model lacks {names_of(unexpected, 5)}"] if unexpected else []
            hint = ""
            for names, whose, what in (
                (unexpected, "the file is of a quantized model", "load it into what secateur.quantize made"),
                (missing, "the model is quantized", "load the file into the model that secateur.quantize was given"),
            ):
                if any(name.endswith("weight_int8") for name in names):
                    hint = f" ({whose}: {what})"
            raise Error(f"{caller}: file and model must hold the same names, but {' and '.join(parts)}{hint}")
        for key, value in target.items():
            tensor = tensors[key]
            if tensor.shape != tuple(value.shape) and not self._may_resize(key, value, tensor):
                raise Error(f"{caller}: {key} must be {list(value.shape)} as in the model, got {list(tensor.shape)}")
            if tensor.dtype != value.dtype:
                raise Error(
                    f"{caller}: {key} must be {value.dtype} as in the model, got {tensor.dtype} "
                    "(convert the model with .to(dtype) first)"
                )
            if value.is_inference() and not torch.is_inference_mode_enabled():
                raise Error(f"{caller}: {key} must not be an inference tensor, which nobody may write")
            if value.numel() and any(s == 0 and n > 1 for s, n in zip(value.stride(), value.shape, strict=True)):
                raise Error(f"{caller}: {key} must be a tensor of its own to be filled, but it is an expanded view")

    def _may_resize(self, key: str, value: Tensor, tensor: Incoming) -> bool:
        """Whether the size may change: the number of a layer's nonzeros; one theta to one for each channel."""
        module, name = self._places.get(key, (None, ""))
        if isinstance(module, SparseConv2d | SparseLinear) and name == "weight_values":
            return len(tensor.shape) == 1
        return isinstance(module, ThresholdReLU) and name == "theta" and value.dim() == 0 and len(tensor.shape) == 1


def _same(a: Incoming, b: Incoming) -> bool:
    """Whether both have the same bits."""
    return a is b or torch.equal(dense(a).reshape(-1).view(torch.uint8), dense(b).reshape(-1).view(torch.uint8))


def _direct(value: Tensor) -> bool:
    """Whether a tensor can be written where it lies."""
    return value.device.type == "cpu" and value.is_contiguous() and not value.is_conj() and not value.is_neg()


def _replace(module: nn.Module, name: str, new: Tensor) -> Tensor:
    if name in module._parameters:
        old = module._parameters[name]
        module._parameters[name] = nn.Parameter(new, requires_grad=old is not None and old.requires_grad)
    else:
        module._buffers[name] = new
    return new
