"""The protocol of criteria: one class decides which weights of a pool stay."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ..._base.checks import checked_number
from ..._base.errors import Error
from ...reconstruction.curves import Curve
from .patterns import Pattern
from .ranking import Chosen
from .runs import counted_under
from .view import Decision, WeightView

C = TypeVar("C", bound="Criterion")

SCOPES = ("row", "layer", "global")
NEEDS = (None, "norms", "gram", "hessian")


class Written(NamedTuple):
    """What an operator that decided and wrote in one pass returns."""

    mask: Tensor  # packed, as secateur.ops.mask_pack does
    theta: Tensor | None
    k: float | None


class ActivationGroup(Protocol):
    """Calibrated activations that share a threshold rule (:mod:`secateur.activations.thresholds`): what a criterion
    may ask of them. Thresholds are a tensor for each layer's name."""

    def below_mean(self, k: float) -> dict[str, Tensor]: ...  # mean - k * std
    def solve_k(self, sparsity: float) -> float: ...  # the largest k whose zeros reach a share of all values
    def lowest(self, sparsity: float) -> dict[str, Tensor]: ...  # thresholds that drop the lowest share
    def share_of_counted(self, zeros: float) -> float: ...  # a share of all values as one of those that ``over`` counts


class Criterion:
    """Which weights go. Subclass it, say in :meth:`decide` what stays, and give it to :func:`secateur.prune`::

        import torch, secateur
        from secateur.pruning import drop_lowest

        class Wanda(secateur.Criterion):
            needs = "norms"  # of the inputs: prune(..., data=batches) supplies them

            def __init__(self, sparsity):
                self.sparsity = sparsity

            def decide(self, pool):
                scores = [w.weight.abs() * w.norms for w in pool]
                return drop_lowest(pool, scores, self.sparsity)

        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        print(secateur.prune(model, Wanda(0.75), data=[torch.randn(32, 8)]))

    ``prune`` finds the layers, streams the data, makes the masks, writes the weights and the report. Criteria that are
    equal (``==``) are one: dataclasses are, field by field. An instance must not change while it is in use.

    Attributes:
        scope: ``"global"``: one pool holds all weights that this criterion prunes. ``"layer"`` or ``"row"``: each
            weight is a pool of its own (how rows are kept apart is up to :meth:`decide`).
        needs: what must be known of each layer's inputs. None: nothing. ``"norms"``: sums and norms. ``"gram"``: their
            Gram matrices X X^T as well. :attr:`WeightView.inputs` then holds them. ``"hessian"``: Gram matrices of a
            sample of the inputs; layers are decided one by one in the order of their calls, and each one's inputs are
            what the pruned layers before it give, beside what the network as it was gave.
        sparsity: the share of zeros to reach, 0 to 1, if the criterion has one. :class:`~secateur.GradualPruner` raises
            it step by step, and the report says where it was not reached.
        zeros_count_in: what zeros that no mask made count in as weights, in words for the report. Empty: they count
            as pruned, whatever made them.
        why_nothing, why_missed: why a layer kept all its weights, or missed ``sparsity``, in words for the warning.
    """

    scope: str = "layer"
    needs: str | None = None
    sparsity: float | None  # no value here: a dataclass would take it as its field's default

    why_missed: ClassVar[str] = "the criterion kept another number of weights"

    @property
    def zeros_count_in(self) -> str:
        return ""

    @property
    def why_nothing(self) -> str:
        return "the criterion keeps all weights" if share_of(self) is None else TIES_KEEP

    def decide(self, pool: Sequence[WeightView]) -> Sequence[Decision]:
        """Decide for the weights of one pool: one :class:`Decision` for each, in the same order.

        The model is written only after every pool has been decided, and only if every decision is sound.
        """
        raise Error(f"{type(self).__name__}: a criterion must define decide(pool)")

    def pattern_for(self, pattern: Pattern) -> Pattern:
        """The pattern to work under when the caller asks for ``pattern``; an Error for one that cannot be."""
        return pattern

    def with_sparsity(self: C, sparsity: float) -> C:
        """The same criterion with another share of zeros."""
        if dataclasses.is_dataclass(self):
            return dataclasses.replace(self, sparsity=sparsity)
        changed = copy.copy(self)
        changed.__dict__["sparsity"] = sparsity
        return changed

    def curve(self, view: WeightView) -> Curve:
        """For ``needs = "hessian"`` and scope "global": a layer's error at a ladder of zeros."""
        raise Error(
            f"{type(self).__name__}: a criterion of scope 'global' that needs 'hessian' must define curve(view)"
        )

    def for_layer(self, share: float) -> Criterion:
        """For ``needs = "hessian"`` and scope "global": the criterion that prunes one layer to its share of zeros."""
        return self.with_sparsity(share)

    def fused(self) -> Callable[[Tensor], Written] | None:
        """Optional: an operator that decides and writes a weight in place, in one pass.

        It is used in place of :meth:`decide` for single weights of a layer without a mask whose neurons are dim 0. It
        must not fail on finite weights, for it runs when other layers have been written. A subclass that defines
        :meth:`decide` anew leaves its parent's ``fused`` behind.
        """
        return None

    #: Who shares an activation's threshold unless the caller says; None: no thresholds (``prune_activations``).
    activation_granularity: ClassVar[Literal["channel", "layer"] | None] = None
    #: Whether those thresholds are solved for a k, which the report then shows.
    activation_k: ClassVar[bool] = False

    def activation_thresholds(self, group: ActivationGroup) -> tuple[dict[str, Tensor], float | None]:
        """Thresholds for the activations of a group, and the k that gave them."""
        raise Error(f"{type(self).__name__}: this criterion makes no thresholds for activations")

    @classmethod
    def for_activation_zeros(cls, zeros: float, group: ActivationGroup) -> Criterion:
        """The criterion of this class under which the zeros reach a share of all values of a group."""
        raise Error(f"{cls.__name__}: this criterion makes no thresholds for activations")

    def __repr__(self) -> str:
        share = share_of(self)
        return f"{type(self).__name__}({'' if share is None else f'sparsity={share:g}'})"


