"""``secateur bench``: every way to name a model, what it prints and writes, and one line for what was wrong."""

import json

import pytest
import secateur
import torch
from safetensors.torch import save_file
from secateur.commands import bench, cli
from torch import nn

ENGINES = ["torch eager", "torch eager, channels_last", "secateur.convert", "secateur.compile"]


def network():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16 * 36, 4)
    )


def two_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 16, 3)

        def forward(self, x):
            y = self.body(x)
            return {"features": y, "logits": [y.mean((2, 3))]}

    return Two()


@pytest.fixture
def zeroed():
    torch.manual_seed(0)
    model = network()
    secateur.prune(model, secateur.Magnitude(sparsity=0.75))
    return model


@pytest.fixture
def run(tmp_path, capsys):
    """secateur bench, on 8x8 images for an instant; gives what it wrote and what it printed."""

    def call(*argv):
        out = tmp_path / "bench.json"
        code = cli.main(["bench", *argv, "--input-shape", "3,8,8", "--seconds", "0.02", "--json", str(out)])
        said = capsys.readouterr()
        assert code == 0, said.err
        return json.loads(out.read_text()), said.out

    return call


def refused(capsys, *argv):
    assert cli.main(["bench", *argv]) == 2
    text = capsys.readouterr().err
    assert text.startswith("secateur: bench: ")
    assert text.count("\n") == 1
    return text


def test_times_every_engine_at_every_batch(run):
    found, text = run("test_bench:network", "--batch", "1", "2", "--layers")
    assert [(row["batch"], row["engine"]) for row in found["rows"]] == [(b, e) for b in (1, 2) for e in ENGINES]
    for row in found["rows"]:
        assert row["ms_min"] <= row["ms"] <= row["ms_p75"]
        eager = next(r for r in found["rows"] if r["batch"] == row["batch"])
        assert row["ratio"] == pytest.approx(eager["ms"] / row["ms"])
        assert row["ms_p25"] <= row["ms"]
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["difference"] < 1e-5  # a hundred terms of float32
    assert found["rows"][0]["difference"] == 0
    assert found["sparsity"] == pytest.approx(0.9, abs=0.01)
    assert found["machine"]["threads"] == 2
    assert any("the model had no zeros" in note for note in found["notes"])
    assert [layers["total"]["ms"] > 0 for layers in found["layers"]] == [True, True]
    assert all(engine in text for engine in ENGINES)
    assert "secateur.compile, batch 2, layer by layer" in text


def test_a_ratio_that_is_not_sure_is_never_printed_as_if_it_were(run, monkeypatch):
    """Eager waited for a core in half of the rounds, the last form in none."""
    waited = [[0.08, 0.0022, 0.079, 0.081, 0.0023], [0.002] * 5, [0.0022, 0.0021, 0.0021, 0.0022, 0.002], [0.001] * 5]
    monkeypatch.setattr(bench.timing, "interleave", lambda calls, **_: waited[: len(calls)])
    monkeypatch.setattr(bench, "compile", lambda model, x: model)
    monkeypatch.setattr(bench, "convert", lambda model, x: model)
    found, text = run("test_bench:network")
    last = found["rows"][-1]
    assert last["ratio"] == pytest.approx(79)
    assert (last["sure"], last["times_eager"]) == (False, "2.20 to 80.00")
    assert "79.0" not in text.replace("79.000", "")  # the median in ms is no ratio
    assert "2.20 to 80.00" in text
    assert any(note.startswith("a range alone: ") for note in found["notes"])
    monkeypatch.setattr(bench.timing, "interleave", lambda calls, **_: [[0.008] * 5, *waited[1:]][: len(calls)])
    found, text = run("test_bench:network")
    assert found["rows"][-1]["times_eager"] == "8.00 (8.00 to 8.00)"
    assert "8.00 (8.00 to 8.00)" in text
    assert not any(note.startswith("a range alone: ") for note in found["notes"])


def test_a_busy_machine_is_warned_of(run, monkeypatch):
    class Busy:
        warning = "WARNING: the machine was busy (9.0 threads wanted to run on 2 cores)"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(bench, "watched", Busy)
    found, text = run("test_bench:network", "--batch", "1", "2")
    assert [note for note in found["notes"] if "WARNING" in note] == [f"batch {b}: {Busy.warning}" for b in (1, 2)]
    assert f"batch 2: {Busy.warning}" in text


