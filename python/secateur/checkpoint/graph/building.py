"""From a checked description, and the tensors of its file, to a module: of this package's own tables alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from ... import masks
from ...graph.rewritten import RewrittenModule, as_graph_module
from ...nn import SparseConv2d, SparseLinear
from . import words
from .description import Description, Node, Reference, is_path
from .skeleton import MOST_MODULES


class Sized(Protocol):
    """A tensor of the file, of which the sizes are known."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> torch.dtype: ...


class LoadedModel(nn.Module):
    """The root of a model that is made of a file: its name is that of the model's class."""


def build(about: Description, tensors: Mapping[str, Sized]) -> nn.Module:
    """The model on the meta device, in evaluation mode.

    Args:
        about: the description. tensors: those of the file, by their state_dict keys; nothing of them but the sizes and
            dtypes is read.

    Raises:
        ValueError: the description and the tensors are not of one model.
    """
    own: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, tensor in tensors.items():
        path, _, name = key.rpartition(".")
        own.setdefault(path, {})[name] = tuple(tensor.shape)
    made: dict[str, nn.Module] = {}
    for path, (kind, given) in about.modules.items():
        made[path] = kind.build(path, own.get(path, {}), given)
    root = made[""] if "" in made else _placed(about, made)
    _fit(root, tensors)
    for module in root.modules():
        module.training = False  # eval() would run what is overridden
    if "" in made:
        return root
    try:
        return _with_graph(root, about)
    except ValueError:
        raise
    except Exception as error:  # of torch.fx, which makes the forward
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"its graph makes no forward: {said}") from None


def _placed(about: Description, made: Mapping[str, nn.Module]) -> nn.Module:
    root: nn.Module = LoadedModel()
    containers: dict[str, nn.Module] = {"": root}

    def place_of(path: str) -> tuple[nn.Module, str]:
        parent, _, name = path.rpartition(".")
        at, where = root, ""
        for part in parent.split(".") if parent else ():
            where = f"{where}.{part}" if where else part
            if where not in containers:
                if where in made or where in about.same or len(containers) > MOST_MODULES:
                    raise ValueError(f"{path!r:.60} must not stand inside of {where!r:.60}")
                containers[where] = nn.Module()
                at.add_module(part, containers[where])
            at = containers[where]
        if path in containers or name in at._modules:
            raise ValueError(f"{path!r:.60} is there twice")
        return at, name

    for path in (*about.modules, *about.same):
        at, name = place_of(path)
        at.add_module(name, made[about.same.get(path, path)])
    for path, is_parameter in about.tensors.items():
        at, name = place_of(path)
        if name in at._parameters or name in at._buffers:
            raise ValueError(f"{path!r:.60} is there twice")
        empty = torch.empty((), device="meta")
        if is_parameter:
            at.register_parameter(name, nn.Parameter(empty))
        else:
            at.register_buffer(name, empty)
    return root


