"""What is different between a DataFrame, a table and its description, as a small table for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.catalog.spec import TableSpec
from headrace.errors import UserError

if TYPE_CHECKING:
    from pyspark.sql.types import StructType

_SQL_NAMES = {"byte": "tinyint", "short": "smallint", "integer": "int", "long": "bigint"}


@dataclass(frozen=True)
class Difference:
    """One column that differs: kind is added, missing or changed; types as in SQL, with `not null`."""

    kind: str
    column: str
    expected: str
    found: str


def compare(expected: dict[str, str], found: dict[str, str]) -> list[Difference]:
    """Differences by column name; the order of columns does not count."""
    missing = [Difference("missing", name, text, "-") for name, text in expected.items() if name not in found]
    added = [Difference("added", name, "-", text) for name, text in found.items() if name not in expected]
    changed = [
        Difference("changed", name, text, found[name])
        for name, text in expected.items()
        if name in found and found[name] != text
    ]
    return changed + missing + added


def table(differences: Iterable[Difference]) -> str:
    """Differences as aligned text."""
    rows = [("", "column", "expected", "found")]
    rows += [(d.kind, d.column, d.expected, d.found) for d in differences]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def of_spec(spec: TableSpec, *, nulls: bool) -> dict[str, str]:
    """Column -> type by the description, with `not null` if `nulls`."""
    return {c.name: _text(c.type, c.nullable or not nulls) for c in spec.columns}


def of_schema(schema: dict[str, Any], *, nulls: bool) -> dict[str, str]:
    """Column -> type by a Spark schema's JSON."""
    return {f["name"]: _text(_sql_type(f["type"]), f["nullable"] or not nulls) for f in schema["fields"]}


def refuse(schema: StructType, spec: TableSpec, live: dict[str, Any], *, merge: bool) -> None:
    """Check a DataFrame and the table against the description.

    Whether a column holds nulls is left to the table's constraint: a DataFrame rarely knows.

    Args:
        schema: of the rows to be written.
        spec: the description.
        live: the table's schema as JSON.
        merge: columns more than described may be added to the table.

    Raises:
        UserError: they differ, with the difference.
    """
    asked = compare(of_spec(spec, nulls=False), of_schema(schema.jsonValue(), nulls=False))
    if merge:
        asked = [d for d in asked if d.kind != "added"]
    if asked:
        remedy = f"make the columns fit data_catalog/{spec.name}.yaml, or merge the schema where new columns are meant"
        raise UserError(f"rows for {spec.name} do not fit its description:\n{table(asked)}", remedy)
    drifted = compare(of_spec(spec, nulls=True), of_schema(live, nulls=True))
    # Columns more in the table were merged earlier, the description has yet to follow; merging brings those it lacks.
    drifted = [d for d in drifted if d.kind == "changed" or (d.kind == "missing" and not merge)]
    if drifted:
        remedy = "merge the schema (new columns that may be null), or write the table anew in another lake"
        raise UserError(f"the table {spec.name} is not as data_catalog describes it:\n{table(drifted)}", remedy)


def _text(type_name: str, nullable: bool) -> str:
    return type_name if nullable else f"{type_name} not null"


def _sql_type(kind: Any) -> str:
    if isinstance(kind, dict):
        inner = _sql_type(kind["elementType"]) if kind.get("type") == "array" else "..."
        return f"{kind.get('type')}<{inner}>"
    return _SQL_NAMES.get(kind, str(kind))
