"""Rows checked before anything is fitted, in one pass over them: what is wrong is said with its column and its rows.

Refused: no rows, labels that are null or no whole class, one class only, features that are null, NaN or infinite,
vectors of another width, weights under zero. Named, and left in: features that are constant. Partitions without rows
are nothing special.

Memory: three numbers a feature in a worker; they meet in a tree, so the driver holds a few of them at any number of
partitions.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from headrace.baselines.spec import Columns
from headrace.baselines.vectors import Encoding, Entries, entries_of
from headrace.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

MAX_CLASSES = 1000
_SHOWN = 5
_MEND = "leave those rows out, or mend what wrote them"
_Numbers = npt.NDArray[np.float64]
Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Account:
    """What a split holds.

    Args:
        rows: how many.
        classes: rows of each class, rising.
        constants: features that have one value in all rows, by name.
    """

    rows: int
    classes: dict[int, int]
    constants: tuple[str, ...] = ()


@dataclass
class _Found:
    """What a part of the rows showed; `faults` are rows by what is wrong with them, `strange` some labels of such."""

    rows: int = 0
    labels: Counter[float] = field(default_factory=Counter)
    strange: tuple[float, ...] = ()
    faults: Counter[str] = field(default_factory=Counter)
    first_bad: int | None = None
    low: _Numbers | None = None
    high: _Numbers | None = None
    named: _Numbers | None = None

    def add(self, other: _Found) -> _Found:
        """Both together."""
        self.rows += other.rows
        self.labels += other.labels
        self.strange = (self.strange + other.strange)[:_SHOWN]
        self.faults += other.faults
        bad = [each for each in (self.first_bad, other.first_bad) if each is not None]
        self.first_bad = min(bad, default=None)
        if other.low is not None:
            if self.low is None:
                self.low, self.high, self.named = other.low, other.high, other.named
            else:
                self.low = np.minimum(self.low, other.low)
                self.high = np.maximum(self.high, other.high)  # type: ignore[arg-type]
                self.named = self.named + other.named  # type: ignore[operator]
        return self


def check_vectors(frame: DataFrame, columns: Columns, width: int, split: str) -> Account:
    """Check rows with a vector or a list of numbers each; see the module's docstring.

    Args:
        frame: label and weight double, features a vector of MLlib or an array of numbers.
        columns: their names.
        width: features that every row must have.
        split: what the rows are called in errors.

    Raises:
        UserError: with column, what is wrong, rows.
    """
    names = [columns.label, columns.features, *([columns.weight] if columns.weight else [])]

    total = _over_batches(frame.select(*names), lambda batch: look_at(batch, width), _Found.add, _Found)
    _refuse_labels(columns.label, total, split)
    _refuse_faults(columns, total, width, split)
    return Account(total.rows, _classes(total.labels), tuple(f"{columns.features}[{n}]" for n in _constants(total)))


def _over_batches(
    frame: DataFrame,
    look: Callable[[pa.RecordBatch], Seen],
    add: Callable[[Seen, Seen], Seen],
    none: Callable[[], Seen],
) -> Seen:
    """What `look` shows of the frame's Arrow batches, added up in the workers, then in a tree."""

    def seen(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        found = none()
        for batch in batches:
            found = add(found, look(batch))
        yield pa.RecordBatch.from_arrays([pa.array([pickle.dumps(found)], pa.binary())], names=["found"])

    parts = frame.mapInArrow(seen, "found binary").rdd.map(lambda row: pickle.loads(row[0]))
    total: Seen = parts.treeAggregate(none(), add, add)
    return total


def look_at(batch: pa.RecordBatch, width: int) -> _Found:
    """What one Arrow batch shows: its columns are label, features and, where there is a third, weight."""
    import pyarrow.compute as pc

    label, features = batch.column(0), batch.column(1)
    found = _of_labels(label.to_numpy(zero_copy_only=False).astype(np.float64))
    found.faults["no vector"] = features.null_count
    if batch.num_columns > 2:
        weights = batch.column(2).to_numpy(zero_copy_only=False).astype(np.float64)
        found.faults["weight"] = int(np.count_nonzero(~(weights >= 0) | np.isinf(weights)))
    _look_at_features(entries_of(features.filter(pc.is_valid(features))), width, found)
    return found


def _of_labels(labels: _Numbers) -> _Found:
    """So many rows, and what their labels are."""
    numbers, counts = np.unique(labels, return_counts=True)
    whole = _whole(numbers)
    return _Found(
        rows=len(labels),
        labels=Counter(dict(zip(numbers[whole].tolist(), counts[whole].tolist(), strict=True))),
        faults=Counter(label=int(counts[~whole].sum())),
        strange=tuple(numbers[~whole][:_SHOWN].tolist()),
    )


def _whole(labels: _Numbers) -> npt.NDArray[np.bool_]:
    return np.asarray((labels >= 0) & (labels == np.floor(labels)) & (labels < MAX_CLASSES))


def _look_at_features(entries: Entries, width: int, found: _Found) -> None:
    wrong = entries.widths != width
    outside = (entries.features < 0) | (entries.features >= entries.widths[entries.rows])
    wrong[entries.rows[outside]] = True
    found.faults["width"] = int(np.count_nonzero(wrong))
    bad = ~np.isfinite(entries.values)
    found.faults["not finite"] = len(np.unique(entries.rows[bad]))
    found.first_bad = int(entries.features[bad].min()) if bad.any() else None
    good = ~bad & ~wrong[entries.rows]
    features, values = entries.features[good], entries.values[good]
    found.low, found.high = np.full(width, np.inf), np.full(width, -np.inf)
    np.minimum.at(found.low, features, values)
    np.maximum.at(found.high, features, values)
    found.named = np.bincount(features, minlength=width).astype(np.float64)


def _constants(total: _Found) -> npt.NDArray[np.int64]:
    """Features with one value in all rows; where a row does not name a feature, it is zero."""
    if total.low is None or total.high is None or total.named is None:
        return np.zeros(0, np.int64)
    unnamed = total.named < total.rows
    low = np.where(unnamed, np.minimum(total.low, 0.0), total.low)
    high = np.where(unnamed, np.maximum(total.high, 0.0), total.high)
    return np.flatnonzero(low == high)


def _refuse_faults(columns: Columns, total: _Found, width: int, split: str) -> None:
    first = f", the first of them in feature {total.first_bad}" if total.first_bad is not None else ""
    said = {
        "no vector": (columns.features, "hold no vector (null)", _MEND),
        "width": (columns.features, f"hold no vector of {width:,} features", "all rows must have as many"),
        "not finite": (columns.features, f"hold NaN, infinite or missing numbers{first}", _MEND),
        "weight": (columns.weight, "are no weights: missing, under zero or not finite", _MEND),
    }
    for fault, (column, what, remedy) in said.items():
        if total.faults[fault]:
            raise UserError(f"{column}: {total.faults[fault]:,} of {total.rows:,} rows of {split} {what}", remedy)


def _refuse_labels(column: str, total: _Found, split: str) -> None:
    """Refuse what is no class.

    Raises:
        UserError: no rows; labels that are null, NaN, under zero, no whole numbers, or more than classes can be.
    """
    if not total.rows:
        raise UserError(f"there are no rows of {split}", "name other input, or another split of it")
    if total.faults["label"]:
        shown = ", ".join("null or NaN" if value != value else f"{value:g}" for value in total.strange)
        raise UserError(
            f"{column}: {total.faults['label']:,} of {total.rows:,} rows of {split} are neither 0 or 1 nor another "
            f"whole class under {MAX_CLASSES:,}: {shown}",
            "--input.negative -1, if -1 stands for 0" if -1.0 in total.strange else "classes are numbered from 0",
        )


def _classes(labels: Counter[float]) -> dict[int, int]:
    return {int(value): count for value, count in sorted(labels.items())}


def refuse_one_class(account: Account, column: str, split: str) -> None:
    """Refuse rows that are all of one class.

    Raises:
        UserError: with the class.
    """
    if len(account.classes) == 1:
        only = next(iter(account.classes))
        raise UserError(f"{column}: all {account.rows:,} rows of {split} are of class {only}", "take rows of both")


def check_columns(
    frame: DataFrame, encoding: Encoding, label: str = "label", split: str = "split"
) -> dict[str, Account]:
    """Check a table of dense columns and category ids, all its splits in one pass.

    Args:
        frame: with the encoding's columns, label and split.
        encoding: what its columns are.
        label: its label.
        split: the column that names the split.

    Returns:
        By split that has rows.

    Raises:
        UserError: with column, what is wrong, rows.
    """

    rows = frame.select(split, label, *encoding.columns)
    total = _over_batches(rows, lambda batch: look_at_columns(batch, encoding), _merged, dict)
    return {name: _account(found, encoding, label, name) for name, found in total.items()}


def look_at_columns(batch: pa.RecordBatch, encoding: Encoding) -> dict[str, _Found]:
    """What one Arrow batch shows by split: its columns are split, label, and those of the encoding."""
    names = batch.column(0).to_numpy(zero_copy_only=False)
    labels = batch.column(1).to_numpy(zero_copy_only=False).astype(np.float64)
    columns = [each.to_numpy(zero_copy_only=False).astype(np.float64) for each in batch.columns[2:]]
    cells = np.stack(columns, axis=1)
    sizes = np.array([encoding.sizes.get(name, np.inf) for name in encoding.columns])
    least = np.where(np.isinf(sizes), -np.inf, 0)
    bad = ~np.isfinite(cells) | (cells < least) | (cells >= sizes)
    return {
        str(name): _of_columns(labels[names == name], cells[names == name], bad[names == name]) for name in set(names)
    }


def _of_columns(labels: _Numbers, cells: _Numbers, bad: npt.NDArray[np.bool_]) -> _Found:
    found = _of_labels(labels)
    found.low = np.where(bad, np.inf, cells).min(axis=0)
    found.high = np.where(bad, -np.inf, cells).max(axis=0)
    found.named = (~bad).sum(axis=0).astype(np.float64)
    return found


def _merged(one: dict[str, _Found], other: dict[str, _Found]) -> dict[str, _Found]:
    return one | {name: one[name].add(found) if name in one else found for name, found in other.items()}


def _account(total: _Found, encoding: Encoding, label: str, split: str) -> Account:
    """One split's account."""
    _refuse_labels(label, total, split)
    assert total.low is not None and total.high is not None and total.named is not None
    constants = []
    for at, name in enumerate(encoding.columns):
        if bad := total.rows - int(total.named[at]):
            size = encoding.sizes.get(name)
            what = "NaN, infinite or missing" if size is None else f"no ids from 0 to {size - 1:,}"
            raise UserError(
                f"{name}: {bad:,} of {total.rows:,} rows of {split} are {what}", "headrace featurize-ctr anew"
            )
        if total.low[at] == total.high[at]:
            constants.append(name)
    return Account(total.rows, _classes(total.labels), tuple(constants))
