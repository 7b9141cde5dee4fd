"""What a user may get wrong, or rightly type in another way than the tests of one module do."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.catalog.spec import load


def test_a_table_has_an_absolute_place_whatever_way_the_lake_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = load("silver/ctr")
    absolute = f"{tmp_path}/silver/ctr"
    assert spec.path(".") == spec.path("./") == spec.path("../" + tmp_path.name) == spec.path(tmp_path) == absolute
    assert spec.path("s3://bucket/lake/") == "s3://bucket/lake/silver/ctr"
    assert spec.path("file:/lake") == "file:/lake/silver/ctr"
