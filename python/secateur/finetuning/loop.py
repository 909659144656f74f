"""The loop: steps, judgements, the best so far, the checkpoint; and what holds when it is cut short."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from .. import ops
from .._base.errors import Error
from .._base.signals import held_signals
from .averages import Average, Values, copied, live, put, statistics
from .checkpoints import Checkpoint
from .example import CALLER, Example
from .goal import Goal
from .judge import Judge
from .optimizers import Rates
from .ranks import Ranks
from .seeds import mixed, seed_all
from .sources import Listed, Source
from .student import mask_by_parameter

#: So many steps in a row that give NaN or Inf end the run.
_MOST_SKIPPED = 10
#: Gradients longer than so many times their running average are cut to that.
_CLIP, _MEMORY = 3.0, 0.95
#: The checkpoint is written at a judgement if it is older than so many seconds, and between two if much older.
_WRITE_AFTER, _WRITE_EVERY = 30.0, 300.0
#: The teacher's answers to batches that come again unchanged are kept up to so many bytes.
_ANSWER_BYTES = 1 << 28


@dataclass(frozen=True)
class Limits:
    """``steps`` or ``seconds``, whichever ends first; judged ``evaluations`` times on the way."""

    steps: int | None
    seconds: float | None
    evaluations: int


@dataclass
class State:
    """Where a run stands: plain values, as the checkpoint has them."""

    step: int = 0
    seconds: float = 0.0
    mark: int = 0  # how many of the judgements are done
    number: int = 0  # of the pass through the batches
    place: int = 0  # in that pass
    norm: float = 0.0  # running average of the gradient's length
    total: float = 0.0  # of the losses since the last row
    counted: int = 0
    skipped: int = 0
    best: int = 0  # the row of the best
    stopped: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """One fine-tuning. ``state`` and the student's values together are all that its course depends on."""

    def __init__(
        self, runner: nn.Module, net: nn.Module, source: Source, goal: Goal, judge: Judge, rates: Rates,
        limits: Limits, checkpoint: Checkpoint, ranks: Ranks, device: torch.device, seed: int, amp: bool,
    ) -> None:  # fmt: skip
        self.runner, self.net, self.source, self.goal, self.judge = runner, net, source, goal, judge
        self.rates, self.limits, self.checkpoint, self.ranks = rates, limits, checkpoint, ranks
        self.device, self.seed, self.amp = device, seed, amp
        # It averages the gradients itself.
        self.wrapped = any(isinstance(m, nn.parallel.DistributedDataParallel) for m in runner.modules())
        self.state = State()
        self.average = Average(net)
        self.best: Values = copied(live(net))
        self.masks = mask_by_parameter(net)
        self._answers: dict[int, Tensor] = {}
        self._answer_bytes = 0
        self.in_a_row = 0
        self.whole = True  # the student's values and the state belong together
        self.resumed = 0
        self._longest_step = self._longest_judgement = 0.0
        self._written = time.monotonic()
        self._began = time.monotonic()
        self._stream: Iterator[Example] | None = None
        self._barren = False

    # ---- from start to end ----

    def go(self, progress: bool) -> None:
        """Train. However it ends, the student has the best values found so far, and the optimizer its own rates."""
        try:
            self._resume()
            if not self.state.rows:
                self._judge("start")
            if not self.state.stopped:
                self._train(progress)
        except (KeyboardInterrupt, SystemExit):
            with held_signals():
                self.average.put_back()
                if self.whole and self.state.rows:
                    self._write()
            raise
        finally:
            with held_signals():
                self.rates.restore()
                self.net.zero_grad(set_to_none=True)
                put(self.net, self.best)

    def _train(self, progress: bool) -> None:
        self.runner.zero_grad(set_to_none=True)
        title = "fine-tuning" + (" (bfloat16)" if self.amp else "")
        often = 0.2 if sys.stderr.isatty() else 10.0  # in a log a bar cannot be drawn again
        shown = not (progress and self.ranks.rank == 0)
        with tqdm(total=100, desc=title, disable=shown, mininterval=often, unit="%", leave=False) as bar:
            while (share := self._progress()) < 1 and not self.state.stopped:
                mark = int(share * self.limits.evaluations)
                if mark > self.state.mark:
                    self._judge("average", mark)
                    best = self.state.rows[self.state.best][self.judge.by]
                    bar.set_postfix({"loss": f"{self.state.rows[-1]['loss'] or math.nan:.4g}", "best": f"{best:.4g}"})
                self._next_step(share)
                bar.update(int(100 * share) - bar.n)
        if self.state.step > 0:
            for mark, which in enumerate(("average", "last"), self.limits.evaluations):
                if self.state.mark < mark:  # one that was resumed may have been judged
                    self._judge(which, mark)
        if not self.state.stopped:
            steps = self.limits.steps
            self.state.stopped = "steps" if steps is not None and self.state.step >= steps else "minutes"
        self._write()

    def elapsed(self) -> float:
        return self.state.seconds + time.monotonic() - self._began

    def _progress(self) -> float:
        """The share of the run that lies behind; 1 where another step would not end in time."""
        by_steps = 0.0 if self.limits.steps is None else self.state.step / self.limits.steps
        if self.limits.seconds is None:
            return by_steps
        left = self.limits.seconds - 2 * self._longest_judgement - self._longest_step
        by_time = 1.0 if left <= 0 else self.elapsed() / left
        return max(by_steps, self.ranks.first(by_time, self.device))

    # ---- one step ----

    def _next_step(self, share: float) -> None:
        example = self._next_example()
        began = time.monotonic()
        with held_signals():
            self.whole = False
            done = self._step(example, share)
            self.state.place += 1
            self.in_a_row = 0 if done else self.in_a_row + 1
            if self.in_a_row >= _MOST_SKIPPED:
                self.state.stopped = "not finite"
            self.whole = True
        if self.state.stopped and not self.state.step:
            raise Error(
                f"{CALLER}: the loss and its gradient must be finite, in the first {self.in_a_row} batches they were "
                "not; student is as it was"
            )
        self._longest_step = max(self._longest_step, time.monotonic() - began)
        if time.monotonic() - self._written > _WRITE_EVERY:
            self._write()

    def _step(self, example: Example, share: float) -> bool:
        """False: NaN or Inf came, and nothing was changed."""
        state, optimizer = self.state, self.rates.optimizer
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
        self._clip(norm)
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
        if isinstance(self.source, Listed) and isinstance(answer, Tensor):
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

    def _clip(self, norm: float) -> None:
        state = self.state
        limit = _CLIP * state.norm
        if state.step >= _MOST_SKIPPED and norm > limit:
            gradients: list[Tensor] = [p.grad for p in self.net.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, limit / norm)
            norm = limit
        state.norm = norm if state.step == 0 else _MEMORY * state.norm + (1 - _MEMORY) * norm

    def _next_example(self) -> Example:
        state = self.state
        while True:
            if self._stream is None:
                self._stream = self.source.examples(state.number, state.place)
                self._barren = state.place == 0  # no sample was met in this pass, from its beginning on
            for example in self._stream:
                if example.rows > 0:
                    self._barren = False
                    self.goal.check(example)
                    return example
                state.place += 1
            if self._barren:
                raise Error(f"{CALLER}: batches must hold a sample in each pass, got none in pass {state.number}")
            state.number, state.place, self._stream = state.number + 1, 0, None

    # ---- judged, kept, written ----

    def _judge(self, which: str, mark: int = 0) -> None:
        began = time.monotonic()
        own = statistics(self.net)
        now = live(self.net)
        self.ranks.average_([now[name] for name in own])
        self.ranks.average_([self.average.values[name] for name in own])
        if which == "average":
            with self.average.in_place():
                self._note(which, self.judge(), mark)
        else:
            self._note(which, self.judge(), mark)
        self._longest_judgement = max(self._longest_judgement, time.monotonic() - began)
        if which == "start" or time.monotonic() - self._written > _WRITE_AFTER:
            self._write()

    def _note(self, which: str, measures: dict[str, float], mark: int) -> None:
        state = self.state
        if which == "start" and not math.isfinite(measures[self.judge.by]):
            raise Error(
                f"{CALLER}: student must give finite outputs before it is trained, its {self.judge.by} is "
                f"{measures[self.judge.by]} (NaN or Inf in the batches, perhaps)"
            )
        loss = self.ranks.sum([state.total, float(state.counted)], self.device)
        with held_signals():
            state.rows.append({
                "step": state.step, "seconds": self.elapsed(), "weights": which,
                "lr": None if which == "start" else float(self.rates.optimizer.param_groups[0]["lr"]),
                "loss": loss[0] / loss[1] if loss[1] else None, **measures,
            })  # fmt: skip
            state.total, state.counted, state.mark = 0.0, 0, mark
            if which != "start" and self.judge.better(measures, state.rows[state.best]):
                state.best = len(state.rows) - 1
                self.best = copied(live(self.net))

    def _write(self) -> None:
        self._written = time.monotonic()
        if self.checkpoint.path is None:
            return
        with held_signals():
            self.checkpoint.write({
                "state": {**vars(self.state), "seconds": self.elapsed()},
                "values": live(self.net), "average": self.average.values, "best": self.best,
                "optimizer": {"kind": type(self.rates.optimizer).__name__, **self.rates.optimizer.state_dict()},
            })  # fmt: skip

    def _resume(self) -> None:
        found = self.checkpoint.read()
        if found is None:
            return
        kind = found["optimizer"].pop("kind", None)
        if kind != type(self.rates.optimizer).__name__:
            raise self.checkpoint.refused(f"it is of a run with {kind}, not {type(self.rates.optimizer).__name__}")
        with held_signals():
            try:
                self.rates.optimizer.load_state_dict(found["optimizer"])
            except ValueError as reason:
                raise self.checkpoint.refused(f"its optimizer has other groups ({reason})") from reason
            try:
                self.state = State(**found["state"])
            except TypeError as reason:
                raise self.checkpoint.refused("it is of another version") from reason
            put(self.net, found["values"])
            with torch.no_grad():
                for name, value in self.average.values.items():
                    value.copy_(found["average"][name])
            self.best = {name: value.to(self.device) for name, value in found["best"].items()}
            self.resumed = self.state.step
            self._began = time.monotonic()


__all__ = ["Limits", "Run", "State"]
