"""One description of a table, in data_catalog/, that Spark, Arrow and the tensors of training are rendered from.

Nothing here imports Spark: a training rank reads specs too.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.catalog.strict_yaml import At
from headrace.catalog.strict_yaml import load as load_yaml
from headrace.config import suggest
from headrace.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql.types import StructType

LAYERS = ("bronze", "quarantine", "silver", "gold", "meta")
TYPES = ("tinyint", "smallint", "int", "bigint", "float", "double", "boolean", "string", "binary", "date", "timestamp")
DTYPES = ("float32", "float64", "int32", "int64", "uint8", "bool")
ELEMENTS = ("uint8", "uint16", "int32", "int64", "float16", "float32")  # of binary cells, little-endian
FROM_COMMIT = "commit"
_TABLE_KEYS = (
    "name", "doc", "columns", "keys", "partition_by", "checks", "source", "licence", "tensors", "written_by", "read_by",
    "parquet",
)  # fmt: skip
_COLUMN_KEYS = ("name", "type", "nullable", "doc", "shape", "element")
_RANGE = re.compile(r"([A-Za-z_]\w*?)(\d+)\.\.([A-Za-z_]\w*?)(\d+)")
_NAME = re.compile(r"[A-Za-z_]\w*")
_MAX_COLUMNS = 10_000


@dataclass(frozen=True)
class Column:
    """One column: Spark SQL type, whether null may stand in it, its meaning; `shape` of a cell, () for a scalar.

    A binary cell may hold numbers: `element` is their type, little-endian; where it is "commit", the writer has said
    element and shape with the commit, as `cells: {column: {"element": ..., "shape": [...]}}`.
    """

    name: str
    type: str
    nullable: bool = True
    doc: str = ""
    shape: tuple[int, ...] = ()
    element: str = ""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a batch: [B, len(columns)], or [B] where a single column is named alone."""

    name: str
    columns: tuple[str, ...]
    dtype: str


@dataclass(frozen=True)
class TableSpec:
    """A table of the lake, as its YAML describes it.

    Args:
        name: layer/table, also its path under the lake.
        columns: in the table's order.
        keys: columns that name a row; the first, a bigint, is the one that is fingerprinted.
        partition_by: columns that are directories, not in the data files.
        checks: CHECK constraints, name -> SQL; a null result counts as a violation.
        source: where the rows come from.
        licence: the terms of that source.
        tensors: what a training batch is made of.
        written_by: the verbs that write it.
        read_by: the verbs, and parts of the package, that read it.
        parquet: settings of Parquet's writer for its files, whoever writes or rewrites them, such as
            `parquet.compression.codec.zstd.level`.
    """

    name: str
    columns: tuple[Column, ...]
    doc: str = ""
    keys: tuple[str, ...] = ()
    partition_by: tuple[str, ...] = ()
    checks: dict[str, str] = field(default_factory=dict)
    source: str = ""
    licence: str = ""
    tensors: tuple[TensorSpec, ...] = ()
    written_by: tuple[str, ...] = ()
    read_by: tuple[str, ...] = ()
    parquet: dict[str, str] = field(default_factory=dict)

    @property
    def layer(self) -> str:
        """bronze, quarantine, silver, gold or meta."""
        return self.name.split("/", 1)[0]

    @property
    def fingerprint_key(self) -> str | None:
        """The bigint column whose values are fingerprinted, if the table has one."""
        types = {column.name: column.type for column in self.columns}
        return self.keys[0] if self.keys and types[self.keys[0]] == "bigint" else None

    def path(self, lake: str | Path) -> str:
        """The table's place: a URL where `lake` is one, else an absolute path.

        Delta creates no table at a relative path: it takes that for the name of a schema.
        """
        root = str(lake) if ":/" in str(lake) else os.path.abspath(lake)
        return f"{root.rstrip('/')}/{self.name}"

    def column(self, name: str) -> Column:
        """The column of this name.

        Raises:
            UserError: there is none; the nearest is named.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise UserError(f"{self.name} has no column {name!r}", suggest(name, [c.name for c in self.columns]))

    def to_spark(self) -> StructType:
        """The schema for Spark, with comments."""
        from pyspark.sql.types import StructField, StructType

        fields = [StructField(c.name, _spark_type(c.type), c.nullable, _comment(c)) for c in self.columns]
        return StructType(fields)

    def to_arrow(self, *, partitions: bool = True) -> pa.Schema:
        """The schema for Arrow; without `partitions`, that of the data files."""
        import pyarrow as pa

        kept = [c for c in self.columns if partitions or c.name not in self.partition_by]
        return pa.schema([pa.field(c.name, arrow_type(c.type), c.nullable) for c in kept])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{c.name}</td><td>{html.escape(c.type)}</td><td>{'' if c.nullable else 'not null'}</td>"
            f"<td>{html.escape(c.doc)}</td></tr>"
            for c in self.columns
        )
        checks = "".join(f"<li>{html.escape(k)}: <code>{html.escape(v)}</code></li>" for k, v in self.checks.items())
        facts = {
            "keys": ", ".join(self.keys),
            "partitioned by": ", ".join(self.partition_by),
            "source": self.source,
            "licence": self.licence,
        }
        listed = "".join(f"<li>{name}: {html.escape(value)}</li>" for name, value in facts.items() if value)
        head = "<tr><th>column</th><th>type</th><th></th><th>meaning</th></tr>"
        title = f"<h4>{html.escape(self.name)}</h4><p>{html.escape(self.doc)}</p>"
        return f"{title}<table>{head}{rows}</table><ul>{listed}{checks}</ul>"


def load(name: str) -> TableSpec:
    """The spec of one table by name ("silver/ctr").

    Raises:
        UserError: no such table; the nearest name is given. Or its file is wrong, with file and line.
    """
    file = catalog_dir() / f"{name}.yaml"
    known = table_names()
    if name not in known:
        raise UserError(f"no table {name!r} in the catalog", suggest(name, known))
    return _load_cached(file, file.stat().st_mtime_ns)


def load_all() -> dict[str, TableSpec]:
    """Every table of the catalog by name."""
    return {name: load(name) for name in table_names()}


def table_names() -> list[str]:
    """The names of the catalog's tables, sorted."""
    root = catalog_dir()
    return sorted(f"{layer}/{file.stem}" for layer in LAYERS for file in (root / layer).glob("*.yaml"))


