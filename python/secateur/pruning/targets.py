"""Which weights are pruned by which rule: ``exclude``, ``include`` and ``overrides`` made into a list of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .. import masks
from .._base.checks import names_of
from .._base.errors import Error
from ..masks.weights import Entry, Weight, check_entries, match, matches, unknown_weights, weights_of
from . import patterns
from .criteria import Criterion, Magnitude, MeanStd, Random
from .patterns import Pattern

#: What an override may say of the layers that its key names.
Override = Criterion | str | tuple[Criterion, str] | None


@dataclass
class Task:
    """One weight on its way through :func:`prune`."""

    weight: Weight
    rule: Criterion
    pattern: Pattern
    alive: Tensor | None = None  # bool, the weight's shape; None: every weight lives
    gone: int = 0  # weights that were zero before
    fused: bool = False  # the in-place operator decides and writes in one pass
    step: int = 1  # the most weights that go together
    k: float | None = None
    theta: Tensor | None = None  # [R]
    mask: Tensor | None = None  # packed
    zeros: int = 0  # afterwards
    notes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return self.weight.label


def plan(
    model: nn.Module,
    criterion: Any,
    pattern: str,
    exclude: Iterable[Entry] | Entry,
    include: Iterable[Entry] | Entry,
    overrides: Mapping[Any, Override] | None,
) -> tuple[list[Task], list[str], list[str]]:
    """Which weights are pruned by which rule; what must be warned about; what is only noted."""
    _check_rule(criterion, "criterion")
    default = patterns.parse(pattern)
    _check_pair(criterion, default)
    weights = weights_of(model)
    if not weights:
        raise Error(f"prune: model must hold a layer that can be pruned, got a {type(model).__name__} without any")
    said: list[str] = []
    notes: list[str] = []
    wanted = {id(w) for w in weights if w.default or any(alias.default for alias in w.aliases)}

    for entry in check_entries(include, "include"):
        hits = matches(entry, weights, "include")
        if all(id(w) in wanted and w.default for w in hits):
            raise Error(
                f"prune: include must name layers that are left out by default, but {entry!r} is pruned anyway (to "
                "prune nothing else, exclude the others or prune the layer itself)"
            )
        wanted |= {id(w) for w in hits}
    if not isinstance(overrides, Mapping | None):
        raise Error(f"prune: overrides must map layers to rules, got {overrides!r:.80}")
    rules: dict[int, tuple[Criterion, Pattern]] = {}
    strength: dict[int, int] = {}
    for entry, override in (overrides or {}).items():
        check_entries([entry], "overrides")
        for w in matches(entry, weights, "overrides"):
            force = max(match(entry, each) for each in (w, *w.aliases))
            if force < strength.get(id(w), 0):
                continue
            strength[id(w)] = force
            if override is None:
                wanted.discard(id(w))
                rules.pop(id(w), None)
            else:
                wanted.add(id(w))
                rules[id(w)] = _override(override, criterion, default)
    for entry in check_entries(exclude, "exclude"):
        for w in matches(entry, weights, "exclude"):
            wanted.discard(id(w))
            if w.aliases and not all(match(entry, each) for each in (w, *w.aliases)):
                names = ", ".join(each.label for each in (w, *w.aliases))
                said.append(f"{names} are one tied weight: excluding one leaves it alone under every name")

    tasks = []
    for w in weights:
        if id(w) not in wanted:
            if not w.default and not w.aliases:
                notes.append(f"{w.label} ({type(w.module).__name__}) is left out by default; include= prunes it")
            continue
        if w.problem is not None and w.refuse:
            raise Error(f"prune: {w.label} cannot be pruned: {w.problem} (or exclude it)")
        if w.problem is not None:
            said.append(f"{w.label} is left as it is: {w.problem}")
            continue
        if w.foreign is None:
            for place, (module, parameter) in enumerate(w.places):
                masks.check_room(module, parameter, (w, *w.aliases)[place].label)
        if w.aliases:
            names = ", ".join(each.label for each in (w, *w.aliases))
            said.append(f"{names} are one tied weight: it is pruned once, and all of them change")
        tasks.append(Task(w, *rules.get(id(w), (criterion, default))))
    if not tasks:
        why = f": {'; '.join(said)}" if said else ""
        raise Error(f"prune: exclude and overrides must leave a layer to prune, but none is left{why}")
    bypassed = [t.label for t in tasks if _is_out_proj(t.weight)]
    if bypassed:
        said.append(
            f"{names_of(bypassed)}: MultiheadAttention reads this weight without calling the layer. The zeros count "
            "all the same, for they are in the weight; but a hook on it, or another layer in its place, would never run"
        )
    quantized, other = unknown_weights(model)
    if quantized:
        said.append(f"{names_of(quantized)}: quantized already, left as it is; prune before quantizing")
    if other:
        notes.append(f"not pruned, for their layer types are unknown here: {names_of(other)}")
    return tasks, said, notes


def _is_out_proj(weight: Weight) -> bool:
    around = weight.owners[-2] if len(weight.owners) > 1 else None
    return isinstance(around, nn.MultiheadAttention) and around.out_proj is weight.module


def _check_rule(rule: Any, argument: str) -> None:
    if not isinstance(rule, MeanStd | Magnitude | Random):
        hint = f" (write {rule.__name__}(...))" if isinstance(rule, type) else ""
        raise Error(f"prune: {argument} must be a MeanStd, Magnitude or Random, got {rule!r}{hint}")


def _check_pair(rule: Criterion, pattern: Pattern) -> None:
    if isinstance(rule, Random) and rule.unit == "neuron" and pattern.block > 1:
        raise Error(f'prune: pattern must be "1x1" or "neuron" for {rule!r}, which drops neurons, got "{pattern}"')


def _override(override: Any, rule: Criterion, pattern: Pattern) -> tuple[Criterion, Pattern]:
    if isinstance(override, str):
        pattern = patterns.parse(override)
    elif isinstance(override, tuple):
        if len(override) != 2:
            raise Error(f"prune: overrides must map to (criterion, pattern), got {override!r}")
        rule, pattern = override[0], patterns.parse(override[1])
    else:
        rule = override
    _check_rule(rule, "a criterion in overrides")
    _check_pair(rule, pattern)
    return rule, pattern
