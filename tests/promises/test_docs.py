"""The documents say what is so: examples run, links lead somewhere, commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "csrc/README.md",
    "docs/map.md",
    "docs/measurements.md",
    "benchmarks/README.md",
    "FORMAT.md",
    "SECURITY.md",
]
each_document = pytest.mark.parametrize("name", DOCUMENTS)

EXAMPLES = [
    pytest.param(code, id=f"{name}-{i}")
    for name in DOCUMENTS
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.M | re.S))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # it may write files
    exec(compile(code, "example", "exec"), {"__name__": "example"})


def test_the_example_of_the_readme_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import secateur

    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)[0], names)
    model, thin, fast = names["model"], names["thin"], names["fast"]
    assert isinstance(model, torch.nn.Module)
    assert isinstance(thin, torch.nn.Module)
    assert isinstance(fast, torch.nn.Module)
    assert secateur.sparsity(model).sparsity == pytest.approx(0.9, abs=0.01)
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(fast(x), thin(x), rtol=1e-4, atol=1e-5)  # another order of float32 sums
    dense = sum(p.numel() * p.element_size() for p in model.parameters())
    assert (tmp_path / "pruned.safetensors").stat().st_size < dense / 5


@each_document
def test_links_lead_to_files(name: str) -> None:
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{name} links to {target}"


@each_document
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    text = (ROOT / name).read_text()
    commands = re.findall(r"^make ((?:[a-z-]+ ?)+)", text, re.M) + re.findall(r"`make ([a-z-]+)", text)
    assert {target for command in commands for target in command.split()} <= targets


def test_map_names_files_that_exist() -> None:
    text = (ROOT / "csrc/README.md").read_text()
    named = set(re.findall(r"`((?:ops|formats|cpu|cuda|algorithms)/[\w/]+\.\w+)`", text))
    assert len(named) > 5
    for name in named:
        assert (ROOT / "csrc" / name).exists() or (ROOT / "csrc/cpu" / name).exists(), name
