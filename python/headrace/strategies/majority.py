"""Gradients of all ranks to the sign that most of them have.

    sum = N scale sign(sum over ranks of sign(x_r)),  sign(0) = +1
    scale = the mean of the ranks' mean|x_r| (signsgd), or 1 (signsgd_unscaled)

The signs of each chunk of a bucket go to the rank that counts its votes, a bit a number, and the majority comes back
to all, a bit a number: n (N - 1) / (4 N) bytes a rank, whatever N is, and 4 bytes a tensor and rank for scales. Small
tensors go along with both. A rank with 0 votes for +, and a tie goes to +. The factor N is there since who takes a sum
of gradients divides it by N or by rows. Unscaled, a tensor that is zero on all ranks stays zero. One rank alone votes
as well. Where a rank has something that is not finite, the whole tensor is NaN on all.

Reference: J. Bernstein, J. Zhao, K. Azizzadenesheli, A. Anandkumar, "signSGD with majority vote is communication
efficient and fault tolerant", ICLR 2019, where the votes are of momenta and nothing is scaled. Feedback, if any,
remembers what a rank's own vote left out, not what the majority overruled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.comm.base import Collective, as_bytes, from_bytes
from headrace.comm.sums import in_order, saturated
from headrace.compress import CodecSpec, Payload
from headrace.compress.base import joined
from headrace.compress.feedback import Feedback
from headrace.compress.signs import pack, unpack
from headrace.compress.signsgd import SignSGD
from headrace.errors import UserError
from headrace.strategies.compressed import CompressedConfig, CompressedReducer
from headrace.strategies.reducers import BucketReducer, packed, unpacked

_SCALE = 4  # bytes of a payload before its signs


class MajorityVote(CompressedReducer):
    """See the module's docstring.

    Args:
        spec: of the codec.
        feedback: signsgd or signsgd_unscaled, with its memory: none or ef.
        rest: sums what is not compressed and does not go along.
        cfg: see CompressedConfig; `exchange` has no meaning here.

    Raises:
        UserError: another codec, or feedback that accumulates what is sent.
    """

    def __init__(self, spec: CodecSpec, feedback: Feedback, rest: BucketReducer, cfg: CompressedConfig) -> None:
        if not isinstance(feedback.codec, SignSGD):
            raise UserError("a majority vote is one of signs", "choose compression signsgd or signsgd_unscaled")
        if feedback.accumulates:
            raise UserError("a majority is no sum that feedback ef21 could follow", "choose feedback none or ef")
        super().__init__(spec, feedback, rest, cfg)
        self._codec = feedback.codec

    def sum_large(
        self, large: dict[str, Tensor], small: dict[str, Tensor], collective: Collective
    ) -> dict[str, Tensor]:
        """See `OfLarge.sum_large`: small ones go along."""
        payloads = [self.sent(name, g.reshape(-1), collective.rank).data for name, g in large.items()]
        signs = [data[_SCALE:] for data in payloads]
        first = next(iter(large.values()))
        along = packed(small) if small else first.new_empty(0)
        totals, voted, summed = self._voted(
            torch.cat([d[:_SCALE] for d in payloads]), torch.cat(signs), along, collective
        )
        with self.timed("decode"):
            parts = zip(large.items(), totals, voted.split([s.numel() for s in signs]), strict=True)
            return unpacked(summed, small) | {name: self._decoded(total, sign, g) for (name, g), total, sign in parts}

    def _voted(
        self, scales: Tensor, signs: Tensor, along: Tensor, collective: Collective
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scales of the sums float32 [tensors], the signs that most ranks have, as bytes, and sums of `along` [n]."""
        size, rank = collective.size, collective.rank
        exact, chunks = along.tensor_split(size), signs.tensor_split(size)
        sizes = [[e.nbytes, scales.numel(), chunk.numel()] for e, chunk in zip(exact, chunks, strict=True)]
        with self.timed("exchange"):
            messages = [torch.cat([as_bytes(e), scales, chunk]) for e, chunk in zip(exact, chunks, strict=True)]
            arrived = collective.alltoall(messages, [sum(sizes[rank])] * size)
        with self.timed("decode"):
            exactly, scaled, votes = zip(*(torch.split(message, sizes[rank]) for message in arrived), strict=True)
            every = torch.stack([from_bytes(raw, scales.view(torch.float32)) for raw in scaled]).double()
            total = every.sum(0) if self._codec.scaled else every.amax(0) * size
            own = torch.cat([as_bytes(in_order(from_bytes(raw, exact[rank]) for raw in exactly)), _majority(votes)])
        with self.timed("exchange"):
            gathered = collective.allgather(own, [of_exact + of_signs for of_exact, _, of_signs in sizes])
        summed = [from_bytes(raw[: e.nbytes], e) for raw, e in zip(gathered, exact, strict=True)]
        majority = [raw[e.nbytes :] for raw, e in zip(gathered, exact, strict=True)]
        return saturated(total, torch.float32), torch.cat(majority), torch.cat(summed)

    def _decoded(self, total: Tensor, signs: Tensor, like: Tensor) -> Tensor:
        return self._codec.decompress(Payload(joined([total.view(1), signs]), like.shape, like.dtype))


def _majority(votes: Sequence[Tensor]) -> Tensor:
    """Bits that more than half of the ranks have set: packed uint8 [m] of each to packed [m]."""
    if votes[0].numel() == 0:
        return votes[0]
    count = unpack(votes[0], 8 * votes[0].numel()).to(torch.int16)
    for vote in votes[1:]:
        count += unpack(vote, 8 * vote.numel())
    return pack(count > len(votes) // 2)
