"""Data sets our users name: what they are, their terms, which job ingests them. Nothing is fetched from here."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from headrace.catalog.spec import catalog_dir, table_names
from headrace.catalog.strict_yaml import load as load_yaml
from headrace.config import suggest
from headrace.errors import UserError

NONE_YET = "none yet"
_TEXTS = ("name", "doc", "size", "table", "ingested_by", "format", "files", "source", "licence", "obtain")


@dataclass(frozen=True)
class DataSet:
    """One entry of data_catalog/datasets; `facts` are what can be checked after obtaining it.

    `table` and `ingested_by` (a verb, such as ingest-criteo) are "none yet" where the data set cannot be ingested.
    """

    name: str
    doc: str
    size: str
    table: str
    ingested_by: str
    format: str
    files: str
    source: str
    licence: str
    obtain: str
    facts: dict[str, str]

    def texts(self) -> dict[str, str]:
        """All that is said of it, by name, in the order of its file."""
        return {name: str(getattr(self, name)) for name in _TEXTS} | self.facts

    def _repr_html_(self) -> str:
        pairs = {name: text for name, text in self.texts().items() if name != "name"}
        rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in pairs.items())
        return f"<h4>{html.escape(self.name)}</h4><table>{rows}</table>"


def load(name: str) -> DataSet:
    """One data set by name.

    Raises:
        UserError: unknown, with the nearest name; or its file is wrong, with file and line.
    """
    if name not in names():
        raise UserError(f"no data set {name!r} in the catalog", suggest(name, names()))
    return load_file(_folder() / f"{name}.yaml")


def names() -> list[str]:
    """The names of all data sets, sorted."""
    return sorted(file.stem for file in _folder().glob("*.yaml"))


def load_file(file: Path) -> DataSet:
    """Read and check one entry."""
    entry = load_yaml(file).mapping(*_TEXTS, "facts", required=_TEXTS)
    texts = {name: entry[name].text() for name in _TEXTS}
    if texts["name"] != file.stem:
        raise entry["name"].error(f"name {texts['name']!r} does not fit the file", f"call it {file.stem}")
    if texts["table"] not in (*table_names(), NONE_YET):
        raise entry["table"].error(f"no table {texts['table']!r}", suggest(texts["table"], table_names()))
    if (texts["table"] == NONE_YET) != (texts["ingested_by"] == NONE_YET):
        raise entry["ingested_by"].error(
            "a table and the verb that fills it go together", f"or say {NONE_YET} for both"
        )
    facts = entry["facts"].mapping() if "facts" in entry else {}
    return DataSet(**texts, facts={name: fact.text() for name, fact in facts.items()})


def _folder() -> Path:
    return catalog_dir() / "datasets"
