"""What the package promises of any model, held against one module, one call and some inputs.

1. The given model does not notice.  2. The result computes what the model computes.  3. Writes in place and what they
show are torch's.  4. Hooks, kept values and state are the model's.  5. No tracer's object anywhere, no error but Error.
"""

from __future__ import annotations

import copy
import inspect
import io
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import secateur
import torch
from torch import nn

from . import trees
from .calls import Call
from .limits import Hangs, processor_seconds
from .program import Program
from .snapshot import Snapshot

Size = tuple[int, int, int]
EXAMPLES: tuple[Size, ...] = ((2, 8, 8), (1, 8, 8), (4, 9, 7), (3, 8, 10))
OTHERS: tuple[Size, ...] = ((1, 8, 8), (3, 10, 12), (2, 7, 9), (1, 6, 6), (5, 8, 8))
EMPTY: Size = (0, 8, 8)
#: Of processor time; one call and its inputs take a tenth of a second.
LONGEST_S = 6.0
EXTRAS = ("deepcopy", "pickle", "save", "refresh", "gradients", "late hook", "keywords")


@dataclass(frozen=True)
class Failure:
    """``kind`` is what two failures of one cause share."""

    kind: str
    detail: str
    want: str = ""
    got: str = ""


@dataclass
class Outcome:
    """Of one call with one module."""

    refused: str = ""
    wholly_torch: bool = False
    failures: list[Failure] = field(default_factory=list)


@dataclass
class Trial:
    """One module: the sizes that it takes, and what is drawn for it."""

    program: Program
    sizes: list[Size]
    extra: str
    near: trees.Tolerance = field(default=trees.EXACT)
    draw: int = 0


class Dull(Exception):
    """A module that says nothing: it does not run, or its results are constant or not finite."""


def prepare(program: Program, seed: int) -> Trial:
    """Draws the inputs of a module, those alone that plain torch runs. Raises Dull."""
    rng = random.Random(seed)
    sizes = [rng.choice(EXAMPLES), *rng.sample(OTHERS, 2)]
    if rng.random() < 0.5:
        sizes.append(EMPTY)
    sizes.append(sizes[0])
    while True:
        failed, example = _first_that_fails(program, sizes)
        if failed is None:
            break
        if failed == 0 or len(sizes) == 2:
            raise Dull(example)
        del sizes[failed]
    for twice in (program.inputs, partial(_first_result, program)):
        once, again = twice(sizes[0]), twice(sizes[0])
        if trees.difference(once, again, trees.Tolerance(0.0)) is not None:
            raise Dull("not the same twice")
    near = trees.LOW_PRECISION if program.low_precision else trees.EXACT
    return Trial(program, sizes, rng.choice(EXTRAS), near, rng.randrange(1 << 30))


def _first_that_fails(program: Program, sizes: Sequence[Size]) -> tuple[int | None, str]:
    try:
        model = program.make()
    except Exception as error:
        return 0, f"make: {type(error).__name__}: {error}"
    model.eval()
    for i, size in enumerate(sizes):
        try:
            with torch.no_grad():
                out = model(*program.inputs(size))
        except Exception as error:
            return i, f"{type(error).__name__}: {error}"
        if i == 0:
            tensors = [t for t in _leaves(out) if isinstance(t, torch.Tensor) and t.is_floating_point()]
            if not all(bool(t.isfinite().all()) for t in tensors) or not any(float(t.std()) > 1e-3 for t in tensors):
                return 0, "constant or not finite"
    return None, ""


def _first_result(program: Program, size: Size) -> Any:
    model = program.make()
    model.eval()
    with torch.no_grad():
        return model(*program.inputs(size))


def _leaves(value: Any) -> Iterator[Any]:
    parts = trees.children(value)
    if parts is None:
        yield value
    for _, part in parts or []:
        yield from _leaves(part)


def hold(trial: Trial, call: Call) -> Outcome | None:
    """One call on the trial's module. None: it does not take such inputs."""
    program, outcome = trial.program, Outcome()
    example = program.inputs(trial.sizes[0])
    if not call.takes(example):
        return None
    try:
        with processor_seconds(LONGEST_S):
            _hold(trial, call, example, outcome)
    except _Found as found:
        outcome.failures.append(found.failure)
    except _Refused as why:
        outcome.refused = str(why)
    except Hangs as why:
        outcome.failures.append(Failure(f"{call.name}: hangs", str(why)))
    return outcome


class _Refused(Exception):
    """A result refuses an input in an Error that says why."""


