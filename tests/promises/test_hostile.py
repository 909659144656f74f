"""What a stranger's numbers could do: sizes whose products overflow, forged ids, tensors that are no ordinary ones.

Each is refused before a kernel runs and before anything of a claimed size is allocated. What a caller gets wrong by
mistake is tested beside each operator; the fuzzers of ``tests/fuzz`` look for what nobody thought of.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import secateur
import torch
from programs import NONE, Builder
from secateur import Error, _host, ops
from torch import Tensor

BYTE = torch.uint8
MOST = 2**31 - 1


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A shape that holds no element takes no memory, however large its other sizes are."""
    assert 0 in shape
    return torch.empty(shape, dtype=dtype)


def conv(x: Tensor, *, mask: Tensor | None = None, values: Tensor | None = None, **geometry: Any) -> Tensor:
    mask = torch.tensor([[1]], dtype=BYTE) if mask is None else mask
    values = torch.ones(1) if values is None else values
    return ops.sparse_conv2d(
        x, mask, values, None, geometry.get("kernel", [1, 1]), geometry.get("stride", [1, 1]),
        geometry.get("padding", [0, 0]), geometry.get("dilation", [1, 1]), geometry.get("groups", 1),
    )  # fmt: skip


# ---- operators on packed tensors ----

TOO_LARGE = "sparse_conv2d: one image must have fewer than 2\\^31 padded values"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        # (2^31 + 2^32) squared is beyond 64 bits.
        (lambda: conv(torch.zeros(1, 1, 1, 1), padding=[MOST, MOST]), TOO_LARGE),
        (lambda: conv(empty(0, 1, 2**62, 1)), r"sparse_conv2d: height and width must be below 2\^31, got 46\d+x1"),
        (lambda: conv(torch.zeros(1, 1, 1, 1), padding=[0, 2**31]), "sparse_conv2d: padding must be 2 integers"),
        (lambda: conv(torch.zeros(1, 1, 1, 1), stride=[0, 1]), "sparse_conv2d: stride must be 2 integers of 1"),
        (lambda: conv(torch.zeros(1, 1, 1, 1), dilation=[-1, 1]), "sparse_conv2d: dilation must be 2 integers of 1"),
        (lambda: conv(torch.zeros(1, 1, 1, 1), groups=0), "sparse_conv2d: groups must be >= 1"),
        # Two billion taps, none of them stored.
        (
            lambda: conv(
                torch.zeros(1, 1, 1, 1), mask=empty(0, 2**28, dtype=BYTE), values=empty(0), kernel=[MOST, 1],
                stride=[MOST, 1], padding=[MOST, 0],
            ),
            TOO_LARGE,
        ),
        (
            lambda: conv(torch.zeros(1, 1, 1, 1), kernel=[MOST, MOST], padding=[2**30 - 1, 2**30 - 1]),
            "sparse_conv2d: weight shape must be positive",
        ),
        (
            lambda: ops.sparse_weight(empty(0, 2**40, dtype=BYTE), empty(0), [0, 2**43]),
            "sparse_weight: weight shape must be positive, with at most",
        ),
        (lambda: ops.sparse_weight(empty(0, 0, dtype=BYTE), empty(0), [1, 2**62, 2**62, 0]), "sparse_weight: shape"),
        (lambda: ops.sparse_weight(empty(0, 0, dtype=BYTE), empty(0), [0, 2**62, 2**62]), "sparse_weight: shape"),
        (lambda: ops.sparse_weight(empty(0, 0, dtype=BYTE), empty(0), [-1, 0]), "sparse_weight: shape must not be neg"),
        (lambda: ops.sparse_values(torch.ones(1, 1), torch.ones(1, 1, dtype=BYTE), 2**62), "sparse_values: values"),
        (lambda: ops.sparse_values(torch.ones(1, 1), torch.ones(1, 1, dtype=BYTE), -1), "sparse_values: nonzeros must"),
        (lambda: ops.mask_unpack(empty(0, 0, dtype=BYTE), [0, 2**62, 2**62]), "mask_unpack: shape is too large"),
        (lambda: ops.mask_unpack(torch.zeros(1, 1, dtype=BYTE), [1, 2**62]), "mask_unpack: mask must be"),
        (lambda: ops.mask_unpack(torch.zeros(1, 1, dtype=BYTE), [-(2**63)]), "mask_unpack: shape must not be negative"),
    ],
)  # fmt: skip
def test_sizes_beyond_all_bounds(call: Any, message: str) -> None:
    with pytest.raises(Error, match=message):
        call()


