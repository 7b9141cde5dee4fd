"""The order of samples: a pure function of (row groups, seed, epoch, lanes), never of the number of ranks.

The row groups of a pinned table version are permuted by (seed, epoch) and laid end to end. The row sequence is cut into
`lanes` ranges of equal length (their lengths differ by one row at most, and only in the remainder); inside a group the
rows are permuted by (seed, epoch, group). A group on a border is read by both lanes. A global batch is `batch_size /
lanes` rows of every lane, in lane order; rank r serves lanes r, r + size, r + 2 size, ....

Permutations are sorts of splitmix64 keys, not a library's generator: the order is the same under every version of
numpy and on every machine. Nothing is read here; numpy is all it needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headrace.catalog.fingerprint import splitmix64
from headrace.errors import UserError

Int64Array = npt.NDArray[np.int64]

REMAINDERS = ("drop", "pad", "wrap")
_GROUP_ORDER, _ROW_ORDER = 1, 2
_MASK = (1 << 64) - 1


def permutation(n: int, *seed: int) -> Int64Array:
    """A permutation of range(n), [n] int64, that depends on the integers of `seed` only.

    Element i gets the key splitmix64(base + i), its low bits replaced by i; the sorted keys' low bits are the
    permutation. Keys are distinct, so every correct sort gives the same one.
    """
    base = 0
    for part in seed:
        base = int(splitmix64(np.array([(base ^ part) & _MASK], dtype=np.uint64))[0])
    index = np.arange(n, dtype=np.uint64)
    low = np.uint64((1 << max(1, (n - 1).bit_length())) - 1)
    keys = (splitmix64(index + np.uint64(base)) & ~low) | index
    keys.sort()
    return (keys & low).astype(np.int64)


def check_shares(batch_size: int, lanes: int) -> None:
    """Refuse a batch that lanes cannot share equally.

    Raises:
        UserError: with the nearest that can be.
    """
    if lanes < 1 or lanes & (lanes - 1):
        lower = 1 << max(0, lanes.bit_length() - 1)
        raise UserError(f"data.lanes is {lanes}, not a power of two", f"set data.lanes to {lower}")
    if batch_size < 1 or batch_size % lanes:
        raise UserError(
            f"a batch of {batch_size} rows cannot be shared equally by {lanes} lanes",
            f"set the batch size to {max(1, round(batch_size / lanes)) * lanes}"
            + (f", or data.lanes to {batch_size & -batch_size}" if batch_size > 0 else ""),
        )


@dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """What fixes the order of samples for every epoch.

    Args:
        group_rows: rows of every row group, in the order of the pinned file list; zeros are allowed.
        batch_size: rows of a global batch, over all ranks; a multiple of `lanes`.
        lanes: a power of two; the most ranks that can ever serve this run. Kept with the run.
        seed: of every permutation.
        remainder: what becomes of the last rows, fewer than one global batch: "drop" (left out of training, still read
            for the audit), "pad" (a last batch with a mask), "wrap" (a last batch filled up from the epoch's start).
        shuffle: False keeps groups and rows in the table's own order (validation, test).
    """

    group_rows: tuple[int, ...]
    batch_size: int
    lanes: int = 16
    seed: int = 0
    remainder: str = "drop"
    shuffle: bool = True

    def __post_init__(self) -> None:
        check_shares(self.batch_size, self.lanes)
        if self.remainder not in REMAINDERS:
            raise UserError(f"data.remainder is {self.remainder!r}", f"choose one of {', '.join(REMAINDERS)}")
        assert all(rows >= 0 for rows in self.group_rows)

    @property
    def rows(self) -> int:
        """Rows of the table version."""
        return sum(self.group_rows)

    @property
    def lane_batch(self) -> int:
        """Rows a lane gives to every global batch."""
        return self.batch_size // self.lanes

    @property
    def steps(self) -> int:
        """Global batches of an epoch, the same on every rank."""
        full, rest = divmod(self.rows, self.batch_size)
        return full + (rest > 0 and self.remainder != "drop")

    @property
    def dropped(self) -> int:
        """Rows of an epoch that are in no batch: fewer than one batch, none unless `remainder` is "drop"."""
        return self.rows % self.batch_size if self.remainder == "drop" else 0

    @property
    def filled(self) -> int:
        """Places of the last batch that hold no row of their own: masked ("pad") or repeated rows ("wrap")."""
        return self.steps * self.batch_size + self.dropped - self.rows

    def lanes_of(self, rank: int, size: int) -> range:
        """The lanes that `rank` of `size` serves.

        Raises:
            UserError: more ranks than lanes.
        """
        if size > self.lanes:
            raise UserError(
                f"{size} ranks cannot share {self.lanes} lanes: some would have no rows",
                f"set data.lanes to {1 << (size - 1).bit_length()} or use at most {self.lanes} ranks",
            )
        assert 0 <= rank < size
        return range(rank, self.lanes, size)


@dataclass(frozen=True)
class Read:
    """One visit of a row group: places [start, stop) of its permuted order go to `lane`, from `step` on."""

    step: int
    lane: int
    group: int
    start: int
    stop: int


@dataclass(frozen=True)
class EpochPlan:
    """One epoch's order. Cheap to make: O(row groups), no row is touched."""

    spec: PlanSpec
    epoch: int
    _order: Int64Array = field(init=False, repr=False, compare=False)
    _ends: Int64Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        count = len(self.spec.group_rows)
        shuffled = permutation(count, self.spec.seed, self.epoch, _GROUP_ORDER)
        order = shuffled if self.spec.shuffle else np.arange(count, dtype=np.int64)
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_ends", np.cumsum(np.array(self.spec.group_rows, dtype=np.int64)[order]))

    def lane_rows(self, lane: int) -> range:
        """The lane's range of positions in the epoch's row sequence: whole batches, then its share of the remainder."""
        full, rest = divmod(self.spec.rows, self.spec.batch_size)
        bounds = [i * full * self.spec.lane_batch + rest * i // self.spec.lanes for i in (lane, lane + 1)]
        return range(bounds[0], bounds[1])

    def lane_wrap(self, lane: int) -> range:
        """The places the lane fills with rows of the epoch's start (`place % rows`); empty unless "wrap"."""
        if self.spec.remainder != "wrap" or not self.spec.filled:
            return range(0)
        rest = self.spec.rows % self.spec.batch_size
        bounds = [i * self.spec.lane_batch - rest * i // self.spec.lanes for i in (lane, lane + 1)]
        return range(bounds[0], bounds[1])

    def taken(self, lane: int, step: int) -> int:
        """Rows (not masked ones) that `lane` gives to the batch of `step`."""
        if self.spec.remainder != "pad" or step < self.spec.rows // self.spec.batch_size:
            return self.spec.lane_batch
        return max(0, min(self.spec.lane_batch, len(self.lane_rows(lane)) - step * self.spec.lane_batch))

    def reads(self, rank: int, size: int, start_step: int = 0) -> list[Read]:
        """Every visit of a row group that `rank` makes from `start_step` on, in the order its batches need them.

        A group without a row for this rank is not visited. Dropped rows are visited last, for the audit.
        """
        assert 0 <= start_step <= self.spec.steps
        reads: list[Read] = []
        for lane in self.spec.lanes_of(rank, size):
            reads += self._lane_reads(lane, start_step * self.spec.lane_batch)
        return sorted(reads, key=lambda read: (read.step, read.lane))  # stable: a lane's own order stays

    def row_order(self, group: int) -> Int64Array:
        """The group's rows in the epoch's order: [rows] int64, place -> row of the group."""
        return row_order(self.spec, self.epoch, group)

    def _lane_reads(self, lane: int, first: int) -> list[Read]:
        """The lane's visits from its place `first` on."""
        own, wrapped = self.lane_rows(lane), self.lane_wrap(lane)
        reads = self._cut(lane, first, own[first:])
        place, start = max(first, len(own)), wrapped.start + max(0, first - len(own))
        while start < wrapped.stop:  # one turn for each time the table is gone through
            begin = start % self.spec.rows
            count = min(wrapped.stop - start, self.spec.rows - begin)
            reads += self._cut(lane, place, range(begin, begin + count))
            place, start = place + count, start + count
        return reads

    def _cut(self, lane: int, place: int, positions: range) -> list[Read]:
        """Cut a range of positions, whose first is the lane's `place`, at the borders of the row groups."""
        reads: list[Read] = []
        position, at = positions.start, int(np.searchsorted(self._ends, positions.start, side="right"))
        while position < positions.stop:
            group, end = int(self._order[at]), int(self._ends[at])
            begin, stop = end - self.spec.group_rows[group], min(end, positions.stop)
            if stop > position:
                reads.append(Read(place // self.spec.lane_batch, lane, group, position - begin, stop - begin))
            place, position, at = place + stop - position, stop, at + 1
        return reads


def row_order(spec: PlanSpec, epoch: int, group: int) -> Int64Array:
    """The rows of `group` in the order of `epoch`: [rows] int64. O(rows log rows); for workers, which need no plan."""
    rows = spec.group_rows[group]
    if not spec.shuffle:
        return np.arange(rows, dtype=np.int64)
    return permutation(rows, spec.seed, epoch, _ROW_ORDER, group)


def fingerprint(mixed: npt.NDArray[np.uint64], places: npt.NDArray[np.int64]) -> int:
    """An ordered hash of rows: sum of splitmix64(splitmix64(key) xor splitmix64(not place)) modulo 2^64.

    Args:
        mixed: [n] splitmix64 of the row keys.
        places: [n] where each stands in the epoch: step * batch_size + place in the global batch.

    Returns:
        A number in [0, 2^64). Those of several ranks (or steps) add up, modulo 2^64, to that of the whole.
    """
    return int(splitmix64(mixed ^ splitmix64(~places)).sum(dtype=np.uint64))
