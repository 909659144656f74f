"""How good the student is now: by the caller's ``evaluate``, or on what was held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .._base.evaluator import Evaluator
from .._base.state import random_state_kept
from .._base.trial import flags_kept
from .example import CALLER, Example
from .goal import Goal
from .ranks import Ranks

#: The teacher's answers to held-out batches are kept up to so many bytes.
_ANSWER_BYTES = 1 << 28


class Judge:
    """Measures the student. ``by`` is the measure that chooses: "evaluate", or what :class:`Goal` says.

    Args:
        examples: what was held out; not used where there is an ``evaluate``.
    """

    def __init__(
        self, net: nn.Module, goal: Goal, examples: Sequence[Example], evaluate: Any, ranks: Ranks, device: torch.device
    ) -> None:
        self.net, self.goal, self.ranks, self.device = net, goal, ranks, device
        self.evaluator = None if evaluate is None else Evaluator(CALLER, evaluate, bounded=False)
        self.examples = [] if self.evaluator is not None else list(examples)
        self.by = "evaluate" if self.evaluator is not None else goal.judged_by
        self._answers: dict[int, Any] = {}
        self._bytes = 0

    def __call__(self) -> dict[str, float]:
        """The measures, the same on all ranks. The random state, modes and gradients wanted are as before."""
        with random_state_kept(), torch.no_grad():
            if self.evaluator is not None:
                value = self.evaluator(self.net)
                return {"evaluate": self.ranks.sum([value], self.device)[0] / self.ranks.size}
            with flags_kept(self.net):
                self.net.eval()
                return self._on_examples()

    def better(self, measures: dict[str, float], best: dict[str, float]) -> bool:
        new, old = measures[self.by], best[self.by]
        if math.isnan(new):
            return False
        return new > old if self.by == "evaluate" else new < old

    def _on_examples(self) -> dict[str, float]:
        sums: dict[str, tuple[float, float]] = {}
        for place, held in enumerate(self.examples):
            example = held.on(self.device)
            answer = self._answer(place, example)
            output = example.run(self.net, "student")
            for key, (value, weight) in self.goal.measures(output, example, answer).items():
                total, count = sums.get(key, (0.0, 0.0))
                sums[key] = total + value * weight, count + weight
        names = sorted(set().union(*self.ranks.gather(list(sums))))
        flat = self.ranks.sum([part for name in names for part in sums.get(name, (0.0, 0.0))], self.device)
        pairs = zip(names, flat[::2], flat[1::2], strict=True)
        return {name: total / count if count else math.nan for name, total, count in pairs}

    def _answer(self, place: int, example: Example) -> Any:
        if place not in self._answers:
            answer = self.goal.answer(example)
            nbytes = sum(t.nbytes for t in pytree.tree_leaves(answer) if isinstance(t, torch.Tensor))
            if self._bytes + nbytes > _ANSWER_BYTES:
                return answer
            self._bytes += nbytes
            self._answers[place] = answer
        return self._answers[place]


__all__ = ["Judge"]
