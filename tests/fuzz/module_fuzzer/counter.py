"""What was written, called, refused and found."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .features import FEATURES


@dataclass
class Tally:
    """Sums of the lines that the workers send."""

    modules: int = 0
    dull: int = 0
    features: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    refused_modules: int = 0
    wholly_torch: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    failed_modules: int = 0

    def add(self, line: dict[str, Any]) -> None:
        if line.get("dull"):
            self.dull += 1
            return
        self.modules += 1
        self.features.update(line["features"])
        self.pairs.update(itertools.combinations(sorted(line["features"]), 2))
        self.calls.update(line["calls"])
        self.refused.update(line["refused"].keys())
        self.reasons.update(f"{call}: {why}" for call, why in line["refused"].items())
        self.refused_modules += bool(line["refused"])
        self.wholly_torch += line["wholly_torch"]
        self.kinds.update(failure["kind"] for failure in line["failures"])
        self.failed_modules += bool(line["failures"])

    def text(self, seconds: float) -> str:
        called, refused = sum(self.calls.values()), sum(self.refused.values())
        known = [name for name in FEATURES if self.features[name]]
        possible = len(FEATURES) * (len(FEATURES) - 1) // 2
        rarest = sorted(FEATURES, key=lambda name: self.features[name])[:8]
        lines = [
            f"{self.modules} modules in {seconds:.0f} s ({self.dull} more said nothing), {called} calls",
            f"features: {len(known)} of {len(FEATURES)}; the rarest: "
            + ", ".join(f"{name} {self.features[name]}" for name in rarest),
            f"pairs of features: {len(self.pairs)} of {possible}, "
            f"{sum(n >= 10 for n in self.pairs.values())} of them ten times or more",
            f"refused: {_percent(refused, called)} of the calls, "
            f"{_percent(self.refused_modules, self.modules)} of the modules",
            f"wholly in torch: {_percent(self.wholly_torch, self.calls['compile'])} of the compiled ones",
        ]
        lines += [f"  {n:6d}  refused: {why[:150]}" for why, n in self.reasons.most_common(8)]
        lines.append(
            f"failures: {sum(self.kinds.values())} of {len(self.kinds)} kinds, in {self.failed_modules} modules"
        )
        lines += [f"  {n:6d}  {kind}" for kind, n in self.kinds.most_common()]
        return "\n".join(lines)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
