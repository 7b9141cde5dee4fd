"""DLRM: dot products between category vectors and a perceptron's image of the dense columns, then a perceptron.

    z_0 = MLP_bottom(x), z_c = v_c[id_c],     logit = MLP_top([z_0, <z_i, z_j> for i < j])

Reference: M. Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
arXiv:1906.00091, 2019. Differs from the paper: the tables are one fused table, and rows start at N(0, embedding_std^2)
for every column where the reference draws from U(-1/sqrt(n), 1/sqrt(n)) with n the column's rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from headrace.models.base import ClickModel, ModelOptions
from headrace.models.layers import initialize, perceptron


class DLRM(ClickModel):
    """See the module's docstring; `options.bottom` and `options.hidden` are the two perceptrons."""

    pairs: Tensor

    def __init__(self, cardinalities: Mapping[str, int], num_dense: int, options: ModelOptions) -> None:
        super().__init__(cardinalities, num_dense, options.embedding_dim, options)
        vectors = 1 + self.num_sparse
        self.register_buffer("pairs", torch.triu_indices(vectors, vectors, offset=1), persistent=False)
        self.bottom = perceptron((num_dense, *options.bottom, options.embedding_dim), options.dropout, last=True)
        inputs = options.embedding_dim + vectors * (vectors - 1) // 2
        self.top = perceptron((inputs, *options.hidden, 1), options.dropout, last=False)
        initialize(self, options.seed, options.embedding_std)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """Logits [B]."""
        image: Tensor = self.bottom(self.standardize(dense))
        inputs = image
        if self.embedding is not None:
            vectors = torch.cat((image[:, None], self.embedding(sparse).to(image.dtype)), dim=1)
            products = torch.bmm(vectors, vectors.transpose(1, 2))
            inputs = torch.cat((image, products[:, self.pairs[0], self.pairs[1]]), dim=1)
        logits: Tensor = self.top(inputs)
        return logits.squeeze(1)
