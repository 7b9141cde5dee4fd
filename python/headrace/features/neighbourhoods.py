"""Sampled k-hop neighbourhoods of seed nodes as rows of fixed width, so that training streams them.

    frontier 0 = seeds;  frontier h = the sampled neighbours of frontier h-1, each with its slot
    row of a seed = label, n1 [k1], n2 [k1 k2], ...: slot s of a hop hangs on slot s // k of the hop before; -1: none

Spark moves frontiers to the shards of the adjacency, range by range of (shard, seed): a shard that holds a hub, or much
of the frontier, is served by several tasks, each of which reads it. What is drawn is a pure function of seed, epoch,
hop and node (features/sampling.py), so rows do not depend on partitions; a last shuffle brings a seed's slots together,
in the file and the order in which they are written. Nothing is broadcast; a task holds a shard and a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headrace.catalog.delta import pin
from headrace.catalog.scratch import kept
from headrace.catalog.spec import TableSpec, TensorSpec, load
from headrace.errors import UserError
from headrace.features import hashing
from headrace.features.node_blocks import Adjacency
from headrace.features.sampling import NONE, Draw
from headrace.features.shard_sampling import ShardSampler

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame

    from headrace.catalog.pinned import PinnedTable

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

TABLE = "gold/graph_neighbourhoods"
MAX_HOPS = 4
MAX_SLOTS = 100_000
SPLITS = ("none", "train", "validation", "test")
"""By their codes in gold/graph_labels."""
FRONTIER = "seed bigint, split int, hop int, slot int, node bigint, shard int"


@dataclass(frozen=True)
class Plan:
    """What is sampled, and how its rows are laid out.

    Args:
        fanouts: neighbours by hop.
        seed: of the draws and of the order of rows.
        epoch: other neighbours in each.
        edge_type: number of the edge type, part of the draw.
        replace: draw with replacement.
        weighted: draw by weight.
        dim: width of the features that are averaged by hop; 0: ids only.
        files: files by split code.
    """

    fanouts: tuple[int, ...]
    seed: int = 0
    epoch: int = 0
    edge_type: int = 0
    replace: bool = False
    weighted: bool = False
    dim: int = 0
    files: tuple[int, ...] = (1, 1, 1, 1)

    def check(self) -> None:
        """Raise UserError where the settings make no sense."""
        if not 1 <= len(self.fanouts) <= MAX_HOPS:
            raise UserError(f"--fanouts names {len(self.fanouts)} hops, not 1 to {MAX_HOPS}", "for example 15,10")
        if min(self.fanouts) < 1:
            raise UserError("--fanouts: a row has a fixed width, so a hop cannot take all neighbours", "give a number")
        if self.replace and self.weighted:
            raise UserError("--replace and --weighted: by weight is without replacement", "leave one out")
        if sum(self.widths) > MAX_SLOTS:
            raise UserError(f"--fanouts makes rows of {sum(self.widths):,} slots", f"stay under {MAX_SLOTS:,}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Slots of each hop: k1, k1 k2, ..."""
        return tuple(prod(self.fanouts[: hop + 1]) for hop in range(len(self.fanouts)))

    def draw(self, hop: int) -> Draw:
        """Of a hop, from 0."""
        return Draw(self.seed, self.epoch, hop, self.edge_type)


def seed_rows(shards: Iterable[Mapping[str, Any]], wanted: Sequence[int]) -> Iterator[pa.RecordBatch]:
    """Rows of gold/graph_labels as seeds: seed, split, label; of the split codes wanted."""
    import pyarrow

    for shard in shards:
        splits = np.asarray(shard["splits"], np.int32)
        kept = np.flatnonzero(np.isin(splits, wanted))
        columns = [shard["first_node"] + kept, splits[kept], np.asarray(shard["labels"], np.int64)[kept]]
        yield pyarrow.RecordBatch.from_arrays([pyarrow.array(c) for c in columns], ["seed", "split", "label"])


