"""Dense ids for nodes that have integer ids.

    dense id of a node = its rank among the nodes of its type            (of a later generation: nodes known + its rank
                                                                          among those that are new)

Ranks come from a range-partitioned sort: the distinct ids of a range are sorted in one task, the ranges before it add
their counts (a prefix sum over one number a range).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.features.graph_blocks import Ranges, quantiles, split
from headrace.features.graph_edges import Edges, Sample, chunks, sides_of
from headrace.features.graph_exchange import WRITTEN_DDL, BlockWriter, Exchange, over, written_batch
from headrace.features.graph_files import EdgeArrays

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

I64 = npt.NDArray[np.int64]

NODES = -1  # `type` of a block of nodes: ids, their codes
SEEN = -2  # of ids that edges or rows name
_NODES_DDL = "id bigint, node_type string, original bigint"
_RANK_BITS = 40


def id_ranges(edges: Edges, sampled: Sample, others: Mapping[str, int], part_edges: int) -> dict[str, Ranges]:
    """Ranges of original ids by node type, of about `part_edges` edges each.

    Args:
        edges: the edges.
        sampled: of them.
        others: node types with ids from elsewhere (features, labels), and how many.
        part_edges: edges that a task holds.
    """
    ranges: dict[str, Ranges] = {}
    seen = sides_of(sampled, edges)
    first = 0
    for name in sorted({*edges.node_types, *others}):
        typed = zip(edges.types, edges.counts, strict=True)
        ends = sum(count * (edge.source, edge.target).count(name) for edge, count in typed)
        parts = -(-max(ends // 2, others.get(name, 0)) // part_edges)
        ids, counts = seen.get(name, (np.empty(0, np.int64),) * 2)
        ranges[name] = Ranges(first, quantiles(ids, parts, counts))
        first += ranges[name].count
    return ranges


def scatter(
    edges: Edges, others: DataFrame | None, known: DataFrame | None, ranges: Mapping[str, Ranges], folder: str
) -> Exchange:
    """Edges by the range of their target, and every id that has a dense one or needs one by its range.

    Args:
        edges: whose ends are nodes.
        others: node_type string, id bigint: nodes that features or labels name.
        known: node_type string, original bigint, id bigint: nodes that have their dense ids.
        ranges: by node type.
        folder: for the blocks.
    """
    ends = [(ranges[edge.source], ranges[edge.target]) for edge in edges.types]
    written = edges.source.each(edges.columns, partial(_scatter_edges, ends, folder), WRITTEN_DDL)
    for frame, is_known in ((others, False), (known, True)):
        if frame is not None:
            act = partial(_scatter_ids, dict(ranges), is_known, folder)
            written = written.unionAll(frame.mapInArrow(act, WRITTEN_DDL))
    return Exchange.of(written.toArrow())


def _scatter_edges(ends: list[tuple[Ranges, Ranges]], folder: str, edges: EdgeArrays) -> Iterator[pa.RecordBatch]:
    out = BlockWriter(folder)
    for number, (src, dst, *more) in edges:
        sources, targets = ends[number]
        for part, arrays in split(targets.parts(dst), (src, dst, *more)):
            out.add(part, number, arrays)
        ids = _distinct(src)
        for part, cut in _homes(sources, ids):
            out.add(part, SEEN, (ids[cut],))
    yield written_batch(out.close())


def _scatter_ids(
    ranges: dict[str, Ranges], known: bool, folder: str, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    out = BlockWriter(folder)
    for chunk in chunks(batches):
        names = chunk.column(0).combine_chunks().dictionary_encode()
        codes = names.indices.to_numpy()
        for code, name in enumerate(names.dictionary.to_pylist()):
            ids = chunk.column(1).to_numpy()[codes == code]
            if known:
                ids, dense = _ordered(ids, chunk.column(2).to_numpy()[codes == code])
                for part, cut in ranges[name].slices(ids):
                    out.add(part, NODES, (ids[cut], dense[cut]))
            else:
                ids = _distinct(ids)
                for part, cut in _homes(ranges[name], ids):
                    out.add(part, SEEN, (ids[cut],))
    yield written_batch(out.close())


def _distinct(ids: I64) -> I64:
    """Ascending. Hashing first is cheaper than sorting what is there several times."""
    found: I64 = np.sort(pa.array(ids).unique().to_numpy())
    return found


def _homes(ranges: Ranges, ids: I64) -> Iterator[tuple[int, slice]]:
    """Where the ids of each part lie in ascending, distinct ones; one with several parts comes in its first only."""
    done = 0
    for part, cut in ranges.slices(ids):
        if cut.stop > done:
            yield part, slice(max(cut.start, done), cut.stop)
        done = max(done, cut.stop)


def _ordered(ids: I64, dense: I64) -> tuple[I64, I64]:
    order = np.argsort(ids, kind="stable")
    return ids[order], dense[order]


@dataclass(frozen=True)
class Nodes:
    """All nodes of a graph, where each part of its ids finds them, beside the edges whose sources lie in that part.

    A task that numbers a part does not know how many nodes the parts before it have, so what it writes is

        code of a node = its dense id                                          where it had one before
                         (1 + its first part) * 2^40 + its rank among the new ones there

    Args:
        exchange: blocks of nodes (ids, codes) and of edges (source's id, target's code, weight, place), by part.
        ranges: by node type.
        starts: dense id of the first new node of each part.
        totals: nodes by type.
    """

    exchange: Exchange
    ranges: dict[str, Ranges]
    starts: dict[int, int]
    totals: dict[str, int]

    def dense(self, codes: I64) -> I64:
        """Dense ids of codes."""
        shift = np.zeros(len(self.starts) + 1, np.int64)
        for part, start in self.starts.items():
            shift[part + 1] = ((part + 1) << _RANK_BITS) - start
        found: I64 = codes - shift[codes >> _RANK_BITS]
        return found


def number_nodes(
    spark: SparkSession,
    edges: Edges,
    scattered: Exchange,
    ranges: Mapping[str, Ranges],
    known: Mapping[str, int],
    sampled: Sample,
    folder: str,
) -> tuple[Nodes, Sample]:
    """Number the nodes part by part, and give the edges' targets their codes.

    Args:
        spark: the session.
        edges: what they are.
        scattered: by `scatter`.
        ranges: by node type.
        known: nodes by type that have dense ids already; new ones come behind.
        sampled: edges of which the dense ids are wanted.
        folder: for the blocks.

    Returns:
        The nodes, and the sample by dense ids.
    """
    wanted = {name: np.unique(ids) for name, (ids, _) in sides_of(sampled, edges).items()}
    asked = {part: ids[cut] for name, ids in wanted.items() for part, cut in _homes(ranges[name], ids)}
    sources = [ranges[edge.source] for edge in edges.types]
    range_of = {part: parts for parts in ranges.values() for part in range(parts.first, parts.first + parts.count)}

    def act(part: int) -> Iterator[pa.RecordBatch]:
        return _number_part(part, scattered, range_of[part], sources, asked.get(part, np.empty(0, np.int64)), folder)

    ddl = f"{WRITTEN_DDL}, part int, nodes bigint, codes binary"
    results = over(spark, sorted(range_of), act, ddl).toArrow()
    found = {row["part"]: row for row in results.select(["part", "nodes", "codes"]).to_pylist()}
    starts, totals = offsets({part: row["nodes"] for part, row in found.items()}, ranges, known)
    nodes = Nodes(Exchange.of(results), dict(ranges), starts, totals)
    codes = {part: np.frombuffer(row["codes"], np.int64) for part, row in found.items()}
    return nodes, _dense_sample(sampled, edges, nodes, wanted, codes)


def _number_part(
    part: int, scattered: Exchange, ranges: Ranges, sources: list[Ranges], asked: I64, folder: str
) -> Iterator[pa.RecordBatch]:
    blocks = scattered.read(part)
    empty = np.empty(0, np.int64)
    known = _ordered(*blocks.pop(NODES, (empty, empty))[:2])
    seen = [blocks.pop(SEEN, (empty,))[0]]
    targets = {number: pa.array(arrays[1]).dictionary_encode() for number, arrays in blocks.items()}
    seen += [encoded.dictionary.to_numpy() for encoded in targets.values()]
    ids, codes, new = _code(part, ranges, _distinct(np.concatenate(seen)), *known)
    out = BlockWriter(folder)
    out.add(part, NODES, (ids, codes))
    for number, (src, _, *more) in blocks.items():
        dst = _taken(targets.pop(number), ids, codes)
        for to, arrays in split(sources[number].parts(src), (src, dst, *more)):
            out.add(to, number, arrays)
    answer = {"part": pa.array([part], pa.int32()), "nodes": pa.array([new])}
    yield written_batch(out.close(), answer | {"codes": pa.array([codes[_places(ids, asked)].tobytes()])})


def _code(part: int, ranges: Ranges, seen: I64, known: I64, dense: I64) -> tuple[I64, I64, int]:
    """A part's nodes, ascending, their codes, and how many of them are new and its own."""
    fresh = seen[~among(seen, known)]
    shared = ranges.shared(part)
    if shared is not None:
        fresh = fresh[fresh != shared]
    codes = np.arange(len(fresh)) + ((part + 1) << _RANK_BITS)
    ids, codes = np.concatenate([known, fresh]), np.concatenate([dense, codes])
    if shared is not None and shared not in known:  # the only one of its first part
        ids, codes = np.append(ids, shared), np.append(codes, (ranges.first_of(shared) + 1) << _RANK_BITS)
    return *_ordered(ids, codes), len(fresh)


