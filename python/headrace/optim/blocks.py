"""How Shampoo and SOAP cut tensors in blocks, and products of blocks with matrices.

Merging: dimensions of 1 go; the others are merged from the last to the first while the product is at most merge_dims
and two dimensions are left. Kernel dimensions are torch's last, so a convolution [64, 32, 3, 3] becomes [64, 288].
(R. Anil et al. 2020 and H.-J. M. Shi et al. 2023 merge from the first, where TensorFlow has the kernel's, and go on
to one dimension: a matrix of few numbers is then a vector with one large preconditioner.)

Blocks: a dimension of at most max_dim is cut in as few parts of at most block_size as there can be, of sizes that
differ by 1 at most (the papers leave a smaller last one); a longer one is not cut. A tensor has then at most 2^order
shapes of blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from torch import Tensor

Kind = Literal["full", "diagonal", "none"]  # a dimension's preconditioner: a matrix, a vector, the identity


@dataclass(frozen=True)
class Region:
    """The blocks of one shape in a tensor; they lie side by side.

    Args:
        shape: of the tensor, merged.
        kinds: of each dimension's preconditioner.
        starts: of the region, in each dimension.
        counts: of blocks, in each dimension.
        sizes: of a block, in each dimension.
    """

    shape: tuple[int, ...]
    kinds: tuple[Kind, ...]
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def number(self) -> int:
        """Of blocks."""
        return math.prod(self.counts)

    def view(self, tensor: Tensor) -> Tensor:
        """[*counts, *sizes] of a contiguous tensor."""
        if self.sizes == self.shape:
            return tensor.view(*self.counts, *self.sizes)
        part = tensor.view(self.shape)
        for dim, start in enumerate(self.starts):
            part = part.narrow(dim, start, self.counts[dim] * self.sizes[dim])
        order = len(self.shape)
        part = part.view([n for pair in zip(self.counts, self.sizes, strict=True) for n in pair])
        return part.permute(*range(0, 2 * order, 2), *range(1, 2 * order, 2))


def merged(shape: Sequence[int], merge_dims: int) -> tuple[int, ...]:
    """Dimensions of the tensor whose blocks are preconditioned; a scalar is a vector of one."""
    dims = [n for n in shape if n != 1] or [1]
    while len(dims) > 2 and dims[-2] * dims[-1] <= merge_dims:
        dims[-2:] = [dims[-2] * dims[-1]]
    return tuple(dims)


def layout(shape: Sequence[int], options: Mapping[str, Any], large: Kind, vectors: Kind) -> tuple[Region, ...]:
    """How a tensor is cut.

    Args:
        shape: of the tensor.
        options: merge_dims, max_dim and block_size.
        large: the preconditioner of dimensions above max_dim.
        vectors: the preconditioner of tensors of order 1 (up to max_dim).
    """
    if math.prod(shape) == 0:
        return ()
    dims = merged(shape, options["merge_dims"])
    small: Kind = vectors if len(dims) == 1 else "full"
    kinds = tuple(small if n <= options["max_dim"] else large for n in dims)
    cuts = [_cut(n, options["block_size"] if kind == "full" else n) for n, kind in zip(dims, kinds, strict=True)]
    return tuple(Region(dims, kinds, *zip(*parts, strict=True)) for parts in product(*cuts))


def _cut(size: int, block: int) -> list[tuple[int, int, int]]:
    """(start, count, size) of the parts."""
    parts = -(-size // block)
    small, longer = divmod(size, parts)
    cuts = [(0, longer, small + 1), (longer * (small + 1), parts - longer, small)]
    return [cut for cut in cuts if cut[1]]


def times(blocks: Tensor, factors: Sequence[Tensor | None]) -> Tensor:
    """Every dimension i of every block times its factor: y[.., b, ..] = sum_a x[.., a, ..] factors[i][a, b].

    Args:
        blocks: [N, n_1, ..., n_k].
        factors: for every dimension [N, n_i, m_i], a vector [N, n_i] that stands for a diagonal, or None.
    """
    for factor in factors:  # each turns its dimension from the first to the last: after all they are in order again
        n, first, *others = blocks.shape
        turned = blocks.reshape(n, first, -1).mT
        if factor is not None:
            turned = turned * factor[:, None] if factor.dim() == 2 else turned @ factor
        blocks = turned.reshape(n, *others, turned.shape[-1])
    return blocks


def unfolded(blocks: Tensor, dim: int) -> Tensor:
    """[N, n, all others] of dimension `dim`."""
    if blocks.dim() == 3 and dim == 1:
        return blocks.mT
    return blocks.movedim(dim + 1, 1).flatten(2) if blocks.dim() > 2 else blocks[:, :, None]
