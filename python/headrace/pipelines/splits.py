"""The three splits of one version of a table; those of silver/ctr are the rows that every click model is judged by."""

from __future__ import annotations

import os

from headrace.catalog.pinned import PinnedTable, pin
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features.split import SPLITS, format_days
from headrace.report import Stage

TABLE = "silver/ctr"


def require_table(lake: str) -> None:
    """Refuse a lake without silver/ctr.

    Raises:
        UserError: with the command that makes it.
    """
    if "://" not in lake and not os.path.isdir(load(TABLE).path(lake)):
        raise UserError(f"there is no {TABLE} in --lake {lake}", f"headrace featurize-ctr --lake {lake}")


def pin_splits(lake: str, version: int | None, stage: Stage) -> dict[str, PinnedTable]:
    """The splits by name.

    Args:
        lake: where the tables are.
        version: of silver/ctr; None: the newest.
        stage: told what there is.

    Raises:
        UserError: no table, no training rows in it, or days that are still to come.
    """
    spec = load(TABLE)
    require_table(lake)
    first = pin(spec, lake, version, {"split": "train"})
    if days := first.metadata.get("unfinished"):
        raise UserError(
            f"{first} is unfinished: day {format_days(days)} is still to come",
            "run the same headrace featurize-ctr again, or name an earlier version: --table_version",
        )
    tables = with_other_splits(first, lake, stage)
    if not first.rows:
        raise UserError(
            f"{first} has no training rows", "headrace featurize-ctr with --split.train naming a day with rows"
        )
    return tables


def with_other_splits(first: PinnedTable, lake: str, stage: Stage) -> dict[str, PinnedTable]:
    """All splits of a table's version by name, of which `first` is train; the stage is told what there is."""
    others = {split: pin(first.spec, lake, first.version, {"split": split}) for split in SPLITS[1:]}
    tables = {"train": first} | others
    stage.rows_in = stage.rows_out = sum(table.rows for table in tables.values())
    stage.note = f"{first}: " + ", ".join(f"{name} {table.rows:,}" for name, table in tables.items())
    return tables


def sizes_of(table: PinnedTable) -> dict[str, int]:
    """How many ids each category column has.

    Raises:
        UserError: the table does not say.
    """
    sizes = table.metadata.get("cardinalities")
    if not sizes:
        raise UserError(f"{table} does not say how many ids its columns have", "write it with headrace featurize-ctr")
    columns = next(tensor.columns for tensor in table.spec.tensors if tensor.name == "sparse")
    return {name: int(sizes[name]) for name in columns}
