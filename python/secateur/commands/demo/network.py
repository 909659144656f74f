"""The source tutorial's CNN, as it is written there: functional ReLUs, no BatchNorm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class TutorialCNN(nn.Module):
    """conv 1-32, pool, conv 32-64, pool, fc 3136-128, fc 128-10: ``[n, 1, 28, 28]`` to logits ``[n, 10]``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # [n, 32, 14, 14]
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # [n, 64, 7, 7]
        x = F.relu(self.fc1(x.flatten(1)))  # [n, 128]
        return self.fc2(x)  # type: ignore[no-any-return]
