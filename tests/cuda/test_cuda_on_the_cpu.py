"""The tests that want a GPU, tried on the CPU, so that they do not meet one with mistakes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow  # a pytest of its own, and torch.compile in it
TRIED = ("gpu", "streams", "large", "compile", "training", "models")


def test_tests_of_the_gpu() -> None:
    files = [str(HERE / f"test_cuda_{name}.py") for name in TRIED]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment |= {"SECATEUR_TEST_DEVICE": "cpu", "SECATEUR_REQUIRE_GPU": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    done = subprocess.run(
        command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"SECATEUR_REQUIRE_GPU": "1"}, "SECATEUR_REQUIRE_GPU=1, but torch finds no GPU"),
        ({"SECATEUR_REQUIRE_GPU": "1", "SECATEUR_TEST_DEVICE": "cpu"}, "SECATEUR_TEST_DEVICE=cpu asks for the CPU"),
        ({"SECATEUR_TEST_DEVICE": "tpu"}, "SECATEUR_TEST_DEVICE must be cuda or cpu, got 'tpu'"),
    ],
)
def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(asked: dict[str, str], message: str) -> None:
    command = [sys.executable, "-c", "import gpu"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE.parent / "support"), **asked}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr or "this torch has no CUDA" in done.stderr
