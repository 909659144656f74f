"""The harness of benchmarks/networks: it times what is right, says what is absent or wrong, renders what it wrote."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks is run from the repository's root, not installed

from benchmarks.networks import charts, contest, engines, networks, plans, quantizers, render, store  # noqa: E402

LAYER = "conv-8-16-10-3"

pytestmark = pytest.mark.slow  # its engines are processes


def result(network="resnet50", batch=1, zeros=0.9, **ms):
    """A case as the contest gives it, with these medians."""
    rows = {
        name: {
            "status": "ok", "median_ms": value, "iqr_ms": 0.2, "min_ms": value, "runs": 9, "ready_s": 2.0,
            "run_peak_mb": 100.0, "load_peak_mb": 200.0, "error": 1e-6,
        }
        for name, value in ms.items()
    }  # fmt: skip
    return {"network": network, "batch": batch, "zeros": zeros, "engines": rows, "torch_error": 2e-6, "stolen": 0.0,
            "commit": "abc"}  # fmt: skip


def data(plan, *cases):
    return {"plan": plan, "command": "x", "date": "2026-01-01", "machine": {"cpu": "C", "cores": 2, "python": "3"},
            "threads": 2, "versions": {"torch": "2"}, "cases": list(cases)}  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One layer, measured for an instant by real workers. ``nowhere`` is an engine that is not installed; the last
    case has a wrong reference."""
    folder = tmp_path_factory.mktemp("contest")
    known = dict(engines.ENGINES)
    engines.ENGINES["nowhere"] = dataclasses.replace(known["deepsparse"], peer="nowhere", file="torch")
    said = []
    names = ["eager", "convert", "nowhere"]
    settings = contest.Settings(threads=1, rounds=2, turn_s=0.01, fresh=False)
    cases = [contest.Case(LAYER, batch, 0.5) for batch in (1, 3)]
    with contest.Contest(names, settings, folder, said.append) as running:
        results = [running.run(case, cases) for case in cases]
        processes = {name: process.process.pid for name, process in running.processes.items()}
        running.engines = ["eager"]
        eager = running.processes["eager"]
        reference = running._models(LAYER, 0.0) / "reference.npy"
        np.save(reference, np.load(reference) * 1.01)
        eager.loaded = None
        results.append(running.run(cases[0]))
    engines.ENGINES.clear()
    engines.ENGINES.update(known)
    return results, said, processes, folder


def test_workers_measure_what_they_validated(measured):
    results, said, processes, folder = measured
    for batch, found in zip((1, 3), results[:2], strict=True):
        assert (found["network"], found["batch"], found["zeros"]) == (LAYER, batch, 0.5)
        assert found["zeros_of_all"] == pytest.approx(0.5, abs=0.01)
        for name in ("eager", "convert"):
            row = found["engines"][name]
            assert row["status"] == "ok"
            assert 0 < row["min_ms"] <= row["median_ms"]
            assert row["runs"] >= 2
            assert row["error"] < 1e-5
        assert found["engines"]["nowhere"]["status"] == "absent"
        assert "make peers" in found["engines"]["nowhere"]["why"]
    assert not (folder / "models").exists()
    for pid in processes.values():
        assert not Path(f"/proc/{pid}").exists()
    assert sum("absent" in line for line in said) == 1


def test_an_engine_that_computes_something_else_is_not_timed(measured):
    row = measured[0][2]["engines"]["eager"]
    assert row["status"] == "failed"
    assert "WRONG OUTPUT" in row["why"]
    assert "median_ms" not in row


def test_a_worker_that_dies_says_its_last_words(tmp_path):
    broken = dataclasses.replace(engines.ENGINES["eager"], adapter="NoSuchAdapter")
    process = contest.Process(broken, 1, tmp_path / "log")
    try:
        with pytest.raises(contest.Failed, match=r"ended with code 1: AttributeError: .*NoSuchAdapter"):
            process.hello()
    finally:
        process.close()


@pytest.mark.parametrize("network", [LAYER, "conv-8-8-9-3-s2-g8", "linear-30-20"])
def test_layers_have_sane_outputs_and_exact_zeros(network, tmp_path):
    about = networks.prepare(network, 0.7, 5, [], tmp_path)
    depthwise = "-g" in network
    assert about["zeros_of_all"] == pytest.approx(0 if depthwise else 0.7, abs=0.005)
    model = torch.load(tmp_path / "model.pt", weights_only=False)
    x, expected = np.load(tmp_path / "x.npy"), np.load(tmp_path / "reference.npy")
    assert len(x) == 5
    assert expected.dtype == np.float64
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.from_numpy(x)).numpy(), expected, atol=1e-5)  # float32, 72 terms
    assert 0.1 < expected.std() < 10
    np.testing.assert_array_equal(x[4], x[1])  # few distinct images, neighbours differ
    assert (x[0] != x[1]).any()


def test_a_network_is_pruned_but_for_its_first_and_depthwise_layers():
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    model = networks.build("mobilenet_v2", 0.9, networks.images("mobilenet_v2", 2))
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    for i, conv in enumerate(convs):
        zeros = 1 - int(conv.weight.count_nonzero()) / conv.weight.numel()
        assert zeros == pytest.approx(0 if i == 0 or conv.groups > 1 else 0.9, abs=0.002)


