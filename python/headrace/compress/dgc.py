"""Deep gradient compression: top-k that keeps momentum with what was not sent.

    g <- g min(1, clip / |g|)                                    local clipping, where clip > 0
    u <- momentum u + g;  v <- v + u                             momentum correction
    sent = v where |v| is among the k largest, else 0
    v <- v - sent;  u <- 0 where something was sent              factor masking

k = max(1, ceil(ratio n)). Warm-up: in the quarters of the first `warmup_turns` turns, the share that is not sent is
0.75, 0.9375, 0.984375 and 0.996, unless 1 - ratio is less; afterwards it is 1 - ratio. The optimizer must have no
momentum of its own. With momentum 0, what was sent and what is held add up to all gradients. What is not finite is sent
first and not kept.

Reference: Y. Lin, S. Han, H. Mao, Y. Wang, W. J. Dally, "Deep gradient compression: reducing the communication
bandwidth for distributed training", ICLR 2018. There the warm-up's stages are epochs; clipping is by the norm of the
whole gradient, here of a tensor, and a rank's limit 1 / sqrt(ranks) of that of the sum, which is for the caller to set;
and where the sampled threshold is too high fewer than k numbers are sent, here k always.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headrace.comm.sums import saturated
from headrace.compress.base import Codec, PayloadError, State, joined, taken
from headrace.compress.index_coding import coded_bytes, decode_indices, encode_indices
from headrace.compress.limits import within
from headrace.compress.selection import largest
from headrace.compress.signs import scattered
from headrace.compress.spec import OWN_FEEDBACK, OWN_MOMENTUM, VARIABLE, CodecSpec
from headrace.compress.topk import kept
from headrace.errors import UserError

WARMUP = (0.75, 0.9375, 0.984375, 0.996)


class DGC(Codec):
    """The rule of the module's docstring. On the wire: k int64, values float32 [k], places.

    Args:
        ratio: of numbers that are sent after the warm-up, in (0, 1].
        momentum: in [0, 1).
        warmup_turns: over which ratio comes down.
        clip: the largest norm of a tensor's gradient; 0: any.
    """

    def __init__(self, ratio: float, momentum: float, warmup_turns: int, clip: float) -> None:
        within("ratio", ratio, 0, 1, above=True)
        within("momentum", momentum, 0, 1)
        if momentum == 1:
            raise UserError("compression option momentum is 1", "a number of at least 0 and below 1, such as 0.9")
        within("warmup_turns", warmup_turns, 0)
        within("clip", clip, 0)
        self._ratio, self._momentum, self._warmup, self._clip = ratio, momentum, warmup_turns, clip

    def init(self, like: Tensor, key: int = 0) -> State:
        """See `Codec.init`: velocity u, what is held v, in float32 at least, and turns that are done."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        zeros = torch.zeros(like.numel(), dtype=dtype, device=like.device)
        return {"velocity": zeros, "held": zeros.clone(), "done": 0}

    def ratio(self, done: int) -> float:
        """Of numbers that are sent in the turn after `done` others."""
        if done >= self._warmup:
            return self._ratio
        return max(self._ratio, 1 - WARMUP[done * len(WARMUP) // self._warmup])

    def encode(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Codec.encode`."""
        n = x.numel()
        velocity = state["velocity"].mul(self._momentum).add_(self._clipped(x))
        held = state["held"] + velocity
        indices = largest(held, kept(n, self.ratio(state["done"])), "sampled")
        values = saturated(held.index_select(0, indices), torch.float32)
        held.index_add_(0, indices, values.to(held.dtype), alpha=-1)
        velocity.index_fill_(0, indices, 0)
        if not bool(values.isfinite().all()):  # what is not finite is among the largest
            held.nan_to_num_(0.0, 0.0, 0.0)
            velocity.nan_to_num_(0.0, 0.0, 0.0)
        count = torch.full((1,), indices.numel(), dtype=torch.int64, device=x.device)
        data = joined([count, values, encode_indices(indices, indices.numel(), n)])
        return data, {"velocity": velocity, "held": held, "done": state["done"] + 1}

    def decode(self, data: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        """See `Codec.decode`."""
        count = int(taken(data, 0, 1, torch.int64)) if data.numel() >= 8 else -1
        if not 0 <= count <= n or data.numel() != 8 + 4 * count + coded_bytes(count, n):
            raise PayloadError(f"{data.numel()} bytes are not {count} of {n} numbers")
        indices = decode_indices(data[8 + 4 * count :], count, n)
        if indices.numel() != count:
            raise PayloadError(f"{indices.numel()} places of {count} came")
        return scattered(indices, saturated(taken(data, 8, count, torch.float32), dtype), n)

    def nbytes(self, n: int, dtype: torch.dtype) -> None:
        """See `Codec.nbytes`."""

    def _clipped(self, x: Tensor) -> Tensor:
        if not self._clip:
            return x
        norm = float(torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32)))
        if not math.isfinite(norm):  # beyond float32, or something is not finite
            norm = float(torch.linalg.vector_norm(x, dtype=torch.float64))
        return x * (self._clip / norm) if norm > self._clip else x


SPEC = CodecSpec(
    factory=DGC,
    paper="Lin et al. 2018",
    rule="the k largest of the sums of velocities that were not sent",
    use="A thousandth of the bytes on slow links, in place of the optimizer's momentum.",
    bits="0.04 at ratio 0.001: 32 a number that is sent, and 12 for its place",
    traits=frozenset({OWN_FEEDBACK, OWN_MOMENTUM, VARIABLE}),
    defaults={"ratio": 0.001, "momentum": 0.9, "warmup_turns": 1000, "clip": 0.0},
)
