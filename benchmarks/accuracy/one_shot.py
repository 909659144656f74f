"""What pruning without training keeps, from a thousand images without labels: rules side by side, one shot.

    python -m benchmarks.accuracy.one_shot                     # table and JSON land in out/one_shot
    python -m benchmarks.accuracy.one_shot --quick             # one sample of the images, few methods, 80 and 90 %

A small ResNet (BatchNorm) and a VGG-like net (no normalization) on Fashion-MNIST, trained once and kept in ``--cache``.
All layers but the first are pruned; every row ends with ``recalibrate`` (with ``dense=`` for the net without BatchNorm,
where it helps the others). Each repeat takes other images for calibration; accuracy is that on the 10,000 test images,
so 0.1 point is 10 images. Points are lost against the dense network: mean, and the largest of the repeats. Data:
Debian's package dataset-fashion-mnist, or FASHION=folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import secateur
import torch
from secateur import Magnitude, MeanStd, OptimalBrain, Wanda
from torch import Tensor, nn

from . import fashion

OUT = Path("out/one_shot")
IMAGES, BATCH = 1024, 128
ZEROS = (0.5, 0.7, 0.8, 0.9, 0.95)
#: The patterns "N:M" at the shares of zeros that are their own.
RUNS = {0.5: "2:4", 0.75: "1:4"}
#: What may be lost at most, in points.
REACH = {"resnet": {0.8: 0.9, 0.9: 3.5, 0.95: 20.0}, "vgg": {0.8: 0.3, 0.9: 1.0}}

Batches = tuple[Tensor, ...]
Method = Callable[[nn.Module, nn.Module, Batches, float], None]


def by(make: Callable[[float], Any], pattern: str = "1x1", solve: bool = False) -> Method:
    """``pattern`` "N:M": the one of ``RUNS``. ``solve``: by ``restore`` afterwards."""

    def prune(model: nn.Module, dense: nn.Module, batches: Batches, share: float) -> None:
        rule = make(share)
        data = None if rule.needs is None else batches
        where = RUNS[share] if pattern == "N:M" else pattern
        secateur.prune(model, rule, data=data, pattern=where, exclude=["0"], progress=False)
        if solve:
            secateur.restore(model, dense, batches, progress=False)

    return prune


METHODS: dict[str, Method] = {
    "Magnitude": by(Magnitude),
    "Magnitude, global": by(lambda s: Magnitude(s, "global")),
    "MeanStd": by(lambda s: MeanStd(sparsity=s)),
    "Wanda": by(Wanda),
    "MeanStd, restored": by(lambda s: MeanStd(sparsity=s), solve=True),
    "OptimalBrain": by(OptimalBrain),
    "OptimalBrain, global": by(lambda s: OptimalBrain(s, "global")),
    "OptimalBrain, global, 1x4": by(lambda s: OptimalBrain(s, "global"), "1x4"),
    "Magnitude, N:M": by(Magnitude, "N:M"),
    "Wanda, N:M": by(Wanda, "N:M"),
    "Magnitude, N:M, restored": by(Magnitude, "N:M", solve=True),
    "OptimalBrain, N:M": by(OptimalBrain, "N:M"),
}
QUICK = ("Magnitude, global", "OptimalBrain, global")


def sample(images: Tensor, repeat: int) -> Batches:
    generator = torch.Generator().manual_seed(1 + repeat)
    return images[torch.randperm(len(images), generator=generator)[:IMAGES]].split(BATCH)


def measure(names: list[str], methods: list[str], zeros: list[float], repeats: int, cache: Path) -> dict[str, Any]:
    train, test = fashion.load("train").x, fashion.load("t10k")
    rows = []
    dense_accuracy = {}
    for name in names:
        dense = fashion.trained(name, cache)
        dense_accuracy[name] = fashion.accuracy(dense, test)
        print(f"{name}: dense {dense_accuracy[name]:.2f}", flush=True)
        for share in zeros:
            for method in methods:
                if "N:M" in method and share not in RUNS:
                    continue
                found, seconds = [], []
                for repeat in range(repeats):
                    model, batches = copy.deepcopy(dense), sample(train, repeat)
                    start = time.perf_counter()
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # small layers miss a share under a pattern
                        METHODS[method](model, dense, batches, share)
                    secateur.recalibrate(model, batches, dense if name == "vgg" else None, progress=False)
                    seconds.append(time.perf_counter() - start)
                    found.append(fashion.accuracy(model, test))
                lost = [dense_accuracy[name] - each for each in found]
                row = {
                    "network": name, "zeros": share, "method": method, "accuracy": found,
                    "lost": statistics.mean(lost), "most_lost": max(lost), "seconds": statistics.median(seconds),
                    "reach": REACH[name].get(share) if method == "OptimalBrain, global" else None,
                }  # fmt: skip
                rows.append(row)
                print(line(row), flush=True)
    return {
        "command": " ".join(sys.argv), "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__, "threads": torch.get_num_threads(), "images": IMAGES, "repeats": repeats,
        "dense": dense_accuracy, "rows": rows,
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    goal = "" if row["reach"] is None else f"  (at most {row['reach']:g}: {row['most_lost'] <= row['reach']})"
    return (
        f"{row['network']:<7} {100 * row['zeros']:3.0f} %  {row['method']:<26} {statistics.mean(row['accuracy']):6.2f} "
        f"lost {row['lost']:6.2f} (most {row['most_lost']:6.2f})  {row['seconds']:5.1f} s{goal}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--networks", nargs="+", choices=sorted(fashion.NETWORKS), default=list(fashion.NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--zeros", nargs="+", type=float, default=list(ZEROS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path(".cache/one_shot"))
    arguments = parser.parse_args()
    if fashion.missing():
        print(f"one_shot: missing {fashion.missing()}", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.methods, arguments.zeros, arguments.repeats = list(QUICK), [0.8, 0.9], 1
    result = measure(arguments.networks, arguments.methods, arguments.zeros, arguments.repeats, arguments.cache)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "one_shot.json").write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