def load_file(file: Path) -> TableSpec:
    """Read and check one table's YAML; its place, layer/table.yaml, must agree with its name.

    Raises:
        UserError: with file and line.
    """
    root = load_yaml(file)
    entry = root.mapping(*_TABLE_KEYS, required=("name", "doc", "columns", "source", "licence"))
    name = _table_name(entry["name"], file)
    columns = _columns(entry["columns"])
    names = [column.name for column in columns]
    spec = TableSpec(
        name=name,
        columns=columns,
        doc=entry["doc"].text(),
        keys=_named(entry.get("keys"), names),
        partition_by=_named(entry.get("partition_by"), names),
        checks=_checks(entry.get("checks")),
        source=entry["source"].text(),
        licence=entry["licence"].text(),
        tensors=_tensors(entry.get("tensors"), names),
        written_by=_texts(entry.get("written_by")),
        read_by=_texts(entry.get("read_by")),
        parquet=_parquet(entry.get("parquet"), names),
    )
    for key in spec.keys:
        if spec.column(key).nullable:
            raise entry["keys"].error(f"key column {key!r} may be null", "say `nullable: false` for it")
    return spec


def catalog_dir() -> Path:
    """Where data_catalog/ is: in the installed package or in the checkout."""
    from headrace import resources

    return Path(resources.path("data_catalog"))


@lru_cache(maxsize=256)
def _load_cached(file: Path, _modified_ns: int) -> TableSpec:
    return load_file(file)


def _table_name(at: At, file: Path) -> str:
    name = at.text()
    expected = f"{file.parent.name}/{file.stem}"
    if name != expected or name.split("/", 1)[0] not in LAYERS:
        raise at.error(f"name {name!r} does not fit the file", f"layer/table.yaml: {expected}; layers: {LAYERS}")
    return name


def _columns(at: At) -> tuple[Column, ...]:
    columns: list[Column] = []
    for item in at.items():
        entry = item.mapping(*_COLUMN_KEYS, required=("name", "type", "doc"))
        for name in expand(entry["name"]):
            columns.append(_column(name, entry))
            if len(columns) > _MAX_COLUMNS:
                raise item.error(f"more than {_MAX_COLUMNS:,} columns")
    seen: set[str] = set()
    for column in columns:
        if column.name.lower() in seen:  # Spark and Delta do not tell case apart
            raise at.error(f"column {column.name!r} is described twice")
        seen.add(column.name.lower())
    if not columns:
        raise at.error("no columns")
    return tuple(columns)


def _column(name: str, entry: dict[str, At]) -> Column:
    type_name = entry["type"].text()
    if _element(type_name) not in TYPES:
        raise entry["type"].error(f"unknown type {type_name!r}", suggest(_element(type_name), TYPES))
    nullable = entry["nullable"].flag() if "nullable" in entry else True
    shape = tuple(_integer(size) for size in entry["shape"].items()) if "shape" in entry else ()
    return Column(name, type_name, nullable, entry["doc"].text(), shape, _element_of(entry, type_name))


