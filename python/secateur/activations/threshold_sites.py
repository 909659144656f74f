"""A copy of the model, calibrated, with a ThresholdReLU in place of every ReLU that can be replaced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from .._base.batches import inputs_of
from .._base.copies import own_copy
from .._base.errors import Error
from .._base.held import every_module, exchange, unregistered
from .._base.tensors import same
from .._base.trial import trial
from .._base.wrappers import unwrapped
from ..graph.other_inputs import other_inputs
from ..graph.tracing import writers_of
from ..graph.writes import statically_writing
from ..nn.threshold_relu import ThresholdReLU
from ..nn.trainable_threshold import freeze_thresholds
from .calibration import Calibrator, ChannelStatistics
from .relu_sites import FUNCTIONS, needs_rewriting, relu_kind, rewrite, watch


@dataclass
class Placed:
    """What :func:`place` gives: thresholds are 0 so far, and the model is in the mode of the one that was given."""

    model: nn.Module
    sites: dict[str, ChannelStatistics]  # by the layer's name
    layers: dict[str, ThresholdReLU]
    to_warn: list[str]  # warnings for the user

    def set(self, thetas: Mapping[str, Tensor]) -> None:
        for name, theta in thetas.items():
            self.layers[name].theta = theta.clone()

    def zero(self) -> None:
        """Plain ReLUs again."""
        self.set({name: torch.zeros_like(layer.theta) for name, layer in self.layers.items()})


def place(model: nn.Module, batches: Iterable[Any], exclude: Sequence[str], progress: bool, caller: str) -> Placed:
    """Calibrate every ReLU on ``batches`` in one pass; errors are the ``caller``'s."""
    if not isinstance(model, nn.Module):
        raise Error(f"{caller}: model must be a torch.nn.Module, got {type(model).__name__}")
    model = unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise Error(f"{caller}: model must be the module itself, got what TorchScript made of it")
    if not isinstance(exclude, Sequence) or isinstance(exclude, str) or not all(isinstance(p, str) for p in exclude):
        raise Error(f"{caller}: exclude must be a sequence of names or patterns, got {exclude!r}")
    if not isinstance(batches, Iterable):
        raise Error(f"{caller}: batches must be an iterable of batches, got {type(batches).__name__}")
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if t.is_meta:
            raise Error(f"{caller}: model must have values, but {name} is on the meta device")
    stream = inputs_of(model, batches, caller)
    first = next(stream, None)
    if first is None:
        raise Error(f"{caller}: batches must hold at least one batch, got none")
    if isinstance(batches, Tensor):
        raise Error(f"{caller}: batches must be an iterable of batches, got one tensor: write [tensor]")

    watched = _instrument(model, first, tuple(exclude), caller)
    _try_other_sizes(watched, first)
    try:
        length = len(batches)  # type: ignore[arg-type]
    except TypeError:
        length = None
    # _instrument has shown the first batch to the calibrators already.
    for batch in tqdm(stream, desc="calibrating", total=length, initial=1, disable=not progress, leave=False):
        with trial(watched.model):
            watched.model(batch.clone())
    placed = _swap(watched)
    twins = every_module(placed.model)
    for name, module in every_module(model).items():
        twin = twins.get(name)
        if isinstance(module, ThresholdReLU) and isinstance(twin, ThresholdReLU) and name not in placed.layers:
            twin.theta = module.theta.detach().clone()  # an excluded one stays as it is, thresholds and all
    return placed


@dataclass
class _Watched:
    """A copy of the model with a Calibrator at every ReLU."""

    model: nn.Module
    caller: str
    writers: dict[nn.Module, str]  # modules whose forward writes what outlives the call, and what
    found: int = 0
    excluded: set[str] = field(default_factory=set)  # names that a pattern of ``exclude`` matched
    unmatched: set[str] = field(default_factory=set)  # patterns that have matched nothing so far
    missed: list[str] = field(default_factory=list)  # why some ReLUs can't be replaced


