"""Gradients of all ranks to the sign that most of them have.

    sum = N scale sign(sum over ranks of sign(x_r)),  sign(0) = +1
    scale = the mean of the ranks' mean|x_r| (signsgd), or 1 (signsgd_unscaled)

The signs of each chunk of a bucket go to the rank that counts its votes, a bit a number, and the majority comes back
to all, a bit a number: n (N - 1) / (4 N) bytes a rank, whatever N is, and 4 bytes a tensor and rank for scales. A rank
with 0 votes for +, and a tie goes to +. The factor N is there since who takes a sum of gradients divides it by N or by
rows. Unscaled, a tensor that is zero on all ranks stays zero. One rank alone votes as well. Where a rank has something
that is not finite, the whole tensor is NaN on all.

Reference: J. Bernstein, J. Zhao, K. Azizzadenesheli, A. Anandkumar, "signSGD with majority vote is communication
efficient and fault tolerant", ICLR 2019, where the votes are of momenta and nothing is scaled. Feedback, if any,
remembers what a rank's own vote left out, not what the majority overruled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.comm.sums import saturated
from headrace.compress import CodecSpec, Payload
from headrace.compress.base import joined, taken
from headrace.compress.feedback import Feedback
from headrace.compress.signs import pack, unpack
from headrace.compress.signsgd import SignSGD
from headrace.errors import UserError
from headrace.strategies.compressed import CompressedConfig, CompressedReducer
from headrace.strategies.reducers import BucketReducer

_SCALE = 4  # bytes of a payload before its signs


class MajorityVote(CompressedReducer):
    """See the module's docstring.

    Args:
        spec: of the codec.
        feedback: signsgd or signsgd_unscaled, with its memory: none or ef.
        rest: sums what is not compressed.
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

    def sum_large(self, bucket: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """See `OfLarge.sum_large`."""
        payloads = [self.sent(name, g.reshape(-1), collective.rank).data for name, g in bucket.items()]
        signs = [data[_SCALE:] for data in payloads]
        totals, voted = self._voted(torch.cat([data[:_SCALE] for data in payloads]), torch.cat(signs), collective)
        with self.timed("decode"):
            parts = zip(bucket.items(), totals, voted.split([s.numel() for s in signs]), strict=True)
            return {name: self._decoded(total, sign, g) for (name, g), total, sign in parts}

    def _voted(self, scales: Tensor, signs: Tensor, collective: Collective) -> tuple[Tensor, Tensor]:
        """Scales of the sums float32 [tensors], and the signs that most ranks have, as bytes."""
        size, start = collective.size, scales.numel()
        chunks = signs.tensor_split(size)
        rows = [chunk.numel() for chunk in chunks]
        with self.timed("exchange"):
            messages = [torch.cat([scales, chunk]) for chunk in chunks]
            arrived = collective.alltoall(messages, [start + rows[collective.rank]] * size)
        with self.timed("decode"):
            every = torch.stack([taken(message, 0, start // _SCALE, torch.float32) for message in arrived]).double()
            total = every.sum(0) if self._codec.scaled else every.amax(0) * size
            majority = _majority([message[start:] for message in arrived])
        with self.timed("exchange"):
            return saturated(total, torch.float32), torch.cat(collective.allgather(majority, rows))

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
