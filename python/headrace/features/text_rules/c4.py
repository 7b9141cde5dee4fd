"""C4's rules: drop lines that are no sentences or boilerplate, then judge what is left.

Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, JMLR 21 (2020),
section 2.2, and the authors' code, which adds the length of words and the phrases of notices.

A line is dropped for the first of: a word over max_word_length characters; no terminal punctuation (. ? ! " ') or an
ellipsis; under min_words words; the word javascript; a phrase of a cookie or privacy notice. A document is removed for
`lorem ipsum` or a curly bracket in a line that was not dropped before, or for too few sentences in the lines that stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from headrace.features.text_rules.judge import Rule, limits
from headrace.features.text_rules.words import Words

FAMILY = "c4"
_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_ENDS = (".", "?", "!", '"', "'")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_DROPS = ("long_word", "no_punctuation", "few_words", "javascript", "policy")


@dataclass(kw_only=True, frozen=True)
class Settings:
    """What enters the values of C4's rules.

    Args:
        citations: take [1], [edit] and [citation needed] out of a line first.
        terminal_punctuation: drop lines without; FineWeb does not.
        min_words: drop lines with fewer words, by white space; null switches it off.
        max_word_length: drop lines with a longer word; null switches it off.
        javascript: drop lines with that word.
        policy: drop lines with a phrase of a cookie or privacy notice.
    """

    citations: bool = True
    terminal_punctuation: bool = True
    min_words: int | None = 3
    max_word_length: int | None = 1000
    javascript: bool = True
    policy: bool = True


@dataclass(kw_only=True, frozen=True)
class Thresholds:
    """C4's rules for documents; null switches a rule off.

    Args:
        lorem_ipsum: remove documents with it (c4_lorem_ipsum).
        curly_bracket: remove documents with one (c4_curly_bracket).
        min_sentences: c4_few_sentences.
        max_bad_words: of the list that was given (c4_bad_words).
    """

    lorem_ipsum: bool = True
    curly_bracket: bool = True
    min_sentences: int | None = 5
    max_bad_words: int | None = 0


def rules(t: Thresholds) -> list[Rule]:
    """In the order in which they are asked: of the first two, the one whose line comes first."""
    found = []
    if t.lorem_ipsum:
        limit: float | str = "rule_c4_curly_bracket" if t.curly_bracket else 2**31
        found.append(Rule("c4_lorem_ipsum", "rule_c4_lorem_ipsum", "<=", limit))
    if t.curly_bracket:
        found.append(Rule("c4_curly_bracket", "rule_c4_curly_bracket", "<=", 2**31))
    last = (("few_sentences", "sentences", "<", t.min_sentences), ("bad_words", "bad_words", ">", t.max_bad_words))
    return found + limits(FAMILY, last)


def measure(text: str, words: Words, settings: Settings, bad_words: re.Pattern[str] | None) -> dict[str, int | None]:
    """The values of one text, by name without prefix.

    Args:
        text: as extracted.
        words: the tokenizer, for its sentences.
        settings: what enters the values.
        bad_words: see `word_pattern`.
    """
    dropped = dict.fromkeys(_DROPS, 0)
    values: dict[str, int | None] = {"lorem_ipsum": None, "curly_bracket": None}
    number = sentences = 0
    for number, (line, fate, lowered) in enumerate(_fates(text, settings), 1):
        if fate not in ("long_word", "no_punctuation", "few_words"):
            if values["lorem_ipsum"] is None and "lorem ipsum" in lowered:
                values["lorem_ipsum"] = number
            if values["curly_bracket"] is None and fate != "javascript" and "{" in line:
                values["curly_bracket"] = number
        if fate:
            dropped[fate] += 1
        else:
            sentences += words.sentences(line)
    values |= {"lines": number, "sentences": sentences}
    values["bad_words"] = None if bad_words is None else sum(1 for _ in bad_words.finditer(text.lower()))
    return values | {f"lines_{fate}": count for fate, count in dropped.items()}


def kept_lines(text: str, settings: Settings) -> str:
    """The text without the lines that are dropped, each stripped."""
    return "\n".join(line for line, fate, _ in _fates(text, settings) if not fate).strip()


def word_pattern(words: Iterable[str], whole: bool = True) -> re.Pattern[str] | None:
    """A pattern that finds any of the words in a lower-case text.

    Args:
        words: as they stand in a list.
        whole: only where no letter or digit stands beside; for scripts without blanks, not.
    """
    listed = sorted({word.strip().lower() for word in words} - {""}, key=lambda word: (-len(word), word))
    if not listed:
        return None
    either = "|".join(map(re.escape, listed))
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)" if whole else either)


def _fates(text: str, s: Settings) -> Iterator[tuple[str, str, str]]:
    """For each line: the line without citations, why it is dropped (empty if it stays), and its lower case."""
    for raw in text.splitlines():
        line = raw.strip()
        pieces = line.split()
        if s.max_word_length is not None and _longest(line, pieces, s.max_word_length) > s.max_word_length:
            yield line, "long_word", ""
            continue
        if s.citations and "[" in line:
            line = _CITATION.sub("", line)
        if s.terminal_punctuation and (not line.endswith(_ENDS) or line.endswith("...")):
            yield line, "no_punctuation", ""
        elif s.min_words is not None and len(pieces) < s.min_words:
            yield line, "few_words", ""
        else:
            yield line, _notice(lowered := line.lower(), s), lowered


def _longest(line: str, pieces: list[str], limit: int) -> int:
    """Length of the longest word; 0 where the line itself is not over the limit."""
    return max(map(len, pieces), default=0) if len(line) > limit else 0


def _notice(lowered: str, s: Settings) -> str:
    if s.javascript and "javascript" in lowered:
        return "javascript"
    return "policy" if s.policy and _has_phrase()(lowered) else ""


@lru_cache
def _has_phrase() -> Callable[[str], object]:
    return re.compile("|".join(_POLICY)).search
