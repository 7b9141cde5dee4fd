"""What every click model promises: dense [B, num_dense] and sparse [B, C] in, logits [B] out, and two groups of
parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from headrace.models.embedding import FusedEmbedding
from headrace.models.layers import Standardize


@dataclass(frozen=True)
class ModelOptions:
    """Settings of a model.

    Args:
        embedding_dim: floats a category (the factors of FM and DeepFM, the vectors of DLRM).
        hidden: widths of the perceptron's hidden layers (DeepFM; DLRM's top).
        bottom: widths of DLRM's bottom perceptron before the last, which has embedding_dim.
        categories: False leaves the categorical columns out.
        dropout: share of hidden units dropped in training.
        embedding_std: standard deviation of the initial embeddings.
        dense_mean: means of the dense columns, subtracted; None is 0.
        dense_std: standard deviations of the dense columns, divided by; None is 1.
        seed: of the initial parameters.
        table: makes the embedding table of cardinalities and floats a row; `create` alone sets it.
    """

    embedding_dim: int = 16
    hidden: tuple[int, ...] = (256, 128)
    bottom: tuple[int, ...] = (128,)
    categories: bool = True
    dropout: float = 0.0
    embedding_std: float = 0.01
    dense_mean: tuple[float, ...] | None = None
    dense_std: tuple[float, ...] | None = None
    seed: int = 0
    table: Callable[[Mapping[str, int], int], FusedEmbedding] = FusedEmbedding


class ClickModel(nn.Module):
    """Base of the click models.

    Args:
        cardinalities: rows of each categorical column's table, in column order.
        num_dense: number of dense columns.
        dim: floats a row of the embedding table (first-order weight included, where there is one).
        options: see ModelOptions.
    """

    first_order = 0
    embedding: FusedEmbedding | None

    def __init__(self, cardinalities: Mapping[str, int], num_dense: int, dim: int, options: ModelOptions) -> None:
        super().__init__()
        self.options = options
        self.num_dense = num_dense
        self.standardize = Standardize(num_dense, options.dense_mean, options.dense_std)
        self.embedding = options.table(cardinalities, dim) if options.categories else None
        self.num_sparse = len(cardinalities) if options.categories else 0

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """Logits [B] of dense float32 [B, num_dense] and sparse int64 [B, C]."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def sparse_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters whose gradients are row-sparse: the embedding table."""
        if self.embedding is not None:
            yield self.embedding.weight

    def dense_parameters(self) -> Iterator[nn.Parameter]:
        """All other parameters."""
        sparse = {id(parameter) for parameter in self.sparse_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in sparse)
