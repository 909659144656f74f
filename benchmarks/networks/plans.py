"""Which cases there are: the issue's table, the sweeps; and the goals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .contest import Case
from .engines import DEFAULT, INT8

#: (network, zeros, batch) -> times the best dense engine's speed, times DeepSparse's.
GOALS: dict[tuple[str, float, int], tuple[float, float | None]] = {
    ("resnet50", 0.9, 1): (3.0, 2.8),
    ("resnet50", 0.9, 16): (3.7, 1.0),
    ("vgg16", 0.9, 1): (3.8, 1.9),
    ("vgg16", 0.9, 16): (4.2, 1.0),
    ("resnet18", 0.9, 1): (2.8, 2.8),
    ("resnet18", 0.9, 16): (3.4, 1.0),
    ("mobilenet_v2", 0.9, 1): (1.4, 1.25),
    ("mobilenet_v2", 0.9, 16): (1.7, 0.8),
    ("resnet50", 0.95, 1): (4.3, None),
    ("resnet50", 0.8, 1): (1.8, None),
    ("resnet50", 0.7, 1): (1.3, None),
}
#: int8 at 90 % zeros, (network, batch) -> times the best dense engine's speed in fp32, times OpenVINO's in dense int8.
INT8_GOALS: dict[tuple[str, int], tuple[float | None, float]] = {
    ("resnet50", 1): (6.0, 2.0),
    ("resnet50", 16): (None, 2.0),
    ("vgg16", 1): (7.0, 2.0),
    ("vgg16", 16): (None, 2.0),
    ("resnet18", 1): (5.0, 2.0),
    ("resnet18", 16): (None, 2.0),
    ("mobilenet_v2", 1): (2.0, 1.2),
    ("mobilenet_v2", 16): (None, 1.2),
}
#: int8 without zeros: it may take that many times as long as OpenVINO's int8.
INT8_DENSE_TAKES = 1.3
#: Compile time in seconds.
COMPILE_GOALS_S = {"resnet50": 60.0, "vgg16": 90.0}
NETWORKS = ("resnet50", "vgg16", "resnet18", "mobilenet_v2")

# C, K, size, kernel, stride, groups: every distinct shape of the networks, first layers included.
RESNET = [
    "conv-3-64-224-7-s2",
    "conv-64-64-56-1", "conv-64-64-56-3", "conv-64-256-56-1", "conv-256-64-56-1",
    "conv-256-128-56-1", "conv-128-128-56-3-s2", "conv-128-128-28-3", "conv-128-512-28-1", "conv-512-128-28-1",
    "conv-256-256-28-3-s2", "conv-256-256-14-3", "conv-256-1024-14-1", "conv-1024-256-14-1", "conv-512-1024-28-1-s2",
    "conv-512-512-14-3-s2", "conv-512-512-7-3", "conv-512-2048-7-1", "conv-2048-512-7-1", "conv-1024-2048-14-1-s2",
    "linear-2048-1000",
]  # fmt: skip
VGG = [
    "conv-64-64-224-3", "conv-64-128-112-3", "conv-128-128-112-3", "conv-128-256-56-3", "conv-256-256-56-3",
    "conv-256-512-28-3", "conv-512-512-28-3", "conv-512-512-14-3", "linear-25088-4096", "linear-4096-4096",
]  # fmt: skip
MOBILENET = [
    "conv-32-32-112-3-g32", "conv-96-96-112-3-s2-g96", "conv-144-144-56-3-g144", "conv-192-192-28-3-g192",
    "conv-384-384-14-3-g384", "conv-960-960-7-3-g960", "conv-16-96-112-1", "conv-24-144-56-1", "conv-144-24-56-1",
    "conv-32-192-28-1", "conv-64-384-14-1", "conv-384-64-14-1", "conv-160-960-7-1", "conv-960-160-7-1",
    "conv-320-1280-7-1", "linear-1280-1000",
]  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What a subcommand measures unless it is told otherwise.

    fresh: a process for each model (tells memory). by_zeros: all batches of one share of zeros follow each other, so
    that an engine which takes any batch is loaded once. only: the cases out of all combinations; quick: those of them
    for `--quick`. calm: networks fit for int8, see :data:`networks.CALM`.
    """

    title: str
    networks: tuple[str, ...]
    batches: tuple[int, ...]
    zeros: tuple[float, ...]
    engines: tuple[str, ...] = DEFAULT
    fresh: bool = False
    by_zeros: bool = False
    rounds: int = 7
    turn_s: float = 0.4
    profile: bool = False
    calm: bool = False
    only: Callable[[Case], bool] = field(default=lambda case: True)
    quick: Callable[[Case], bool] = field(default=lambda case: True)

    def cases(
        self,
        networks: Sequence[str] | None,
        batches: Sequence[int] | None,
        zeros: Sequence[float] | None,
        quick: bool = False,
    ) -> list[Case]:
        """In the order in which the fewest models are loaded. What is asked for by name is never left out."""
        asked = bool(networks or batches or zeros)
        found = [
            case
            for network in networks or self.networks
            for batch in batches or self.batches
            for share in zeros or self.zeros
            if (self.only(case := Case(network, batch, share)) or zeros) and (asked or not quick or self.quick(case))
        ]
        rank = {network: i for i, network in enumerate(networks or self.networks)}
        order: Callable[[Case], tuple[float, ...]] = lambda c: (rank[c.network], c.batch, c.zeros)  # noqa: E731
        if self.by_zeros:
            order = lambda c: (rank[c.network], c.zeros, c.batch)  # noqa: E731
        return sorted(found, key=order)


PLANS = {
    "table": Plan(
        "the table of the README: four networks, batch 1 and 16",
        NETWORKS, (1, 16), (0.7, 0.8, 0.9, 0.95), fresh=True,
        only=lambda c: (c.network, c.zeros, c.batch) in GOALS,
        quick=lambda c: c.network != "vgg16" and c.zeros == 0.9,
    ),
    "zeros": Plan(
        "a sweep of the zeros, 0 to 99 %",
        ("resnet50",), (1,), (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99), rounds=5, turn_s=0.3,
    ),
    "layers": Plan(
        "each layer shape of the ResNets, VGG-16 and MobileNetV2 by itself, with a ReLU",
        tuple(dict.fromkeys(RESNET + VGG + MOBILENET)), (1,), (0.9,),
        ("compile", "convert", "channels-last", "ort", "openvino", "deepsparse"), rounds=5, turn_s=0.1, profile=True,
    ),
    "batches": Plan(
        "every batch size from 1 to 17, compiled once: time an image",
        ("resnet50",), tuple(range(1, 18)), (0.9,), ("compile", "convert", "channels-last"),
        by_zeros=True, rounds=5, turn_s=0.3,
    ),
    "never-slower": Plan(
        "0, 30 and 50 % zeros against eager and torch.compile",
        NETWORKS, (1, 16), (0.0, 0.3, 0.5), ("compile", "eager", "channels-last", "inductor"),
    ),
    "int8": Plan(
        "int8: ours with 90 % zeros in 1x4 blocks beside OpenVINO's and ONNX Runtime's dense (--zeros 0: all dense)",
        NETWORKS, (1, 16), (0.9,), INT8, fresh=True, calm=True,
        quick=lambda c: c.network != "vgg16" and c.batch == 1,
    ),
}  # fmt: skip
#: How much less `--quick` does: a look, no result.
QUICK_ROUNDS, QUICK_TURN_S = 3, 0.2
QUICK_ENGINES = ("compile", "convert", "channels-last", "ort", "openvino", "deepsparse")
