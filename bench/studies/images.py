"""Images as tasks: MNIST's 10,000 test images, 5,000 of CIFAR-10's, each cut into train, validation and test by us.

    net: convolution 5 x 5 (stride 2) - ReLU - convolution 5 x 5 (stride 2) - ReLU - linear - ReLU - linear

The data sets are not ours to ship: see `folder_of`. Pixels are standardized by mean and deviation of the training
images' channels. Steps are those of headrace.testing.problems.Problem, one rank.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import tarfile
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.studies.task import DENSE, DIVERGED, DONE, REFUSED, TIME, Setting, Trained, Watch
from headrace.errors import UserError
from headrace.optim import Optimizer, create
from headrace.optim.schedules import Schedule, ScheduleConfig, set_rates
from headrace.testing.problems import Problem, cross_entropies

ROOT = Path(__file__).resolve().parents[2]
SPLIT_SEED = 20


@dataclass
class ImageTask:
    """See the module's docstring.

    Args:
        name: of the data set.
        images: standardized [n, channels, side, side], in the order train, validation, test.
        labels: [n] int64.
        train_rows: of the first part.
        validation_rows: of the second.
        channels: of the two convolutions.
        hidden: units of the first linear layer.
        points: evaluations an epoch.
    """

    name: str
    images: Tensor
    labels: Tensor
    train_rows: int
    validation_rows: int
    channels: tuple[int, int]
    hidden: int
    batch: int = 128
    epochs: int = 10
    limit_s: float = 90.0
    points: int = 2
    metric: str = "accuracy"
    parts: tuple[str, ...] = field(default=(DENSE,))

    def about(self) -> dict[str, Any]:
        """See `Task.about`."""
        return self._about

    @cached_property
    def _about(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "metric": self.metric,
            "train": self.train_rows,
            "validation": self.validation_rows,
            "test": len(self.images) - self.train_rows - self.validation_rows,
            "parameters": sum(p.numel() for p in self.net(0).parameters()),
        }

    def net(self, seed: int) -> nn.Module:
        """The net with torch's own first weights."""
        channels, side = self.images.shape[1], self.images.shape[2]
        first, second = self.channels
        flat = second * math.ceil(math.ceil(side / 2) / 2) ** 2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(channels, first, 5, stride=2, padding=2), nn.ReLU(),
                nn.Conv2d(first, second, 5, stride=2, padding=2), nn.ReLU(),
                nn.Flatten(), nn.Linear(flat, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 10),
            )  # fmt: skip

    def train(self, setting: Setting, watch: Watch) -> Trained:
        """See `Task.train`."""
        rows = self.train_rows
        problem = Problem(self.net(setting.seed), self.images[:rows], self.labels[:rows], cross_entropies)
        optimizer: Optimizer | None = None
        try:
            optimizer = create(setting.rule, problem.model, **setting.options)
            outcome, why = self._steps(problem, optimizer, setting, watch)
        except UserError as error:
            outcome, why = REFUSED, str(error)
        except (ArithmeticError, torch.linalg.LinAlgError) as error:  # NonFiniteStepError among them
            outcome, why = DIVERGED, f"step {watch.steps + 1}: {error}"
        return Trained(outcome=outcome, why=why, state_bytes=optimizer.state_bytes() if optimizer else None)

    def _steps(self, problem: Problem, optimizer: Optimizer, setting: Setting, watch: Watch) -> tuple[str, str]:
        an_epoch = max(1, problem.rows // setting.batch)
        every = max(1, an_epoch // self.points)
        schedule, total = Schedule(ScheduleConfig(**setting.schedule)), setting.epochs * an_epoch
        watch.resume()
        for step, ids in enumerate(problem.batches(setting.batch, total, seed=setting.seed)):
            set_rates(optimizer, schedule.rates(step, setting.epochs, an_epoch))
            loss = problem.step(optimizer, ids)
            watch.step(loss, len(ids))
            if not math.isfinite(loss):
                return DIVERGED, f"the loss of step {step + 1} is not a number"
            at, last = (step + 1) % an_epoch, step + 1 == total
            if at == 0 or (at % every == 0 and at // every < self.points) or watch.over:
                watch.point((step + 1) / an_epoch, **self._scores(problem.model))
                if watch.curve[-1]["validation_loss"] is None:
                    return DIVERGED, f"the validation loss after step {step + 1} is not a number"
            if watch.over and not last:
                return TIME, f"ended by its limit of {watch.limit_s:g} CPU s of training"
        return DONE, ""

    @property
    def ends(self) -> dict[str, tuple[int, int]]:
        """Where the rows of validation and of test begin and end."""
        middle = self.train_rows + self.validation_rows
        return {"validation": (self.train_rows, middle), "test": (middle, len(self.images))}

    def _scores(self, model: nn.Module) -> dict[str, float]:
        scores = {}
        for name, (start, stop) in self.ends.items():
            found = scored(model, self.images[start:stop], self.labels[start:stop])
            scores[f"{name}_loss"], scores[name] = found
        return scores


@torch.no_grad()
def scored(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    outputs = model(images)
    loss = float(cross_entropies(outputs, labels).mean(dtype=torch.float64))
    return loss, float((outputs.argmax(1) == labels).double().mean())


def folder_of(name: str, data: Path | None = None) -> Path:
    """Where a data set lies: under `data`, or HEADRACE_REAL_DATA, or ../shared/data beside the repository.

    Raises:
        UserError: it is not there.
    """
    base = data or Path(os.environ.get("HEADRACE_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not (base / name).is_dir():
        raise UserError(f"the data set {name} is not in {base} (licence: it may not be shipped)", "give --data FOLDER")
    return base / name


def mnist(data: Path | None = None) -> ImageTask:
    """MNIST's 10,000 test images: 7,000 to train on, 1,000 for validation, 2,000 to test on."""
    folder = folder_of("mnist_test", data)
    pixels = _idx(folder / "t10k-images-idx3-ubyte.gz")[:, None]
    labels = _idx(folder / "t10k-labels-idx1-ubyte.gz")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED)).numpy()
    train, validation = len(labels) * 7 // 10, len(labels) // 10
    return ImageTask(
        "mnist", standardized(pixels[order], train), torch.from_numpy(labels[order].astype(np.int64)), train,
        validation, channels=(8, 16), hidden=32,
    )  # fmt: skip


def cifar10(data: Path | None = None, train: int = 4500, validation: int = 500, test: int = 2000) -> ImageTask:
    """CIFAR-10: so many of the training images, and of the test images, the same number of every class."""
    folder = folder_of("cifar10_jpeg", data)
    pixels, labels = _jpegs(folder / "train.tar.gz", train + validation)
    held, held_labels = _jpegs(folder / "test.tar.gz", test)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED)).numpy()
    every = np.concatenate([pixels[order], held])
    return ImageTask(
        "cifar10", standardized(every, train), torch.from_numpy(np.concatenate([labels[order], held_labels])), train,
        validation, channels=(16, 32), hidden=32, epochs=15, limit_s=240.0, points=1,
    )  # fmt: skip


def standardized(pixels: np.ndarray[Any, Any], train: int) -> Tensor:
    """[n, channels, side, side] uint8 to float32 of mean 0 and deviation 1 over the first `train` images' channels."""
    values = torch.from_numpy(pixels.astype(np.float32))
    mean, std = values[:train].mean((0, 2, 3), keepdim=True), values[:train].std((0, 2, 3), keepdim=True)
    return (values - mean) / std


def _idx(path: Path) -> np.ndarray[Any, Any]:
    """A file of MNIST's format: two zero bytes, type 8 (uint8), number of dimensions, their sizes, the numbers."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise UserError(f"{path.name} is no idx file of bytes", "fetch it again")
    shape = tuple(np.frombuffer(data, ">u4", count=data[3], offset=4).tolist())
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def _jpegs(path: Path, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The first count / 10 images of each class in the order of their names: [count, 3, 32, 32] and [count]."""
    from PIL import Image

    files: dict[str, dict[str, bytes]] = defaultdict(dict)
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(".jpg"):
                file = tar.extractfile(member)
                assert file is not None
                files[Path(member.name).parent.name][member.name] = file.read()
    pixels, labels = [], []
    for label, kind in enumerate(sorted(files)):
        for name in sorted(files[kind])[: count // len(files)]:
            image = Image.open(io.BytesIO(files[kind][name])).convert("RGB")
            pixels.append(np.asarray(image).transpose(2, 0, 1))
            labels.append(label)
    return np.stack(pixels), np.array(labels, np.int64)
