"""``finetune``: a pruned or quantized student trained on labels, on its dense teacher's answers, or on both."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from .._base.checks import names_of
from .._base.errors import Error
from .._base.signals import keeps_grad_mode
from .._base.state import random_state_kept
from .._base.trial import flags_kept
from ..masks.agreement import digest
from . import precision
from .averages import live
from .checkpoints import Checkpoint
from .example import CALLER, Reader
from .goal import Goal
from .judge import Judge
from .loop import Run
from .optimizers import Maker, Rates
from .ranks import Ranks
from .report import FinetuneReport
from .source import MOST_BATCHES, Source
from .sources import open_source
from .state import Limits
from .student import checked_student, held_note, masks_of, zeros_held

#: Of a run that is given neither steps nor minutes.
STEPS = 2000


@keeps_grad_mode
def finetune(
    student: nn.Module,
    batches: Iterable[Any],
    teacher: nn.Module | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    lr: float | None = None,
    optimizer: Optimizer | Maker | None = None,
    loss: Callable[..., Any] | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    seed: int = 0,
    *,
    inputs: int = 1,
    evaluations: int = 20,
    mixed_precision: bool | None = None,
    progress: bool = True,
) -> FinetuneReport:
    """Train ``student`` in place, zeros held bit for bit, and keep the best weights that were met::

        dense = copy.deepcopy(model)
        secateur.prune(model, secateur.Magnitude(0.95))
        print(secateur.finetune(model, loader, teacher=dense, minutes=10))

    **What is learned.** Labels alone: cross-entropy. A teacher alone: T^2 KL(teacher || student) of classes softened by
    T = 4. Both: half of each (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; other weights,
    temperatures and hints: ``loss=secateur.DistillationLoss(...)``). The teacher is copied, and answers in evaluation
    mode without gradients.

    **What is kept.** The student is judged before the first step, ``evaluations`` times on the way, and at the end: by
    ``evaluate``; without one by a tenth of the batches that is held out and never trained on (the report says how
    many), on the KL divergence from the teacher in nats, else on the cross-entropy, or on the loss that was given. On
    the way an exponential average of the weights is judged, at the end the last weights too; the best of all stays in
    the student. If nothing was better than the start, the student is as it was, and the report says so.

    **What holds.** Masks of :func:`secateur.prune`, and exact zeros that another library left (a tenth of a weight or
    more). Thresholds of :func:`secateur.train_thresholds` learn at ten times the rate; students of
    :func:`secateur.prepare_qat` are trained with their rounding. Modules that a student in training mode has in
    evaluation mode (frozen BatchNorm) stay in it; a student in evaluation mode is put into training mode throughout.
    Training flags are as before afterwards, and so is the random state.

    **The run.** The learning rate rises for 5 % of the run and falls to 0 along a cosine (Loshchilov and Hutter, SGDR,
    2017) that ends with it. Gradients of pruned weights are left out, and one that is over three times as long as usual
    is cut to that. A step whose loss or gradient is NaN or Inf is left out; ten in a row end the run. On a GPU with
    bfloat16, and on a CPU that has it, products are bfloat16 (autocast), which progress bar and report say. Under
    torch.distributed each rank gives its own share of the batches, gradients are averaged and rank 0 sends its weights
    first; ``student`` may be wrapped in DistributedDataParallel, or not.

    **Resuming.** At an interrupt (Ctrl-C) the student gets the best weights so far, ``checkpoint`` is written and the
    KeyboardInterrupt goes on. The same call with the same checkpoint goes on along the same way: on a CPU bit for bit,
    where the batches are a list, or a DataLoader whose workers do not persist. A run that is complete is not repeated.
    Delete the file to start anew.

    Args:
        student: what is trained; float32 or float64, on one device, which batches are moved to.
        batches: a list, a DataLoader or another iterable of batches; an iterator's are kept, up to 1 GiB. A batch is a
            tensor; a tuple or list, whose first ``inputs`` values are the model's arguments and the next is the labels;
            a dict of keyword arguments, in which "labels", "label", "targets" or "target" is the labels. Labels are
            integers ``[N]`` or ``[N, ...]`` (-100: left out), or shares in the shape of the logits.
        teacher: None, or what answers: gives logits in the student's shape, ``[N, C]`` or ``[N, C, ...]`` (or an object
            that has them as ``logits``).
        steps: the number of optimizer steps; 2000 where there are no ``minutes``.
        minutes: the wall time, judging included. With ``steps``: whichever ends first.
        lr: the highest learning rate; None: 2e-3 for the default optimizer (a network that was pruned little, or is
            large, may want less), an optimizer's own.
        optimizer: None: AdamW, with a decay of 1e-4 for weights and none for biases and normalization. A torch
            optimizer over the student's parameters, whose rates follow the schedule and are put back. Or a function of
            parameter groups (``torch.optim.SGD``, a ``functools.partial``), called with ``lr=`` where that is given.
        loss: None; a :class:`secateur.DistillationLoss`, which brings its teacher; or a function of the student's
            output and, as far as they are there, the labels and the teacher's output, that returns a scalar to be made
            small. Values after the inputs are then given as a tuple where they are several. Held-out batches are judged
            by it in evaluation mode: with a term that exists in training mode alone (that of
            :class:`secateur.ActivationSparsityLoss`) give ``evaluate`` as well.
        evaluate: a function of the model, called in evaluation mode without gradients, that returns a finite number:
            the higher, the better. Under torch.distributed the mean over the ranks counts.
        checkpoint: a file to write now and then and to resume from, if it is there.
        seed: of the order of a list's batches, the held-out part, dropout and augmentation in this process.
        inputs: how many of a tuple's values are arguments of the model.
        evaluations: how often to judge on the way, 1 or more.
        mixed_precision: None: bfloat16 products where the device has them and the student allows; True: an Error where
            it cannot be; False: none.
        progress: show a progress bar.

    Returns:
        A report, one row a judgement; ``.best``, ``.improved``, ``.stopped``, ``.picture(path)``.

    Raises:
        Error: a student that does not train (compiled, converted, quantized, frozen, sharded, half precision, not
            finite), a teacher that is the student, nothing to learn from, no batches, batches that the student does not
            take, labels that do not fit, a loss without gradient or not finite from the start, a checkpoint of another
            student or run. The student is as it was, or at the best so far.
    """
    net = checked_student(student)
    limits = _limits(steps, minutes, evaluations)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise Error(f"{CALLER}: seed must be a whole number, got {seed!r}")
    device = next(net.parameters()).device
    ranks = Ranks()
    with ExitStack() as stack:
        stack.enter_context(random_state_kept())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(flags_kept(student))
        if ranks.size > 1:
            _agree(net, ranks)
        held = stack.enter_context(zeros_held(net))
        goal = Goal(student, teacher, loss, device)
        rates = Rates(net, optimizer, lr)
        amp = precision.chosen(net, device, mixed_precision)
        read = Reader(inputs, net, several=goal.own is not None)
        source = open_source(batches, read, seed, evaluate is None, ranks)
        stack.callback(source.close)
        examples, notes = _held_out(source, evaluate)
        for example in examples:
            goal.check(example)
        judge = Judge(net, goal, examples, evaluate, ranks, device)
        settings: dict[str, Any] = {
            "steps": limits.steps, "minutes": minutes, "evaluations": evaluations, "lr": rates.peak, "seed": seed,
            "ranks": ranks.size, "teacher": goal.teacher is not None, "judged by": judge.by, "mixed_precision": amp,
        }  # fmt: skip
        saved = Checkpoint(checkpoint, net, settings, ranks)
        if not net.training:
            student.train()
        run = Run(student, net, source, goal, judge, rates, limits, saved, ranks, device, seed, amp)
        run.go(progress)
        if held:
            notes.append(held_note(held))
        return _report(run, [*notes, *source.notes])


def _limits(steps: Any, minutes: Any, evaluations: Any) -> Limits:
    for name, value in (("steps", steps), ("evaluations", evaluations)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise Error(f"{CALLER}: {name} must be a whole number from 1 up, got {value!r}")
    if evaluations is None:
        raise Error(f"{CALLER}: evaluations must be a whole number from 1 up, got None")
    if minutes is not None:
        number = math.nan if isinstance(minutes, bool) or not isinstance(minutes, int | float) else float(minutes)
        if not (0 < number < math.inf):
            raise Error(f"{CALLER}: minutes must be a finite number above 0, got {minutes!r}")
    if steps is None and minutes is None:
        steps = STEPS
    return Limits(steps, None if minutes is None else 60.0 * minutes, evaluations)


def _agree(net: nn.Module, ranks: Ranks) -> None:
    """All ranks begin with rank 0's values; their masks must be one."""
    found = ranks.gather({name: digest(mask) for name, mask in masks_of(net).items()})
    if any(each != found[0] for each in found):
        raise Error(
            f"{CALLER}: student must have the same masks on all ranks: prune on one and call secateur.masks.broadcast"
        )
    ranks.send_(list(live(net).values()))


