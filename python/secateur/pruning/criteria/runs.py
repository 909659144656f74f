"""A share of zeros under "N:M": the best of each run are held back, the others go, lowest first."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .patterns import SemiStructured
from .ranking import Chosen, Field, counted, lowest, picked, put_back
from .view import WeightView


def counted_under(
    pool: Sequence[WeightView], fields: Sequence[Field], scores: Sequence[Tensor], sparsity: float
) -> list[Chosen]:
    """:func:`~secateur.pruning.criteria.ranking.counted`, where the pool's pattern may be "N:M"."""
    if any(isinstance(view.pattern, SemiStructured) for view in pool):
        return [in_runs(*each, sparsity) for each in zip(pool, fields, scores, strict=True)]
    return counted(fields, scores, sparsity)


def in_runs(view: WeightView, field: Field, score: Tensor, sparsity: float, across: Tensor | None = None) -> Chosen:
    """Drop all but the best of each run; at a smaller share than the pattern's, the lowest of those alone.

    The share decides nothing else: a run that is shorter, or has lost more already, leaves the layer with another one.

    Args:
        view: with a pattern "N:M", else runs have no limit. score: [R, B], what ranks the weights of a run.
        across: [R, B], what ranks weights of different runs; None: the score.
    """
    if not isinstance(view.pattern, SemiStructured):
        return counted([field], [score if across is None else across], sparsity)[0]
    spare = view.pattern.spare(score.reshape(view.shape), view.alive).reshape(field.alive.shape)
    if view.pattern.reached_by(sparsity):
        return Chosen(field.alive & ~spare)
    need = round(sparsity * field.total) - field.gone
    drop, _ = lowest(picked(score if across is None else across, spare), None, need, spare_one=False, split_ties=True)
    return Chosen(field.alive & ~put_back(drop, spare))
