"""How late a codec sends, measured in a run: what of the energy goes at once, and what its memory holds.

    of turns x (a gradient), w (what the codec is given of it), C(w):
    at_once = 1 - sum |w - C(w)|^2 / sum |w|^2        held = sqrt(sum |w - x|^2 / sum |x|^2)

Where feedback adds what was left out, `held` is the memory's length in gradients: about so many steps late is what is
sent, as far as gradients point one way. `at_once` is the delta of a contraction as it is in the run; theory's is that
of the worst tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from headrace.compress.base import State
from headrace.compress.feedback import Feedback, Sent

EVERY = 10  # steps: measuring takes time that would count as the codec's


@dataclass
class Energy:
    """Sums of squares over turns that were looked at; `looks` says whether this one is."""

    looks: bool = False
    gradient: float = 0.0
    whole: float = 0.0
    held: float = 0.0
    left: float = 0.0

    @property
    def told(self) -> dict[str, float]:
        """For a line; nothing where nothing was seen."""
        if not self.whole or not self.gradient:
            return {}
        return {"at_once": 1.0 - self.left / self.whole, "held": (self.held / self.gradient) ** 0.5}


@dataclass(frozen=True)
class Measured(Feedback):
    """A feedback that adds up what it sees.

    Args:
        energy: to which.
    """

    energy: Energy = field(default_factory=Energy)

    def send(self, x: Tensor, state: State) -> Sent:
        """See `Feedback.send`."""
        sent = super().send(x, state)
        if self.energy.looks:
            whole = self.whole(x, state)
            self.energy.gradient += _square(x)
            self.energy.whole += _square(whole)
            self.energy.held += _square(whole - x)
            self.energy.left += _square(whole - self.codec.decompress(sent.payload))
        return sent


def _square(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2
