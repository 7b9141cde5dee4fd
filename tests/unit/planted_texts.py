"""Texts with planted likeness: pairs whose shingle sets have exactly a given Jaccard, by construction."""

from __future__ import annotations

from fractions import Fraction

NGRAM = 5


def words_of(name: str, count: int) -> list[str]:
    """Words that no other name has."""
    return [f"{name}x{number}" for number in range(count)]


def pair(name: str, jaccard: Fraction, scale: int = 40) -> tuple[str, str]:
    """Two texts of equally many shingles, the first `shared` of them in common: J = shared / (2 size - shared).

    Words are all different, so that every run of 5 is a shingle of its own.
    """
    shared = 2 * jaccard.numerator * scale
    size = (jaccard.numerator + jaccard.denominator) * scale
    common = words_of(f"{name}c", shared + NGRAM - 1)
    return tuple(" ".join(common + words_of(f"{name}{end}", size - shared)) for end in "ab")  # type: ignore[return-value]


def alone(name: str, size: int = 80) -> str:
    """A text like no other."""
    return " ".join(words_of(f"{name}only", size))


def chain(name: str, length: int, step: int = 4, size: int = 100) -> list[str]:
    """Texts each like the next (J = (size - step) / (size + step)), the ends not alike: a window moved over words."""
    flow = words_of(f"{name}w", size + NGRAM - 1 + step * (length - 1))
    return [" ".join(flow[step * k : step * k + size + NGRAM - 1]) for k in range(length)]
