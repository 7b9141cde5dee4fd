"""The published quality rules of Gopher, C4 and FineWeb: a value a rule, thresholds apart from the values.

    values = Measures(settings).of(text)           # {"rule_gopher_num_words": 412, ...}: columns of silver/documents
    judge.first(rules(thresholds), values)         # "gopher_short_doc", or None: the document stays

Values are kept, so other thresholds need no other measuring; only a change of Settings does, from the stored text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from headrace.errors import UserError
from headrace.features.text_rules import c4, fineweb, gopher, judge, repetition
from headrace.features.text_rules.words import Words

__all__ = ["FAMILIES", "Measures", "Settings", "Thresholds", "judge", "rules"]

FAMILIES = ("repetition", "gopher", "c4", "fineweb")
_MAX_BAD_WORDS_BYTES = 4 << 20


@dataclass(kw_only=True, frozen=True)
class Settings:
    """What enters the values: changing it measures the stored texts again.

    Args:
        gopher: of Gopher's quality rules.
        c4: of C4's rules.
        fineweb: of FineWeb's rules.
    """

    gopher: gopher.Settings = field(default_factory=gopher.Settings)
    c4: c4.Settings = field(default_factory=c4.Settings)
    fineweb: fineweb.Settings = field(default_factory=fineweb.Settings)


@dataclass(kw_only=True, frozen=True)
class Thresholds:
    """What a value is compared with: changing it judges the stored values again.

    Args:
        repetition: Gopher's repetition rules.
        gopher: Gopher's quality rules.
        c4: C4's rules.
        fineweb: FineWeb's rules.
    """

    repetition: repetition.Thresholds = field(default_factory=repetition.Thresholds)
    gopher: gopher.Thresholds = field(default_factory=gopher.Thresholds)
    c4: c4.Thresholds = field(default_factory=c4.Thresholds)
    fineweb: fineweb.Thresholds = field(default_factory=fineweb.Thresholds)


class Measures:
    """Measures texts; one a process, since it keeps what it has cut."""

    def __init__(self, settings: Settings | None = None, bad_words: re.Pattern[str] | None = None) -> None:
        self.words = Words()
        self._settings, self._bad_words = settings or Settings(), bad_words

    def of(self, text: str) -> dict[str, float | int | None]:
        """Every rule's value, by its column in silver/documents."""
        s, words = self._settings, self.words.cut(text)
        families: dict[str, dict[str, float | int | None]] = {
            "repetition": dict(repetition.measure(text, words)),
            "gopher": gopher.measure(text, words, s.gopher),
            "c4": dict(c4.measure(text, self.words, s.c4, self._bad_words)),
            "fineweb": fineweb.measure(text, words, s.fineweb),
        }
        return {f"rule_{family}_{name}": value for family, values in families.items() for name, value in values.items()}


def rules(thresholds: Thresholds, families: tuple[str, ...] = FAMILIES) -> list[judge.Rule]:
    """The rules of the families, in their order: repetition, quality, C4, FineWeb, as FineWeb applies them."""
    found = {
        "repetition": repetition.rules(thresholds.repetition),
        "gopher": gopher.rules(thresholds.gopher),
        "c4": c4.rules(thresholds.c4),
        "fineweb": fineweb.rules(thresholds.fineweb),
    }
    return [rule for family in FAMILIES if family in families for rule in found[family]]


def read_bad_words(path: str | Path) -> list[str]:
    """The words of a list, one a line.

    Raises:
        UserError: the file cannot be read as UTF-8, or is too large to be such a list.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BAD_WORDS_BYTES + 1)
        if len(content) > _MAX_BAD_WORDS_BYTES:
            raise UserError(f"{path}: over {_MAX_BAD_WORDS_BYTES >> 20} MiB", "a list of words has one a line")
        return [line.strip() for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list of words {path}: {error}", "a UTF-8 file, one word a line") from None
