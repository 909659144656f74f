"""Which weights are pruned by which rule: ``exclude``, ``include`` and ``overrides`` made into a list of targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import masks
from .._base.checks import checked_number, names_of
from .._base.errors import Error
from ..masks.weights import Entry, Weight, check_entries, match, matches, unknown_weights, weights_of
from .criteria import Criterion, patterns
from .criteria.base import NEEDS, SCOPES, share_of
from .criteria.patterns import Pattern, SemiStructured

#: The values that an override may have for the layers that its key names.
Override = Criterion | str | tuple[Criterion, str] | None


@dataclass(frozen=True)
class Target:
    """One weight to prune, and by what."""

    weight: Weight
    criterion: Criterion
    pattern: Pattern

    @property
    def label(self) -> str:
        return self.weight.label

    @property
    def pooled(self) -> bool:
        """Decided together with the other weights of its criterion."""
        return self.criterion.scope == "global"


def assign_criteria(
    model: nn.Module,
    criterion: Any,
    pattern: str,
    exclude: Iterable[Entry] | Entry,
    include: Iterable[Entry] | Entry,
    overrides: Mapping[Any, Override] | None,
    partly: bool = False,
) -> tuple[list[Target], list[str], list[str]]:
    """Which weights are pruned by which rule; the warnings; the notes.

    ``partly``: a schedule is on the way to its last share, which is the one that a pattern "N:M" asks for.
    """
    check_criterion(criterion, "criterion")
    default = patterns.parse(pattern)
    rule = (criterion, _pattern_of(criterion, default, partly))
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
                rules[id(w)] = _override(override, criterion, default, partly)
    for entry in check_entries(exclude, "exclude"):
        for w in matches(entry, weights, "exclude"):
            wanted.discard(id(w))
            if w.aliases and not all(match(entry, each) for each in (w, *w.aliases)):
                names = ", ".join(each.label for each in (w, *w.aliases))
                said.append(f"{names} are one tied weight: excluding one leaves it alone under every name")

    targets = []
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
        targets.append(Target(w, *rules.get(id(w), rule)))
    if not targets:
        why = f": {'; '.join(said)}" if said else ""
        raise Error(f"prune: exclude and overrides must leave a layer to prune, but none is left{why}")
    bypassed = [t.label for t in targets if _is_out_proj(t.weight)]
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
    return targets, said, notes


def _is_out_proj(weight: Weight) -> bool:
    around = weight.owners[-2] if len(weight.owners) > 1 else None
    return isinstance(around, nn.MultiheadAttention) and around.out_proj is weight.module


def check_criterion(criterion: Any, argument: str, caller: str = "prune") -> None:
    if not isinstance(criterion, Criterion):
        hint = f" (write {criterion.__name__}(...))" if isinstance(criterion, type) else ""
        raise Error(
            f"{caller}: {argument} must be a MeanStd, Magnitude, Random or another secateur.Criterion, got "
            f"{criterion!r}{hint}"
        )
    if type(criterion).decide is Criterion.decide:
        raise Error(f"{caller}: {argument} must define decide(pool), which {type(criterion).__name__} does not")
    name = type(criterion).__name__
    if not isinstance(criterion.scope, str) or criterion.scope not in SCOPES:
        raise Error(f"{caller}: {name}.scope must be 'layer', 'row' or 'global', got {criterion.scope!r}")
    if not isinstance(criterion.needs, str | None) or criterion.needs not in NEEDS:
        raise Error(f"{caller}: {name}.needs must be None, 'norms', 'gram' or 'hessian', got {criterion.needs!r}")
    if share_of(criterion) is not None:
        checked_number(f"{caller}: {name}", "sparsity", share_of(criterion), 0, 1)


def _pattern_of(criterion: Criterion, pattern: Pattern, partly: bool) -> Pattern:
    """The pattern that a criterion works under; an Error where "N:M" and its share or scope do not agree."""
    pattern = criterion.pattern_for(pattern)
    if not isinstance(pattern, SemiStructured):
        return pattern
    share = share_of(criterion)
    needed = f'prune: sparsity must be {pattern.share:.10g} (1 - {pattern.keep}/{pattern.run}) for pattern "{pattern}"'
    if share is None:
        raise Error(f"{needed}, but {criterion!r} has none")
    if criterion.scope == "global":
        raise Error(f'prune: scope must be "layer" (or "row") for pattern "{pattern}", got {criterion!r}')
    too_many, too_few = share > pattern.share + 1e-6, not pattern.reached_by(share)
    if too_many or (too_few and not partly):
        raise Error(f"{needed}, got {criterion!r}")
    return pattern


def _override(override: Any, rule: Criterion, pattern: Pattern, partly: bool) -> tuple[Criterion, Pattern]:
    if isinstance(override, str):
        pattern = patterns.parse(override)
    elif isinstance(override, tuple):
        if len(override) != 2:
            raise Error(f"prune: overrides must map to (criterion, pattern), got {override!r}")
        rule, pattern = override[0], patterns.parse(override[1])
    else:
        rule = override
    check_criterion(rule, "a criterion in overrides")
    return rule, _pattern_of(rule, pattern, partly)


def by_criterion(targets: Iterable[Target]) -> list[list[Target]]:
    """Those whose criteria are equal together, in the order of the first."""
    pools: dict[Any, list[Target]] = {}
    for target in targets:
        criterion = target.criterion
        try:
            hash(criterion)
            key: Any = criterion
        except TypeError:  # a dataclass that is not frozen, say: equal only to itself
            key = id(criterion)
        pools.setdefault(key, []).append(target)
    return list(pools.values())
