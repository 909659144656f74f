"""The loop: steps, judgements, the best so far, the checkpoint; and what holds when it is cut short."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator

import torch
from torch import nn
from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from .._base.errors import Error
from .._base.signals import held_signals
from .averages import Average, Values, copied, live, put, statistics
from .checkpoints import Checkpoint
from .example import CALLER, Example
from .goal import Goal
from .judge import Judge
from .listed import Listed
from .optimizers import Rates
from .ranks import Ranks
from .source import Source
from .state import Limits, State
from .step import Stepper

#: So many steps in a row that give NaN or Inf end the run.
_MOST_SKIPPED = 10
#: The checkpoint is written at a judgement if it is older than so many seconds, and between two if much older.
_WRITE_AFTER, _WRITE_EVERY = 30.0, 300.0


class Run:
    """One fine-tuning. ``state`` and the student's values together are all that its course depends on."""

    def __init__(
        self, runner: nn.Module, net: nn.Module, source: Source, goal: Goal, judge: Judge, rates: Rates,
        limits: Limits, checkpoint: Checkpoint, ranks: Ranks, device: torch.device, seed: int, amp: bool,
    ) -> None:  # fmt: skip
        self.runner, self.net, self.source, self.goal, self.judge = runner, net, source, goal, judge
        self.rates, self.limits, self.checkpoint, self.ranks = rates, limits, checkpoint, ranks
        self.device, self.amp = device, amp
        self.state = State()
        self.average = Average(net)
        again = isinstance(source, Listed)
        self.stepper = Stepper(runner, net, goal, rates, self.average, ranks, device, seed, amp, again)
        self.best: Values = copied(live(net))
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
            done = self.stepper.take(self.state, example, share)
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
                f"{measures[self.judge.by]} (NaN or Inf in the batches, or in the teacher's answers, perhaps)"
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


__all__ = ["Run"]
