"""docs/tables.md is what data_catalog/ says; the verb that writes, compares and shows."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from headrace.catalog import datasets, spec
from headrace.errors import UserError
from headrace.pipelines import catalog, catalog_page, cli
from headrace.report import Report

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tables.md"


def run(**settings: object) -> str:
    said = io.StringIO()
    catalog.run(None, catalog.Config(**settings), Report("catalog", out=said))  # type: ignore[arg-type]
    return said.getvalue()


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == catalog_page.render(), (
        "run `headrace catalog docs` and commit docs/tables.md"
    )


def test_every_table_says_who_writes_it_and_every_column_is_there() -> None:
    page = catalog_page.render()
    for name, table in spec.load_all().items():
        assert table.written_by, f"{name}: say written_by in its YAML"
        section = page.split(f"\n### {name}\n")[1].split("\n## ")[0].split("\n### ")[0]
        ranges = [line.split(" | ")[0].removeprefix("| ") for line in section.splitlines() if line.startswith("| ")][2:]
        known = {column.name for column in table.columns}
        ends = [re.findall(r"(\d+)(?=\.\.|$)", each) if ".." in each else [0, 0] for each in ranges]
        covered = sum(int(last) - int(first) + 1 for first, last in ends)
        assert covered == len(known), name
    for name in datasets.names():
        assert f"| {name} | " in page


def test_write_and_compare(tmp_path: Path) -> None:
    page = str(tmp_path / "tables.md")
    with pytest.raises(UserError, match="is not what data_catalog/ says"):
        run(action="docs", page=page, check=True)
    run(action="docs", page=page)
    run(action="docs", page=page, check=True)


def test_data_sets_name_verbs_that_are_there() -> None:
    for name in datasets.names():
        assert datasets.load(name).ingested_by in (*cli.VERBS, datasets.NONE_YET), name


def test_data_sets_are_listed_and_shown() -> None:
    listed = run(action="datasets")
    lines = {line.split()[0]: line for line in listed.splitlines()}
    assert set(datasets.names()) < set(lines)
    assert "about 342 GB packed, 1 TB unpacked; ..." in lines["criteo_terabyte"]  # whole words
    assert "GroupLens's terms: research with acknowledgement, no ..." in lines["movielens_25m"]
    assert lines["wikikg90mv2"].endswith("  CC0") and max(map(len, lines.values())) <= 150
    assert "ODC-BY" in run(action="dataset", table="mag240m")
    with pytest.raises(UserError, match="did you mean mag240m?"):
        run(action="dataset", table="mag240")