@pytest.mark.parametrize(("network", "channels"), [(LAYER, 8), ("conv-6-16-10-3", 6), ("linear-32-20", 32)])
def test_zeros_come_in_blocks_of_input_channels(network, channels):
    weight = networks.build(network, 0.75, networks.images(network, 2), "1x4")[0].weight
    kept = weight != 0
    for begin in range(0, channels, 4):
        block = kept[:, begin : begin + 4]
        assert (block.all(1) == block.any(1)).all()
    assert kept.double().mean() == pytest.approx(0.25, abs=0.02)
    assert not (kept.flatten(2).all(2) if kept.dim() > 2 else kept.all(1)).any()  # not whole kernels, nor rows


def test_calm_networks_add_a_quarter_of_each_branch():
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    few = networks.images("resnet18", 2)
    plain, calm = (networks.build("resnet18", 0.0, few, calm=calm) for calm in (False, True))
    torch.testing.assert_close(calm.layer2[1].bn2.weight, networks.CALM * plain.layer2[1].bn2.weight)
    torch.testing.assert_close(calm.layer2[1].bn1.weight, plain.layer2[1].bn1.weight)
    torch.testing.assert_close(calm.layer2[0].downsample[1].weight, plain.layer2[0].downsample[1].weight)


def test_batches_for_calibration_have_one_shape():
    images = np.arange(5)[:, None]
    assert [b[:, 0].tolist() for b in quantizers.batches_of(images, 2)] == [[0, 1], [2, 3], [4, 0]]
    assert len(quantizers.batches_of(images, 1)) == 5


@pytest.fixture(scope="module")
def measured_int8(tmp_path_factory):
    """One layer in int8 by those who are here; then again by weights that are not those of the reference."""
    folder = tmp_path_factory.mktemp("int8")
    names = ["ort-int8", "openvino-int8", "secateur-int8"]
    case = contest.Case("conv-16-16-12-3", 2, 0.5)
    settings = contest.Settings(threads=1, rounds=1, turn_s=0.01, fresh=False, calm=True)
    with contest.Contest(names, settings, folder, lambda text: None) as running:
        right = running.run(case)
        keys = set(running.prepared)
        for process in running.processes.values():
            process.loaded = None
        for key in keys:
            reference = running._models(*key) / "reference.npy"
            np.save(reference, np.load(reference)[:, ::-1])
        wrong = running.run(case)
    return right, wrong, keys


def test_int8_engines_are_judged_by_signal_to_noise(measured_int8):
    right, wrong, keys = measured_int8
    assert keys == {("conv-16-16-12-3", 0.0, "1x1"), ("conv-16-16-12-3", 0.5, "1x4")}
    here = [name for name, row in right["engines"].items() if row["status"] != "absent"]
    if not here:
        pytest.skip("nobody is here who quantizes")
    for name in here:
        row = right["engines"][name]
        assert row["status"] == "ok", row
        # One layer in 8 bits; fp32 has more than 100. ONNX Runtime's sums saturate where there is no VNNI: 21 here.
        assert (15 if name == "ort-int8" else 25) < row["sqnr_db"] < 60
        assert row["median_ms"] > 0
        assert wrong["engines"][name]["status"] == "failed"
        assert "SQNR" in wrong["engines"][name]["why"]
        if name != "secateur-int8":
            assert (row["settings"]["int8_layers"], row["settings"]["layers"]) == (1, 1)
            assert row["made_s"] > 0


def test_a_tool_that_fails_stops_its_own_engine_only(tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="onnx is not installed")

    def broken(*_):
        raise RuntimeError("no such operator")

    monkeypatch.setitem(quantizers.TOOLS, "ort-int8", broken)
    about = networks.prepare(LAYER, 0.0, 1, [], tmp_path, int8={"ort-int8": [1]})
    assert about["int8"] == {"model-1-ort-int8.onnx": {"failed": "RuntimeError: no such operator"}}
    assert (tmp_path / "reference.npy").exists()
    running = contest.Contest(["ort-int8"], contest.Settings(), tmp_path, lambda text: None)
    running.prepared[LAYER, 0.0, "1x1"] = about
    running.processes["ort-int8"] = dataclasses.make_dataclass("P", ["loaded"])(None)
    with pytest.raises(contest.Failed, match="no int8 model, RuntimeError: no such operator"):
        running._load("ort-int8", contest.Case(LAYER, 1, 0.9))


def test_without_nncf_openvinos_int8_is_absent(monkeypatch):
    pytest.importorskip("openvino", reason="openvino is not installed")
    from benchmarks.networks import adapters

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="make peers"):
        adapters.OpenVinoInt8(1, {})