def test_rows_without_columns_cost_no_memory() -> None:
    # Their index alone would be 2^63 bytes.
    assert ops.sparse_weight(empty(2**60, 0, dtype=BYTE), empty(0), [2**60, 0]).shape == (2**60, 0)
    assert ops.sparse_values(empty(2**60, 0), empty(2**60, 0, dtype=BYTE), 0).shape == (0,)


def test_a_stride_as_far_as_integers_reach() -> None:
    y = conv(torch.full((1, 1, 1, 1), 3.0), stride=[MOST, MOST], padding=[MOST, MOST])
    assert y.shape == (1, 1, 3, 3)
    assert float(y.sum()) == 3
    assert float(y[0, 0, 1, 1]) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_dtype_has_the_same_errors(dtype: torch.dtype) -> None:
    """All but float32 run on torch's own layers, whose complaints are no Error."""
    mask, values = torch.tensor([[255, 1]], dtype=BYTE), torch.ones(9, dtype=dtype)
    x = torch.zeros(1, 1, 2, 2, dtype=dtype)

    def call(x: Tensor, bias: Any = None, **geometry: Any) -> None:
        ops.sparse_conv2d(x, mask, values, bias, [3, 3], [1, 1], geometry.get("padding", [0, 0]), [1, 1], 1)

    with pytest.raises(
        Error, match="sparse_conv2d: kernel must fit the padded image, got kernel reach 3x3 on image 2x"
    ):
        call(x)
    with pytest.raises(Error, match=TOO_LARGE):
        call(x, padding=[MOST, MOST])
    with pytest.raises(Error, match="sparse_conv2d: height and width must be below"):
        call(torch.empty(0, 1, 2**62, 1, dtype=dtype))
    for bias, message in (
        (torch.zeros(2, dtype=dtype), r"bias must be a contiguous \[1\], got \[2\]"),
        (torch.zeros(1, dtype=torch.int32), "bias must be .*, got int32"),
        (torch.zeros(1, 1, dtype=dtype), r"bias must be a contiguous \[1\], got \[1, 1\]"),
    ):
        with pytest.raises(Error, match=f"sparse_conv2d: {message}"):
            call(x, bias, padding=[1, 1])
        with pytest.raises(Error, match=f"sparse_linear: {message}"):
            ops.sparse_linear(torch.zeros(1, 9, dtype=dtype), mask, values, bias)