class _Found(Exception):
    def __init__(self, kind: str, detail: str, want: str = "", got: str = "") -> None:
        self.failure = Failure(kind, detail, want, got)


def _hold(trial: Trial, call: Call, example: tuple[Any, ...], outcome: Outcome) -> None:
    program = trial.program
    model = program.make()
    in_evaluation = not any(m.training for m in model.modules())
    result = _called(program, call, model, example, outcome, _more(trial, call))
    if result is None:
        return
    if call.name == "compile":
        outcome.wholly_torch = all(row["kernel"] == "torch" for row in _report_of(result))
    if call.evaluates or in_evaluation:
        for name, module in result.named_modules():
            if module.training:
                raise _Found(f"{call.name}: training mode", name or "the result", "evaluation mode", "training mode")
    if trial.extra == "save":
        _saved(trial, call, result)
    reference = program.make()
    reference.eval()
    result.eval()
    pair = _Pair(trial, call, reference, result)
    for size in trial.sizes:
        pair.step(size, "")
    if trial.extra in ("deepcopy", "pickle", "refresh"):
        other = _COPIES[trial.extra](call, reference, result)
        if other is not None:
            pair = _Pair(trial, call, reference, other)
            for size in trial.sizes[-2:]:
                pair.step(size, f"{trial.extra} ")
    if trial.extra == "late hook":
        pair.late_hook(trial.sizes[0])
    if trial.extra == "keywords":
        pair.step(trial.sizes[0], "keywords: ", by_name=True)
    if trial.extra == "gradients" and call.trains:
        pair.gradients(trial.sizes[0])


def _report_of(result: nn.Module) -> Any:
    return result.report.rows  # type: ignore[union-attr]


def _more(trial: Trial, call: Call) -> list[list[Any]]:
    """Where values are rounded: inputs of every size, as a branch that never ran has no range."""
    return [[trial.program.inputs(size)[0] for size in trial.sizes[1:] if size != EMPTY]] if call.integer else []


def _called(
    program: Program, call: Call, model: nn.Module, example: tuple[Any, ...], outcome: Outcome, more: list[list[Any]]
) -> Any:
    program.seen.clear()
    before = Snapshot(model, example)
    raised: Exception | None = None
    result = None
    try:
        result = call.run(model, example, *more)
    except secateur.Error as error:
        outcome.refused = str(error)
        if "must be what the model takes" in str(error) or "does not run on" in str(error):
            blames = str(error)[:300]
            outcome.failures.append(Failure(f"{call.name}: blames the example", blames, "it runs in torch", "an Error"))
    except Exception as error:
        raised = error
    for change in before.changes():
        kind = f"{call.name}: caller's {change.what}"
        outcome.failures.append(Failure(kind, change.where, change.before, change.after))
    if program.seen:
        fired = f"{len(program.seen)} times during the call"
        outcome.failures.append(Failure(f"{call.name}: caller's hooks fire", fired, "not once", fired))
    if raised is not None:
        raise _Found(f"{call.name}: raw {_named(raised)}", str(raised)[:300], "an Error or a result") from raised
    return result


def _named(error: Exception) -> str:
    """An error's type with the first of its words that are no names, so that errors of one cause are one kind."""
    words = [word for word in re.split(r"[^A-Za-z_0-9']+", str(error)) if re.fullmatch(r"[a-z']{2,}", word)]
    return f"{type(error).__name__} {' '.join(words[:6])}".strip()


