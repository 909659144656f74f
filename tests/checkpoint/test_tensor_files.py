"""Plain safetensors files, read and written without the safetensors package."""

from __future__ import annotations

import ast
import json
import pickle
from pathlib import Path

import pytest
import secateur
import torch
from safetensors.torch import load_file, save_file
from secateur import Error
from secateur.checkpoint.format.container import DTYPES, Damaged
from secateur.checkpoint.tensor_files import kind_of, tensors_of, write_plain


def every_dtype() -> dict[str, torch.Tensor]:
    made = {word: torch.arange(6).reshape(2, 3).to(dtype) for word, dtype in DTYPES.items()}
    return made | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "long name, with ümlaut": torch.ones(1)}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    def bits(t: torch.Tensor) -> list[int]:
        return t.contiguous().reshape(-1).view(torch.uint8).tolist()

    return set(a) == set(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and bits(a[k]) == bits(b[k]) for k in a
    )


def test_what_safetensors_wrote_is_read(tmp_path: Path) -> None:
    save_file(every_dtype(), tmp_path / "file", metadata={"format": "pt"})
    assert kind_of(tmp_path / "file", "report") == "safetensors"
    assert equal(tensors_of(tmp_path / "file", "report"), every_dtype())


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    given = every_dtype() | {"strided": torch.arange(12.0).reshape(3, 4).T}
    write_plain(tmp_path / "file", given)
    assert equal(load_file(tmp_path / "file"), given)
    assert equal(tensors_of(tmp_path / "file", "report"), given)


@pytest.mark.parametrize("word", ["F8_E8M0", "F4", "C128"])
def test_a_dtype_without_a_word_here_is_named(word: str, tmp_path: Path) -> None:
    text = json.dumps({"w": {"dtype": word, "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(Error, match=f"^report: .* must hold dtypes that are known here .*F32.*: .*'w' .* '{word}'$"):
        tensors_of(tmp_path / "file", "report")


def test_another_kind_of_file_is_neither(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no tensors in here")
    with pytest.raises(Error, match=r"^bench: .* a torch state_dict, it is neither \(its header would be .*\)$"):
        kind_of(tmp_path / "file", "bench")


def test_damage_travels_between_processes() -> None:
    error = Damaged("load: x must be ...")
    error.why = "it ends early"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.why) == (Damaged, str(error), "it ends early")


def test_the_package_does_not_import_safetensors() -> None:
    for path in Path(secateur.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "safetensors" for name in names), path
