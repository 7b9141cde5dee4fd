"""What the click models share: dense standardization, a multi-layer perceptron, dropout that needs no random state,
initialization.

    standardize(x) = (x - mean) / std          dropout mask = f(seed, step, rank, layer)

Initialization is drawn from one seeded generator in parameter order, so every rank starts from the same bits without a
broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from headrace.models.embedding import FusedEmbedding

_STREAM = 0x9E3779B97F4A7C15
_MASK = (1 << 63) - 1


class Standardize(nn.Module):
    """A fixed affine map of the dense columns; mean and std are saved with the model and never trained.

    Args:
        mean: one number a column (of the transformed values), or None for 0.
        std: one number a column, or None for 1; zeros (constant columns) count as 1.
        num_dense: number of columns.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_dense: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__()
        if any(given is not None and len(given) != num_dense for given in (mean, std)):
            raise ValueError(f"dense_mean and dense_std must hold {num_dense} numbers, one for each dense column")
        scale = [value if value > 0 and math.isfinite(value) else 1.0 for value in std or [1.0] * num_dense]
        self.register_buffer("mean", torch.tensor(list(mean or [0.0] * num_dense), dtype=torch.float32))
        self.register_buffer("std", torch.tensor(scale, dtype=torch.float32))

    def forward(self, dense: Tensor) -> Tensor:
        """[B, num_dense] -> [B, num_dense]."""
        return (dense - self.mean) / self.std


class SeededDropout(nn.Module):
    """Dropout whose mask is a function of a seed set before each step: nothing to save, the same under every
    launcher."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"dropout must be in [0, 1), not {rate}")
        self.rate, self.seed = rate, 0

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share `rate` of x and scale the rest by 1 / (1 - rate), in training only."""
        if not self.training or self.rate == 0.0:
            return x
        generator = torch.Generator().manual_seed(self.seed)
        kept = torch.rand(x.shape, generator=generator) >= self.rate
        return x * kept.to(x.device, x.dtype) / (1.0 - self.rate)


def reseed_dropout(model: nn.Module, seed: int, step: int, rank: int) -> None:
    """Give every dropout layer its seed for this step and rank."""
    layers = [module for module in model.modules() if isinstance(module, SeededDropout)]
    for number, layer in enumerate(layers):
        layer.seed = dropout_seed(seed, step, rank, number)


def dropout_seed(seed: int, step: int, rank: int, number: int) -> int:
    """Where the masks of dropout layer `number` begin, for a step and rank."""
    return (((seed * 1_000_003 + step) * 4099 + rank) * 257 + number) * _STREAM & _MASK


def perceptron(sizes: Sequence[int], dropout: float, last: bool) -> nn.Sequential:
    """Linear layers sizes[0] -> sizes[1] -> ... with ReLU between; `last` puts ReLU (and dropout) after the last one
    too."""
    layers: list[nn.Module] = []
    for number, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(fan_in, fan_out))
        if last or number < len(sizes) - 2:
            layers.append(nn.ReLU())
            if dropout > 0.0:
                layers.append(SeededDropout(dropout))
    return nn.Sequential(*layers)


@torch.no_grad()
def initialize(model: nn.Module, seed: int, embedding_std: float) -> None:
    """Draw all parameters from one generator.

    Linear layers: weights N(0, 2 / (fan_in + fan_out)), biases N(0, 1 / fan_out), as in the DLRM reference. Embedding
    rows: N(0, embedding_std^2) but for columns declared in `model.first_order` (weights of the linear part), which
    start at zero; padding rows are zero.
    """
    generator = torch.Generator().manual_seed(seed)
    first_order = int(getattr(model, "first_order", 0))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            out, into = module.weight.shape
            module.weight.normal_(0.0, math.sqrt(2.0 / (out + into)), generator=generator)
            if module.bias is not None:
                module.bias.normal_(0.0, math.sqrt(1.0 / out), generator=generator)
        elif isinstance(module, FusedEmbedding):
            module.draw(embedding_std, first_order, generator)