def among(values: I64, ordered: I64) -> npt.NDArray[np.bool_]:
    """Which values are in ascending ones?"""
    if not len(ordered):
        return np.zeros(len(values), bool)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[places] == values


def look_up(values: I64, ids: I64, numbers: I64) -> I64:
    """The numbers of values, each of which is in `ids` (ascending)."""
    return _taken(pa.array(values).dictionary_encode(), ids, numbers)


def _taken(encoded: pa.DictionaryArray, ids: I64, numbers: I64) -> I64:
    """As `look_up`, of values that are encoded: each distinct one is searched for once."""
    found: I64 = numbers[_places(ids, encoded.dictionary.to_numpy())][encoded.indices.to_numpy()]
    return found


def _places(ids: I64, values: I64) -> npt.NDArray[np.intp]:
    """Where distinct values stand in ascending ids: searched in order, which walks through them and does not jump."""
    order = np.argsort(values)
    ordered = values[order]
    found = np.searchsorted(ids, ordered)
    assert len(ids) or not len(values)
    assert (ids[found] == ordered).all(), "an edge's end is not among the nodes"
    places = np.empty(len(values), np.intp)
    places[order] = found
    return places


def offsets(
    new: Mapping[int, int], ranges: Mapping[str, Ranges], known: Mapping[str, int]
) -> tuple[dict[int, int], dict[str, int]]:
    """The dense id of the first new node of each part, and the nodes of each type.

    Args:
        new: new nodes by part.
        ranges: by node type.
        known: nodes by type that have ids already; new ones come behind.
    """
    starts, totals = {}, {}
    for name, parts in ranges.items():
        total = known.get(name, 0)
        for part in range(parts.first, parts.first + parts.count):
            starts[part] = total
            total += new[part]
        totals[name] = total
    return starts, totals