def test_int8_table_has_both_ratios_and_their_goals():
    measured = {"ort": 40, "openvino": 30, "openvino-int8": 10, "ort-int8": 20, "compile": 12, "secateur-int8": 4.8}
    case = result(**measured)
    case["engines"]["openvino-int8"] |= {"sqnr_db": 27.23, "settings": {"int8_layers": 53, "layers": 54}}
    lines = render.int8(data("int8", case)).splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}
    assert lines[0] == "resnet50, batch 1, 90 % zeros (goals in brackets)"
    assert "| 53 of 54 | 27.2 dB | **3.00x** | **1.00x** |" in rows["OpenVINO int8"]
    assert "OpenVINO (best dense fp32)" in rows
    assert "90 %, 1x4 | 4.8 ± 0.1" in rows["secateur int8"]
    assert "**6.25x** (6) | **2.08x** (2) |" in rows["secateur int8"]
    assert "90 %, 1x1" in rows["secateur.compile"]
    late = render.int8(data("int8", result(batch=16, **measured | {"secateur-int8": 6})))
    assert "**5.00x** | **1.67x** (2, missed) |" in late
    dense = render.int8(data("int8", result(zeros=0.0, **measured | {"secateur-int8": 12.9})))
    assert "| - | 12.9 ± 0.1 | - | - | **2.33x** | **0.78x** (0.769) |" in dense
    slow = render.int8(data("int8", result(zeros=0.0, **measured | {"secateur-int8": 13.1})))
    assert "**0.76x** (0.769, missed)" in slow


def test_plans_hold_the_issues_cases():
    table = plans.PLANS["table"]
    assert {(c.network, c.zeros, c.batch) for c in table.cases(None, None, None)} == set(plans.GOALS)
    assert 4 <= len(table.cases(None, None, None, quick=True)) < len(plans.GOALS)
    assert table.cases(["vgg16"], [1], None, quick=True)
    asked = table.cases(["vgg16"], None, [0.8])  # not in the issue's table, but asked for
    assert [(c.network, c.batch, c.zeros) for c in asked] == [("vgg16", 1, 0.8), ("vgg16", 16, 0.8)]
    assert [c.batch for c in plans.PLANS["batches"].cases(None, None, None)] == list(range(1, 18))
    for plan in plans.PLANS.values():
        assert set(plan.engines) <= set(engines.ENGINES)
        for network in plan.networks:
            assert networks.LAYER.fullmatch(network) or network in plans.NETWORKS


def test_the_file_is_taken_up_again(tmp_path):
    path = tmp_path / "t.json"
    first = store.Store(path, "table", resume=False)
    first.add(result(eager=2.0), {"torch": "2"}, 2)
    again = store.Store(path, "table", resume=True)
    case = contest.Case("resnet50", 1, 0.9)
    assert again.has(case, ["eager"])
    assert not again.has(case, ["eager", "ort"])
    again.add(result(eager=1.0), {}, 2)
    assert [c["engines"]["eager"]["median_ms"] for c in json.loads(path.read_text())["cases"]] == [1.0]
    with pytest.raises(SystemExit, match="holds the results of 'table'"):
        store.Store(path, "zeros", resume=True)


def test_table_compares_with_the_faster_dense_engine_and_its_goal():
    text = render.table(data("table", result(compile=10, ort=40, openvino=32, deepsparse=25)))
    row = text.splitlines()[2]
    assert "32 ± 0.1 (OpenVINO)" in row
    assert "**3.20x** (3)" in row
    assert "**2.50x** (2.8, missed)" in row
    assert "| - |" in row  # convert took no part


def test_never_slower_judges_by_the_fastest_form_of_torch():
    text = render.never_slower(
        data("never-slower", result(zeros=0.0, compile=10.4, eager=30, inductor=10), result(compile=10.6, inductor=10))
    )
    rows = {line.split("|")[3].strip(): line for line in text.splitlines()[2:]}
    assert "1.04 | holds" in rows["0 %"]
    assert "1.06 | **SLOWER**" in rows["90 %"]


def test_batches_are_compared_by_the_image():
    text = render.batches(data("batches", result(batch=1, compile=5.0), result(batch=10, compile=40.0)))
    assert "5 (1.25)" in text
    assert "4 (1.00)" in text


@pytest.mark.parametrize("plan", list(plans.PLANS))
def test_every_plan_is_rendered_and_drawn(plan, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    network = LAYER if plan == "layers" else "resnet50"
    cases = [
        result(network, 1, zeros, compile=5.0, eager=9.0, **{"channels-last": 8.0}, ort=7.0, deepsparse=6.0)
        for zeros in (0.0, 0.9)
    ]
    cases[1]["engines"]["openvino"] = {"status": "absent", "why": "not here"}
    whole = data(plan, *cases)
    text = render.markdown(whole, with_details=True)
    assert "openvino: absent (not here)" in text
    assert "commit abc" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines[:4]}) == 1
    for path in charts.draw(whole, tmp_path / plan):
        assert path.stat().st_size > 5000
    assert charts.draw(data(plan), tmp_path / "none") == []


def test_render_puts_tables_between_markers():
    text = "a\n<!-- bench:table -->\nold\n<!-- /bench:table -->\nb\n"
    assert render.into(text, {"table": "new"}) == "a\n<!-- bench:table -->\nnew\n<!-- /bench:table -->\nb\n"
    with pytest.raises(SystemExit, match="bench:zeros"):
        render.into(text, {"zeros": "new"})
