"""Data sets we know how to obtain: what they are, their terms, which table they fill. Nothing is fetched from here."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from headrace.catalog.spec import catalog_dir, table_names
from headrace.catalog.strict_yaml import load as load_yaml
from headrace.config import suggest
from headrace.errors import UserError

_TEXTS = ("name", "doc", "table", "format", "files", "source", "licence", "obtain")


@dataclass(frozen=True)
class DataSet:
    """One entry of data_catalog/datasets; `facts` are what can be checked after obtaining it."""

    name: str
    doc: str
    table: str
    format: str
    files: str
    source: str
    licence: str
    obtain: str
    facts: dict[str, str]

    def _repr_html_(self) -> str:
        pairs = {name: str(getattr(self, name)) for name in _TEXTS[1:]} | self.facts
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
    if texts["table"] not in table_names():
        raise entry["table"].error(f"no table {texts['table']!r}", suggest(texts["table"], table_names()))
    facts = entry["facts"].mapping() if "facts" in entry else {}
    return DataSet(**texts, facts={name: fact.text() for name, fact in facts.items()})


def _folder() -> Path:
    return catalog_dir() / "datasets"
