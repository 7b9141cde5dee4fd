"""Error feedback: what a codec left out is added to what comes next, so that nothing is lost but time.

    none   sent = C(x)
    ef     sent = C(x + e),  e <- decay (x + e - sent)
    ef21   sent = C(x - g),  g <- g + sent;  who receives adds up what is sent and so holds g, which follows x

e and g start at zero. `ef`: F. Seide, H. Fu, J. Droppo, G. Li, D. Yu, "1-bit stochastic gradient descent", Interspeech
2014; S. P. Karimireddy, Q. Rebjock, S. Stich, M. Jaggi, "Error feedback fixes SignSGD", ICML 2019. `ef21`:
P. Richtarik, I. Sokolov, I. Fatkhullin, "EF21: a new, simpler, theoretically better, and practically faster error
feedback", NeurIPS 2021; it wants a contraction, and starts from C(x) instead of x.

What is not finite is not kept: the residual of such a number starts again at zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.compress.base import Codec, Payload, State

VARIANTS = ("none", "ef", "ef21")


class Sent(NamedTuple):
    """One turn: what goes over the wire, the state behind it."""

    payload: Payload
    state: State


@dataclass(frozen=True)
class Feedback:
    """A codec with memory of what it did not send.

    Args:
        codec: what compresses.
        variant: of VARIANTS.
        decay: of the residual, in `ef`: 1 keeps all of it.
    """

    codec: Codec
    variant: str = "ef"
    decay: float = 1.0

    @property
    def accumulates(self) -> bool:
        """Whether who receives must add what is sent to what was sent before."""
        return self.variant == "ef21"

    def init(self, like: Tensor, key: int = 0) -> State:
        """The state of a tensor before its first turn; see `Codec.init`."""
        state: State = {"codec": self.codec.init(like, key)}
        if self.variant != "none":
            state["memory"] = torch.zeros_like(like, memory_format=torch.contiguous_format)
        return state

    def whole(self, x: Tensor, state: State) -> Tensor:
        """What the codec is given of x."""
        if self.variant == "none":
            return x
        memory: Tensor = state["memory"]
        return x + memory if self.variant == "ef" else x - memory

    def send(self, x: Tensor, state: State) -> Sent:
        """Compress x together with what is remembered; neither is changed."""
        if self.variant == "none":
            payload, inner = self.codec.compress(x, state["codec"])
            return Sent(payload, {"codec": inner})
        memory, whole = state["memory"], self.whole(x, state)
        payload, inner = self.codec.compress(whole, state["codec"])
        decoded = self.codec.decompress(payload)
        kept = whole.sub_(decoded).mul_(self.decay) if self.variant == "ef" else memory + decoded
        return Sent(payload, {"codec": inner, "memory": kept.nan_to_num_(0.0, 0.0, 0.0)})
