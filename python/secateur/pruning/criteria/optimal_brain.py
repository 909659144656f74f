"""Second-order pruning: the weights whose loss costs least go, and those that stay make up for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..._base.checks import checked_choice, checked_number
from ..._base.errors import Error
from ...reconstruction import curves, surgeon
from ...reconstruction.blocks import Blocks, channel_blocks, channel_runs
from ...reconstruction.curves import Curve
from ...reconstruction.problem import Problem, problem
from ...reconstruction.survivors import solved
from .base import Criterion
from .patterns import SemiStructured
from .ranking import lowest
from .view import Decision, Inputs, WeightView

#: What is lost of a second moment when the mean is taken off it.
_ROUNDING = 1e-9


@dataclass(frozen=True, repr=False)
class OptimalBrain(Criterion):
    """Drop the weights whose loss changes a layer's output least, and solve the others again to make up for it.

    For each layer H = X X^T is taken over its inputs on the data: a convolution's windows unfolded, groups apart, a
    sample of 131,072 positions. Layers go in the order of their calls, each on what the pruned ones before it give
    now, with what it computed in the network as it was for its target; BatchNorm statistics on the way are taken again
    and written with the weights. Within a layer, columns are swept in chunks: a chunk's weights are chosen by
    w^2 / U_cc^2, with U the Cholesky factor of H^-1, and the columns behind take over what is lost. When twice as many
    weights are left as should be (in small layers: from the start), they go by what each one's loss costs exactly, in
    stages of a fifth, with least squares on the survivors after each. Biases are solved with the weights. H is damped
    by 1 % of its mean diagonal. Under "N:M" a run of M columns is chosen when the sweep comes to it, and the best N of
    each run, by these prices, are held back from every choice; stages are of a tenth then.

    Args:
        sparsity: zeros to reach, as a share (0 to 1) of all weights, those that are zero already included.
        scope: ``"layer"`` reaches it in every layer; ``"global"`` over all layers, each with so many zeros that one
            more adds the same to its relative output error (far better, and the data is gone through once more).
        seed: of the positions that are sampled.

    Raises:
        Error: a number out of range; in ``prune``: no ``data``, NaN or Inf in it, a layer that it never reaches, an
            RNN with projections.

    Sources:
        LeCun et al., "Optimal Brain Damage", 1989; Hassibi and Stork, "Second order derivatives for network pruning",
        1992; Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022 (layer by layer, BatchNorm statistics) and
        "SparseGPT", ICML 2023 (the sweep); Kurtic et al., "The Optimal BERT Surgeon", EMNLP 2022 (blocks).
    """

    sparsity: float
    scope: Literal["layer", "global"] = "layer"
    seed: int = 0

    needs = "hessian"
    why_missed: ClassVar[str] = "blocks go or stay whole, and zeros that were there stay"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", checked_number("OptimalBrain", "sparsity", self.sparsity, 0, 1))
        checked_choice("OptimalBrain", "scope", self.scope, ("layer", "global"))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise Error(f"OptimalBrain: seed must be an int, got {self.seed!r}")

    def __repr__(self) -> str:
        scope = f", scope={self.scope!r}" if self.scope != "layer" else ""
        return f"OptimalBrain(sparsity={self.sparsity:g}{scope}{f', seed={self.seed}' if self.seed else ''})"

    def decide(self, pool: Sequence[WeightView]) -> list[Decision]:
        return [self._decide(view) for view in pool]

    def curve(self, view: WeightView) -> Curve:
        """The error at :data:`secateur.reconstruction.curves.LADDER`; of whole neurons, of some neurons gone."""
        task = problem_of(view)
        if view.pattern.block == 0:
            return _curve_of_neurons(task, _known(view).parts > 1)
        return curves.measured(task, blocks_of(view), choose_lowest)

    def for_layer(self, share: float) -> OptimalBrain:
        return OptimalBrain(share, "layer", self.seed)

    def _decide(self, view: WeightView) -> Decision:
        task = problem_of(view)
        total = view.total
        spared = self.sparsity == 1 or isinstance(view.pattern, SemiStructured)  # which keeps weights by itself
        share = self.sparsity if spared else min(self.sparsity, (total - 1) / total)
        if view.pattern.block == 0:
            keep = _neurons(task, share, _known(view).parts > 1)
            w = solved(task, keep)
        else:
            w, keep = surgeon.pruned(task, blocks_of(view), choose_lowest, share)
        inputs = _known(view)
        return Decision(inputs.neurons(keep, view.shape), inputs.neurons(w, view.shape), _bias(view, w))


def choose_lowest(score: Tensor, cost: Tensor, need: int) -> Tensor:
    """The blocks of the lowest scores whose weights come nearest to ``need``; a :data:`Chooser` without limits."""
    drop = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    there = torch.isfinite(score).reshape(-1)
    if need > 0 and bool(there.any()):
        costs = cost.reshape(-1)[there]
        each = None if int(costs.max()) == 1 else costs
        drop[there] = lowest(score.reshape(-1)[there], each, need, spare_one=False, split_ties=True)[0]
    return drop.reshape(score.shape)


def blocks_of(view: WeightView) -> Blocks:
    _, C, T = view.shape
    parts, pattern = _known(view).parts, view.pattern
    if not isinstance(pattern, SemiStructured):
        return channel_blocks(C // parts, T, pattern.block, view.alive.device)
    if parts > 1 and C // parts % pattern.run:
        raise Error(
            f"prune: pattern must have runs that {parts} equal parts of {C:,} input channels do not cut for "
            f'{view.label}, which is too wide to be solved at once, got "{pattern}" (exclude it)'
        )
    return channel_runs(C // parts, T, pattern.keep, pattern.run, pattern.share, view.alive.device)


def problem_of(view: WeightView) -> Problem:
    """The layer of a view as a least-squares problem, [G, J / G, C * T]."""
    inputs = _known(view)
    return problem(inputs.rows(view.weight.to(torch.float64)), *moments_of(inputs), inputs.rows(view.alive))


def moments_of(inputs: Inputs) -> tuple[Tensor, Tensor | None]:
    """The means of x x^T and of d x^T, [G, F, F]; covariances, where the mean of the output does not matter."""
    assert inputs.gram is not None
    n = max(inputs.count, 1)
    second, cross = inputs.gram / n, None if inputs.cross is None else inputs.cross / n
    if inputs.free_mean:
        mean = inputs.sum / n
        other = mean if inputs.other is None else inputs.other / n
        floor = _ROUNDING * second.diagonal(dim1=1, dim2=2).mean(1)  # of inputs that hardly vary
        second = second - mean[:, :, None] * mean[:, None, :]
        second.diagonal(dim1=1, dim2=2).add_(floor[:, None])
        cross = None if cross is None else cross - other[:, :, None] * mean[:, None, :]
    return second, cross


def bias_for(bias: Tensor, before: Tensor, after: Tensor, inputs: Inputs) -> Tensor:
    """The bias [J] that gives a layer its mean output back: ``before`` and ``after`` [G, R, F] on d and on x."""
    n = max(inputs.count, 1)
    mean, other = inputs.sum / n, (inputs.sum if inputs.other is None else inputs.other) / n  # [G, F]
    lost = (before * other[:, None]).sum(2) - (after * mean[:, None]).sum(2)
    return bias.to(torch.float64) + (lost.sum(0) if inputs.parts > 1 else lost.reshape(-1))


def _bias(view: WeightView, w: Tensor) -> Tensor | None:
    inputs, bias = _known(view), view.bias
    if bias is None or not inputs.free_mean:
        return None
    return bias_for(bias, inputs.rows(view.weight.to(torch.float64)), w, inputs)


def _known(view: WeightView) -> Inputs:
    if view.inputs is None or view.inputs.gram is None:
        raise Error(f"prune: the inputs of {view.label} must be known")
    return view.inputs


def _neurons(task: Problem, share: float, in_parts: bool) -> Tensor:
    """Which weights stay when whole neurons go, bool [G, R, F]; one stays unless ``share`` is 1."""
    R = task.alive.shape[1]
    price = ((task.target @ task.hessian) * task.target).sum(2)  # [G, R]
    cost = task.alive.sum(2)
    if in_parts:  # a neuron has a row in each
        price, cost = price.sum(0, keepdim=True), cost.sum(0, keepdim=True)
    price = price.masked_fill(cost == 0, torch.inf).reshape(-1, 1)
    cost = cost.reshape(-1, 1)
    drop = choose_lowest(price, cost, round(share * task.alive.numel()) - int((~task.alive).sum()))
    if share < 1 and bool((drop | (cost == 0)).all()):
        drop[price.masked_fill(cost == 0, -1.0).argmax()] = False
    return task.alive & ~drop.reshape(-1, R, 1)


def _curve_of_neurons(task: Problem, in_parts: bool) -> Curve:
    reference = task.reference
    errors = [0.0]
    for share in curves.LADDER:
        gone = task.target.masked_fill(_neurons(task, share, in_parts), 0.0)
        error = float(((gone @ task.hessian) * gone).sum()) / reference if reference > 0 else share**2
        errors.append(max(errors[-1], error))
    return Curve((0.0, *curves.LADDER, 1.0), (*errors, 1.0), task.target.numel())