WEIGHT, MASK, VALUES = torch.ones(2, 3), torch.full((2, 1), 7, dtype=BYTE), torch.ones(6)
KINDS: dict[str, Any] = {
    "sparse": (lambda t: t.to_sparse(), "ordinary"),
    "csr": (lambda t: t.reshape(2, -1).to_sparse_csr(), "ordinary"),
    "quantized": (lambda t: torch.quantize_per_tensor(t.float(), 1.0, 0, torch.quint8), "ordinary|must be uint8"),
    "complex": (lambda t: t.to(torch.complex64), "must (be|have)"),
    "int64": (lambda t: t.long(), "must (be|have)"),
    "bool": (lambda t: t.bool(), "must (be|have)"),
    "no tensor": (lambda t: t.tolist(), "must be a Tensor"),
    "None": (lambda t: None, "must be (a Tensor|.K, bytes.)"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state", "ignore:.*quantize.*deprecated")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["mask", "values", "weight"])
def test_tensors_that_are_no_ordinary_ones(kind: str, place: str) -> None:
    change, message = KINDS[kind]
    given: dict[str, Any] = {"weight": WEIGHT, "mask": MASK, "values": VALUES}
    given[place] = change(given[place])
    calls: dict[str, list[Any]] = {
        "mask": [
            lambda: ops.mask_unpack(given["mask"], (2, 3)),
            lambda: ops.mask_apply(given["weight"], given["mask"]),
            lambda: ops.sparse_weight(given["mask"], given["values"], (2, 3)),
            lambda: ops.sparse_linear(torch.ones(1, 3), given["mask"], given["values"], None),
        ],
        "values": [
            lambda: ops.sparse_weight(given["mask"], given["values"], (2, 3)),
            lambda: ops.sparse_linear(torch.ones(1, 3), given["mask"], given["values"], None),
        ],
        "weight": [
            lambda: ops.mask_apply(given["weight"], given["mask"]),
            lambda: ops.sparse_values(given["weight"], given["mask"], 6),
            lambda: ops.statistics_threshold(given["weight"], 0.0),
        ],
    }
    for call in calls[place]:
        with pytest.raises(Error, match=message):
            call()


def test_masks_in_any_memory() -> None:
    strided = torch.stack([MASK, MASK], -1)[..., 0]
    expanded = torch.full((1, 1), 7, dtype=BYTE).expand(2, 1)
    for mask in (strided, expanded):
        assert torch.equal(ops.sparse_weight(mask, VALUES[::1], (2, 3)), WEIGHT)
        assert torch.equal(ops.mask_unpack(mask, (2, 3)), WEIGHT.bool())
        assert torch.equal(ops.sparse_linear(torch.ones(1, 3), mask, VALUES, None), torch.full((1, 2), 3.0))
    two = torch.stack([VALUES, -VALUES], -1)[..., 0]
    assert torch.equal(ops.sparse_weight(MASK, two, (2, 3)), WEIGHT)


@pytest.mark.parametrize("plan", [-1, 2**62, -(2**63), 10**9])
def test_forged_ids(plan: int) -> None:
    with pytest.raises(Error, match="sparse_linear: plan must be 0 or a live plan"):
        ops.sparse_linear(torch.ones(1, 3), MASK, VALUES, None, plan)
    with pytest.raises(RuntimeError, match="engine_run: program must be the id of a program that is held"):
        torch.ops.secateur.engine_run([torch.ones(1, 3)], plan)


def test_stale_ids() -> None:
    plan = _host.SparseLayer(MASK.numpy(), VALUES.numpy(), (2, 3, 1, 1))
    id = plan.id
    assert torch.equal(ops.sparse_linear(torch.ones(1, 3), MASK, VALUES, None, id), torch.full((1, 2), 3.0))
    with pytest.raises(Error, match="must have been made for the same layer"):
        ops.sparse_linear(torch.ones(1, 4), torch.full((2, 1), 15, dtype=BYTE), torch.ones(8), None, id)
    del plan
    with pytest.raises(Error, match="sparse_linear: plan must be 0 or a live plan"):
        ops.sparse_linear(torch.ones(1, 3), MASK, VALUES, None, id)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (2, -3, 1, 1)}, "weight shape must be positive"),
        ({"shape": (2, 2**62, 2**62, 1)}, "weight shape must be positive"),
        ({"shape": (2**40, 0, 1, 1)}, "weight shape must be positive"),
        ({"shape": (2, 2, 1, 1)}, "unused bits clear"),
        ({"groups": 0}, "groups must be >= 1"),
        ({"groups": 2**62}, "groups must be >= 1"),
        ({"stride": (1, 2**31)}, "stride, dilation and groups must be >= 1"),
        ({"padding": (-1, 0)}, "padding >= 0"),
        ({"values": VALUES.numpy()[:5]}, "one element for each of the 6 bits of mask, got 5"),
        ({"values": VALUES.numpy().reshape(2, 3)}, "mask must be 2-d, values 1-d"),
        ({"mask": MASK.numpy()[0]}, "mask must be 2-d, values 1-d"),
    ],
)
def test_plans_of_numbers_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"mask": MASK.numpy(), "values": VALUES.numpy(), "shape": (2, 3, 1, 1)}
    with pytest.raises((ValueError, RuntimeError), match=message):
        _host.SparseLayer(**(given | arguments))


# ---- programs ----


def program(channels: int = 3) -> tuple[Any, int]:
    p = Builder(_host.Program())
    return p, p.input_planes(channels)


def ready(p: Any, *outputs: int) -> Any:
    for y in outputs:
        p.output(y)
    p.finish()
    return p


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def prepare(size: tuple[int, int], channels: int = 3, budget: float = 0.0) -> None:
    p, x = program(channels)
    ready(p, p.map(x, None, None, "none", -1, NONE, "m1")).prepare([size], budget)


def doubled(times: int) -> None:
    p, x = program(2**30)
    for _ in range(times):
        x = p.concat([x, x], "c1")


def flat_doubled(times: int) -> None:
    p, x = program(2**10)
    x = p.flatten(x)
    for _ in range(times):
        x = p.concat([x, x], "c1")
    ready(p, x).prepare([(1, 1)], 0.0)