def _element_of(entry: dict[str, At], type_name: str) -> str:
    if "element" not in entry:
        return ""
    element = entry["element"].text()
    if type_name != "binary":
        raise entry["element"].error(f"a cell of type {type_name} has no element", "only binary cells hold numbers so")
    if element not in (*ELEMENTS, FROM_COMMIT):
        raise entry["element"].error(f"unknown element {element!r}", suggest(element, (*ELEMENTS, FROM_COMMIT)))
    return element


def _integer(at: At) -> int:
    if not at.text().isdecimal():
        raise at.error(f"expected a whole number, found {at.text()!r}")
    return int(at.text())


def expand(at: At) -> list[str]:
    """`i1..i13` -> i1, i2, ... i13; a plain name stays itself."""
    text = at.text()
    match = _RANGE.fullmatch(text)
    if match:
        prefix, first, prefix_again, last = match.groups()
        if prefix != prefix_again or not 0 <= int(last) - int(first) < _MAX_COLUMNS:
            raise at.error(f"not a range of columns: {text!r}", "write it like i1..i13")
        return [f"{prefix}{number}" for number in range(int(first), int(last) + 1)]
    if not _NAME.fullmatch(text):
        raise at.error(f"not a column name: {text!r}", "letters, digits and _; ranges like i1..i13")
    return [text]


def _named(at: At | None, known: list[str]) -> tuple[str, ...]:
    names: list[str] = []
    for item in at.items() if at else ():
        for name in expand(item):
            if name not in known:
                raise item.error(f"no column {name!r}", suggest(name, known))
            names.append(name)
    return tuple(names)


def _texts(at: At | None) -> tuple[str, ...]:
    return tuple(item.text() for item in at.items()) if at else ()


def _checks(at: At | None) -> dict[str, str]:
    entries = at.mapping() if at else {}
    for name, value in entries.items():
        if not _NAME.fullmatch(name):
            raise value.error(f"not a name for a check: {name!r}", "letters, digits and _")
    return {name: " ".join(value.text().split()) for name, value in entries.items()}


def _parquet(at: At | None, known: list[str]) -> dict[str, str]:
    entries = at.mapping() if at else {}
    for name, value in entries.items():
        setting, _, column = name.partition("#")
        if not setting.startswith("parquet."):
            raise value.error(f"not a setting of Parquet's writer: {name!r}", "such as parquet.page.size")
        if column and column not in known:
            raise value.error(f"{name!r}: there is no column {column!r}", suggest(column, known))
    return {name: value.text() for name, value in entries.items()}


def _tensors(at: At | None, known: list[str]) -> tuple[TensorSpec, ...]:
    tensors = []
    for name, item in (at.mapping() if at else {}).items():
        entry = item.mapping("columns", "dtype", required=("columns", "dtype"))
        dtype = entry["dtype"].text()
        if dtype not in DTYPES:
            raise entry["dtype"].error(f"unknown dtype {dtype!r}", suggest(dtype, DTYPES))
        tensors.append(TensorSpec(name, _named(entry["columns"], known), dtype))
    return tuple(tensors)


def _element(type_name: str) -> str:
    match = re.fullmatch(r"array<(\w+)>", type_name)
    return match.group(1) if match else type_name


def _comment(column: Column) -> dict[str, Any]:
    return {"comment": column.doc} if column.doc else {}


def _spark_type(type_name: str) -> Any:
    from pyspark.sql import types as t

    scalar = {
        "tinyint": t.ByteType(),
        "smallint": t.ShortType(),
        "int": t.IntegerType(),
        "bigint": t.LongType(),
        "float": t.FloatType(),
        "double": t.DoubleType(),
        "boolean": t.BooleanType(),
        "string": t.StringType(),
        "binary": t.BinaryType(),
        "date": t.DateType(),
        "timestamp": t.TimestampType(),
    }[_element(type_name)]
    return scalar if _element(type_name) == type_name else t.ArrayType(scalar)


def arrow_type(type_name: str) -> Any:
    """A Spark SQL type name as an Arrow type."""
    import pyarrow as pa

    scalar = {
        "tinyint": pa.int8(),
        "smallint": pa.int16(),
        "int": pa.int32(),
        "bigint": pa.int64(),
        "float": pa.float32(),
        "double": pa.float64(),
        "boolean": pa.bool_(),
        "string": pa.string(),
        "binary": pa.binary(),
        "date": pa.date32(),
        "timestamp": pa.timestamp("us", tz="UTC"),
    }[_element(type_name)]
    return scalar if _element(type_name) == type_name else pa.list_(scalar)


def describe(columns: Iterable[Column]) -> list[tuple[str, str, str, str]]:
    """Columns as rows of a text table: name, type, null or not, meaning."""
    return [(c.name, c.type, "" if c.nullable else "not null", c.doc) for c in columns]