class _Pair:
    """The model and its result, called with the same inputs one after another."""

    def __init__(self, trial: Trial, call: Call, reference: nn.Module, result: nn.Module) -> None:
        self.trial, self.call, self.reference, self.result = trial, call, reference, result
        self.near = trees.INTEGER if call.integer else trial.near
        self.first_keys = {name: set(vars(m)) for name, m in trial.program.make().named_modules()}

    def step(self, size: Size, tag: str, by_name: bool = False) -> None:
        program = self.trial.program
        theirs, ours = program.inputs(size), program.inputs(size)
        names = _names_of(self.reference) if by_name else []
        want, want_seen = _run(program, self.reference, theirs, names)
        try:
            got, got_seen = _run(program, self.result, ours, names)
        except Exception as error:
            if isinstance(error, secateur.Error) and str(error).startswith("ThresholdReLU: x must have"):
                raise _Refused(str(error)) from error  # channels that follow the image size: refused, in words
            name = f"{self.call.name}: {tag}call raises {_named(error)}"
            raise _Found(name, f"inputs{size}: {str(error)[:300]}") from error
        self._same(want, got, size, f"{tag}", "output")
        self._same(theirs, ours, size, f"{tag}input left ", "input")
        if len(want_seen) != len(got_seen):
            kind = f"{self.call.name}: {tag}hooks not called alike"
            raise _Found(kind, f"inputs{size}", f"{len(want_seen)} times", f"{len(got_seen)} times")
        self._same(want_seen, got_seen, size, f"{tag}hook sees ", "SEEN")
        self._kept(size, tag)

    def late_hook(self, size: Size) -> None:
        """A hook that is registered on a part of the result fires from then on, or registering it is refused."""
        theirs = dict(self.reference.named_modules())
        paths = [
            path for path, _ in self.result.named_modules() if path in theirs and not _is_script(theirs, path)
        ]  # fmt: skip
        path = random.Random(self.trial.draw).choice(paths)
        want: list[Any] = []
        got: list[Any] = []
        try:
            self.result.get_submodule(path).register_forward_hook(partial(_note, got))
        except secateur.Error:
            return
        theirs[path].register_forward_hook(partial(_note, want))
        self.step(size, f"late hook: {type(theirs[path]).__name__}: ")
        if len(want) != len(got):
            kind = f"{self.call.name}: late hook not called alike"
            raise _Found(kind, f"{path} of inputs{size}", f"{len(want)} times", f"{len(got)} times")
        if not self.call.integer:  # a folded BatchNorm's place gives what the layer before it gives
            self._same(want, got, size, "late hook sees ", path)

    def gradients(self, size: Size) -> None:
        """With gradients on: what has one has one, kept values too, and a step's gradients are the model's."""
        program = self.trial.program
        try:
            want = self._tracked(program, self.reference, size)
            _backward(want)
        except RuntimeError:
            return  # torch itself has no gradient here
        try:
            got = self._tracked(program, self.result, size)
            _backward(got)
        except Exception as error:
            name = f"{self.call.name}: backward raises {_named(error)}"
            raise _Found(name, f"inputs{size}: {str(error)[:300]}") from error
        for name, t in want.items():
            if name in got and t.requires_grad != got[name].requires_grad:
                said = [f"requires_grad={x.requires_grad}" for x in (t, got[name])]
                raise _Found(f"{self.call.name}: gradient lost", f"{name} of inputs{size}", *said)
        if self.call.integer:
            return  # its gradients are those of rounded weights
        ours = dict(self.result.named_parameters())
        for name, p in self.reference.named_parameters():
            if p.grad is not None and name in ours:
                self._same(p.grad, ours[name].grad, size, "gradient ", name)

    def _tracked(self, program: Program, model: nn.Module, size: Size) -> dict[str, torch.Tensor]:
        """Results and kept values by name."""
        out = model(*program.inputs(size))
        found = dict(_tensors(out, "output"))
        for path, module in self.reference.named_modules():
            if not trees.is_foreign(module) and not isinstance(module, torch.jit.ScriptModule):
                for name in set(vars(module)) - {"training"}:
                    if not name.startswith("_"):
                        value = getattr(model.get_submodule(path), name, None)
                        found |= dict(_tensors(value, f"{path}.{name}"))
        return found

    def _same(self, want: Any, got: Any, size: Size, kind: str, where: str) -> None:
        found = trees.difference(want, got, self.near)
        if found is not None:
            empty = ", of no images" if size[0] == 0 else ""
            name = f"{self.call.name}: {kind}{found.what}{empty}"
            raise _Found(name, f"{where}{found.where} of inputs{size}", found.want, found.got)

    def _kept(self, size: Size, tag: str) -> None:
        """Attributes and buffers, as the reference has them now."""
        for path, module in self.reference.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            known = self.first_keys.get(path, set()) if trees.is_foreign(module) else set()
            values = {
                name: value for name, value in vars(module).items()
                if not name.startswith("_") and name != "training" and name not in known and _is_data(value)
            }  # fmt: skip
            if not trees.is_foreign(module):
                values |= {name: t for name, t in module._buffers.items() if not name.endswith("_mask")}
            for name, want in values.items():
                where = f"{path}.{name}" if path else name
                try:
                    got = getattr(self.result.get_submodule(path), name)
                except AttributeError:
                    kind = f"{self.call.name}: {tag}attribute gone"
                    raise _Found(kind, f"{where} after inputs{size}", _shown(want), "no such attribute") from None
                self._same(want, got, size, f"{tag}attribute ", where)
        for path, module in self.result.named_modules():
            for name, value in vars(module).items():
                for place in trees.traced_objects(value, name):
                    raise _Found(f"{self.call.name}: {tag}attribute proxy", f"{path}.{place} after inputs{size}")


