"""A process that tries one module after another, and says of each in a line what came of it."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from .calls import CALLS, chosen_at_random
from .contract import Dull, hold, prepare
from .program import Program
from .writer import write


def tried(seed: int) -> dict[str, Any]:
    """One module through the five calls."""
    written = write(seed)
    line: dict[str, Any] = {"seed": seed}
    with chosen_at_random(seed):
        try:
            with Program(written.text) as program:
                trial = prepare(program, seed)
                outcomes = {name: hold(trial, call) for name, call in CALLS.items()}
        except Dull as why:
            return line | {"dull": str(why)}
        except Exception as error:  # of the script itself
            return line | {"dull": f"{type(error).__name__}: {error}"}
    held = {name: outcome for name, outcome in outcomes.items() if outcome is not None}
    return line | {
        "features": sorted(written.features),
        "calls": list(held),
        "refused": {name: o.refused[:200] for name, o in held.items() if o.refused},
        "wholly_torch": any(o.wholly_torch for o in held.values()),
        "failures": [vars(failure) for o in held.values() for failure in o.failures],
    }


def work(first: int, step: int) -> None:
    """Seeds ``first, first + step, ...`` until the process is ended. Each is named before it is tried."""
    torch.set_num_threads(1)
    seed = first
    while True:
        print(json.dumps({"begins": seed}), flush=True)
        print(json.dumps(tried(seed), default=str), flush=True)
        seed += step


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]))