def neighbourhoods(
    seeds: DataFrame, adjacency: Adjacency, plan: Plan, work: str, features: DataFrame | None = None
) -> DataFrame:
    """The rows of seeds.

    Args:
        seeds: seed bigint, split int (code), label bigint; each seed once.
        adjacency: whose rows' neighbours are drawn.
        plan: see Plan.
        work: an empty place that all executors can write to, for the frontiers: keep it until the rows are used.
        features: node bigint, x array<float> of `plan.dim`, to average by hop.

    Returns:
        key, split, label, n1 .., and with features x0 ..; partition p holds the rows of file p, in order.
    """
    plan.check()
    from pyspark.sql import functions as F

    columns = [name.split()[0] for name in FRONTIER.split(",")]
    found = seeds.select("seed", "split", F.lit(0).alias("hop"), F.lit(0).alias("slot"), F.col("seed").alias("node"))
    found = found.mapInArrow(_shard_finder(adjacency), FRONTIER)
    hops = [seeds.select("seed", "split", F.lit(-1).alias("hop"), F.lit(0).alias("slot"), F.col("label").alias("node"))]
    for hop in range(len(plan.fanouts)):
        moved = found.repartitionByRange("shard", "seed").sortWithinPartitions("shard")
        hops.append(found.select(*columns[:-1]))
        found = kept(moved.mapInArrow(_expander(adjacency, plan, hop), FRONTIER), f"{work}/frontier-{hop + 1}")
    hops.append(found.select(*columns[:-1]))
    every = hops[0]
    for frame in hops[1:]:
        every = every.unionByName(frame)
    if features is not None:
        every = every.join(features, (every["node"] == features["node"]) & (every["hop"] >= 0), "left").drop(
            features["node"]
        )
    return _assembled(every, plan, features is not None)


def _assembled(every: DataFrame, plan: Plan, means: bool) -> DataFrame:
    """All slots of a seed side by side, in the order of the files."""
    from pyspark.sql import functions as F

    placed = every.withColumn("place", file_column(F.col("seed"), F.col("split"), plan.files, plan.seed))
    placed = placed.withColumn("order", hashing.order_column(F.col("seed"), plan.seed))
    moved = hashing.place(placed, "place", sum(plan.files))
    ordered = moved.sortWithinPartitions("split", "order", "seed", "hop", "slot")
    names = [f"n{hop + 1} array<bigint>" for hop in range(len(plan.fanouts))]
    names += [f"x{hop} array<float>" for hop in range(len(plan.fanouts) + 1)] if means else []
    result = ordered.mapInArrow(_assembler(plan, means), ", ".join(["key bigint, split int, label bigint", *names]))
    return result


def file_column(key: Column, split: Column, files: Sequence[int], seed: int) -> Column:
    """The partition that each row is written from, as `hashing.place` takes it: ranges of the order's hash by split.

    Args:
        key: bigint.
        split: code, from 0.
        files: files by split code.
        seed: of the order.
    """
    from pyspark.sql import functions as F

    first = [sum(files[:code]) for code in range(len(files))]
    of_split = F.element_at(F.array(*[F.lit(n).cast("bigint") for n in files]), split + 1)
    start = F.element_at(F.array(*[F.lit(n).cast("bigint") for n in first]), split + 1)
    high = F.shiftrightunsigned(hashing.order_column(key, seed).bitwiseXOR(F.lit(-(1 << 63)).cast("bigint")), 32)
    number = start + F.shiftrightunsigned(high * of_split, 32)  # hashing.slice_of
    where = F.array(*[F.lit(int(value)) for value in hashing.places(sum(files))])
    return F.element_at(where, (number + 1).cast("int"))


