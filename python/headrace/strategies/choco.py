"""CHOCO: gossip of compressed changes, which all neighbours add up to a copy of what they are changes of.

    q_r = C(x_r - h_r) to all neighbours;   h_j <- h_j + q_j for r and its neighbours
    x_r <- x_r + gamma sum over neighbours j of W_rj (h_j - h_r)

h_j is what all who hear rank j know of x_j; what C left out is in the next difference, so nothing is lost. Reference:
A. Koloskova, S. U. Stich, M. Jaggi, "Decentralized stochastic optimization and gossip algorithms with compressed
communication", ICML 2019, algorithms 1, 2 and, for memory, 6: instead of copies of all neighbours a rank keeps
s_r = sum over j of W_rj h_j, which takes W that stays as it is; their proof takes W symmetric. Differences: h begins
at the parameters that all ranks begin with, not at 0. An unbiased C is divided by 1 + omega, which makes it a
contraction. Sums are float64: in float32 the rounding of s would add up and draw the mean away. So memory is 16 bytes a
number, whatever the graph.

gamma. Theory (theorem 2 there) has gap^2 delta / (16 gap + gap^2 + 4 b^2 + 2 gap b^2 - 8 gap delta) with b = |I - W|_2
and C's delta of the worst tensor there is, see `gamma_of_theory`: safe, and for top-k 30 to 1,000 times too small. But
parameters must not go far while a difference waits to be sent, so gamma is one through the turns that C takes to send
nearly all of a tensor: measured on normal numbers, see `measured_gamma`. In simulations that was near the best where
all hear all, and within a factor of 3 of it on a ring. With C(x) = x it is 1, and the rule is plain gossip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.compress import CodecSpec, Payload
from headrace.compress.base import Codec
from headrace.compress.spec import (
    CONTRACTION,
    EXACT,
    OWN_FEEDBACK,
    OWN_MOMENTUM,
    SHARED_DRAWS,
    SUMMABLE,
    UNBIASED,
    VARIABLE,
)
from headrace.strategies.compressed import CompressedReducer, key_of
from headrace.strategies.envelope import opened, sealed
from headrace.strategies.memory import Memory
from headrace.strategies.mixing import Matrix, spectral_gap
from headrace.strategies.neighbours import exchange
from headrace.strategies.reducers import buckets

_PROBE, _TURNS = 4096, 4000


def why_not(spec: CodecSpec) -> str:
    """Why a codec does not serve; empty where it does."""
    if spec.traits & {OWN_FEEDBACK, OWN_MOMENTUM}:
        return "it remembers what it did not send, and so do differences"
    if not spec.traits & {EXACT, CONTRACTION, UNBIASED, SUMMABLE}:  # summable: casts, or one of the others as well
        return "what it sends need not come nearer to a tensor, however often it is sent again"
    return ""


class Choco(Memory):
    """One rank's part; see the module's docstring.

    Args:
        reducer: has the codec, its options, and what is too small for it.
        gamma: 0: measured.
    """

    def __init__(self, reducer: CompressedReducer, gamma: float) -> None:
        super().__init__()
        self.spec, self.codec, self.cfg = reducer.spec, reducer.feedback.codec, reducer.cfg
        self.fits, self._gamma, self._agreed = reducer.fits, gamma, False

    def begin(self, params: Mapping[str, Tensor], rank: int) -> None:
        """Parameters are those that all ranks begin with."""
        for name, param in params.items():
            if self.kept(name) is None:
                key = key_of(self.cfg.seed, name, 0 if SHARED_DRAWS in self.spec.traits else 1 + rank)
                start = param.double().reshape(-1)
                codec = self.codec.init(start.float(), key)
                self._kept[name] = {"codec": codec, "known": start, "mixed": start.clone()}

    def mix(self, params: dict[str, Tensor], heard: Mapping[int, float], collective: Collective) -> None:
        """One turn, in place, of parameters that fit; `heard` are the weights W_rj of the same ranks in every turn."""
        gamma = self._gamma_of_all(collective)
        for bucket in buckets(params, self.cfg.bucket_bytes):
            for param, moved in zip(bucket.values(), self._turn(bucket, heard, collective), strict=True):
                param.copy_((param.double() + gamma * moved.view_as(param)).to(param.dtype))
        self.settle(True)

    def _turn(self, bucket: dict[str, Tensor], heard: Mapping[int, float], collective: Collective) -> Iterator[Tensor]:
        """sum over j of W_rj (h_j - h_r), float64 [n], of every parameter of a bucket."""
        payloads = {name: self._sent(name, param) for name, param in bucket.items()}
        with self.timed("exchange"):
            varies = VARIABLE in self.spec.traits
            message = sealed([p.data for p in payloads.values()], sizes=varies)
            own = [p.nbytes for p in payloads.values()]
            rows = None if varies else dict.fromkeys(heard, message.numel())
            raw = exchange(collective, dict.fromkeys(heard, message), rows, message)
            arrived = {j: opened(each, len(own), None if varies else own) for j, each in raw.items()}
        for at, (name, payload) in enumerate(payloads.items()):
            with self.timed("decode"):
                state = self._next[name]
                alone = 1.0 - sum(heard.values())
                state["mixed"] = state["mixed"] + alone * self._decoded(name, payload, payload.data)
                for j in sorted(heard):
                    state["mixed"] += heard[j] * self._decoded(name, payload, arrived[j][at])
            yield state["mixed"] - state["known"]

    def _sent(self, name: str, param: Tensor) -> Payload:
        with self.timed("encode"):
            state = self.kept(name)
            assert state is not None
            wide = torch.promote_types(param.dtype, torch.float32)
            difference = (param.reshape(-1).double() - state["known"]).to(wide)
            payload, codec = self.codec.compress(difference, state["codec"])
            known = state["known"] + self._decoded(name, payload, payload.data)
            self.remember(name, state | {"codec": codec, "known": known})
        self.numbers["in"] += param.nbytes
        self.numbers["out"] += payload.nbytes
        return payload

    def _decoded(self, name: str, like: Payload, data: Tensor) -> Tensor:
        """q, float64, of bytes that stand for a tensor like another's; draws are the same where they are shared."""
        whole = self.codec.decompress(Payload(data, like.shape, like.dtype, like.draw)).double()
        return whole * shrink(self.spec, self.cfg.options, whole.numel())

    def _gamma_of_all(self, collective: Collective) -> float:
        """Rank 0's: equal on all ranks to the last bit, or the mean would not stay."""
        if not self._agreed:
            own = self._gamma
            if not own and collective.rank == 0:
                own = measured_gamma(self.spec, self.codec, self.cfg.options)
            self._gamma, self._agreed = float(collective.allgather_object(own)[0]), True
        return self._gamma


