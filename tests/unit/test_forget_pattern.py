"""A pattern forgets the files that the same pattern had ingested, and none in folders below."""

from __future__ import annotations

import os

import pytest

from headrace.catalog.ledger import FileAccount, LedgerBatch, LedgerFile, LedgerState
from headrace.pipelines.forget import Config, _files

PATHS = ("/in/day_0.gz", "/in/day_1.gz", "/in/old/day_0.gz", "/in/old/er/day_0.gz", "/landing/3f.warc.gz")
ORIGIN = "https://host/crawl/seg-1/a.warc.gz"


def state() -> LedgerState:
    """All files in one closed batch; the last one came from the web."""
    detail = [{}, {}, {}, {}, {"origin": ORIGIN}]
    files = tuple(LedgerFile(path, at, 1, 1, "sha256:0", None, detail[at]) for at, path in enumerate(PATHS))
    accounts = {("b", path): FileAccount(1, 1, 0, 1) for path in PATHS}
    return LedgerState(1, (LedgerBatch("b", files),), accounts, len(files))


@pytest.mark.parametrize(
    ("pattern", "ordinals"),
    [
        ("/in/*.gz", [0, 1]),
        ("/in/*", [0, 1]),
        ("/in/day_[01].g?", [0, 1]),
        ("/in/*/*", [2]),
        ("/in/**/day_0.gz", [0, 2, 3]),
        ("/in/old/**", [2, 3]),
        ("https://host/crawl/*/a.warc.gz", [4]),
        ("https://host/*/a.warc.gz", None),
        ("/other/*", None),
        ("/in", [0, 1]),
        ("/in/old/", [2]),
        ("/i", None),
    ],
)
def test_which_files(pattern: str, ordinals: list[int] | None) -> None:
    found = _files(Config(file=pattern), state())
    assert (found and [file.ordinal for batch in found for file in batch.files]) == ordinals


def test_a_pattern_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getcwd", lambda: "/in")
    found = _files(Config(file="*.gz"), state())
    assert found and [file.ordinal for batch in found for file in batch.files] == [0, 1]
