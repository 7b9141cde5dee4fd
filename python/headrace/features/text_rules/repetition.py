"""Gopher's repetition rules: repeated lines, paragraphs and word n-grams, as shares of the text's characters.

Rae et al., Scaling Language Models: Methods, Analysis & Insights from Training Gopher, arXiv:2112.11446, table A1.

    dup_lines, dup_paragraphs             lines (paragraphs) that occurred before / all of them
    dup_line_chars, dup_paragraph_chars   characters in such / characters of the text
    top_n_gram, n = 2 .. 4                characters of the most frequent n-gram x its count / characters of the text
    dup_n_gram, n = 5 .. 10               characters in n-grams that occurred before / characters of the text; behind
                                          such an n-gram the search goes on n words further

As in datatrove, two n-grams of the second kind are equal when they spell the same letters, wherever their words end.
So they are compared by a rolling hash of the letters, h(a, b) = (H(b) - H(a)) B^-a mod 2^64 with H(j) = sum of
c(k) B^k over k < j, and those whose hashes repeat once more as strings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.features.text_rules.judge import Rule, limits

FAMILY = "repetition"
TOP, DUPLICATED = (2, 3, 4), (5, 6, 7, 8, 9, 10)
_PARAGRAPHS, _LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)

UInt64s = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]


@dataclass(kw_only=True, frozen=True)
class Thresholds:
    """Gopher's repetition rules, maxima of shares; null switches a rule off.

    Args:
        max_dup_paragraphs: repetition_dup_paragraphs.
        max_dup_paragraph_chars: repetition_dup_paragraph_chars.
        max_dup_lines: repetition_dup_lines.
        max_dup_line_chars: repetition_dup_line_chars.
        max_top_2_gram: repetition_top_2_gram.
        max_top_3_gram: repetition_top_3_gram.
        max_top_4_gram: repetition_top_4_gram.
        max_dup_5_gram: repetition_dup_5_gram.
        max_dup_6_gram: repetition_dup_6_gram.
        max_dup_7_gram: repetition_dup_7_gram.
        max_dup_8_gram: repetition_dup_8_gram.
        max_dup_9_gram: repetition_dup_9_gram.
        max_dup_10_gram: repetition_dup_10_gram.
    """

    max_dup_paragraphs: float | None = 0.3
    max_dup_paragraph_chars: float | None = 0.2
    max_dup_lines: float | None = 0.3
    max_dup_line_chars: float | None = 0.2
    max_top_2_gram: float | None = 0.2
    max_top_3_gram: float | None = 0.18
    max_top_4_gram: float | None = 0.16
    max_dup_5_gram: float | None = 0.15
    max_dup_6_gram: float | None = 0.14
    max_dup_7_gram: float | None = 0.13
    max_dup_8_gram: float | None = 0.12
    max_dup_9_gram: float | None = 0.11
    max_dup_10_gram: float | None = 0.10


def rules(t: Thresholds) -> list[Rule]:
    """In the order in which they are asked."""
    names = ["dup_paragraphs", "dup_paragraph_chars", "dup_lines", "dup_line_chars"]
    names += [f"top_{n}_gram" for n in TOP] + [f"dup_{n}_gram" for n in DUPLICATED]
    return limits(FAMILY, ((name, name, ">", getattr(t, f"max_{name}")) for name in names))


def measure(text: str, words: Sequence[str]) -> dict[str, float | None]:
    """The values of one text, by name without prefix.

    Args:
        text: as extracted.
        words: of the text; none is empty or holds white space.
    """
    chars = len(text)
    if not chars:
        return dict.fromkeys(_names())
    paragraphs, paragraph_chars, num_paragraphs = _repeated(_PARAGRAPHS.split(text.strip()))
    lines, line_chars, num_lines = _repeated(_LINES.split(text))
    values: dict[str, float | None] = {
        "dup_paragraphs": paragraphs / num_paragraphs,
        "dup_paragraph_chars": paragraph_chars / chars,
        "dup_lines": lines / num_lines,
        "dup_line_chars": line_chars / chars,
    }
    ends = np.zeros(len(words) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, words), np.int64, len(words)), out=ends[1:])
    tops = _top_grams(words, ends)
    values |= {f"top_{n}_gram": None if top is None else top / chars for n, top in tops.items()}
    duplicated = _duplicated(words, ends)
    return values | {f"dup_{n}_gram": count / chars for n, count in duplicated.items()}


def _names() -> list[str]:
    return [rule.name.removeprefix(f"{FAMILY}_") for rule in rules(Thresholds())]


def _repeated(pieces: list[str]) -> tuple[int, int, int]:
    """How many pieces occurred before, their characters, and the number of pieces."""
    different = set(pieces)
    if len(different) == len(pieces):
        return 0, 0, len(pieces)
    chars = sum(map(len, pieces)) - sum(map(len, different))
    return len(pieces) - len(different), chars, len(pieces)


def _top_grams(words: Sequence[str], ends: Ints) -> dict[int, int | None]:
    """Characters, with blanks between words, of the most frequent n-gram (the first of equals) times its count."""
    ids = {word: number for number, word in enumerate(dict.fromkeys(words))}
    word = np.fromiter(map(ids.__getitem__, words), np.int64, len(words))
    gram, tops = word, dict[int, int | None]()
    for n in TOP:
        if len(words) < n:
            tops[n] = None
            continue
        _, first, gram, counts = np.unique(
            gram[: len(words) - n + 1] * len(ids) + word[n - 1 :],
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        start = int(first[counts == counts.max()].min())
        tops[n] = int(ends[start + n] - ends[start] + n - 1) * int(counts.max())
    return tops


def _duplicated(words: Sequence[str], ends: Ints) -> dict[int, int]:
    """Characters in n-grams that occurred before, for every n."""
    letters = "".join(words)
    points = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    powers, inverses = _powers(len(points) + 1)
    sums = np.zeros(len(points) + 1, np.uint64)
    np.cumsum((points + np.uint64(1)) * powers[:-1], out=sums[1:])
    at, unshift = sums[ends], inverses[ends]
    return {n: _skipping(letters, ends, n, (at[n:] - at[:-n]) * unshift[:-n]) for n in DUPLICATED}


def _skipping(letters: str, ends: Ints, n: int, hashes: UInt64s) -> int:
    """Go over the n-grams whose hash repeats, from left to right, behind each that occurred before by n words."""
    order = np.argsort(hashes)
    ordered = hashes[order]
    equal = ordered[1:] == ordered[:-1]
    if not equal.any():
        return 0
    repeated = np.zeros(len(hashes), bool)
    repeated[order[1:][equal]] = repeated[order[:-1][equal]] = True
    seen: set[str] = set()
    chars = following = 0
    starts = np.flatnonzero(repeated)
    for start, begin, end in zip(starts.tolist(), ends[starts].tolist(), ends[starts + n].tolist(), strict=True):
        if start < following:
            continue
        gram = letters[begin:end]
        if gram in seen:
            chars += len(gram)
            following = start + n
        else:
            seen.add(gram)
    return chars


_kept_powers: list[tuple[UInt64s, UInt64s]] = []


def _powers(size: int) -> tuple[UInt64s, UInt64s]:
    """B^k and B^-k mod 2^64 for k < size; kept, doubled when a longer text comes."""
    if not _kept_powers or len(_kept_powers[0][0]) < size:
        length = 1 << max(16, (size - 1).bit_length())
        made = []
        for base in (_BASE, _INVERSE):
            steps = np.full(length, np.uint64(base))
            steps[0] = 1
            made.append(np.cumprod(steps))
        _kept_powers[:] = [(made[0], made[1])]
    powers, inverses = _kept_powers[0]
    return powers[:size], inverses[:size]
