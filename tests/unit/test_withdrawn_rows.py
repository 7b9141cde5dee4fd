"""The SQL that says which rows are of forgotten files: as short as their numbers allow."""

from __future__ import annotations

import itertools

import pytest

from headrace.catalog.ledger import LedgerFile
from headrace.catalog.spec import load
from headrace.ingest.batch import are_of
from headrace.ingest.lines import LINE_BITS


def files(ordinals: list[int]) -> list[LedgerFile]:
    return [LedgerFile(f"/in/{number}", number, 1, 1, "sha256:0") for number in ordinals]


@pytest.mark.parametrize("ordinals", [[0], [4, 5], [9, 3, 4, 8], [1, 3, 5], [(1 << 23) - 1]])
def test_exactly_the_rows_of_these_files(ordinals: list[int]) -> None:
    """Both tables, at the borders of every file and of its neighbours."""
    near = {number + step for number in ordinals for step in (-1, 0, 1) if number + step >= 0}
    bronze, quarantine = (are_of(load(f"{layer}/edges"), files(ordinals)) for layer in ("bronze", "quarantine"))
    for number in near:
        assert _holds(quarantine, {"file_ordinal": number}) == (number in ordinals)
        for line in (0, (1 << LINE_BITS) - 1):
            assert _holds(bronze, {"key": (number << LINE_BITS) + line}) == (number in ordinals)


def _holds(sql: str, row: dict[str, int]) -> bool:
    return bool(eval(sql.replace("AND", "and").replace("OR", "or"), {}, row))


def test_a_hundred_thousand_files_but_one_are_two_stretches() -> None:
    """A condition a file would be parsed, planned and kept in the log for minutes."""
    ordinals = list(itertools.chain(range(7, 50_000), range(50_001, 100_000)))
    for layer in ("bronze", "quarantine"):
        assert are_of(load(f"{layer}/edges"), files(ordinals)).count("OR") == 1
