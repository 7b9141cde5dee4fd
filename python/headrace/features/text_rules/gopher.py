"""Gopher's quality rules: number and length of words, symbols, bullets, ellipses, letters, stop words.

Rae et al., Scaling Language Models: Methods, Analysis & Insights from Training Gopher, arXiv:2112.11446, appendix A.

    num_words         words with a character that is no punctuation
    mean_word_length  sum of their lengths / num_words
    hash_ratio        "#" in the text / all words          ellipsis_ratio   ("..." + "…") / all words
    bullet_lines      lines that begin with • or - / lines  ellipsis_lines   lines that end with "..." or "…" / lines
    alpha_words       words with a letter / all words       stop_words       different stop words among the words

The paper does not say what a word is; here as in datatrove, see words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from headrace.features.text_rules.codepoints import PUNCTUATION
from headrace.features.text_rules.judge import Rule, limits

FAMILY = "gopher"
_BULLETS, _ELLIPSES = ("\u2022", "-"), ("...", "\u2026")


@dataclass(kw_only=True, frozen=True)
class Settings:
    """What enters the values of Gopher's quality rules.

    Args:
        stop_words: words of which a text must hold some, separated by blanks.
    """

    stop_words: str = "the be to of and that have with"


@dataclass(kw_only=True, frozen=True)
class Thresholds:
    """Gopher's quality rules; null switches a rule off.

    Args:
        min_words: remove shorter documents (gopher_short_doc).
        max_words: remove longer documents (gopher_long_doc).
        min_mean_word_length: gopher_short_words.
        max_mean_word_length: gopher_long_words.
        max_hash_ratio: gopher_hashes.
        max_ellipsis_ratio: gopher_ellipses.
        max_bullet_lines: gopher_bullet_lines.
        max_ellipsis_lines: gopher_ellipsis_lines.
        min_alpha_words: gopher_few_letters.
        min_stop_words: gopher_few_stop_words.
    """

    min_words: int | None = 50
    max_words: int | None = 100_000
    min_mean_word_length: float | None = 3.0
    max_mean_word_length: float | None = 10.0
    max_hash_ratio: float | None = 0.1
    max_ellipsis_ratio: float | None = 0.1
    max_bullet_lines: float | None = 0.9
    max_ellipsis_lines: float | None = 0.3
    min_alpha_words: float | None = 0.8
    min_stop_words: int | None = 2


def rules(t: Thresholds) -> list[Rule]:
    """In the order in which they are asked."""
    return limits(
        FAMILY,
        (
            ("short_doc", "num_words", "<", t.min_words),
            ("long_doc", "num_words", ">", t.max_words),
            ("short_words", "mean_word_length", "<", t.min_mean_word_length),
            ("long_words", "mean_word_length", ">", t.max_mean_word_length),
            ("hashes", "hash_ratio", ">", t.max_hash_ratio),
            ("ellipses", "ellipsis_ratio", ">", t.max_ellipsis_ratio),
            ("bullet_lines", "bullet_lines", ">", t.max_bullet_lines),
            ("ellipsis_lines", "ellipsis_lines", ">", t.max_ellipsis_lines),
            ("few_letters", "alpha_words", "<", t.min_alpha_words),
            ("few_stop_words", "stop_words", "<", t.min_stop_words),
        ),
    )


def measure(text: str, words: Sequence[str], settings: Settings) -> dict[str, float | int | None]:
    """The values of one text.

    Args:
        text: as extracted.
        words: of the text, punctuation among them.
        settings: what enters the values.

    Returns:
        By name, without prefix; null where there is nothing to divide by.
    """
    counts = Counter(words)
    num_words = length = alpha = 0
    for word, count in counts.items():
        is_word, has_letter = _kind(word)
        if is_word:
            num_words += count
            length += count * len(word)
        if has_letter:
            alpha += count
    lines = text.splitlines()
    dotted = text.count("...") + text.count("\u2026")
    return {
        "num_words": num_words,
        "mean_word_length": _over(length, num_words),
        "hash_ratio": _over(text.count("#"), len(words)),
        "ellipsis_ratio": _over(dotted, len(words)),
        "bullet_lines": _over(sum(line.lstrip().startswith(_BULLETS) for line in lines), len(lines)),
        "ellipsis_lines": _over(sum(line.rstrip().endswith(_ELLIPSES) for line in lines), len(lines)),
        "alpha_words": _over(alpha, len(words)),
        "stop_words": sum(word in counts for word in set(settings.stop_words.split())),
    }


@lru_cache(1 << 16)
def _kind(word: str) -> tuple[bool, bool]:
    """Whether it has a character that is no punctuation, and whether it has a letter."""
    return not PUNCTUATION.issuperset(word), any(map(str.isalpha, word))


def _over(part: int, whole: int) -> float | None:
    return part / whole if whole else None
