"""What is done to a row, as data: kept in the commit of silver/ctr and in model.json, so that scoring repeats it.

ints, by column
    log       f(x) = sign(x) log(1 + |x|), missing -> -1
    quantile  f(x) = (1 + number of boundaries below x) / (1 + number of boundaries), missing -> 0
categories, by column
    vocabulary  0 padding, 1 missing, 2 out of vocabulary, then the ids of silver/ctr_vocabulary
    hash        0 padding, 1 missing, 2 unused, 3 + xxhash64(value) mod size
    modulo      0 padding, 1 missing, 2 unused, 3 + value mod size

`log` agrees with log(x + 1) wherever x >= 0 and keeps the sign below. -1 is the value of no integer (log(1 + n) = 1 has
no whole solution), so a missing cell stays distinct from every count, 0 among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.errors import UserError

INTS = tuple(f"i{n}" for n in range(1, 14))
CATEGORIES = tuple(f"c{n}" for n in range(1, 27))
PADDING_ID, MISSING_ID, UNKNOWN_ID, FIRST_ID = 0, 1, 2, 3
MISSING_LOG, MISSING_QUANTILE = -1.0, 0.0
KINDS = ("vocabulary", "hash", "modulo")
_FORMAT = 1


@dataclass(frozen=True)
class CategoryRule:
    """How one categorical column becomes ids.

    Args:
        kind: one of `KINDS`.
        num_ids: rows of an embedding table for it: the ids in use and the three reserved ones.
    """

    kind: str
    num_ids: int


@dataclass(frozen=True)
class Transform:
    """The whole transform of a row.

    Args:
        ints: `log` or `quantile`.
        boundaries: ascending boundaries by int column, for `quantile`.
        categories: rule by categorical column.
        vocabulary_version: version of silver/ctr_vocabulary, or None where no column has a vocabulary.
    """

    ints: str
    boundaries: Mapping[str, tuple[float, ...]]
    categories: Mapping[str, CategoryRule]
    vocabulary_version: int | None

    def cardinalities(self) -> dict[str, int]:
        """Rows of the embedding table by column."""
        return {name: rule.num_ids for name, rule in self.categories.items()}

    def features(self) -> dict[str, int | None]:
        """How many different numbers a column may hold, None where that depends on the rows."""
        return dict.fromkeys(INTS) | self.cardinalities()

    def vocabulary_columns(self) -> tuple[str, ...]:
        """Columns that need the vocabulary."""
        return tuple(name for name, rule in self.categories.items() if rule.kind == "vocabulary")

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` reads it back."""
        return {
            "format": _FORMAT,
            "ints": self.ints,
            "boundaries": {name: list(cuts) for name, cuts in self.boundaries.items()},
            "categories": {name: {"kind": r.kind, "num_ids": r.num_ids} for name, r in self.categories.items()},
            "vocabulary_version": self.vocabulary_version,
        }

    @classmethod
    def from_json(cls, value: Any, where: str = "transform") -> Transform:
        """Read what `to_json` wrote; the text may come from a stranger, so everything is checked.

        Raises:
            UserError: another format, or a part that is missing or out of range; `where` names the source.
        """
        try:
            if value["format"] != _FORMAT:
                raise ValueError(f"format {value['format']!r}, this version reads {_FORMAT}")
            rules = {str(n): _rule(str(n), r) for n, r in value["categories"].items()}
            cuts = {str(n): tuple(float(cut) for cut in c) for n, c in value["boundaries"].items()}
            version = value["vocabulary_version"]
            result = cls(str(value["ints"]), cuts, rules, None if version is None else int(version))
            result.check()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{where}: no transform of ours: {error!r}", "featurize and train again") from None
        return result

    def check(self) -> None:
        """Raise ValueError where the parts do not fit."""
        if self.ints not in ("log", "quantile"):
            raise ValueError(f"ints {self.ints!r} is neither log nor quantile")
        if self.ints == "quantile" and set(self.boundaries) != set(INTS):
            raise ValueError("quantile needs boundaries for every int column")
        if any(list(cuts) != sorted(set(cuts)) for cuts in self.boundaries.values()):
            raise ValueError("boundaries must ascend")
        if tuple(self.categories) != CATEGORIES:
            raise ValueError("categories must be c1 .. c26 in order")


def _rule(name: str, value: Mapping[str, Any]) -> CategoryRule:
    kind, num_ids = str(value["kind"]), int(value["num_ids"])
    least = FIRST_ID + (kind != "vocabulary")  # a vocabulary may be empty, buckets are at least one
    if kind not in KINDS or not least <= num_ids <= 2**31 - 1:
        raise ValueError(f"{name}: kind {kind!r} with {num_ids} ids")
    return CategoryRule(kind, num_ids)