def padded(channels: int = 1, **geometry: Any) -> None:
    p, x = program(channels)
    y = p.conv2d(
        x, geometry.get("weight", ones(1, 1, 1, 1)), None, geometry.get("stride", (1, 1)),
        geometry.get("padding", (0, 0, 0, 0)), geometry.get("dilation", (1, 1)), geometry.get("groups", 1), -1, NONE,
        "c1",
    )  # fmt: skip
    ready(p, y).prepare([(4, 4)], 0.0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: prepare((2**32, 2**32)), "engine: input: an image of 4294967296x4294967296 is too large"),
        (lambda: prepare((2**62, 2)), "engine: input: an image of 4611686018427387904x2 is too large"),
        (lambda: prepare((-(2**63), 1)), "engine: input: an image must have at least one pixel"),
        (lambda: prepare((8000, 8000), 2**31 - 1, 1.0), "engine: plan: 2147483647 channels of 8000x8000"),
        (lambda: doubled(1), "engine: c1: an output must have fewer than 2\\^31 channels"),
        (lambda: flat_doubled(60), "engine: c1: an output must have fewer than 2\\^31 features, got 2147483648"),
        (lambda: padded(padding=(2**20, 2**20, 2**20, 2**20)), "engine: c1: .*too large"),
        (lambda: padded(padding=(2**20 + 1, 0, 0, 0)), "engine: c1: padding must be between 0 and 2\\^20"),
        (lambda: padded(dilation=(2**62, 1)), "engine: c1: kernel, stride and dilation must be between"),
        (lambda: padded(stride=(0, 1)), "engine: c1: kernel, stride and dilation must be between"),
        (lambda: padded(groups=-1), "engine: c1: groups must divide"),
        (lambda: padded(groups=2**62), "engine: c1: groups must divide"),
        (lambda: padded(weight=ones(1, 1, 9, 9)), "engine: c1: an image of 4x4 is smaller than the kernel 9x9"),
        (lambda: padded(weight=ones(0, 1, 1, 1)), "engine: c1: weight must have elements"),
        (lambda: padded(2**31 - 1, weight=ones(1, 1, 3, 3)), "engine: c1: weight must have 19327352823 elements"),
        (lambda: program(2**31), "engine: input: channels must be at least 1"),
    ],
)
def test_programs_beyond_all_bounds(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_program_runs_only_when_it_is_finished() -> None:
    p, x = program(1)
    p.output(x)
    with pytest.raises(ValueError, match="engine: program: the program is not finished"):
        torch.ops.secateur.engine_run([torch.ones(1, 1, 2, 2)], p.id)


def average(p: Any, x: int, grid: Any, divisor: int = 0, kernel: tuple[int, int] = (2, 2)) -> int:
    return int(p.avg_pool(x, kernel, (1, 1), (0, 0), False, True, divisor, "a1", grid))


def linear(p: Any, x: int, **changed: Any) -> int:
    given: dict[str, Any] = {
        "weight": np.ones((4, 3), np.int8), "bias": np.zeros(4, np.int32), "multiplier": ones(4), "grid": (1.0, 0),
        "limits": (0, 255), "theta": None, "act": NONE,
    }  # fmt: skip
    given |= changed
    q = p.quantize(p.global_avg_pool(x, "g1"), (1.0, 0), None, "q1")
    return int(p.linear_int8(q, **given, name="l1"))


TINY = 2.0**-140  # its inverse is no float32


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda p, x: p.quantize(x, (TINY, 0), None, "q1"), "engine: q1: scale must be finite and > 0, got 7.*e-43"),
        (lambda p, x: p.quantize(x, (math.nan, 0), None, "q1"), "engine: q1: scale must be finite"),
        (lambda p, x: p.quantize(x, (1e300, 0), None, "q1"), "engine: q1: scale must be finite and > 0, got inf"),
        (lambda p, x: p.quantize(x, (1.0, 256), None, "q1"), r"engine: q1: zero_point must be in \[0, 255\]"),
        (lambda p, x: p.quantize(x, (1.0, 0), np.zeros((1, 3), np.uint8), "q1"), "engine: q1: theta must be 1-d"),
        (lambda p, x: p.quantize(x, (1.0, 0), np.zeros(2, np.uint8), "q1"), "engine: q1: theta must have 3 elements"),
        (
            lambda p, x: average(p, p.quantize(x, (1e30, 0), None, "q1"), (1e-30, 0)),
            "engine: a1: the scales of x and output are too far apart, got 1e[+]30 and 1e-30",
        ),
        (lambda p, x: average(p, x, None, -1), "engine: a1: divisor must be at least 0, got -1"),
        (
            lambda p, x: average(p, p.quantize(x, (1.0, 0), None, "q1"), None, 0, (257, 256)),
            "engine: a1: a window over bytes must have at most 65536 places",
        ),
        (lambda p, x: linear(p, x, multiplier=np.full(4, 1e36, np.float32)), "engine: l1: sums times multiplier must"),
        (lambda p, x: linear(p, x, multiplier=ones(2, 2)), "engine: l1: multiplier must be 1-d"),
        (lambda p, x: linear(p, x, bias=np.zeros((1, 4), np.int32)), "engine: l1: bias must be 1-d"),
        (lambda p, x: linear(p, x, bias=np.full(4, -(2**31), np.int32)), r"engine: l1: sums must stay below 2\^31"),
        (lambda p, x: linear(p, x, limits=(0, 256)), r"engine: l1: limits must be in \[0, 255\]"),
        (lambda p, x: linear(p, x, limits=(9, 8)), "engine: l1: lo must not be above hi"),
        (lambda p, x: linear(p, x, theta=np.zeros(5, np.uint8)), "engine: l1: theta must have 4 elements, got 5"),
        (
            lambda p, x: linear(p, x, grid=None, act=("threshold", 0.0, 1.0, ones(3))),
            "engine: l1: theta must have 4 elements, got 3",
        ),
        (
            lambda p, x: p.map(x, None, None, "none", -1, NONE, "m1", None, np.zeros(3, np.uint8)),
            "engine: m1: a theta in bytes is for an output of bytes",
        ),
    ],
)
def test_numbers_that_no_byte_stands_for(add: Any, message: str) -> None:
    p, x = program()
    with pytest.raises(ValueError, match=message):
        add(p, x)


