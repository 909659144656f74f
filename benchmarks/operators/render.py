"""The tables of README.md from JSON: ``python benchmarks/operators/render.py .benchmarks/*/*.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def render(path: Path) -> str:
    data = json.loads(path.read_text())
    machine, commit = data["machine_info"], data["commit_info"]["id"]
    lines = []
    for benchmark in data["benchmarks"]:
        info = benchmark["extra_info"]
        lines += [f"**{info['name']}** ({info['threads']} threads, torch {info['torch']})", ""]
        lines += ["| contender | median ms | IQR ms | GB/s |", "|---|---:|---:|---:|"]
        for name, row in sorted(info["contenders"].items(), key=lambda item: item[1]["median_ms"]):
            rate = f"{row['gb_per_s']:.1f}" if row["gb_per_s"] else "-"
            lines.append(f"| {name} | {row['median_ms']:.2f} | {row['iqr_ms']:.2f} | {rate} |")
        lines += [f"| {name} | skipped: {reason} | | |" for name, reason in info["skipped"].items()]
        lines.append("")
        for goal in info["goals"]:
            verdict = "reached" if goal["reached"] else "missed"
            lines.append(
                f"- {goal['ours']} / {goal['peer']}: {goal['ratio']:.2f}; goal {goal['at_least']:g}, {verdict}"
            )
        lines.append("")
    cpu = machine.get("cpu", {})
    lines.append(
        f"{cpu.get('brand_raw', machine['processor'])}, {cpu.get('count', '?')} cores, "
        f"Python {machine['python_version']}, commit {commit[:12]}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(render(Path(name)))
