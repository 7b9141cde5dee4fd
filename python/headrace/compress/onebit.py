"""One bit a number, and two values a bucket: the mean of what is not negative and the mean of what is.

    C(x)_i = m+ where x_i >= 0, m- where x_i < 0;  m+, m- the means of these numbers of the bucket of i

Reference: F. Seide, H. Fu, J. Droppo, G. Li, D. Yu, "1-bit stochastic gradient descent and its application to
data-parallel distributed training of speech DNNs", Interspeech 2014. There a bucket is a column of a matrix; here so
many numbers of the flat tensor, whatever its shape. It wants error feedback.

Contraction. Of all vectors that are constant on the k+ numbers that are not negative and on the k- others, C(x) is the
nearest to x, so |C(x) - x|^2 = |x|^2 - |C(x)|^2, and |C(x)|^2 = S+^2 / k+ + S-^2 / k- with S the sums. Numbers of one
sign have |S+| = |x+|_1 >= |x+|_2, so |C(x)|^2 >= |x|^2 / max(k+, k-) >= |x|^2 / bucket: delta >= 1 / min(n, bucket).
The worst is reached by a bucket with a single number that is not 0; of normal numbers |C(x)|^2 is 2 / pi of |x|^2.

A bucket with a number that is not finite has means that are not: it is seen.

Sums have an order of their own, the same wherever they are made: 512 numbers after each other, zeros behind, are added
by halves, the first half to the second, until one is left; so are then these sums, until there is one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from headrace.comm.fresh import fresh
from headrace.comm.sums import saturated
from headrace.compress import kernels
from headrace.compress.base import Codec, State, joined, taken
from headrace.compress.limits import within
from headrace.compress.signs import counts_of, negative, negative_bits, piece_for, table
from headrace.compress.spec import CONTRACTION, CodecSpec
from headrace.errors import UserError

_SPAN, _NARROW = 512, 16


class OneBit(Codec):
    """C(x) of the module's docstring. On the wire: (m-, m+) float32 of every bucket, then the signs.

    Args:
        bucket: numbers that share their means; a multiple of 8.
    """

    def __init__(self, bucket: int) -> None:
        within("bucket", bucket, 8, 1 << 24)
        if bucket % 8:
            raise UserError(f"compression option bucket is {bucket}", "a multiple of 8, such as 512")
        self._bucket = bucket

    def encode(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Codec.encode`."""
        n, bucket = x.numel(), self._bucket_of(x.numel())
        pieces = [x] if kernels.serve(x) else x.split(piece_for(x, bucket))
        parts = [_parted(saturated(piece, torch.float32), bucket) for piece in pieces]
        below, sums = torch.cat([part.below for part in parts]), torch.cat([part.sums for part in parts], 1)
        sizes = torch.full_like(below, bucket)
        sizes[-1] -= -n % bucket
        counts = torch.stack([below, sizes - below]).clamp_(min=1)
        means = sums / counts
        if not bool(means.isfinite().all()):  # sums beyond float32, or numbers that are not finite
            wide = [_sums(_rows(saturated(p, torch.float32).double(), bucket)) for p in x.split(piece_for(x, bucket))]
            means = (torch.cat(wide, 1) / counts).float()
        return joined([means.t().contiguous(), *(part.signs for part in parts)]), state

    def decode(self, data: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        """See `Codec.decode`."""
        bucket = self._bucket_of(n)
        buckets, piece = -(-n // bucket), piece_for(data, bucket)
        pairs = taken(data, 0, 2 * buckets, torch.int32)
        if kernels.serve(data, dtype=torch.uint8):
            found = fresh(n, torch.float32, data.device)
            kernels.run("choose", data[8 * buckets :], n, bucket, pairs, found)
            return saturated(found, dtype)
        means = pairs.view(buckets, 2, 1).split(piece // bucket)
        signs = pad(data[8 * buckets :], (0, buckets * bucket // 8 - -(-n // 8))).split(piece // 8)
        numbers = fresh(buckets * bucket, torch.int32, data.device).view(-1, 8)
        masks = table(*torch.tensor([0, -1], dtype=torch.int32, device=data.device))
        for place, mean, bits in zip(numbers.split(piece // 8), means, signs, strict=True):
            # m+ where a mask is 0, else m+ ^ (m- ^ m+) = m-: exact, and faster than a choice.
            torch.index_select(masks, 0, bits.to(torch.int32), out=place)
            place.view(-1, bucket).bitwise_and_(mean[:, 0] ^ mean[:, 1]).bitwise_xor_(mean[:, 1])
        return saturated(numbers.view(-1)[:n].view(torch.float32), dtype)

    def nbytes(self, n: int, dtype: torch.dtype) -> int:
        """See `Codec.nbytes`."""
        return 8 * -(-n // self._bucket) + -(-n // 8)

    def _bucket_of(self, n: int) -> int:
        """A bucket has no more room than n numbers take."""
        return min(self._bucket, -(-n // 8) * 8)


class _Parted(NamedTuple):
    """Of a piece: negative numbers a bucket, their sums and the others' [2, buckets], signs packed."""

    below: Tensor
    sums: Tensor
    signs: Tensor


def _parted(x: Tensor, bucket: int) -> _Parted:
    if kernels.serve(x):
        buckets, n = -(-x.numel() // bucket), x.numel()
        below, sums = torch.empty(buckets, dtype=torch.int64), torch.empty(2, buckets)
        signs = torch.empty(-(-n // 8), dtype=torch.uint8)
        kernels.run("part_buckets", x, n, bucket, below, sums, signs)
        return _Parted(below, sums, signs)
    rows = _rows(x, bucket)
    return _Parted(counts_of(negative(rows).view(-1), bucket), _sums(rows), negative_bits(x))


def _sums(rows: Tensor) -> Tensor:
    """Of negative numbers and of others: [2, rows]."""
    sums = torch.stack([_folded(rows.clamp(max=0)), _folded(rows.clamp(min=0))])
    return sums.add_(0.0)  # there is no minus zero


def _folded(rows: Tensor) -> Tensor:
    """Sums of rows [rows, width], in the order of the module's docstring."""
    while rows.shape[1] > 1:
        span = min(_SPAN, 1 << (rows.shape[1] - 1).bit_length())
        parts = _halved(pad(rows, (0, -rows.shape[1] % span)).view(-1, span), _NARROW)
        rows = _halved(parts.t().contiguous().t(), 1).view(len(rows), -1)  # turned: few numbers a row take long
    return rows[:, 0]


def _halved(parts: Tensor, width: int) -> Tensor:
    """The halves of parts [parts, a power of two] added until they are as wide."""
    while parts.shape[1] > width:
        half = parts.shape[1] // 2
        parts = parts[:, :half] + parts[:, half:]
    return parts


def _rows(flat: Tensor, length: int) -> Tensor:
    """[n] as [ceil(n / length), length], zeros behind."""
    return (pad(flat, (0, -flat.numel() % length)) if flat.numel() % length else flat).view(-1, length)


SPEC = CodecSpec(
    factory=OneBit,
    paper="Seide et al. 2014",
    rule="the mean of the bucket's numbers of its sign",
    use="A thirtieth of the bytes at little cost of time; with error feedback (short runs: try both).",
    bits="1, and 64 a bucket of 512",
    traits=frozenset({CONTRACTION}),
    defaults={"bucket": 512},
    delta=lambda n, options: 1 / min(n, options["bucket"]),
)