#: Why criteria that rank weights keep them all, or miss a share.
TIES_KEEP = "its weights tie, or each neuron's are all alike (std 0), which keeps them"
TIES_MISS = "weights that tie, or neurons of equal weights, go or stay together"


def share_of(criterion: Any) -> float | None:
    """The criterion's ``sparsity``; None where it has none."""
    share: float | None = getattr(criterion, "sparsity", None)
    return share


def drop_lowest(pool: Sequence[WeightView], scores: Sequence[Tensor], sparsity: float) -> list[Decision]:
    """Drop what scores lowest over the whole pool until the share of zeros is reached, under the pool's patterns.

    Blocks count by the mean score of their weights. Equal scores go in order of their place. Zeros that are there
    already count. At least one block stays unless ``sparsity`` is 1. Under "N:M" all but the best N of each run go,
    whatever their scores; with a smaller ``sparsity`` (a schedule is on its way) the lowest of those.

    Args:
        pool: the weights. scores: one [J, C, T] a weight, float. sparsity: 0 to 1, of all weights of the pool.

    Raises:
        Error: scores that are not finite or of another shape; sparsity out of range.
    """
    checked_number("drop_lowest", "sparsity", sparsity, 0, 1)
    if len(scores) != len(pool):
        raise Error(f"drop_lowest: scores must be one a weight, got {len(scores)} for {len(pool)}")
    for view, score in zip(pool, scores, strict=True):
        where = f"drop_lowest: scores of {view.label} must be finite floats {list(view.shape)}, got"
        if not isinstance(score, Tensor) or not score.dtype.is_floating_point or score.shape != view.shape:
            got = f"{score.dtype} {list(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
            raise Error(f"{where} {got}")
        if not bool(torch.isfinite(score).all()):
            raise Error(f"{where} NaN or Inf")
    fields = [view.blocks(score) for view, score in zip(pool, scores, strict=True)]
    return decisions(pool, counted_under(pool, fields, [field.score for field in fields], sparsity))


def decisions(pool: Sequence[WeightView], chosen: Sequence[Chosen]) -> list[Decision]:
    """Chosen blocks as decisions about weights."""
    return [Decision(v.weights(c.keep), theta=c.theta, k=c.k) for v, c in zip(pool, chosen, strict=True)]
