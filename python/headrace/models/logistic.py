"""Logistic regression on dense columns and one weight a category.

    logit = b + w . x + sum over columns c of v_c[id_c]

Reference: D. R. Cox, "The regression analysis of binary sequences", 1958. All weights start at zero (the loss is
convex); no regularization here: it belongs to the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from headrace.models.base import ClickModel, ModelOptions


class Logistic(ClickModel):
    """See the module's docstring; the embedding table has one float a row."""

    first_order = 1

    def __init__(self, cardinalities: Mapping[str, int], num_dense: int, options: ModelOptions) -> None:
        super().__init__(cardinalities, num_dense, 1, options)
        self.weight = nn.Parameter(torch.zeros(num_dense))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """Logits [B]."""
        logits = self.standardize(dense) @ self.weight + self.bias
        return logits if self.embedding is None else logits + self.embedding(sparse).sum(dim=(1, 2))
