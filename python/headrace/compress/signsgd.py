"""The sign of every number, and one scale a tensor.

    signsgd            C(x) = mean|x| sign(x)
    signsgd_unscaled   C(x) = sign(x)

with sign(0) = +1. Reference of the second: J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, "signSGD:
compressed optimisation for non-convex problems", ICML 2018; of the first, with error feedback: S. P. Karimireddy,
Q. Rebjock, S. Stich, M. Jaggi, "Error feedback fixes SignSGD and other gradient compression schemes", ICML 2019.
headrace.strategies.majority has the vote of the ranks.

A scale is sent by both: it is NaN where a number is not finite, and 0 for a tensor of zeros, which would have no code
otherwise; else the second's is 1.

Contraction of the first. With a = mean|x| = |x|_1 / n: |C(x) - x|^2 = n a^2 - 2 a |x|_1 + |x|^2 = |x|^2 - |x|_1^2 / n,
whatever sign is sent for 0, and |x|_1 >= |x|_2: delta >= 1 / n, reached where a single number is not 0; 2 / pi for
normal numbers. The second is none: its error does not shrink with x.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from headrace.comm.sums import saturated
from headrace.compress.base import Codec, State, joined, taken
from headrace.compress.signs import chosen, negative_bits, piece_for, pieces_with_sums
from headrace.compress.spec import CONTRACTION, NO_SIZES, Bound, CodecSpec


class SignSGD(Codec):
    """C(x) of the module's docstring. On the wire: the scale float32, then the signs.

    Args:
        scaled: by mean|x|.
    """

    def __init__(self, scaled: bool) -> None:
        self.scaled = scaled

    def encode(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Codec.encode`."""
        sums, signs = [], []
        for piece, total in pieces_with_sums(x):
            sums.append(total)
            signs.append(negative_bits(piece))
        scale = torch.stack(sums).double().sum() / x.numel()
        if not bool(scale.isfinite()):  # a sum beyond float32, or a number that is not finite
            scale = torch.stack([(piece.double() / x.numel()).abs().sum() for piece in x.split(piece_for(x))]).sum()
        return joined([self._sent(scale).view(1), *signs]), state

    def decode(self, data: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        """See `Codec.decode`."""
        scale = saturated(taken(data, 0, 1, torch.float32), dtype)[0]
        return chosen(data[4:], scale, -scale, n)

    def nbytes(self, n: int, dtype: torch.dtype) -> int:
        """See `Codec.nbytes`."""
        return 4 + -(-n // 8)

    def _sent(self, mean: Tensor) -> Tensor:
        """The scale: a mean that is not finite is NaN."""
        if not self.scaled:
            mean = (mean > 0) + (mean - mean)
        return saturated(mean, torch.float32)


def _spec(scaled: bool, rule: str, use: str, delta: Bound | None = None) -> CodecSpec:
    return CodecSpec(
        factory=partial(SignSGD, scaled),
        paper="Karimireddy et al. 2019" if scaled else "Bernstein et al. 2018",
        rule=rule,
        use=use,
        bits="1, and 32 a tensor",
        traits=frozenset({CONTRACTION if scaled else NO_SIZES}),
        delta=delta,
    )


SCALED = _spec(
    True,
    "mean|x| sign(x)",
    "The fewest bits that all numbers can have; with error feedback (short runs: try both), or as a vote of ranks.",
    lambda n, options: 1 / n,
)
UNSCALED = _spec(
    False, "sign(x)", "The votes of signSGD, whose steps have the learning rate's size; no error feedback."
)
