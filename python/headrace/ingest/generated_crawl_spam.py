"""Pages that a published quality rule must remove, one kind a rule; other rules may remove them as well.

The rules are those of Gopher (Rae et al. 2021, tables A1 and A2), C4 (Raffel et al. 2020, section 2.2) and FineWeb
(Penedo et al. 2024, section 3.6), at their published thresholds.
"""

from __future__ import annotations

from collections.abc import Callable

from headrace.ingest.generated_crawl_words import ENGLISH, Draw

_KEYWORDS = ("cheap", "shoes", "online", "discount", "tickets", "casino", "bonus", "replica", "watches", "loan", "fast")
_LOREM = "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor."


def _sentences(draw: Draw, count: int) -> list[str]:
    return [ENGLISH.sentence(draw) for _ in range(count)]


def _paragraphs(draw: Draw, count: int) -> list[str]:
    return [" ".join(_sentences(draw, 3)) for _ in range(count)]


def _too_few_words(draw: Draw) -> list[str]:
    """Gopher: at least 50 words."""
    return _sentences(draw, 2)


def _long_words(draw: Draw) -> list[str]:
    """Gopher: a mean word of 3 to 10 characters."""
    words = ["".join(ENGLISH.words(draw, 4)) for _ in range(80)]
    return [" ".join(["the", *words[at : at + 10], "and"]) + "." for at in range(0, 80, 10)]


def _hash_signs(draw: Draw) -> list[str]:
    """Gopher: at most one # (or ellipsis) to ten words."""
    return [" ".join(f"{word} #" for word in line.split()) for line in _paragraphs(draw, 6)]


def _bullets(draw: Draw) -> list[str]:
    """Gopher: at most 90 % of lines begin with a bullet."""
    return [f"• {sentence}" for sentence in _sentences(draw, 20)]


def _ellipses(draw: Draw) -> list[str]:
    """Gopher: at most 30 % of lines end with an ellipsis."""
    return [f"{sentence[:-1]}..." for sentence in _sentences(draw, 20)]


def _few_alphabetic(draw: Draw) -> list[str]:
    """Gopher: at least 80 % of words hold a letter."""
    return [
        " ".join(f"{word} {draw.below(10_000)}" for word in sentence[:-1].split()) + "."
        for sentence in _sentences(draw, 12)
    ]


def _few_stop_words(draw: Draw) -> list[str]:
    """Gopher: at least two of the, be, to, of, and, that, have, with."""
    return [" ".join(ENGLISH.words(draw, 12)).capitalize() + "." for _ in range(20)]


def _repeated_lines(draw: Draw) -> list[str]:
    """Gopher: at most 30 % of lines are repeated ones."""
    lines = _sentences(draw, 4)
    return [draw.pick(lines) for _ in range(40)]


def _repeated_words(draw: Draw) -> list[str]:
    """Gopher: the most frequent 2-gram holds at most 20 % of the characters."""
    first = draw.below(len(_KEYWORDS))
    pair = f"{_KEYWORDS[first]} {_KEYWORDS[first - 1]}"
    lines = [" ".join([pair] * (10 + draw.below(5))) for _ in range(6)]
    return [f"{line} and the {word}." for line, word in zip(lines, ENGLISH.words(draw, 6), strict=True)]


def _curly_bracket(draw: Draw) -> list[str]:
    """C4: no { in the page."""
    lines = _paragraphs(draw, 8)
    return [*lines[:4], "The lock is function open(door) { return door.key + 1; } and no more.", *lines[4:]]


def _lorem_ipsum(draw: Draw) -> list[str]:
    """C4: no lorem ipsum."""
    lines = _paragraphs(draw, 8)
    return [*lines[:4], _LOREM, *lines[4:]]


def _few_sentences(draw: Draw) -> list[str]:
    """C4: at least five sentences on lines that end in a punctuation mark."""
    long = " and ".join(sentence[:-1].lower() for sentence in _sentences(draw, 12))
    return [f"{long}.", *(" ".join(ENGLISH.words(draw, 3)) for _ in range(3))]


def _no_punctuation(draw: Draw) -> list[str]:
    """FineWeb: more than 12 % of lines end in a punctuation mark."""
    return [sentence[:-1] if at else sentence for at, sentence in enumerate(_sentences(draw, 24))]


def _short_lines(draw: Draw) -> list[str]:
    """FineWeb: at most 67 % of lines are of 30 characters or fewer."""
    words = ENGLISH.words(draw, 120)
    return [*_paragraphs(draw, 2), *(" ".join(words[at : at + 3]) + "." for at in range(0, 120, 3))]


def _many_line_breaks(draw: Draw) -> list[str]:
    """FineWeb: at most three line breaks to ten words."""
    words = ["".join(ENGLISH.words(draw, 3)) for _ in range(120)]
    return [f"{first} {second}.".capitalize() for first, second in zip(words[::2], words[1::2], strict=True)]


def _duplicated_characters(draw: Draw) -> list[str]:
    """FineWeb: at most 1 % of characters in repeated lines."""
    lines = _paragraphs(draw, 10)
    return [*lines, lines[3]]


SPAM: dict[str, Callable[[Draw], list[str]]] = {
    "gopher_too_few_words": _too_few_words,
    "gopher_long_words": _long_words,
    "gopher_hash_signs": _hash_signs,
    "gopher_bullets": _bullets,
    "gopher_ellipses": _ellipses,
    "gopher_few_alphabetic": _few_alphabetic,
    "gopher_few_stop_words": _few_stop_words,
    "gopher_repeated_lines": _repeated_lines,
    "gopher_repeated_words": _repeated_words,
    "c4_curly_bracket": _curly_bracket,
    "c4_lorem_ipsum": _lorem_ipsum,
    "c4_few_sentences": _few_sentences,
    "fineweb_no_punctuation": _no_punctuation,
    "fineweb_short_lines": _short_lines,
    "fineweb_many_line_breaks": _many_line_breaks,
    "fineweb_duplicated_characters": _duplicated_characters,
}
"""Paragraphs of a page, by the rule it breaks."""