def test_an_average_of_bytes_too_large_for_its_sum() -> None:
    p, x = program(1)
    ready(p, p.global_avg_pool(p.quantize(x, (1.0, 0), None, "q1"), "g1", None))
    with pytest.raises(ValueError, match="engine: g1: an image of 4096x4096 is too large for an average of bytes"):
        p.prepare([(4096, 4096)], 0.0)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_threshold_after_bytes_is_each_output_s_own(batch: int) -> None:
    """Found by the audit: fewer than four images took the first theta for all outputs."""
    theta = np.array([0, 2, 6, 100], np.float32)
    p, x = program(3)
    y = linear(p, x, grid=None, act=("threshold", 0.0, math.inf, theta))
    (got,) = torch.ops.secateur.engine_run([torch.full((batch, 3, 2, 2), 2.0)], ready(p, y).id)
    assert got.tolist() == [[6.0, 6.0, 6.0, 0.0]] * batch


# ---- files: what the fuzzer of tests/fuzz found, or would have ----


def file_of(path: Path, layers: dict[str, str], **tensors: tuple[str, list[int], int | list[int]]) -> Path:
    """A file of plain tensors: dtype, shape, and either their bytes' number (all 1) or offsets as they are given."""
    about = {"packed": {}, "aliases": {}, "layers": layers}
    metadata = {"format": "secateur", "version": "2", "secateur": json.dumps(about)}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        offsets = size if isinstance(size, list) else [end, end + size]
        header[name.replace("__", ".")] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        end += 0 if isinstance(size, list) else size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\1" * end)
    return path


@pytest.mark.parametrize("offsets", [[0, 10**400], [10**4300 - 1, 10**4300 - 1], [2**63, 2**63]])
def test_offsets_that_python_does_not_print(tmp_path: Path, offsets: list[int]) -> None:
    path = file_of(tmp_path / "f", {}, t=("F32", [0], offsets))
    with pytest.raises(Error, match=r"must be a safetensors file.*'t' must have two data_offsets"):
        secateur.to_dense_state_dict(path)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "BOOL"])
def test_scales_of_dtypes_that_cannot_be_compared(tmp_path: Path, dtype: str) -> None:
    for layer, name, words in (
        ("Quantize", "q__scale", "finite and > 0"),
        ("QuantizedLinear", "q__weight_scale", "finite and > 0"),
        ("ThresholdReLU", "q__theta", "finite and >= 0"),
    ):
        path = file_of(tmp_path / "f", {"q": layer}, **{name: (dtype, [1], 1)})
        with pytest.raises(Error, match=f"to_dense_state_dict: .*f: {name.replace('__', '.')} must be {words}"):
            secateur.to_dense_state_dict(path)


def test_integers_without_rows(tmp_path: Path) -> None:
    path = file_of(
        tmp_path / "f", {"q": "QuantizedLinear"}, q__weight_scale=("F32", [], 4), q__weight_int8=("I8", [], 1)
    )
    with pytest.raises(Error, match=r"to_dense_state_dict: .*f: q.weight_int8 must be int8 with one scale a row"):
        secateur.to_dense_state_dict(path)
