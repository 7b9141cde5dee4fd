"""A small ResNet on CIFAR-10 as a task of ranks: random crops and flips, no Spark, the project's own loop.

    net:   conv 3 x 3 (stride 2) - GroupNorm - ReLU - max pool 3 x 3 (stride 2) - three blocks - mean - linear
    block: y = ReLU(GroupNorm(conv(ReLU(GroupNorm(conv(x))))) + shortcut(x))

Reference: K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016: 8 layers, with
the stem that the paper has for large images, so that a step is cheap: stages work on 8 x 8, 4 x 4 and 2 x 2. Differs:
shortcuts where the shape changes are 1 x 1 convolutions; and GroupNorm (Y. Wu, K. He, ECCV 2018) takes the place of
batch norm, whose statistics would be those of a rank's rows: they change with the number of ranks, and ranks would hold
different buffers.

A training image is moved by up to 4 pixels each way and flipped or not, by a draw of (seed, epoch, row): what a row
looks like does not depend on which rank has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bench.studies.clicks import Rows
from bench.studies.images import ImageTask, scored
from bench.studies.task import DENSE, Setting
from headrace.compress.base import generator_of
from headrace.data.batch import Batch

MOVED = 4


class Block(nn.Module):
    """A basic block: [B, into, s, s] to [B, out, s / stride, s / stride]."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(*_convolution(into, out, stride), nn.ReLU(), *_convolution(out, out, 1))
        same = stride == 1 and into == out
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(into, out, stride, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        """See the module's docstring."""
        return torch.relu(self.inner(x) + self.shortcut(x))


def _convolution(into: int, out: int, stride: int, kernel: int = 3) -> list[nn.Module]:
    return [nn.Conv2d(into, out, kernel, stride, kernel // 2, bias=False), nn.GroupNorm(max(1, out // 4), out)]


class ResNet(nn.Module):
    """See the module's docstring; `width` channels in the first stage, twice as many in each one after it."""

    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, width, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.Sequential(
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)
        )  # fmt: skip
        self.head = nn.Linear(4 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 3, side, side]."""
        logits: Tensor = self.head(self.stages(self.stem(image)).mean((2, 3)))
        return logits


@dataclass
class MovedRows(Rows):
    """Rows whose images are moved and flipped anew in every epoch."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch."""
        generator = generator_of(self.seed, epoch)
        across = torch.randint(2 * MOVED + 1, (2, len(self)), generator=generator)
        flipped = torch.rand(len(self), generator=generator) < 0.5
        for batch in super().epoch(epoch, start_step):
            ids = batch["key"]
            image = moved(batch["image"], across[:, ids], flipped[ids])
            yield replace(batch, tensors=batch.tensors | {"image": image})


def moved(image: Tensor, across: Tensor, flipped: Tensor) -> Tensor:
    """Images [B, C, side, side] cut out of themselves with a border of zeros at places `across` [2, B] (0 to 8; 4
    leaves them where they are), those of `flipped` [B] mirrored."""
    side = image.shape[-1]
    wide = nn.functional.pad(image, [MOVED] * 4)
    down, right = (start[:, None] + torch.arange(side) for start in across)
    right = torch.where(flipped[:, None], right.flip(1), right)
    rows = torch.arange(len(image))[:, None, None]
    return wide.permute(0, 2, 3, 1)[rows, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)


@dataclass
class ResNetTask:
    """See the module's docstring and `bench.studies.ranks.RankTask`.

    Args:
        source: whose images are trained on.
        width: channels of the first stage.
    """

    source: ImageTask
    width: int = 16
    batch: int = 128
    epochs: int = 10
    limit_s: float = 240.0
    parts: tuple[str, ...] = (DENSE,)

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.source.name

    @property
    def metric(self) -> str:
        """What is said of the held rows beside their loss."""
        return self.source.metric

    @property
    def train_rows(self) -> int:
        """How many are trained on."""
        return self.source.train_rows

    def about(self) -> dict[str, Any]:
        """See `Task.about`."""
        return self._about

    @cached_property
    def _about(self) -> dict[str, Any]:
        count = sum(p.numel() for p in ResNet(self.width).parameters())
        return self.source.about() | {"net": "ResNet-8", "width": self.width, "parameters": count}

    def model(self, seed: int) -> nn.Module:
        """The net with torch's own first weights; not from several threads at once."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ResNet(self.width)

    def optimizers(self, setting: Setting) -> dict[str, dict[str, Any]]:
        """One for all."""
        return {DENSE: {"name": setting.rule, **setting.options}}

    def training(self, setting: Setting, rank: int, size: int) -> Rows:
        """This rank's part of the global batches."""
        count = self.source.train_rows
        tensors = {"image": self.source.images[:count], "label": self.source.labels[:count], "key": torch.arange(count)}
        return MovedRows(tensors, setting.batch, setting.seed, rank, size)

    def scores(self, model: nn.Module, split: str) -> tuple[float, float | None]:
        """Mean loss and accuracy."""
        start, stop = self.source.ends[split]
        return scored(model, self.source.images[start:stop], self.source.labels[start:stop])
