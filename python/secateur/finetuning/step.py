"""One step: forward, backward, the gradient looked at and cut, the optimizer, the average."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._base.errors import Error
from .averages import Average
from .example import CALLER, Example
from .goal import Goal
from .optimizers import Rates
from .ranks import Ranks
from .seeds import mixed, seed_all
from .state import State
from .student import mask_by_parameter

#: Gradients longer than so many times their running average, which is known after so many steps, are cut to that.
_CLIP, _MEMORY, _KNOWN = 3.0, 0.95, 10
#: The teacher's answers to batches that come again unchanged are kept up to so many bytes.
_ANSWER_BYTES = 1 << 28


class Stepper:
    """Makes the steps of a run.

    Args:
        again: whether the very same examples come again in each pass, so that the teacher need answer them once.
        amp: whether products are bfloat16.
    """

    def __init__(
        self, runner: nn.Module, net: nn.Module, goal: Goal, rates: Rates, average: Average, ranks: Ranks,
        device: torch.device, seed: int, amp: bool, again: bool,
    ) -> None:  # fmt: skip
        self.runner, self.net, self.goal, self.rates, self.average = runner, net, goal, rates, average
        self.ranks, self.device, self.seed, self.amp, self.again = ranks, device, seed, amp, again
        # It averages the gradients itself.
        self.wrapped = any(isinstance(m, nn.parallel.DistributedDataParallel) for m in runner.modules())
        self.masks = mask_by_parameter(net)
        self._answers: dict[int, Tensor] = {}
        self._answer_bytes = 0

    def take(self, state: State, example: Example, share: float) -> bool:
        """One step, counted in ``state``; False: NaN or Inf came, and nothing was changed.

        ``share``: of the run, that lies behind.
        """
        optimizer = self.rates.optimizer
        if self.ranks.size == 1 and not example.finite():
            state.skipped += 1
            return False
        seed_all(mixed(self.seed, "step", state.step, self.ranks.rank))
        answer, example = self._answer(example), example.on(self.device)
        with self._precision(self.amp):
            loss = self.goal.loss(self.runner, example, answer)
        if not loss.requires_grad:
            raise Error(f"{CALLER}: loss must depend on the student's parameters, it has no gradient")
        loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        norm = self._gradients()
        value = float(loss.detach())
        if not math.isfinite(norm) or (self.ranks.size == 1 and not math.isfinite(value)):
            state.skipped += 1
            optimizer.zero_grad(set_to_none=True)
            self.average.mend_statistics()
            return False
        self._clip(state, norm)
        self.rates.set(share)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        self.average.update(state.step)
        state.total += value
        state.counted += 1
        return True

    def _answer(self, example: Example) -> Any:
        """The teacher's, once for a batch of a list."""
        if self.goal.hints or self.goal.teacher is None:
            return None  # with hints the loss asks its teacher itself
        known = self._answers.get(id(example))
        if known is not None:
            return known
        with self._precision(self.amp and not self.goal.compiled_teacher):
            answer = self.goal.answer(example.on(self.device))
        if self.again and isinstance(answer, Tensor):
            self._answer_bytes += answer.nbytes
            if self._answer_bytes <= _ANSWER_BYTES:
                self._answers[id(example)] = answer
        return answer

    def _precision(self, bfloat16: bool) -> torch.autocast:
        # Without its cache: inside another autocast block that one is not emptied, and the weights of the first step
        # would be used in all others.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False)

    def _gradients(self) -> float:
        """Averages them over the ranks, takes those of pruned weights away, and gives their length."""
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        if self.ranks.size > 1 and not self.wrapped:
            for p in parameters:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            self.ranks.average_([p.grad for p in parameters if p.grad is not None])
        for p, mask in self.masks:
            if p.grad is not None and p.grad.layout == torch.strided:
                # Else they would fill the length and the momentum, and weights that stay would hardly move.
                ops.mask_apply_(p.grad, mask)
        found = [p.grad for p in parameters if p.grad is not None]
        if not found:
            raise Error(f"{CALLER}: loss must reach parameters of student that require grad, it reaches none")
        norms = torch._foreach_norm([g.coalesce().values() if g.is_sparse else g for g in found])
        return float(torch.stack([n.to(torch.float64) for n in norms]).norm())

    def _clip(self, state: State, norm: float) -> None:
        limit = _CLIP * state.norm
        if state.step >= _KNOWN and norm > limit:
            gradients: list[Tensor] = [p.grad for p in self.net.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, limit / norm)
            norm = limit
        state.norm = norm if state.step == 0 else _MEMORY * state.norm + (1 - _MEMORY) * norm


__all__ = ["Stepper"]
