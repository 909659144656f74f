"""A share of zeros under "N:M": the best N of each run are held back, of the others the lowest go."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .patterns import SemiStructured
from .ranking import Chosen, Field, counted, lowest, picked, put_back
from .view import WeightView


def counted_under(
    pool: Sequence[WeightView], fields: Sequence[Field], scores: Sequence[Tensor], sparsity: float
) -> list[Chosen]:
    """:func:`~secateur.pruning.criteria.ranking.counted`, or weight by weight where the pattern is "N:M"."""
    if any(isinstance(view.pattern, SemiStructured) for view in pool):
        return [in_runs(*each, sparsity) for each in zip(pool, fields, scores, strict=True)]
    return counted(fields, scores, sparsity)


def in_runs(view: WeightView, field: Field, score: Tensor, sparsity: float, across: Tensor | None = None) -> Chosen:
    """Drop all but the best of each run; at a smaller share than the pattern's, the lowest of those alone.

    At the pattern's own share nothing is counted: a layer whose last run is shorter, or that has lost more already,
    comes out with another one.

    Args:
        view: under a pattern "N:M". score: [R, B], ranks the weights of a run. sparsity: at most the pattern's share.
        across: [R, B], ranks weights of different runs; None: the score does.
    """
    pattern = view.pattern
    assert isinstance(pattern, SemiStructured)
    spare = pattern.spare(score.reshape(view.shape), view.alive).reshape(field.alive.shape)
    if pattern.reached_by(sparsity):
        return Chosen(field.alive & ~spare)
    need = round(sparsity * field.total) - field.gone
    drop, _ = lowest(picked(score if across is None else across, spare), None, need, spare_one=False, split_ties=True)
    return Chosen(field.alive & ~put_back(drop, spare))