def _instrument(model: nn.Module, first: Tensor, exclude: tuple[str, ...], caller: str) -> _Watched:
    """Find the ReLUs, put calibrators in their place, and run the first batch through them."""
    problem = None
    for trace in (True, False):
        work = freeze_thresholds(own_copy(model, caller))
        for module in every_module(work).values():
            if isinstance(module, ThresholdReLU):
                module.theta = torch.zeros_like(module.theta)  # calibrate the network as it is without thresholds
        with trial(work) as state, watch(work) as seen:
            theirs = first.clone()  # what is left in the input is compared too
            expected = _first_run(work, theirs, caller)
            changed = state.changes()
        watched = _Watched(work, caller, _writers(work, first, changed), unmatched=set(exclude))
        if problem is not None:
            watched.missed.append(problem)
        _replace_all(watched, seen, exclude, trace)
        if watched.found == 0:
            _refuse(watched, caller)
        ours = first.clone()
        with trial(watched.model):
            got = watched.model(ours)
        if same(got, expected) and same(ours, theirs):
            if watched.unmatched:
                raise Error(f"{caller}: exclude must match a ReLU, got {sorted(watched.unmatched)}")
            return watched
        problem = "tracing changed what the model computes, so functional ReLUs were left alone"
    raise Error(f"{caller}: model must compute the same twice in evaluation mode, its outputs differ")


def _try_other_sizes(watched: _Watched, first: Tensor) -> None:
    """Where dim 1 follows the batch or the image size, no threshold a channel would fit the next input."""
    records = [m.record for m in every_module(watched.model).values() if isinstance(m, Calibrator)]
    for record in records:
        record.counting_channels = True
    try:
        for others in other_inputs([first]):
            if others.batch or others.size:
                # The model may not take such a batch or size: nothing is asked of it then.
                with contextlib.suppress(Exception), trial(watched.model):
                    watched.model(*others.args)
    finally:
        for record in records:
            record.counting_channels = False


def _writers(work: nn.Module, first: Tensor, changed: list[str]) -> dict[nn.Module, str]:
    """The modules whose forward writes what outlives the call, and what: in a graph, the write would be lost."""
    writers = {m: what for each in every_module(work).values() for m, what in statically_writing(each).items()}
    if changed:
        with trial(work):
            writers.update(writers_of(work, [first]))
        if not writers:
            writers[work] = ", ".join(changed)
    return writers


def _first_run(model: nn.Module, batch: Tensor, caller: str) -> Any:
    try:
        return model(batch)
    except Error:
        raise
    except Exception as error:
        got = f"{str(batch.dtype).removeprefix('torch.')} {list(batch.shape)}"
        raise Error(
            f"{caller}: batches must be what the model takes, got {got}: {type(error).__name__}: {error}"
        ) from error


def _refuse(watched: _Watched, caller: str) -> None:
    if watched.excluded:
        raise Error(f"{caller}: exclude must leave at least one ReLU, it matches all of them")
    why = "; ".join(watched.missed)
    raise Error(f"{caller}: model must compute a ReLU that can be replaced, found none" + (why and f" ({why})"))


def _replace_all(watched: _Watched, seen: dict[nn.Module, Any], exclude: tuple[str, ...], trace: bool) -> None:
    def make(name: str, limit: float | None, inplace: bool, replaced: nn.Module | None) -> nn.Module:
        patterns = {p for p in exclude if fnmatchcase(name, p)}
        if patterns:
            watched.unmatched -= patterns
            watched.excluded.add(name)
            return _like(replaced, nn.ReLU(inplace) if limit is None else nn.ReLU6(inplace))
        watched.found += 1
        made = Calibrator(name, limit, inplace, watched.caller)
        made.record.replaced = replaced
        return _like(replaced, made)

    work = watched.model
    owners = {m: calls for m, calls in seen.items() if needs_rewriting(m, calls)}
    paths = [*work.named_modules(remove_duplicate=False), *unregistered(work).items()]
    successors: dict[nn.Module, nn.Module] = {}
    for path, module in paths:
        if (kind := relu_kind(module)) is not None:
            if any(fnmatchcase(path, p) for p in exclude) and isinstance(module, ThresholdReLU):
                make(path, *kind, None)  # counts it as excluded; it stays as it is, thresholds and all
                continue
            watched.model = _put(watched.model, path, made := make(path, *kind, module))
            successors.setdefault(module, made)
    # Deepest first: a parent is traced with its children, replaced or not, as leaves.
    rewritten: dict[nn.Module, nn.Module] = {}
    for path, module in sorted(paths, key=lambda item: -item[0].count(".") if item[0] else 1):
        if module not in owners:
            continue
        if module not in rewritten:
            try:
                if not trace:
                    continue
                if module in watched.writers:
                    what = watched.writers[module]
                    raise NotImplementedError(f"its forward writes {what}, which outlives the call")
                rewritten[module] = successors[module] = rewrite(module, path, owners[module], make)
            except Exception as reason:  # whatever a forward may raise when it is given proxies
                watched.missed.append(_cannot(path, module, owners[module], reason))
                rewritten[module] = module
        watched.model = _put(watched.model, path, rewritten[module])
    exchange(watched.model, successors)
    for path, module in paths:
        if isinstance(module, torch.jit.ScriptModule):
            watched.missed.append(f"{path!r} is scripted: ReLUs inside it can't be found")
        elif module not in owners and _holds_function(module):
            where = f"{path!r} ({type(module).__name__})"
            watched.missed.append(f"{where} holds a functional ReLU that was not seen to run: it stays as it is")


