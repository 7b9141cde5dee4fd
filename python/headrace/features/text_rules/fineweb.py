"""FineWeb's rules: lines without punctuation, short lines, repeated lines, lists.

Penedo et al., The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale, arXiv:2406.17557, section 3.6.

    lines              lines that are not blank
    line_punctuation   those that end in terminal punctuation of any script / lines
    short_lines        those with at most short_line characters / lines
    dup_line_chars     characters in lines that occurred before / characters without line ends
    newlines           line ends / words
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.features.text_rules.codepoints import TERMINAL_PUNCTUATION
from headrace.features.text_rules.judge import Rule, limits

FAMILY = "fineweb"


@dataclass(kw_only=True, frozen=True)
class Settings:
    """What enters the values of FineWeb's rules.

    Args:
        short_line: a line with so many characters is short.
    """

    short_line: int = 30


@dataclass(kw_only=True, frozen=True)
class Thresholds:
    """FineWeb's rules; null switches a rule off.

    Args:
        min_line_punctuation: fineweb_line_punctuation.
        spare_no_punctuation: texts of which no line at all ends in punctuation stay.
        max_short_lines: fineweb_short_lines.
        max_dup_line_chars: fineweb_dup_line_chars.
        max_newlines: fineweb_newlines.
    """

    min_line_punctuation: float | None = 0.12
    spare_no_punctuation: bool = False
    max_short_lines: float | None = 0.67
    max_dup_line_chars: float | None = 0.01
    max_newlines: float | None = 0.3


def rules(t: Thresholds) -> list[Rule]:
    """In the order in which they are asked."""
    found = limits(FAMILY, (("blank", "lines", "<", 1),))
    if t.min_line_punctuation is not None:
        above = 0.0 if t.spare_no_punctuation else None
        column = "rule_fineweb_line_punctuation"
        found.append(Rule("fineweb_line_punctuation", column, "<", t.min_line_punctuation, above))
    return found + limits(
        FAMILY,
        (
            ("short_lines", "short_lines", ">", t.max_short_lines),
            ("dup_line_chars", "dup_line_chars", ">", t.max_dup_line_chars),
            ("newlines", "newlines", ">", t.max_newlines),
        ),
    )


def measure(text: str, words: Sequence[str], settings: Settings) -> dict[str, float | int | None]:
    """The values of one text, by name without prefix; null where there is nothing to divide by."""
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if not lines:
        return {"lines": 0} | dict.fromkeys(("line_punctuation", "short_lines", "dup_line_chars", "newlines"))
    newlines = text.count("\n")
    repeated = sum(map(len, lines)) - sum(map(len, set(lines)))
    return {
        "lines": len(lines),
        "line_punctuation": sum(line[-1] in TERMINAL_PUNCTUATION for line in lines) / len(lines),
        "short_lines": sum(len(line) <= settings.short_line for line in lines) / len(lines),
        "dup_line_chars": repeated / (len(text) - newlines),
        "newlines": newlines / len(words) if words else None,
    }
