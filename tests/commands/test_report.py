"""The report: what it prints, what it turns into."""

from __future__ import annotations

import io
import json

import pytest
import torch
from secateur.report import WEIGHT_COLUMNS, Column, Report


def weights_report() -> Report:
    thetas = {"theta_min": 0.01, "theta_mean": 0.02, "theta_max": 0.031234567}
    conv = {"layer": "conv1", "shape": (32, 1, 3, 3), "weights": 288, "sparsity": 0.25}
    fc = {"layer": "fc1", "shape": (128, 3136), "weights": 401408, "sparsity": 0.9}
    rows = [
        {**conv, **thetas, "bytes_dense": 1152, "bytes_packed": 928},
        {**fc, **dict.fromkeys(thetas), "bytes_dense": 1605632, "bytes_packed": 210740, "extra": float("nan")},
    ]
    total = {"layer": "total", "weights": 401696, "sparsity": 0.8995, "bytes_dense": 1606784, "bytes_packed": 211668}
    return Report("weights", WEIGHT_COLUMNS, rows, ["fc1 was easy"], total)


def test_prints_an_aligned_table() -> None:
    lines = str(weights_report()).splitlines()
    assert lines[0] == "weights"
    assert lines[1].split() == [
        "layer",
        "shape",
        "weights",
        "zeros",
        "%",
        "theta",
        "min",
        "mean",
        "max",
        "dense",
        "packed",
    ]
    assert lines[3].split() == ["conv1", "32x1x3x3", "288", "25.0", "0.01", "0.02", "0.03123", "1.2", "KB", "928", "B"]
    assert lines[4].split()[:7] == ["fc1", "128x3136", "401,408", "90.0", "-", "-", "-"]
    assert set(lines[2]) == set(lines[5]) == {"-"}  # the rules under the headings and over the total
    assert lines[6].startswith("total")
    assert lines[7] == "  note: fc1 was easy"
    assert lines[3].index("25.0") + 4 == lines[4].index("90.0") + 4 == lines[1].index("zeros %") + len("zeros %")


def test_to_dict_is_json() -> None:
    data = json.loads(json.dumps(weights_report().to_dict(), allow_nan=False))
    assert data["title"] == "weights"
    assert data["rows"][0]["shape"] == [32, 1, 3, 3]
    assert data["rows"][1]["extra"] is None  # NaN has no JSON
    assert data["total"]["weights"] == 401696
    assert data["notes"] == ["fc1 was easy"]


def test_iterates_and_finds_rows() -> None:
    report = weights_report()
    assert [row["layer"] for row in report] == ["conv1", "fc1"]
    assert len(report) == 2
    assert report["fc1"] is report[1]
    assert report.sparsity == pytest.approx(0.8995)
    with pytest.raises(KeyError):
        report["fc2"]


def test_plain_columns_and_no_total() -> None:
    report = Report("", ["name", "n", "x"], [{"name": "a", "n": 1234, "x": 0.5, "t": torch.tensor([1.0, 2.0])}])
    assert str(report).splitlines()[2].split() == ["a", "1,234", "0.5"]
    assert report.to_dict()["rows"][0]["t"] == [1.0, 2.0]
    with pytest.raises(AttributeError, match="has no total sparsity"):
        _ = report.sparsity


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "100.0"), (0.99999, ">99.9"), (0.0, "0.0"), (1e-5, "<0.1"), (None, "-")]
)
def test_a_rounded_percentage_never_claims_all_or_nothing(value: float | None, text: str) -> None:
    assert Column("s", kind="percent").text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999 B"), (1000, "1.0 KB"), (999_949, "999.9 KB"), (1_000_000, "1.0 MB")]
)
def test_bytes(value: int, text: str) -> None:
    assert Column("b", kind="bytes").text(value) == text


def test_html_escapes() -> None:
    report = Report("<t>", [Column("layer", kind="text")], [{"layer": "<a&b>"}])
    assert "&lt;a&amp;b&gt;" in report._repr_html_()
    assert "<t>" not in report._repr_html_()


def test_rich_prints_what_the_table_says() -> None:
    console = pytest.importorskip("rich.console").Console(width=100, record=True, file=io.StringIO())
    columns = [Column("layer", kind="text"), Column("n", "weights", "count")]
    rows = [{"layer": "conv [bold]", "n": 1234}, {"layer": "fc", "n": 7}]
    console.print(Report("a [title]", columns, rows, ["see [1]"], {"layer": "total", "n": 1241}))
    lines = [line.split() for line in console.export_text().splitlines()]
    words = [line for line in lines if line and not set(line[0]) <= {"─", "╶", "╴"}]
    assert words[:3] == [["a", "[title]"], ["layer", "weights"], ["conv", "[bold]", "1,234"]]
    assert words[3:] == [["fc", "7"], ["total", "1,241"], ["see", "[1]"]]
    rules = [i for i, line in enumerate(lines) if line and set(line[0]) <= {"─", "╶", "╴"}]
    assert len(rules) == 2  # under the headings, and over the total
    assert lines[rules[1] + 1][0] == "total"