def shrink(spec: CodecSpec, options: Mapping[str, object], n: int) -> float:
    """What n decoded numbers are multiplied by: 1 / (1 + omega) makes a contraction with delta 1 / (1 + omega)."""
    return 1.0 if spec.omega is None else 1.0 / (1.0 + spec.omega(n, options))


def measured_gamma(spec: CodecSpec, codec: Codec, options: Mapping[str, object]) -> float:
    """1 / turns in which normal numbers, when what is left of them is sent again and again, come down to 1 / e^2.

    Top-k of 1 % takes 68 turns, random-k of 10 % 38, QSGD of 7 levels 10, scaled signs 7, codecs of 8 bits one.
    """
    left = torch.randn(_PROBE, generator=torch.Generator().manual_seed(0))
    state, end = codec.init(left, 0), float(left.norm()) / math.e**2
    for turn in range(_TURNS):
        payload, state = codec.compress(left, state)
        left = left - shrink(spec, options, _PROBE) * codec.decompress(payload)
        if float(left.norm()) <= end:
            return 1.0 / (turn + 1)
    return 1.0 / _TURNS


def gamma_of_theory(weights: Matrix, delta: float) -> float:
    """See the module's docstring; consensus errors then shrink by 1 - gap^2 delta / 82 a turn, in the mean."""
    gap, b = spectral_gap(weights), float(np.linalg.norm(np.eye(len(weights)) - weights, 2))
    return gap**2 * delta / (16 * gap + gap**2 + 4 * b**2 + 2 * gap * b**2 - 8 * gap * delta)
