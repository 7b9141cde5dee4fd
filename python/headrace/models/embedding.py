"""One embedding table for all categorical columns: one gather forward, one sort and one segmented sum backward.

    rows(b, c) = W[offset_c + id_bc]          dL/dW = sum over (b, c) of dL/drows(b, c) at row offset_c + id_bc, as
    (row numbers, rows)

Column c owns the rows [offset_c, offset_c + cardinality_c); its id 0 is padding: the row is zero and receives no
gradient. The gradient is a coalesced `torch.sparse_coo` tensor made by a stable sort of the row numbers and sums in
that order, so it is the same bits at any number of threads. (`Tensor.coalesce` of the same gradient takes five times
as long: docs/training.md.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from headrace.errors import UserError

PADDING_ID = 0
torch.sparse.check_sparse_tensor_invariants.disable()  # the default; unless it is said, torch warns in every process


def sum_rows(ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the rows that share an id, each sum taken in order of occurrence.

    Args:
        ids: int64 `[n]`.
        rows: `[n, ...]`.

    Returns:
        The distinct ids in rising order `[m]`, and their sums `[m, ...]`.
    """
    if ids.numel() == 0:
        return ids, rows
    ordered, position = torch.sort(ids, stable=True)
    unique, counts = torch.unique_consecutive(ordered, return_counts=True)
    if unique.numel() == ids.numel():
        return unique, rows.index_select(0, position)
    starts = counts.cumsum(0) - counts
    flat = rows.reshape(rows.shape[0], -1)
    # embedding_bag gathers and adds each segment from left to right in one pass: measured 3 to 5 times as fast as
    # index_add_, segment_reduce and coalesce(); the last does not keep the order of equal ids at some sizes.
    sums = nn.functional.embedding_bag(position, flat, starts, mode="sum")
    return unique, sums.reshape(counts.numel(), *rows.shape[1:])


class _Gather(torch.autograd.Function):
    """`weight[rows]` whose gradient is row-sparse, coalesced, and skips padding."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor, padding: Tensor) -> Tensor:
        ctx.save_for_backward(rows, padding)
        ctx.shape = weight.shape
        return weight.index_select(0, rows.reshape(-1)).view(*rows.shape, weight.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        rows, padding = ctx.saved_tensors
        unique, sums = sum_rows(rows.reshape(-1), grads[0].reshape(-1, ctx.shape[1]))
        keep = ~torch.isin(unique, padding, assume_unique=True)
        if not bool(keep.all()):
            unique, sums = unique[keep], sums[keep]
        grad = torch.sparse_coo_tensor(unique[None], sums, ctx.shape, is_coalesced=True, check_invariants=False)
        return grad, None, None


def gather(weight: Tensor, rows: Tensor, padding: Tensor) -> Tensor:
    """`weight[rows]` [*rows.shape, dim], with a row-sparse gradient that leaves the rows in `padding` out."""
    gathered: Tensor = _Gather.apply(weight, rows, padding)
    return gathered


class FusedEmbedding(nn.Module):
    """The tables of all categorical columns as one parameter [sum of cardinalities, dim].

    Args:
        cardinalities: rows of each column's table, in the order of the columns; ids are in [0, cardinality).
        dim: floats a row.
        held: rows that `weight` has, where other ranks hold the rest; None: all.
    """

    offsets: Tensor
    limits: Tensor

    def __init__(self, cardinalities: Mapping[str, int], dim: int, held: int | None = None) -> None:
        super().__init__()
        bad = [name for name, size in cardinalities.items() if size < 1]
        if bad or not cardinalities:
            raise UserError(
                f"no rows for the embedding of column {bad[0] if bad else '(none)'}",
                "run `headrace featurize-ctr` again",
            )
        sizes = torch.tensor(list(cardinalities.values()), dtype=torch.int64)
        self.columns = tuple(cardinalities)
        self.rows = int(sizes.sum())
        self.weight = nn.Parameter(torch.zeros(self.rows if held is None else held, dim))
        self.register_buffer("limits", sizes, persistent=False)
        self.register_buffer("offsets", torch.cumsum(sizes, 0) - sizes, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of ids int64 [B, C] -> float [B, C, dim].

        Raises:
            UserError: an id is outside its column's table.
        """
        self.check(ids)
        return gather(self.weight, ids + self.offsets, self.offsets)

    def check(self, ids: Tensor) -> None:
        """Refuse ids [B, C] that are not of the tables.

        Raises:
            UserError: an id is outside its column's table.
        """
        if bool(((ids < 0) | (ids >= self.limits)).any()):
            self._refuse(ids)

    @torch.no_grad()
    def draw(self, std: float, first_order: int, generator: torch.Generator) -> None:
        """Rows ~ N(0, std^2), but zero for the first `first_order` columns and in padding."""
        self.weight.normal_(0.0, std, generator=generator)
        self.weight[:, :first_order] = 0.0
        self.zero_padding()

    @torch.no_grad()
    def zero_padding(self) -> None:
        """Set the padding row of every column to zero (after initialization)."""
        self.weight[self.offsets + PADDING_ID] = 0.0

    def _refuse(self, ids: Tensor) -> None:
        column = int(((ids < 0) | (ids >= self.limits)).any(0).nonzero()[0, 0])
        raise UserError(
            f"column {self.columns[column]} holds id {int(ids[:, column].max())}, "
            f"its table has {int(self.limits[column])} rows",
            "train on the table version whose vocabulary the model was made for",
        )