def _shown(value: Any) -> str:
    return f"tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)[:80]


def _is_data(value: Any) -> bool:
    if isinstance(value, torch.Tensor | bool | int | float | str | None):
        return True
    parts = trees.children(value)
    return parts is not None and all(_is_data(part) for _, part in parts)


def _note(into: list[Any], module: nn.Module, args: Any, out: Any) -> None:
    into.append(out.clone() if isinstance(out, torch.Tensor) else type(out).__name__)


def _is_script(modules: dict[str, nn.Module], path: str) -> bool:
    """TorchScript, or a part of it."""
    scripts = [outer for outer, module in modules.items() if isinstance(module, torch.jit.ScriptModule)]
    return any(path == outer or path.startswith(f"{outer}.") for outer in scripts)


def _names_of(model: nn.Module) -> list[str]:
    """The names of the arguments that the forward takes one by one."""
    parameters = inspect.signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def _run(program: Program, model: nn.Module, args: tuple[Any, ...], names: Sequence[str] = ()) -> tuple[Any, list[Any]]:
    """``names``: of arguments that are given by name, where all of ``args`` have one."""
    program.seen.clear()
    with torch.no_grad():
        out = model(**dict(zip(names, args, strict=False))) if len(names) >= len(args) > 0 else model(*args)
    seen = list(program.seen)
    program.seen.clear()
    return out, seen


def _tensors(value: Any, where: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor) and value.is_floating_point() and not isinstance(value, nn.Parameter):
        yield where, value
    for name, part in trees.children(value) or []:
        yield from _tensors(part, where + name)


def _backward(found: dict[str, torch.Tensor]) -> None:
    parts = [t.double().sum() for _, t in sorted(found.items()) if t.requires_grad]
    if parts:
        torch.stack(parts).sum().backward()  # type: ignore[no-untyped-call]


# ---- copies ----


def _deepcopied(call: Call, reference: nn.Module, result: nn.Module) -> nn.Module | None:
    try:
        copy.deepcopy(reference)
    except Exception:
        return None
    try:
        return copy.deepcopy(result)
    except Exception as error:
        raise _Found(f"{call.name}: deepcopy raises {_named(error)}", str(error)[:300]) from error


def _pickled(call: Call, reference: nn.Module, result: nn.Module) -> nn.Module | None:
    buffer = io.BytesIO()
    try:
        torch.save(reference, io.BytesIO())
    except Exception:
        return None
    try:
        torch.save(result, buffer)
        if b"torch.fx.proxy" in buffer.getvalue():
            raise _Found(f"{call.name}: pickle proxy", "a tracer's object is in the pickle")
        buffer.seek(0)
        made: nn.Module = torch.load(buffer, weights_only=False)
    except _Found:
        raise
    except Exception as error:
        raise _Found(f"{call.name}: pickle raises {_named(error)}", str(error)[:300]) from error
    return made


def _refreshed(call: Call, reference: nn.Module, result: nn.Module) -> nn.Module | None:
    if call.name != "compile":
        return None
    try:
        made: nn.Module = result.refresh()  # type: ignore[operator,unused-ignore]
    except Exception as error:
        raise _Found(f"{call.name}: refresh raises {_named(error)}", str(error)[:300]) from error
    return made


_COPIES: dict[str, Callable[[Call, nn.Module, nn.Module], nn.Module | None]] = {
    "deepcopy": _deepcopied,
    "pickle": _pickled,
    "refresh": _refreshed,
}


def _saved(trial: Trial, call: Call, result: nn.Module) -> None:
    """Into a file, and from it into a result of other weights."""
    program, size = trial.program, trial.sizes[0]
    shell = program.make()
    with torch.no_grad():
        for p in shell.parameters():
            p.mul_(1.5)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.safetensors")
        try:
            secateur.save(result, path)
        except secateur.Error:
            try:
                secateur.save(program.make(), path)
            except secateur.Error:
                return  # the model's own state is none that a file can hold
            raise
        except Exception as error:
            raise _Found(f"{call.name}: save raises {_named(error)}", str(error)[:300]) from error
        try:
            filled = secateur.load(
                path, shell if call.name == "compile" else call.run(shell, program.inputs(size), *_more(trial, call))
            )
        except Exception as error:
            if call.name == "convert" and "must hold the same names" in str(error):
                return  # the other model's layers were chosen by their own timing
            raise _Found(f"{call.name}: load raises {_named(error)}", str(error)[:300]) from error
    reference = program.make()
    reference.eval()
    filled.eval()
    _Pair(trial, call, reference, filled).step(size, "load ")
