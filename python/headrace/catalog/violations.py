"""Rows that break a table's constraints, said in the user's words and counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.catalog.spec import TableSpec
from headrace.errors import UserError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_MARKS = ("DELTA_VIOLATE_CONSTRAINT", "DELTA_NOT_NULL_CONSTRAINT_VIOLATED", "InvariantViolation", "NOT_NULL_ASSERT")


def explain(error: Exception, df: DataFrame, spec: TableSpec) -> None:
    """Raise a UserError that counts the rows by broken rule, if `error` is Delta refusing rows; else return."""
    text = f"{type(error).__name__}: {error}"
    if not any(mark in text for mark in _MARKS):
        return
    counts = count(df, spec)
    if not counts:
        return
    listed = "\n".join(f"  {number:,} rows: {rule}" for rule, number in counts.items())
    problem = f"rows for {spec.name} break its rules, nothing was written:\n{listed}"
    raise UserError(problem, f"mend or filter these rows; the rules are in data_catalog/{spec.name}.yaml") from error


def count(df: DataFrame, spec: TableSpec) -> dict[str, int]:
    """How many rows break each rule, in one aggregate; rules that hold are left out."""
    from pyspark.sql import functions as F

    rules = {f"{c.name} is null": f"`{c.name}` IS NULL" for c in spec.columns if not c.nullable}
    rules |= {
        f"check {name} ({sql}) does not hold": f"NOT coalesce(({sql}), false)" for name, sql in spec.checks.items()
    }
    if not rules:
        return {}
    row = df.agg(*[F.sum(F.expr(sql).cast("long")).alias(f"n{i}") for i, sql in enumerate(rules.values())]).first()
    counts = [0 if row is None else row[i] or 0 for i in range(len(rules))]
    return {rule: number for rule, number in zip(rules, counts, strict=True) if number}
