"""The rows of silver/ctr: encoded, ordered, and committed at once or a day at a time, each day exactly once.

The first commit of a run replaces the table, the others append to it, each under a transaction identifier of its own. A
version that is not the run's last names the days to come as `unfinished` in its metadata: an interrupted run with the
same request goes on there.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.catalog.delta import WriteOptions, commit_metadata, exists, latest_version, read, write
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import ctr, layout
from headrace.features.order import Order, commits, days_in_order
from headrace.features.split import DaySplit, format_days
from headrace.features.transform import Transform

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from headrace.catalog.delta import Commit
    from headrace.report import Report


@dataclass(frozen=True)
class Source:
    """What a run reads: bronze at a version, its days, and the request that names the result.

    Args:
        rows: of bronze/criteo at `version`.
        version: of bronze/criteo.
        days: of each split.
        rows_by_day: labelled rows.
        request: input and settings.
    """

    rows: DataFrame
    version: int
    days: DaySplit
    rows_by_day: Mapping[int, int]
    request: Mapping[str, Any]

    def count(self, days: Iterable[int]) -> int:
        """Labelled rows of these days."""
        return sum(self.rows_by_day[day] for day in days)


@dataclass(frozen=True)
class Layout:
    """How rows are laid out.

    Args:
        order: files, and the order of rows.
        days: the days of each commit.
        rows_per_group: rows of a Parquet row group.
        broadcast_entries: entries of the vocabulary that every worker holds.
    """

    order: Order
    days: list[list[int]]
    rows_per_group: int
    broadcast_entries: int


@dataclass
class _Progress:
    """How many commits of a run are made, and what the next one's metadata carries on."""

    metadata: dict[str, Any]
    done: int


def lay_out(name: str, source: Source, order: Order, rows_per_group: int, broadcast_entries: int) -> Layout:
    """The layout of an order by name."""
    return Layout(order, commits(name, source.days), rows_per_group, broadcast_entries)


def commit_rows(lake: str, source: Source, transform: Transform, laid: Layout, report: Report) -> Commit:
    """Encode and order all rows, and commit them, from where an earlier run stopped.

    Raises:
        UserError: another run wrote to the table at the same time.
    """
    from pyspark.sql import functions as F

    progress = _progress(lake, source, transform, laid)
    if progress.done:
        report.say(f"going on with day {format_days(laid.days[progress.done])}, where an earlier run stopped")
    labelled = source.rows.where("label IS NOT NULL")
    known = labelled  # of which nothing is taken
    if transform.vocabulary_columns():
        spec = load("silver/ctr_vocabulary")
        known = read(labelled.sparkSession, spec, lake, transform.vocabulary_version)
    groups = layout.row_groups(labelled.sparkSession, laid.rows_per_group, transform.features())
    with groups, ctr.encoding(known, transform, laid.broadcast_entries) as encode:
        while progress.done < len(laid.days):
            days = laid.days[progress.done]
            with report.stage("featurize") as stage:
                # Encoded by commit: a join of rare values takes only the rows that are wanted.
                cells = encode(labelled.where(F.col("day").isin(days)))
                commit = _commit_days(lake, source, laid, cells, progress)
                stage.rows_in, stage.rows_out = source.count(days), commit.rows_added
                stage.note = _describe(progress.metadata["unknown"], days)
    if commit.rows != source.count(days_in_order(source.days)):
        raise _disturbed()
    return commit


def _progress(lake: str, source: Source, transform: Transform, laid: Layout) -> _Progress:
    """A new run, or the one that the newest version is an unfinished part of."""
    path = load("silver/ctr").path(lake)
    version = latest_version(path) if exists(path) else -1
    made = commit_metadata(path, version) if version >= 0 else {}
    mine = {"request": source.request, "bronze_version": source.version, "unknown": {}}
    mine |= {"cardinalities": transform.cardinalities(), "transform": transform.to_json()}
    mine |= {"vocabulary_version": transform.vocabulary_version, "split": source.days.to_json()}
    if made.get("unfinished") and all(made.get(name) == mine[name] for name in ("request", "transform")):
        mine |= {"run": made["run"], "unknown": dict(made["unknown"])}
        return _Progress(mine, len(laid.days) - len(made["unfinished"]))
    return _Progress(mine | {"run": uuid.uuid4().hex}, 0)


def _commit_days(lake: str, source: Source, laid: Layout, cells: DataFrame, progress: _Progress) -> Commit:
    """Count the unknown cells of the next days' rows, and commit them."""
    silver, mine = load("silver/ctr"), progress.metadata
    if progress.done and _newest_run(silver.path(lake)) != mine["run"]:
        raise _disturbed()
    columns = [name for name, rule in mine["transform"]["categories"].items() if rule["kind"] == "vocabulary"]
    counts = [row.asDict() for row in ctr.count_cells(cells).collect()]
    mine["unknown"] |= ctr.unknown_shares(counts, columns, source.days.of_day())
    left = [day for later in laid.days[progress.done + 1 :] for day in later]
    options = WriteOptions(txn=(f"featurize-ctr {mine['run']}", progress.done + 1), quality=not left)
    mode, metadata = "append" if progress.done else "overwrite", mine | ({"unfinished": left} if left else {})
    rows = ctr.arrange(cells, laid.order)
    commit = write(rows, silver, lake, mode=mode, metadata=metadata, options=options)
    progress.done += 1
    return commit


def _newest_run(path: str) -> Any:
    return commit_metadata(path, latest_version(path)).get("run")


def _disturbed() -> UserError:
    return UserError(
        "another featurize-ctr wrote to silver/ctr at the same time", "run it again when the other one is done"
    )


def _describe(unknown: Mapping[str, Mapping[str, Any]], days: Iterable[int]) -> str:
    return "out of vocabulary by day: " + ", ".join(f"{day} {unknown[str(day)]['share']:.1%}" for day in sorted(days))