def _dense_sample(
    sampled: Sample, edges: Edges, nodes: Nodes, wanted: Mapping[str, I64], codes: Mapping[int, I64]
) -> Sample:
    """The sampled edges by dense ids, from the codes of the ids that were asked for, part by part."""
    dense = {}
    for name, ids in wanted.items():
        dense[name] = nodes.dense(np.concatenate([codes[part] for part, _ in _homes(nodes.ranges[name], ids)]))
    found = {}
    for number, (src, dst, count) in sampled.items():
        source, target = edges.types[number].source, edges.types[number].target
        ends = look_up(src, wanted[source], dense[source]), look_up(dst, wanted[target], dense[target])
        found[number] = (*ends, count)
    return found


def new_nodes(spark: SparkSession, nodes: Nodes) -> DataFrame:
    """The new nodes: id bigint (dense), node_type string, original bigint."""
    name_of = {
        part: name for name, parts in nodes.ranges.items() for part in range(parts.first, parts.first + parts.count)
    }

    def act(part: int) -> Iterator[pa.RecordBatch]:
        ids, codes = nodes.exchange.read(part, (NODES,))[NODES][:2]
        mine = codes >> _RANK_BITS == part + 1
        columns = [nodes.dense(codes[mine]), pa.repeat(name_of[part], int(mine.sum())), ids[mine]]
        yield pa.RecordBatch.from_arrays([pa.array(c) for c in columns], ["id", "node_type", "original"])

    return over(spark, sorted(name_of), act, _NODES_DDL)
