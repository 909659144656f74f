"""Which weights go: the rules, and the arithmetic that turns a rule into "keep this, drop that".

A rule never sees a layer. It sees a :class:`Field`: scores in rows, one score a block (a weight, a run of weights, a
whole neuron: :mod:`secateur.pruning.patterns` makes them), and says which blocks stay. Glossary: R rows over which
statistics are taken, B blocks in a row.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor

from .._base.checks import checked_choice, checked_number
from .._base.errors import Error


@dataclass(frozen=True, repr=False)
class MeanStd:
    """Per neuron j: drop what lies below theta_j = mean(|w_j|) - k * std(|w_j|) (biased std).

    Give k, or the share of zeros to reach: then k is solved for each layer from its own weights, as the quantile of
    (|w| - mean_j) / std_j. For Gaussian weights k = 1 drops 15.5 %, 0 drops 57.5 %, -1 drops 83.9 %, -2 drops 95.5 %,
    and from 1.33 up nothing at all, so k may be negative. A neuron whose std is 0 keeps all its weights.

    Args:
        k: how many standard deviations below the mean the threshold lies; either sign.
        sparsity: zeros to reach, as a share (0 to 1) of all the layer's weights, those that are zero already included.
        of: ``"abs"`` takes mean and std of |w|, ``"signed"`` of w itself (the literal reading; what is compared is
            |w| all the same).

    Raises:
        Error: neither or both of k and sparsity; a number out of range.
    """

    k: float | None = None
    _: KW_ONLY
    sparsity: float | None = None
    of: Literal["abs", "signed"] = "abs"

    def __post_init__(self) -> None:
        if (self.k is None) == (self.sparsity is None):
            given = "neither" if self.k is None else f"k={self.k!r} and sparsity={self.sparsity!r}"
            raise Error(f"MeanStd: exactly one of k and sparsity must be given, got {given}")
        if self.k is not None:
            object.__setattr__(self, "k", checked_number("MeanStd", "k", self.k, -math.inf, math.inf))
        if self.sparsity is not None:
            object.__setattr__(self, "sparsity", checked_number("MeanStd", "sparsity", self.sparsity, 0, 1))
        checked_choice("MeanStd", "of", self.of, ("abs", "signed"))

    def __repr__(self) -> str:
        given = f"k={self.k:g}" if self.k is not None else f"sparsity={self.sparsity:g}"
        return f"MeanStd({given}{', of=' + repr(self.of) if self.of != 'abs' else ''})"


@dataclass(frozen=True, repr=False)
class Magnitude:
    """Drop the smallest |w| until the share of zeros is reached, layer by layer or over all layers together.

    Args:
        sparsity: zeros to reach, as a share (0 to 1) of all weights, those that are zero already included.
        scope: ``"layer"`` reaches it in every layer, ``"global"`` over all layers with one common threshold.
    """

    sparsity: float
    scope: Literal["layer", "global"] = "layer"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", checked_number("Magnitude", "sparsity", self.sparsity, 0, 1))
        checked_choice("Magnitude", "scope", self.scope, ("layer", "global"))

    def __repr__(self) -> str:
        return f"Magnitude(sparsity={self.sparsity:g}{', scope=' + repr(self.scope) if self.scope != 'layer' else ''})"


@dataclass(frozen=True, repr=False)
class Random:
    """Drop weights, or whole neurons, at random: the baseline that every other rule must beat.

    Args:
        sparsity: zeros to reach, as a share (0 to 1) of the layer's weights.
        unit: ``"element"`` draws single weights (or blocks, under a block pattern), ``"neuron"`` whole output units.
        seed: makes the draw repeatable, layer by layer (a layer's draw does not depend on the other layers). None draws
            from torch's global generator. Processes that must prune alike need a seed.
    """

    sparsity: float
    unit: Literal["element", "neuron"] = "element"
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", checked_number("Random", "sparsity", self.sparsity, 0, 1))
        checked_choice("Random", "unit", self.unit, ("element", "neuron"))
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise Error(f"Random: seed must be an int or None, got {self.seed!r}")

    def __repr__(self) -> str:
        unit = f", unit={self.unit!r}" if self.unit != "element" else ""
        return f"Random(sparsity={self.sparsity:g}{unit}{'' if self.seed is None else f', seed={self.seed}'})"


Criterion = MeanStd | Magnitude | Random


@dataclass
class Field:
    """What a rule sees of one weight tensor."""

    score: Tensor  # [R, B] float32 or float64, >= 0: the mean |w| of each block
    sample: Tensor  # [R, B]: what mean and std are taken of (the score, or the signed mean)
    alive: Tensor  # [R, B] bool: blocks with a weight that is not pruned yet
    cost: Tensor | None  # [R, B] int64: weights that would still become zero with the block; None: 1 where alive
    total: int  # weights in the layer
    gone: int  # weights that are pruned already

    @property
    def largest(self) -> int:
        """The most weights that go with one block: how closely a share of zeros can be hit."""
        return 1 if self.cost is None else int(self.cost.max()) if self.cost.numel() else 1


@dataclass
class Decision:
    """What a rule says: the blocks that stay, and by which threshold."""

    keep: Tensor  # [R, B] bool
    theta: Tensor | None = None  # [R] or [1]; None: the rule has no threshold
    k: float | None = None  # of MeanStd, given or solved


def statistics(sample: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased std of each row's living entries, in float64.

    Args:
        sample: [R, B]. alive: [R, B] bool.

    Returns:
        mean [R], std [R]. The std of equal values is exactly 0; a row in which nothing lives has mean NaN and std 0.
    """
    values = sample.to(torch.float64)
    if sample.shape[1] and bool(alive.all()):
        var, mean = torch.var_mean(values, 1, correction=0)
        low, high = values.aminmax(dim=1)
        return mean, var.sqrt().masked_fill_(high <= low, 0.0)
    count = alive.sum(1)
    mean = values.masked_fill(~alive, 0.0).sum(1) / count
    spread = (values - mean.unsqueeze(1)).square_().masked_fill_(~alive, 0.0)
    std = (spread.sum(1) / count.clamp(min=1)).sqrt()
    if sample.shape[1]:
        # The mean of equal values need not round to that value: compare them instead.
        high = values.masked_fill(~alive, -math.inf).amax(1)
        low = values.masked_fill(~alive, math.inf).amin(1)
        std = std.masked_fill_(high <= low, 0.0)
    return mean, std


def mean_std(field: Field, rule: MeanStd) -> Decision:
    """Apply a :class:`MeanStd` to one field; statistics over what lives."""
    mean, std = statistics(field.sample, field.alive)
    varied = std > 0  # [R]: a row of equal values keeps all
    score = field.score.to(torch.float64)
    if rule.k is not None:
        theta = mean - rule.k * std
        drop = (score < theta.unsqueeze(1)) & varied.unsqueeze(1)
        return Decision(field.alive & ~drop, theta, rule.k)
    assert rule.sparsity is not None
    need = round(rule.sparsity * field.total) - field.gone
    may_go = field.alive & varied.unsqueeze(1)  # [R, B]
    z = _chosen((score - mean.unsqueeze(1)).div_(std.unsqueeze(1)), may_go)  # [M]
    cost = None if field.cost is None else _chosen(field.cost, may_go)
    spare_one = rule.sparsity < 1 and z.numel() == int(field.alive.sum())
    drop, cut = lowest(z, cost, need, spare_one=spare_one, split_ties=False)
    keep = field.alive & ~_put_back(drop, may_go)
    if cut is None:
        return Decision(keep)
    return Decision(keep, mean + cut * std, -cut)


def _chosen(values: Tensor, which: Tensor) -> Tensor:
    """``values[which]``, flat; a boolean index over millions costs more than asking whether it leaves anything out."""
    return values.reshape(-1) if bool(which.all()) else values[which]


def _put_back(chosen: Tensor, which: Tensor) -> Tensor:
    """The inverse of :func:`_chosen` for bools: false where nothing was chosen."""
    if chosen.numel() == which.numel():
        return chosen.reshape(which.shape)
    whole = torch.zeros_like(which)
    whole[which] = chosen
    return whole


def counted(fields: Sequence[Field], scores: Sequence[Tensor], sparsity: float) -> list[Decision]:
    """Drop the lowest scores over all the fields together until the share of zeros is reached.

    Equal scores go in order of their place, so the count is exact (as far as the blocks allow).

    Args:
        fields: the weights. scores: [R, B] each, what to rank by. sparsity: 0 to 1.
    """
    device = fields[0].score.device
    values = torch.cat([_chosen(s, field.alive).to(device) for s, field in zip(scores, fields, strict=True)])
    cost: Tensor | None = None
    if any(field.cost is not None for field in fields):
        costs = (field.alive.to(torch.int64) if field.cost is None else field.cost for field in fields)
        cost = torch.cat([_chosen(c, field.alive).to(device) for c, field in zip(costs, fields, strict=True)])
    need = round(sparsity * sum(field.total for field in fields)) - sum(field.gone for field in fields)
    drop, cut = lowest(values, cost, need, spare_one=sparsity < 1, split_ties=True)
    decisions = []
    for field, part in zip(fields, torch.split(drop, [int(f.alive.sum()) for f in fields]), strict=True):
        keep = field.alive & ~_put_back(part.to(field.alive.device), field.alive)
        theta = None if cut is None else torch.tensor([cut], dtype=torch.float64)
        decisions.append(Decision(keep, theta))
    return decisions


def lowest(
    values: Tensor, cost: Tensor | None, need: int, *, spare_one: bool, split_ties: bool
) -> tuple[Tensor, float | None]:
    """Choose the lowest values whose costs come nearest to ``need``.

    Args:
        values: [M]. cost: [M] int64, or None where each costs 1. need: how much to drop in all.
        spare_one: never drop them all. split_ties: equal values may be parted (the first ones go); else they go or
            stay together, whichever comes nearer to ``need``.

    Returns:
        drop [M] bool, and the cut: every dropped value is <= cut and every kept one is >= cut (strictly on one side
        unless ties were parted), half way between the two neighbours. None where nothing is dropped.
    """
    count = values.numel()
    drop = torch.zeros(count, dtype=torch.bool, device=values.device)
    if need <= 0 or count == 0:
        return drop, None
    if cost is None:
        drop = _lowest_by_count(values, min(need, count - 1 if spare_one else count), split_ties, spare_one)
    else:
        ordered, place = torch.sort(values, stable=True)
        reached = torch.cat([cost.new_zeros(1), cost[place].cumsum(0)])  # [M + 1]: dropped by the first c values
        error = (reached - need).abs().to(torch.float64)
        if not split_ties:
            inside = torch.zeros_like(error, dtype=torch.bool)
            inside[1:-1] = ordered[1:] == ordered[:-1]
            error[inside] = math.inf
        if spare_one:
            error[-1] = math.inf
        drop[place[: int(error.argmin())]] = True
    if not bool(drop.any()):
        return drop, None
    last = float(values.masked_fill(~drop, -math.inf).max())
    if bool(drop.all()):
        return drop, last + max(1.0, abs(last))
    first = float(values.masked_fill(drop, math.inf).min())
    middle = last + (first - last) / 2
    return drop, middle if last < middle < first else first


def _lowest_by_count(values: Tensor, want: int, split_ties: bool, spare_one: bool) -> Tensor:
    """The ``want`` lowest of values [M], by selection (a sort of 100 million weights takes ten times as long)."""
    count = values.numel()
    if want >= count:
        return torch.ones(count, dtype=torch.bool, device=values.device)
    if want <= 0:
        return torch.zeros(count, dtype=torch.bool, device=values.device)
    edge = torch.kthvalue(values, want + 1).values  # the lowest value that stays, but for ties
    below = values < edge
    few, many = int(below.sum()), int((values <= edge).sum())
    if split_ties:
        below[(values == edge).nonzero().reshape(-1)[: want - few]] = True
        return below
    if want - few <= many - want or (spare_one and many == count):
        return below
    return values <= edge


def random_score(field: Field, rule: Random, name: str) -> Tensor:
    """Scores [R, B] drawn uniformly; with a seed they depend on it and on the layer's name alone."""
    generator = None
    if rule.seed is not None:
        generator = torch.Generator()
        generator.manual_seed((rule.seed * 0x9E3779B1 + zlib.crc32(name.encode())) % 2**63)
    return torch.rand(field.alive.shape, generator=generator, dtype=torch.float64).to(field.alive.device)


def decide(fields: Sequence[Field], names: Sequence[str], rule: Criterion) -> list[Decision]:
    """Apply one rule to the weights that share it.

    Args:
        fields: one a weight. names: theirs, for :class:`Random`'s seed. rule: the criterion.
    """
    if isinstance(rule, MeanStd):
        return [mean_std(field, rule) for field in fields]
    if isinstance(rule, Random):
        scores = [random_score(field, rule, name) for field, name in zip(fields, names, strict=True)]
        decisions = [counted([f], [s], rule.sparsity)[0] for f, s in zip(fields, scores, strict=True)]
        return [Decision(decision.keep) for decision in decisions]
    if rule.scope == "global":
        return counted(fields, [field.score for field in fields], rule.sparsity)
    return [counted([field], [field.score], rule.sparsity)[0] for field in fields]
