"""The page of all tables and data sets in the docs, written from data_catalog/ alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from headrace.catalog import datasets
from headrace.catalog.spec import LAYERS, Column, TableSpec, load_all

_HEAD = """# Tables and data sets

Written from `data_catalog/` by `headrace catalog docs`: change a description there, run it again, and commit both
(`make docs` and a test compare). What the descriptions mean is said in [the catalog](catalog.md).
"""
_LAYERS = {
    "bronze": "what came in, accepted",
    "quarantine": "what came in, refused, with the reason",
    "silver": "featurized",
    "gold": "made for training, or by a model",
    "meta": "of the lake itself",
}


def render() -> str:
    """The page, as Markdown."""
    tables = list(load_all().values())
    parts = [_HEAD, "\n".join(_overview(tables))]
    for layer in LAYERS:
        parts.append(f"## {layer}: {_LAYERS[layer]}")
        parts += ["\n".join(_table(spec)) for spec in tables if spec.layer == layer]
    return "\n\n".join([part.rstrip("\n") for part in [*parts, "\n".join(_data_sets())]]) + "\n"


def _overview(tables: Sequence[TableSpec]) -> Iterator[str]:
    yield "| table | one row is | written by | read by |"
    yield "| --- | --- | --- | --- |"
    for spec in tables:
        anchor = re.sub(r"[^a-z0-9_-]", "", spec.name)
        yield f"| [{spec.name}](#{anchor}) | {_cell(spec.doc)} | {_names(spec.written_by)} | {_names(spec.read_by)} |"


def _table(spec: TableSpec) -> Iterator[str]:
    yield f"### {spec.name}\n"
    yield f"{spec.doc}\n"
    facts = {"Key": ", ".join(spec.keys), "Partitioned by": ", ".join(spec.partition_by), "From": spec.source}
    facts |= {"Terms": spec.licence, "Written by": _names(spec.written_by), "Read by": _names(spec.read_by)}
    yield from (f"- {name}: {value}" for name, value in facts.items() if value)
    yield from (f"- Check {name}: `{sql}`" for name, sql in spec.checks.items())
    yield from (f"- Tensor {each.name}: {each.dtype} of {_range(each.columns)}" for each in spec.tensors)
    yield "\n| column | type | | meaning |"
    yield "| --- | --- | --- | --- |"
    for _, group in groupby(spec.columns, key=_alike):
        columns = list(group)
        null = "" if columns[0].nullable else "not null"
        yield f"| {_range([c.name for c in columns])} | {columns[0].type} | {null} | {_cell(columns[0].doc)} |"


def _data_sets() -> Iterator[str]:
    yield "## Data sets\n"
    yield "`headrace catalog dataset NAME` shows the rest: files, source, facts to check.\n"
    yield "| data set | what it is | size | format | terms | how to obtain it | ingested by | table |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name in datasets.names():
        d = datasets.load(name)
        cells = (d.name, d.doc, d.size, d.format, d.licence, d.obtain, d.ingested_by, d.table)
        yield f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _alike(column: Column) -> tuple[str, str, bool, str]:
    """Columns of one range share everything but the number."""
    return re.sub(r"\d+$", "", column.name), column.type, column.nullable, column.doc


def _range(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"


def _names(verbs: Sequence[str]) -> str:
    return ", ".join(verbs) or "not said"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
