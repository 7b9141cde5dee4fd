"""A rule compares a stored value with a threshold; the first that removes a document is what `removed_by` names.

The same rules are evaluated on a row in Python and, as SQL, on a table in Spark. A null value never removes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """Remove a document whose value stands in the wrong relation to the threshold.

    Args:
        name: what removed_by says.
        column: of silver/documents.
        sign: `<`, `>` or `<=`: value sign threshold removes.
        threshold: a number, or the name of another column, whose null removes.
        above: removes only values over it.
    """

    name: str
    column: str
    sign: str
    threshold: float | str
    above: float | None = None

    def removes(self, row: Mapping[str, Any]) -> bool:
        """Whether it removes the document with these values."""
        value = row[self.column]
        limit = row[self.threshold] if isinstance(self.threshold, str) else self.threshold
        if value is None or (self.above is not None and value <= self.above):
            return False
        if limit is None:
            return True
        return bool(value < limit if self.sign == "<" else value > limit if self.sign == ">" else value <= limit)

    def sql(self) -> str:
        """The same as a Spark SQL condition that is never null."""
        if isinstance(self.threshold, str):
            compared = f"({self.threshold} IS NULL OR {self.column} {self.sign} {self.threshold})"
        else:
            compared = f"{self.column} {self.sign} {_literal(self.threshold)}"
        above = "" if self.above is None else f" AND {self.column} > {_literal(self.above)}"
        return f"({self.column} IS NOT NULL AND {compared}{above})"


def first(rules: Iterable[Rule], row: Mapping[str, Any]) -> str | None:
    """The name of the first rule that removes the document, None if it stays."""
    return next((rule.name for rule in rules if rule.removes(row)), None)


def limits(family: str, entries: Iterable[tuple[str, str, str, float | None]]) -> list[Rule]:
    """Rules from (name, value, sign, threshold) of one family; a threshold of None switches a rule off."""
    return [
        Rule(f"{family}_{name}", f"rule_{family}_{value}", sign, threshold)
        for name, value, sign, threshold in entries
        if threshold is not None
    ]


def _literal(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number!r}D"
