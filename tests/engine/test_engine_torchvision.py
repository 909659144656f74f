"""secateur.compile: networks of torchvision, whole."""

from __future__ import annotations

import pytest
import torch
from compiling import assert_near, compiled, kinds, prune
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread", "engine_wins")


NETWORKS = {  # name -> image size
    "alexnet": 224, "resnet18": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64, "mnasnet0_5": 64, "efficientnet_b0": 64, "regnet_y_400mf": 64, "densenet121": 64,
    "googlenet": 64, "inception_v3": 96, "resnext50_32x4d": 48, "convnext_tiny": 48, "swin_t": 64,
}  # fmt: skip
_BOUND = {"convnext_tiny": {"LayerNorm", "LayerNorm2d"}, "swin_t": {"LayerNorm"}}


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = getattr(models, name)(**options)
    if name == "alexnet":  # three quarters of all weights of these networks; the image must be as large as it is
        model.classifier[1], model.classifier[4] = nn.Linear(256 * 36, 128), nn.Linear(128, 128)
        model.classifier[6] = nn.Linear(128, 1000)
    prune(model)
    size = NETWORKS[name]
    for module in model.modules():  # as after training: values of size 1 all the way
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    with torch.no_grad():
        [module.eval() for module in model.modules() if isinstance(module, nn.Dropout)]
        if name == "inception_v3":
            model.aux_logits = False
            model.AuxLogits = None
        model(torch.randn(4, 3, size, size))
    model.eval()
    x = torch.randn(2, 3, size, size)
    fast = compiled(model, x)
    assert_near(fast(x), model, x)
    left = [row["kind"] for row in fast.report if row["kernel"] == "torch"]
    if name in _BOUND:
        assert _BOUND[name] & set(left)
        assert {"conv2d", "linear"} <= set(kinds(fast))
    else:
        assert left == []
        more = torch.cat([x, x[:1]])
        assert_near(fast(more), model, more)
