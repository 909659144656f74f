"""The rules against each other: one trained network, the same zeros in each layer, the same short fine-tuning."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...pruning.criteria import Criterion, Magnitude, MeanStd, Random
from ...pruning.prune import prune
from .data import Digits
from .training import accuracy, fit

#: fc2's neurons are the ten answers: dropping 80 % of them would leave two digits that can be named at all.
EXCLUDED = "fc2"


def _rules(share: float, seed: int) -> dict[str, Criterion]:
    return {
        "MeanStd": MeanStd(sparsity=share),
        "Magnitude": Magnitude(share),
        "Random element": Random(share, seed=seed),
        "Random neuron (the tutorial's code)": Random(share, unit="neuron", seed=seed),
    }


def run(
    dense: nn.Module, digits: Digits, epochs: int, sparsity: Mapping[str, float], seed: int, progress: bool
) -> list[dict[str, Any]]:
    """Prune a copy of ``dense`` at once by each rule, and fine-tune it; each row carries its model."""
    rows = []
    for name in _rules(0.5, seed):
        model = copy.deepcopy(dense)
        chosen = {layer: _rules(share, seed)[name] for layer, share in sparsity.items() if layer != EXCLUDED}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="prune: ", category=UserWarning)  # whole neurons are the point
            report = prune(model, next(iter(chosen.values())), exclude=[EXCLUDED], overrides=dict(chosen))
        raw = accuracy(model, digits.validation)
        generator = torch.Generator().manual_seed(seed + 1)
        fit(model, digits.train, epochs, 1e-3, generator, title=f"contest: {name.split(' (')[0]}", progress=progress)
        rows.append(
            {
                "rule": name,
                "weight_sparsity": report.sparsity,
                "validation_accuracy_before_tuning": raw,
                "model": model,
            }
        )
    return rows


def judge(rows: list[dict[str, Any]], digits: Digits) -> list[dict[str, Any]]:
    """Rows of plain data: each model's accuracy on the validation and the test digits."""
    judged = []
    for row in rows:
        model = row.pop("model")
        judged.append(
            {
                **row,
                "validation_accuracy": accuracy(model, digits.validation),
                "test_accuracy": accuracy(model, digits.test),
            }
        )
    return judged
