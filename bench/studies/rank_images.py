"""The small net of `bench.studies.images` as a task of ranks: images as they are, the project's own loop."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bench.studies.clicks import Rows
from bench.studies.resnet import ResNetTask
from bench.studies.task import Setting


class Net(nn.Module):
    """Layers by the name that the loop calls them with."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, channels, side, side]."""
        logits: Tensor = self.layers(image)
        return logits


@dataclass
class NetTask(ResNetTask):
    """See `ResNetTask`; `width` has no meaning."""

    @cached_property
    def _about(self) -> dict[str, Any]:
        return self.source.about()

    def model(self, seed: int) -> nn.Module:
        """See `ResNetTask.model`."""
        return Net(self.source.net(seed))

    def training(self, setting: Setting, rank: int, size: int) -> Rows:
        """See `ResNetTask.training`."""
        count = self.source.train_rows
        tensors = {"image": self.source.images[:count], "label": self.source.labels[:count], "key": torch.arange(count)}
        return Rows(tensors, setting.batch, setting.seed, rank, size)