def _like(replaced: nn.Module | None, made: nn.Module) -> nn.Module:
    """``made``, with the mode, the hooks and the plain attributes of what it stands for."""
    if replaced is None:
        return made
    for key, value in vars(replaced).items():
        if key == "training" or "hook" in key or key not in vars(made):
            made.__dict__[key] = value
    return made


def _holds_function(module: nn.Module) -> bool:
    """An attribute that is F.relu: nn.TransformerEncoderLayer's, whose fast path computes it inside one operator."""
    return any(value is function for value in vars(module).values() for function in FUNCTIONS)


def _cannot(path: str, module: nn.Module, calls: list[Any], reason: Exception) -> str:
    number = max(c.functional for c in calls)
    what, remedy = "the several calls of one ReLU module", "they share one threshold"
    if number:
        what, remedy = f"{number} functional ReLU call{'s' if number > 1 else ''}", "make them nn.ReLU modules"
    text = str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__
    where = f"{path!r} ({type(module).__name__})" if path else type(module).__name__
    return f"{what} in the forward of {where} could not be reached by tracing it ({text}): {remedy}"


def _put(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    if not path:
        return module
    parent, _, name = path.rpartition(".")
    try:
        holder = model.get_submodule(parent)
    except AttributeError:  # it hangs in a plain attribute: ``exchange`` puts it there
        return model
    if name in holder._modules:
        holder._modules[name] = module
    return model


def _swap(watched: _Watched) -> Placed:
    """Replace the calibrators by ThresholdReLU, or by the original module."""
    found = {path: m for path, m in every_module(watched.model).items() if isinstance(m, Calibrator)}
    placed = Placed(watched.model, {}, {}, list(watched.missed))
    replacement: dict[nn.Module, nn.Module] = {}
    for path, site in found.items():
        seen, replaced = site.record, site.record.replaced
        if seen.mixed:
            placed.to_warn.append(f"{path!r} is called with different numbers of channels: it stays a plain ReLU")
        elif seen.statistics is None or seen.statistics.count == 0:
            placed.to_warn.append(f"{path!r} never ran on the calibration data: it stays a plain ReLU")
        else:
            placed.sites[path] = seen.statistics
            theta = torch.zeros_like(seen.statistics.mean, dtype=torch.float32)
            placed.layers[path] = ThresholdReLU(theta, site.max, site.inplace)
            replacement[site] = _like(replaced, placed.layers[path])
            continue
        replacement[site] = _like(replaced, nn.ReLU(site.inplace) if site.max is None else nn.ReLU6(site.inplace))
    sequences = [path for path in placed.sites if found[path].record.sequences]
    if sequences:
        placed.to_warn.append(
            f"3-d activations of {', '.join(sequences)}: the channel is dim 1, as in Conv1d's [N, C, L]; "
            "where a Linear made them, [N, L, C], that is the position: exclude such layers"
        )
    for path, module in list(placed.model.named_modules(remove_duplicate=False)):
        if module in replacement:
            placed.model = _put(placed.model, path, replacement[module])
    exchange(placed.model, replacement)
    for old, new in replacement.items():
        new.training = old.training
    return placed
