"""What a codec declares about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.compress.base import Codec

EXACT = "exact"  # decodes to the bits it was given
UNBIASED = "unbiased"  # E C(x) = x over its draws, and E |C(x) - x|^2 <= omega |x|^2
CONTRACTION = "contraction"  # E |C(x) - x|^2 <= (1 - delta) |x|^2
RANDOM = "random"  # draws numbers, by (key, turn) of its state alone
SHARED_DRAWS = "shared_draws"  # all ranks must draw alike: their keys are equal
SUMMABLE = "summable"  # payloads of all ranks may be added up as numbers of `number` type and decoded once
VARIABLE = "variable"  # the number of bytes depends on the values
OWN_FEEDBACK = "own_feedback"  # keeps what it did not send by itself: no error feedback around it
OWN_MOMENTUM = "own_momentum"  # applies momentum itself: the optimizer must have none
NO_SIZES = "no_sizes"  # what is decoded has a size of its own, whatever the tensor's: C(a x) = C(x) for a > 0
TRAITS = (
    EXACT, UNBIASED, CONTRACTION, RANDOM, SHARED_DRAWS, SUMMABLE, VARIABLE, OWN_FEEDBACK, OWN_MOMENTUM, NO_SIZES,
)  # fmt: skip

Bound = Callable[[int, Mapping[str, Any]], float]


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """One entry of COMPRESSORS. The documentation's table is made of these.

    Args:
        factory: `factory(**options)` makes the codec.
        paper: the reference.
        rule: what is sent, in one line.
        use: when to choose it, in one sentence.
        bits: bits a number, in words ("4, and 32 a bucket of 512").
        traits: of TRAITS; tests and checks go by them, never by names.
        defaults: options and their values where none are given.
        omega: of trait unbiased: `omega(n, options)` for n numbers.
        delta: of trait contraction: `delta(n, options)`.
    """

    factory: Callable[..., Codec]
    paper: str
    rule: str
    use: str
    bits: str
    traits: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    omega: Bound | None = None
    delta: Bound | None = None

    def __post_init__(self) -> None:
        unknown = sorted(self.traits - set(TRAITS))
        if unknown or (self.omega is None) == (UNBIASED in self.traits):
            raise ValueError(f"traits must be of {TRAITS}, omega given with {UNBIASED}; got {sorted(self.traits)}")
        if (self.delta is None) == (CONTRACTION in self.traits):
            raise ValueError(f"delta is given with trait {CONTRACTION}, and only with it")