def _held_out(source: Source, evaluate: Any) -> tuple[list[Any], list[str]]:
    if evaluate is not None:
        return [], []
    if source.held:
        return source.held, [f"held out to judge by, and never trained on: {source.share}"]
    few = list(itertools.islice(source.examples(0), MOST_BATCHES))
    if not few:
        raise Error(f"{CALLER}: batches must hold at least one batch, got none")
    return few, ["too few batches to hold some out: judged on what was trained on, overfitting would not be seen"]


def _report(run: Run, notes: list[str]) -> FinetuneReport:
    state = run.state
    if run.resumed:
        notes.insert(0, f"resumed at step {run.resumed:,} from {run.checkpoint.path}")
    if run.resumed and run.resumed == state.step:
        notes[0] = f"nothing was trained: the run in {run.checkpoint.path} is complete"
    if state.best == 0:
        notes.insert(0, "nothing was better than the start: the student is as it was")
    if run.rates.unheld:
        notes.append(f"not in the optimizer, and so not trained: {names_of(run.rates.unheld)}")
    if run.amp:
        notes.append("products were bfloat16 (mixed_precision=False: none)")
    if state.skipped:
        notes.append(f"{state.skipped} steps left out: NaN or Inf in the batch, the loss or the gradient")
    if state.stopped == "not finite":
        text = f"stopped at step {state.step:,}: ten steps in a row gave NaN or Inf"
        notes.insert(0, text)
        warnings.warn(f"{CALLER}: {text}; the student has the best weights from before", UserWarning, stacklevel=4)
    return FinetuneReport(
        state.rows, run.judge.by, state.best, notes, state.step, state.rows[-1]["seconds"], state.stopped, run.amp
    )


__all__ = ["finetune"]
