"""2^31 elements and more: indices are 64-bit, a 32-bit one would wrap. Each operator, 2 to 4 GB a tensor.

The tensors repeat a tile whose length is no power of two, so that a wrapped index reads something else. Windows at the
beginning, on each side of 2^31 and at the end are compared with the twins.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cuda_cases import Target
from gpu import ON_GPU, on_device
from secateur.ops import reference
from tensors import same_bits
from torch import Tensor

pytestmark = on_device
#: On the CPU the same code runs on few elements.
EDGE = 1 << 31 if ON_GPU else 1 << 14
N = EDGE + 1000
WINDOW = 4096
TILE = 999_983 if ON_GPU else 997
SOME = torch.bfloat16


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    """Enough of it, for one such test at a time, whatever processes run tests side by side."""
    if not ON_GPU:
        yield
        return
    with (Path(tempfile.gettempdir()) / f"secateur-large-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if torch.cuda.mem_get_info()[0] < 32 << 30:
            pytest.skip("needs 32 GB of free GPU memory")
        yield
        torch.cuda.empty_cache()


def _repeated(tile: Tensor, count: int) -> Tensor:
    return tile.repeat(-(-count // tile.numel()))[:count]


def _values(count: int, device: torch.device) -> Tensor:
    return _repeated(torch.randn(TILE).to(SOME).to(device), count)


def _bits(count: int, device: torch.device) -> Tensor:
    return _repeated(torch.randint(0, 256, (TILE,), dtype=torch.uint8).to(device), count)


def _windows(count: int) -> list[slice]:
    """Of elements; each begins on a byte of the mask."""
    starts = (0, EDGE - WINDOW, EDGE - 8, (count - WINDOW) // 8 * 8)
    return [slice(start, min(start + WINDOW, count)) for start in starts]


def _of_mask(window: slice) -> slice:
    return slice(window.start // 8, -(-window.stop // 8))


def test_mask_apply(gpu: Target) -> None:
    x = _values(N, gpu.device).view(1, N)
    mask = _bits((N + 7) // 8, gpu.device).view(1, -1)
    y = gpu.mask_apply(x, mask)
    expected = [reference.mask_apply(x[:, window].cpu(), mask[:, _of_mask(window)].cpu()) for window in _windows(N)]
    for window, there in zip(_windows(N), expected, strict=True):
        assert same_bits(y[:, window].cpu(), there)
    del y
    gpu.mask_apply_(x, mask)
    for window, there in zip(_windows(N), expected, strict=True):
        assert same_bits(x[:, window].cpu(), there)


def test_mask_apply_of_rows_that_end_within_a_byte(gpu: Target) -> None:
    columns = EDGE // 3 + 5
    columns += 1 - columns % 2  # odd
    x = _values(3 * columns, gpu.device).view(3, columns)
    mask = _bits(3 * ((columns + 7) // 8), gpu.device).view(3, -1)
    y = gpu.mask_apply(x, mask)
    for row in range(3):
        for start in (0, (columns - WINDOW) // 8 * 8):
            window = slice(start, columns) if start else slice(0, WINDOW)
            there = reference.mask_apply(x[row : row + 1, window].cpu(), mask[row : row + 1, _of_mask(window)].cpu())
            assert same_bits(y[row : row + 1, window].cpu(), there)


def test_threshold_relu(gpu: Target) -> None:
    x, theta = _values(N, gpu.device).view(1, N), torch.tensor([0.25])
    y, mask = gpu.threshold_relu(x, theta.to(gpu.device), 1.5)
    expected = [reference.threshold_relu(x[:, window].cpu(), theta, 1.5) for window in _windows(N)]
    for window, there in zip(_windows(N), expected, strict=True):
        assert same_bits(y[:, window].cpu(), there[0])
        assert same_bits(mask[:, _of_mask(window)].cpu(), there[1])
    del y, mask
    mask = gpu.threshold_relu_(x, theta.to(gpu.device), 1.5)
    for window, there in zip(_windows(N), expected, strict=True):
        assert same_bits(x[:, window].cpu(), there[0])
        assert same_bits(mask[:, _of_mask(window)].cpu(), there[1])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_threshold_relu_of_channels(gpu: Target, memory_format: torch.memory_format) -> None:
    """In channels_last memory the bits are transposed as well. Pixels that lie past element 2^31 are compared."""
    channels, height = 8, 1 << (14 if ON_GPU else 5)
    width = EDGE // channels // height + 3
    x = _values(channels * height * width, gpu.device)
    x = x.view(1, channels, height, width).contiguous(memory_format=memory_format)
    theta = torch.linspace(0, 1, channels)
    y, mask = gpu.threshold_relu(x, theta.to(gpu.device), None)
    assert y.is_contiguous(memory_format=memory_format)
    keep_row = torch.empty(0)
    for row in (0, height // 2, height - 1):
        there, passes = reference.threshold_relu(x[:, :, row].cpu().contiguous(), theta)
        assert same_bits(y[:, :, row].cpu().contiguous(), there)
        keep_row = reference.mask_unpack(passes, (1, channels, width))
        for channel in (0, channels - 1):
            first = (channel * height + row) * width  # its bits in logical order
            inside = mask[0, first // 8 : (first + width) // 8 + 1].cpu()
            bits = reference.mask_unpack(inside.unsqueeze(0), (1, inside.numel() * 8))[0]
            assert torch.equal(bits[first % 8 : first % 8 + width], keep_row[0, channel])
    assert keep_row.any()


@pytest.mark.parametrize("columns", [1024, EDGE // 2 + 8], ids=["many rows", "long rows"])
def test_statistics_threshold(gpu: Target, columns: int) -> None:
    """Rows that a warp sums, more of them than 2^31 elements hold; and two rows of 2^30, past 2^31 together."""
    rows = EDGE // columns + 3 if columns == 1024 else 2
    w = _values(rows * columns, gpu.device).view(rows, columns)
    for signed in (False, True):
        pruned, mask, theta = gpu.statistics_threshold(w, -0.5, signed)
        for row in (0, rows // 2, rows - 1):
            sample = w[row].double() if signed else w[row].double().abs()
            right = sample.mean() + 0.5 * sample.std(correction=0)
            # Sums of up to 2^30 terms in double, beside torch's own: 2^-53 a term at the very most, far less in fact.
            assert float(theta[row]) == pytest.approx(float(right), rel=1e-6)
            del sample
            for start in (0, (columns - min(WINDOW, columns)) // 8 * 8):
                window = slice(start, start + min(WINDOW, columns - start))
                keep = w[row, window].cpu().double().abs() >= float(theta[row])
                bits = reference.mask_pack(keep.unsqueeze(0))[0]
                assert same_bits(mask[row, _of_mask(window)].cpu(), bits)
                assert same_bits(pruned[row, window].cpu(), torch.where(keep, w[row, window].cpu(), 0))
        del pruned
    last = gpu.statistics_threshold_(w, -0.5, True)
    assert same_bits(last[0], mask)
    assert same_bits(last[1], theta)


def test_packing(gpu: Target) -> None:
    keep = _repeated((torch.rand(TILE) < 0.5).to(gpu.device), N).view(1, N)
    mask = gpu.mask_pack(keep)
    for window in _windows(N):
        assert same_bits(mask[:, _of_mask(window)].cpu(), reference.mask_pack(keep[:, window].cpu()))
    assert torch.equal(gpu.mask_unpack(mask, [1, N]), keep)
