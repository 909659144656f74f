"""sparse_conv2d and sparse_linear against torch's dense layers: the demo's layers, ResNet's and VGG's, 90 % zeros.

The operator is timed as SparseConv2d and SparseLinear call it, with a plan made beforehand; the output is fresh memory
for both sides. Beside it stands the same layer as a program of the engine, by itself (``in_blocks``). ``dense`` is
``F.conv2d`` / ``F.linear`` on the same (zeroed) weight; torch.sparse_csr is what torch itself offers for sparse
linear layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Contender, Goal
from secateur._base.library import host
from secateur.nn import SparseConv2d, SparseLinear
from torch import Tensor, nn

ZEROS = 0.9

# N, C -> K, H = W, kernel, stride
CONVS = [
    (1, 32, 64, 14, 3, 1),  # the demo's second convolution
    (64, 32, 64, 14, 3, 1),
    (1, 64, 64, 56, 3, 1),
    (1, 256, 256, 14, 3, 1),
    (1, 512, 512, 7, 3, 1),
    (1, 64, 256, 56, 1, 1),
    (1, 1024, 256, 14, 1, 1),
    (1, 128, 128, 56, 3, 2),
    (16, 256, 256, 14, 3, 1),
    (1, 256, 256, 56, 3, 1),
]
# batch, C -> K
LINEARS = [(1, 3136, 128), (64, 3136, 128), (1, 4096, 4096), (16, 4096, 4096)]


def _contender(run: Callable[[Tensor], Tensor], x: Tensor, expected: Tensor) -> Contender:
    def check() -> None:
        torch.testing.assert_close(run(x).double(), expected, rtol=1e-4, atol=1e-3)

    return Contender(lambda: run(x), check=check)


def _engine(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """The layer as a program of the engine that secateur.compile uses, by itself."""
    program = host.Program()
    attributes = {"weight": layer.weight.detach().numpy(), "bias": layer.bias.detach().numpy()}
    program.output(program.add("linear", [program.input_rows(layer.in_features)], attributes))
    program.finish()
    program.prepare([], 0.3)
    return lambda x: torch.ops.secateur.engine_run.default([x], program.id)[0]


def _zeroed(layer: Any) -> Any:
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) >= ZEROS)
    return layer.eval()


@pytest.mark.parametrize("case", CONVS, ids=lambda c: "N{}-{}to{}-{}x{}s{}".format(*c))
def test_sparse_conv2d(contest: Callable[..., Any], case: tuple[int, ...]) -> None:
    n, c, k, size, r, stride = case
    torch.manual_seed(0)
    dense = _zeroed(nn.Conv2d(c, k, r, stride, r // 2))
    sparse, in_cells = SparseConv2d.from_dense(dense), SparseConv2d.from_dense(dense)
    in_cells.in_blocks = True
    x = torch.randn(n, c, size, size)
    with torch.inference_mode():
        expected = F.conv2d(x.double(), dense.weight.double(), dense.bias.double(), stride, r // 2)
        last = x.to(memory_format=torch.channels_last)
        contenders = {
            "dense": _contender(dense, x, expected),
            "dense, channels_last": _contender(dense, last, expected),
            "secateur.nn.SparseConv2d": _contender(sparse, x, expected),
            "SparseConv2d, engine": _contender(in_cells, x, expected),
        }
        contest(contenders, [Goal("secateur.nn.SparseConv2d", "dense", 1.0)])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("case", LINEARS, ids=lambda c: "N{}-{}to{}".format(*c))
def test_sparse_linear(contest: Callable[..., Any], case: tuple[int, ...]) -> None:
    n, c, k = case
    torch.manual_seed(0)
    dense = _zeroed(nn.Linear(c, k))
    sparse = SparseLinear.from_dense(dense)
    x = torch.randn(n, c)
    with torch.inference_mode():
        expected = F.linear(x.double(), dense.weight.double(), dense.bias.double())
        csr = dense.weight.detach().to_sparse_csr()
        contenders = {
            "dense": _contender(dense, x, expected),
            "torch.sparse_csr": _contender(lambda x: (csr @ x.T).T + dense.bias, x, expected),
            "secateur.nn.SparseLinear": _contender(sparse, x, expected),
            "SparseLinear, engine": _contender(_engine(dense), x, expected),
        }
        contest(contenders, [Goal("secateur.nn.SparseLinear", "dense", 1.0)])