def state_of(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The keys of a model's state_dict without masks, and whose tensors they are."""
    found: dict[str, tuple[nn.Module, str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        own_masks = {masks.buffer_name(name) for name in masks.masked_parameters(module)}
        for table, left_out in ((module._parameters, ()), (module._buffers, module._non_persistent_buffers_set)):
            for name, value in table.items():
                if value is not None and name not in left_out and name not in own_masks:
                    found[f"{path}.{name}" if path else name] = module, name
    return found


def _fit(root: nn.Module, tensors: Mapping[str, Sized]) -> None:
    """Give every tensor its size and dtype in the file."""
    state = state_of(root)
    if state.keys() != tensors.keys():
        differ = sorted(state.keys() ^ tensors.keys())
        raise ValueError(f"the tensors of its modules must be those of the file, but differ in {differ[:5]!r:.200}")
    loose = {id(m) for m in root.modules() if type(m) in (nn.Module, LoadedModel)}
    for key, (module, name) in state.items():
        tensor, old = tensors[key], getattr(module, name)
        if id(module) not in loose and tuple(old.shape) != tuple(tensor.shape):
            raise ValueError(f"{key} must be {list(old.shape)}, got {list(tensor.shape)}")
        alike = tensor.dtype == old.dtype or (tensor.dtype.is_floating_point and old.dtype.is_floating_point)
        if id(module) not in loose and not alike:
            raise ValueError(f"{key} must be {old.dtype}, got {tensor.dtype}")
        put(module, name, torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="meta"))


def put(module: nn.Module, name: str, value: Tensor) -> None:
    """A parameter or buffer with other memory."""
    old = module._parameters.get(name)
    if old is None:
        module._buffers[name] = value
        return
    learns = old.requires_grad and (value.is_floating_point() or value.is_complex())
    module._parameters[name] = nn.Parameter(value, requires_grad=learns)


def _with_graph(root: nn.Module, about: Description) -> RewrittenModule:
    graph = fx.Graph()
    values = [graph.placeholder(name) for name in about.inputs]
    state = {key for key in state_of(root) if is_path(key)}
    for node in about.nodes:
        if node.what == "tensor" and node.word not in state:
            raise ValueError(f"{node.word!r:.60} must be a tensor of the file")
        values.append(_made(graph, node, values))
    graph.output(_argument(about.output, values))
    return as_graph_module(root, graph)


def _made(graph: fx.Graph, node: Node, values: list[fx.Node]) -> fx.Node:
    args = tuple(_argument(one, values) for one in node.args)
    kwargs = {name: _argument(one, values) for name, one in node.kwargs}
    if node.what == "function":
        return graph.call_function(words.FUNCTIONS[node.word], args, kwargs)
    if node.what == "method":
        return graph.call_method(node.word, args, kwargs)
    if node.what == "module":
        return graph.create_node("call_module", node.word, args, kwargs)
    if node.what == "tensor":
        return graph.create_node("get_attr", node.word)
    return graph.call_function(getattr, (args[0], node.word))


def _argument(value: Any, values: list[fx.Node]) -> Any:
    kind = type(value)
    if kind is Reference:
        return values[value.number]
    if kind in (list, tuple):
        return kind(_argument(one, values) for one in value)
    if kind is dict:
        return {key: _argument(one, values) for key, one in value.items()}
    if kind is slice:
        return slice(*(_argument(one, values) for one in (value.start, value.stop, value.step)))
    return value


def take_memory(model: nn.Module, tensors: Mapping[str, Sized], device: Any = "cpu") -> None:
    """Give the tensors of a model on the meta device memory: names of one tensor of the file share it.

    Raises:
        ValueError: two sparse layers share one.
    """
    made: dict[int, Tensor] = {}
    shared: dict[tuple[int, bool], Tensor] = {}
    sparse: dict[int, tuple[nn.Module, str]] = {}
    for key, (module, name) in state_of(model).items():
        tensor = tensors[key]
        if isinstance(module, SparseConv2d | SparseLinear) and name != "bias":
            if sparse.setdefault(id(tensor), (module, name)) != (module, name) or id(tensor) in made:
                raise ValueError(f"{key} must be a tensor of its own")
            # Without nonzeros until it is filled, for mask and values must fit at any time.
            shape = (0,) if name == "weight_values" else tuple(tensor.shape)
            put(module, name, torch.zeros(shape, dtype=tensor.dtype, device=device))
            continue
        if id(tensor) in sparse:
            raise ValueError(f"{key} must be a tensor of its own")
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device=device)
        is_parameter = name in module._parameters
        one = shared.get((id(tensor), is_parameter))
        if one is None:
            put(module, name, made[id(tensor)])
            held = module._parameters[name] if is_parameter else module._buffers[name]
            assert held is not None
            shared[id(tensor), is_parameter] = held
        elif is_parameter:
            module._parameters[name] = one  # type: ignore[assignment]
        else:
            module._buffers[name] = one
