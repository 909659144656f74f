"""A failure as a file: the shrunk script, what was expected, what came, and the call that shows it."""

from __future__ import annotations

import re
from pathlib import Path

from .calls import CALLS, chosen_at_random
from .contract import Dull, Failure, hold, prepare
from .program import Program
from .shrink import shrink

_SHOWN = {
    "compile": "secateur.compile(model, example, budget=1)",
    "convert": "secateur.convert(model, example)",
    "quantize": "secateur.quantize(model, [*example], progress=False)",
    "prepare_qat": "secateur.prepare_qat(model, [*example], progress=False)",
    "prune_activations": "secateur.prune_activations(model, [*example], secateur.MeanStd(k=1000.0), progress=False)",
}


def failures_of(text: str, seed: int, call: str) -> list[Failure]:
    """What a script does wrong under a call, drawn as for this seed; nothing, if it is right or does not run."""
    try:
        with Program(text) as program, chosen_at_random(seed):
            outcome = hold(prepare(program, seed), CALLS[call])
    except Dull:
        return []
    except Exception:  # an edit left no script that runs
        return []
    return outcome.failures if outcome is not None else []


def shrunk(text: str, seed: int, failure: Failure, seconds: float) -> str:
    """The script, shorter, with the same kind of failure."""
    call = failure.kind.partition(":")[0]

    def fails(candidate: str) -> bool:
        return any(found.kind == failure.kind for found in failures_of(candidate, seed, call))

    return shrink(text, fails, seconds)


def write_finding(folder: Path, text: str, seed: int, failure: Failure) -> Path:
    """The script with its failure, in a file of the kind's name; it shows the failure when it is run."""
    call = failure.kind.partition(":")[0]
    now = next((found for found in failures_of(text, seed, call) if found.kind == failure.kind), failure)
    path = folder / (re.sub(r"[^A-Za-z0-9]+", "_", failure.kind).strip("_")[:90] + ".py")
    note = [
        f"# {now.kind} (seed {seed})",
        f"#   where:    {now.detail}",
        f"#   expected: {now.want}",
        f"#   got:      {now.got}",
    ]
    note = [line.replace("\n", " ")[:300] for line in note]
    note.append(f"#   again:    PYTHONPATH=tests/fuzz python -m module_fuzzer --script {path.name} --seed {seed}")
    size = _example_size(text, seed)
    shown = [
        'if __name__ == "__main__":',
        "    import secateur",
        "",
        f"    example = inputs{size}",
        "    model, same = make(), make()",
        "    same.eval()",
        f"    result = {_SHOWN[call]}",
        "    with torch.no_grad():",
        f"        print(same(*inputs{size}), result(*inputs{size}), sep='\\n')",
    ]
    path.write_text("\n".join([*note, "", text.rstrip(), "", "", *shown]) + "\n")
    return path


def _example_size(text: str, seed: int) -> tuple[int, int, int]:
    try:
        with Program(text) as program:
            return prepare(program, seed).sizes[0]
    except Exception:
        return (2, 8, 8)
