"""Factorization machine of second order.

    logit = b + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j,     sum_{i<j} <v_i, v_j> x_i x_j = (|sum_i v_i x_i|^2 -
    sum_i |v_i x_i|^2) / 2

Reference: S. Rendle, "Factorization Machines", ICDM 2010. A category is a feature with x = 1; a dense column has one
weight and one factor vector. w and v of a category lie in one row of one table (1 + k floats). Differs from the paper:
plain gradient training, no per-factor regularization. v starts at N(0, embedding_std^2), w at 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from headrace.models.base import ClickModel, ModelOptions
from headrace.models.layers import initialize


def pairwise(vectors: Tensor) -> Tensor:
    """Sum over pairs i < j of <vectors_i, vectors_j>: [B, F, K] -> [B]."""
    total = vectors.sum(1)
    return 0.5 * ((total * total).sum(1) - (vectors * vectors).sum((1, 2)))


class FactorPart(ClickModel):
    """The FM of the module's docstring, and its vectors, which DeepFM feeds to its perceptron."""

    first_order = 1

    def __init__(self, cardinalities: Mapping[str, int], num_dense: int, options: ModelOptions) -> None:
        super().__init__(cardinalities, num_dense, 1 + options.embedding_dim, options)
        self.bias = nn.Parameter(torch.zeros(1))
        self.weight = nn.Parameter(torch.zeros(num_dense))
        self.factors = nn.Linear(options.embedding_dim, num_dense, bias=False)  # weight: [num_dense, K]

    def factorize(self, dense: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """FM logits [B], standardized dense [B, num_dense], category vectors [B, C, K] (None without categories)."""
        x = self.standardize(dense)
        logits = x @ self.weight + self.bias
        total = x @ self.factors.weight  # the dense columns' share of sum_i v_i x_i: [B, K]
        squares = (x * x) @ (self.factors.weight * self.factors.weight).sum(1)
        if self.embedding is None:
            return logits + 0.5 * ((total * total).sum(1) - squares), x, None
        rows = self.embedding(sparse)
        vectors = rows[:, :, 1:]
        total = total + vectors.sum(1)
        squares = squares + (vectors * vectors).sum((1, 2))
        return logits + rows[:, :, 0].sum(1) + 0.5 * ((total * total).sum(1) - squares), x, vectors


class FactorizationMachine(FactorPart):
    """See the module's docstring."""

    def __init__(self, cardinalities: Mapping[str, int], num_dense: int, options: ModelOptions) -> None:
        super().__init__(cardinalities, num_dense, options)
        initialize(self, options.seed, options.embedding_std)
        with torch.no_grad():  # the dense columns' factors start on the scale of the categories'
            generator = torch.Generator().manual_seed(options.seed + 1)
            self.factors.weight.normal_(0.0, options.embedding_std, generator=generator)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """Logits [B]."""
        return self.factorize(dense, sparse)[0]