def _shard_finder(adjacency: Adjacency) -> Any:
    def find(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow

        sampler = ShardSampler(adjacency)
        for batch in batches:
            shards = sampler.shard_of(batch.column("node").to_numpy()).astype(np.int32)
            yield pyarrow.RecordBatch.from_arrays(
                [*batch.columns, pyarrow.array(shards)], [*batch.schema.names, "shard"]
            )

    return find


def _expander(adjacency: Adjacency, plan: Plan, hop: int) -> Any:
    def expand(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        sampler = ShardSampler(adjacency)
        for batch in batches:
            yield expand_batch(batch, sampler, plan, hop)

    return expand


def expand_batch(batch: pa.RecordBatch, sampler: ShardSampler, plan: Plan, hop: int) -> pa.RecordBatch:
    """The next frontier of some rows of one: a row for each neighbour drawn."""
    import pyarrow

    columns = {name: batch.column(name).to_numpy() for name in ("seed", "split", "slot", "node")}
    fanout = plan.fanouts[hop]
    found = sampler.neighbours(columns["node"], fanout, plan.draw(hop), replace=plan.replace, weighted=plan.weighted)
    row, place = np.nonzero(found != NONE)
    nodes = found[row, place]
    arrays = {
        "seed": columns["seed"][row],
        "split": columns["split"][row],
        "hop": np.full(len(row), hop + 1, np.int32),
        "slot": (columns["slot"][row] * fanout + place).astype(np.int32),
        "node": nodes,
        "shard": sampler.shard_of(nodes).astype(np.int32),
    }
    return pyarrow.RecordBatch.from_arrays([pyarrow.array(a) for a in arrays.values()], list(arrays))


def _assembler(plan: Plan, means: bool) -> Any:
    def assemble(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for table in whole_seeds(batches):
            yield assemble_rows(table, plan, means)

    return assemble


def whole_seeds(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Cut a sorted stream where seeds end: each table holds all rows of its seeds."""
    import pyarrow

    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        if not batch.num_rows:
            continue
        seeds = batch.column("seed").to_numpy()
        before = waiting[-1].column("seed")[-1].as_py() if waiting else seeds[0]
        starts = np.flatnonzero(np.concatenate([[before], seeds[:-1]]) != seeds)
        if len(starts):
            last = int(starts[-1])
            yield pyarrow.Table.from_batches([*waiting, batch.slice(0, last)])
            waiting = [batch.slice(last)]
        else:
            waiting.append(batch)
    if waiting:
        yield pyarrow.Table.from_batches(waiting)


def assemble_rows(table: pa.Table, plan: Plan, means: bool) -> pa.RecordBatch:
    """One row a seed from its slots, which stand in the order of (seed's place in the file, hop, slot).

    Hop -1 carries the label, hop 0 the seed itself.
    """
    import pyarrow

    seed, split, hop, slot, node = (table.column(n).to_numpy() for n in ("seed", "split", "hop", "slot", "node"))
    first = np.flatnonzero(hop == -1)
    row = np.cumsum(hop == -1) - 1
    assert len(first) and first[0] == 0 and (seed == seed[first][row]).all(), "a seed begins with its label"
    names, arrays = ["key", "split", "label"], [pyarrow.array(column[first]) for column in (seed, split, node)]
    for number, width in enumerate(plan.widths, start=1):
        slots = np.full((len(first), width), NONE, np.int64)
        here = hop == number
        slots[row[here], slot[here]] = node[here]
        names.append(f"n{number}")
        arrays.append(_lists(slots))
    if means:
        for number in range(len(plan.widths) + 1):
            names.append(f"x{number}")
            arrays.append(_lists(_means(table, hop == number, row, len(first), plan.dim)))
    return pyarrow.RecordBatch.from_arrays(arrays, names)


def _means(table: pa.Table, here: npt.NDArray[np.bool_], row: I64, rows: int, dim: int) -> F32:
    """Mean features [rows, dim] of the slots that are `here`, summed in their order; zeros where there is none."""
    import pyarrow

    x = table.column("x").filter(pyarrow.array(here)).combine_chunks()
    if x.null_count:
        raise UserError(f"{x.null_count} of the sampled nodes have no features", "make the graph's features again")
    flat = x.flatten().to_numpy().reshape(-1, dim)
    owner = row[here]
    total = np.zeros((rows, dim))
    if len(owner):
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        counts = np.diff(np.append(starts, len(owner)))
        total[owner[starts]] = np.add.reduceat(flat.astype(np.float64), starts, axis=0) / counts[:, None]
    return total.astype(np.float32)


def _lists(values: npt.NDArray[Any]) -> pa.ListArray:
    import pyarrow

    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(values.reshape(-1)))


def shaped(spec: TableSpec, widths: Mapping[str, int]) -> TableSpec:
    """The table's description with the widths of one sampling's list columns, each a tensor [B, width] of its name.

    Args:
        spec: of gold/graph_neighbourhoods or gold/graph_hops.
        widths: by column; list columns that are left out become no tensor.
    """
    columns = tuple(replace(c, shape=(widths[c.name],)) if c.name in widths else c for c in spec.columns)
    types = {c.name: "float32" if c.type == "array<float>" else "int64" for c in columns}
    tensors = (*spec.tensors, *(TensorSpec(name, (name,), types[name]) for name in widths))
    return replace(spec, columns=columns, tensors=tensors)


def open_rows(
    lake: str | Path, partition: Mapping[str, object], table: str = TABLE, version: int | None = None
) -> PinnedTable:
    """Pin rows of one graph to stream them, tensors shaped as they were written.

    Args:
        lake: folder of the tables.
        partition: values of partition columns; must name rows of one width: graph, sampling, epoch, split.
        table: gold/graph_neighbourhoods or gold/graph_hops.
        version: None: the newest.

    Raises:
        UserError: there are no such rows.
    """
    import pyarrow.parquet as pq

    from headrace.catalog import storage

    spec = load(table)
    pinned = pin(spec, lake, version, partition)
    if not pinned.rows:
        wanted = ", ".join(f"{name}={value}" for name, value in partition.items())
        raise UserError(f"{table} has no rows of {wanted}", "headrace sample-graph and propagate-graph make them")
    file = next(file for file in pinned.files if file.rows)
    store, _ = storage.locate(file.path)
    with store.open(file.path) as stream:
        first = next(pq.ParquetFile(stream).iter_batches(batch_size=1))
    lists = [c.name for c in spec.columns if c.type.startswith("array")]
    widths = {name: len(first.column(name)[0]) for name in lists if first.column(name)[0].is_valid}
    return replace(pinned, spec=shaped(spec, widths))