def test_a_model_with_zeros_is_left_as_it_is(run, zeroed, tmp_path):
    torch.save(zeroed, tmp_path / "model.pt")
    found, _ = run(str(tmp_path / "model.pt"))
    assert found["sparsity"] == pytest.approx(0.75, abs=0.001)
    found, _ = run(str(tmp_path / "model.pt"), "--sparsity", "0.95")
    assert found["sparsity"] == pytest.approx(0.95, abs=0.001)


def test_zero_sparsity_prunes_nothing(run):
    found, _ = run("test_bench:network", "--sparsity", "0")
    assert found["sparsity"] == 0


@pytest.mark.parametrize("kind", ["packed", "safetensors", "state_dict", "wrapped"])
def test_weights_of_every_kind_of_file(kind, run, zeroed, tmp_path):
    path = tmp_path / "weights.bin"
    plain = {key: value for key, value in zeroed.state_dict().items() if not key.endswith("_mask")}
    if kind == "packed":
        secateur.save(zeroed, path)
    elif kind == "safetensors":
        save_file(plain, path)
    else:
        torch.save({"state_dict": plain} if kind == "wrapped" else plain, path)
    found, _ = run("test_bench:network", "--weights", str(path))
    assert found["sparsity"] == pytest.approx(0.75, abs=0.001)
    model = bench.load("test_bench:network", path)
    assert torch.equal(model[2].weight, zeroed[2].weight)
    assert not model.training


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # torch 2.10 of itself
def test_an_exported_program(run, zeroed, tmp_path):
    model = secateur.strip(zeroed).eval() or zeroed
    program = torch.export.export(model, (torch.randn(1, 3, 8, 8),))
    torch.export.save(program, tmp_path / "model.pt2")
    found, _ = run(str(tmp_path / "model.pt2"))
    assert found["sparsity"] == pytest.approx(0.75, abs=0.01)


def test_outputs_may_be_nested(run):
    found, _ = run("test_bench:two_outputs")
    assert found["rows"]


def test_a_form_that_computes_something_else_is_an_error(monkeypatch, capsys):
    wrong = network().eval()
    monkeypatch.setattr(bench, "convert", lambda model, x: wrong)
    said = refused(capsys, "test_bench:network", "--input-shape", "3,8,8")
    assert "secateur.convert must compute what the model does, off by" in said


def test_seed_is_the_same_and_the_callers_is_left_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, other = bench.load("test_bench:network"), bench.load("test_bench:network")
    assert torch.equal(one[0].weight, other[0].weight)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nosuchmodule:make"], "must be module:callable"),
        (["math:pi"], "must be module:callable"),
        (["math:nosuch"], "must be module:callable"),
        (["builtins:dict"], "must return a torch.nn.Module, got dict"),
        (["test_bench:network", "--input-shape", "3,a"], "--input-shape must be sizes"),
        (["test_bench:network", "--seconds", "0"], "--seconds must be above 0"),
        (["test_bench:network", "--input-shape", "5,8,8"], "must run on inputs of --input-shape 5,8,8: RuntimeError"),
    ],
)
def test_refuses(argv, words, capsys):
    assert words in refused(capsys, *argv)


def test_refuses_files_that_are_no_model(capsys, tmp_path, zeroed):
    assert cli.main(["bench", str(tmp_path / "none.pt")]) == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "text.pt").write_text("hello, this is no checkpoint at all")
    assert "neither" in refused(capsys, str(tmp_path / "text.pt"))
    secateur.save(zeroed, tmp_path / "packed.st")
    assert "holds weights and no model: give the model too" in refused(capsys, str(tmp_path / "packed.st"))
    torch.save(zeroed.state_dict(), tmp_path / "state.pt")
    assert "holds no model but a OrderedDict" in refused(capsys, str(tmp_path / "state.pt"))
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 and no more")
    assert "does not open" in refused(capsys, str(tmp_path / "broken.pt"))
    torch.save({"0.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    said = refused(capsys, "test_bench:network", "--weights", str(tmp_path / "other.pt"))
    assert "must hold the weights of Sequential" in said


def test_refuses_an_unknown_torchvision_model(capsys):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    assert "torchvision has no model 'nosuchnet'" in refused(capsys, "nosuchnet")
