"""DeepFM: a factorization machine and a perceptron over the same embeddings, their logits added.

    logit = FM(x) + MLP([standardized dense, v_1, ..., v_C])

Reference: H. Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", IJCAI 2017.
Differs from the paper: dense columns enter the perceptron as numbers, not as v_i x_i (13 inputs instead of 13 K; the
FM part has the v_i x_i), and there is no dropout unless asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from headrace.models.base import ModelOptions
from headrace.models.fm import FactorPart
from headrace.models.layers import initialize, perceptron


class DeepFM(FactorPart):
    """See the module's docstring."""

    def __init__(self, cardinalities: Mapping[str, int], num_dense: int, options: ModelOptions) -> None:
        super().__init__(cardinalities, num_dense, options)
        inputs = num_dense + self.num_sparse * options.embedding_dim
        self.deep = perceptron((inputs, *options.hidden, 1), options.dropout, last=False)
        initialize(self, options.seed, options.embedding_std)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(options.seed + 1)
            self.factors.weight.normal_(0.0, options.embedding_std, generator=generator)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """Logits [B]."""
        logits, x, vectors = self.factorize(dense, sparse)
        inputs = x if vectors is None else torch.cat((x, vectors.flatten(1)), dim=1)
        deep: Tensor = self.deep(inputs)
        return logits + deep.squeeze(1)
