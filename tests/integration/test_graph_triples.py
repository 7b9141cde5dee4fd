"""An array of triples with many relations, as WikiKG90Mv2 is: read, joined in one adjacency, walked by every verb."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from integration.graph_lake import results

from headrace.catalog.delta import ensure, read
from headrace.catalog.scratch import FOLDER
from headrace.catalog.spec import load
from headrace.data.stream import DataConfig, Stream
from headrace.errors import UserError
from headrace.features import graph_relations, triple_negatives
from headrace.features.csr import EdgeType, manifest, open_csr
from headrace.features.negatives import Known, Negatives, Options, Triples
from headrace.features.neighbourhoods import open_rows
from headrace.pipelines import featurize_graph, ingest_graph, rank_graph, sample_graph, sample_negatives
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")
NODES, RELATIONS = 200, 12
LAYOUTS: tuple[dict[str, Any], ...] = ({"shard_edges": 700}, {"shard_edges": 100_000, "relations": "separate"})
I64 = npt.NDArray[np.int64]


run = partial(results, graph="wiki")


@pytest.fixture(scope="module", autouse=True)
def _few_relations_are_many() -> Iterator[None]:
    """Relations are joined by themselves above 64, which take long to keep apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_relations, "MAX_SEPARATE", RELATIONS - 1)
        yield


@pytest.fixture(scope="module")
def triples() -> dict[str, I64]:
    """Both splits, with repeated triples, self-loops, and pairs that several relations join."""
    rng = np.random.default_rng(8)
    sizes = {"train": 6_000, "valid": 300}
    return {
        name: np.stack([rng.integers(0, limit, count) for limit in (40, RELATIONS, NODES)], axis=1)
        for name, count in sizes.items()
    }


@pytest.fixture(scope="module")
def lake(spark: SparkSession, triples: dict[str, I64], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wiki")
    (folder / "processed").mkdir()
    for name, array in triples.items():
        np.save(folder / "processed" / f"{name}_hrt.npy", array.astype(np.int32))
    np.save(folder / "processed" / "entity_feat.npy", np.ones((NODES, 2), np.float16))
    np.save(folder / "processed" / "relation_feat.npy", np.ones((RELATIONS, 2), np.float16))
    lake = folder / "lake"
    _tables_of_before(spark, lake)
    out = io.StringIO()
    cfg = ingest_graph.Config(lake=str(lake), graph="wiki", source=str(folder / "processed"), format="ogb")
    found = ingest_graph.run(spark, cfg, Report("ingest-graph", out=out)).results
    assert found["rows_committed"] == 6_300 + NODES and "relation_feat.npy" in out.getvalue()
    return lake


def _tables_of_before(spark: SparkSession, lake: Path) -> None:
    """As they were created before relations could be joined: without the columns for that."""
    for name in ("gold/graph_csr", "gold/graph_manifest"):
        spec = load(name)
        ensure(spark, replace(spec, columns=tuple(c for c in spec.columns if c.name != "relations")), lake)


def triples_of(lake: Path, split: str, direction: str = "out") -> tuple[list[tuple[int, int, int]], tuple[str, ...]]:
    table = open_csr(lake, "wiki", EdgeType("node", "*", "node", split), direction)
    csr = table.whole()
    assert csr.relations is not None and table.num_nodes == table.num_targets == NODES
    row = np.repeat(np.arange(NODES), np.diff(csr.indptr))
    return list(zip(row.tolist(), csr.relations.tolist(), csr.indices.tolist(), strict=True)), table.relations


@pytest.mark.parametrize("ids", ["dense", pytest.param("renumber", marks=pytest.mark.campaign)])
def test_one_adjacency_a_split_and_direction(
    spark: SparkSession, lake: Path, triples: dict[str, I64], ids: str
) -> None:
    made = run(featurize_graph, spark, lake, ids=ids, direction="both", shard_edges=700)
    assert made["nodes"] == {"node": NODES} and made["adjacencies"] == 4
    for name, split in (("train", "train"), ("valid", "validation")):
        head, relation, tail = np.unique(triples[name], axis=0).T
        for direction, row, column in (("out", head, tail), ("in", tail, head)):
            found, names = triples_of(lake, split, direction)
            assert names == tuple(sorted(str(number) for number in range(RELATIONS))), "the same in all splits"
            wanted = zip(row.tolist(), column.tolist(), [names.index(str(r)) for r in relation], strict=True)
            assert found == [(r, n, c) for r, c, n in sorted(wanted)]
        (part,) = (r for r in manifest(lake, "wiki") if r["split"] == split and r["direction"] == "out")
        assert part["counts"]["read"] == len(triples[name])
        assert part["counts"]["merged"] == len(triples[name]) - len(head)
    bytes_of_offsets = sum(
        8 * (info.num_nodes + 1) for info in open_csr(lake, "wiki", EdgeType(relation="*", split="train")).shards
    )
    assert bytes_of_offsets < 2 * NODES * 8, "offsets once, not once a relation"


@pytest.mark.campaign
def test_relations_kept_apart_hold_the_same(spark: SparkSession, lake: Path, triples: dict[str, I64]) -> None:
    run(featurize_graph, spark, lake, ids="dense", direction="both", shard_edges=700)
    joined, names = triples_of(lake, "validation")
    made = run(featurize_graph, spark, lake, ids="dense", relations="separate", shard_edges=700)
    assert made["adjacencies"] == len(np.unique(triples["train"][:, 1])) + len(np.unique(triples["valid"][:, 1]))
    apart = []
    for number, name in enumerate(names):
        if name in {str(r) for r in triples["valid"][:, 1]}:
            csr = open_csr(lake, "wiki", EdgeType("node", name, "node", "validation")).whole()
            assert csr.relations is None
            row = np.repeat(np.arange(NODES), np.diff(csr.indptr))
            apart += [(h, number, t) for h, t in zip(row.tolist(), csr.indices.tolist(), strict=True)]
    assert sorted(apart) == sorted(joined)


def test_verbs_follow_all_relations(spark: SparkSession, lake: Path, triples: dict[str, I64]) -> None:
    run(featurize_graph, spark, lake, ids="dense", shard_edges=700, degrees=True)
    edges = "node-*-node:train"
    assert run(rank_graph, spark, lake, edges=edges)["nodes"] == NODES
    run(sample_graph, spark, lake, edges=edges, fanouts="5", splits="none")
    ends = {(h, t) for h, _, t in triples["train"].tolist()}
    for row in read(spark, load("gold/graph_neighbourhoods"), lake).collect():
        assert all((row["key"], n) in ends for n in row["n1"] if n >= 0)
    degrees = read(spark, load("gold/graph_degrees"), lake).where("split = 'train' AND direction = 'out'").collect()
    wanted = np.bincount(np.unique(triples["train"], axis=0)[:, 0], minlength=NODES)
    assert {row["id"]: row["degree"] for row in degrees} == dict(enumerate(wanted.tolist()))


@pytest.mark.parametrize("layouts", [LAYOUTS[:1], pytest.param(LAYOUTS, marks=pytest.mark.campaign)])
def test_negatives_are_the_same_whatever_the_shards_and_relations_layout(
    spark: SparkSession, lake: Path, triples: dict[str, I64], layouts: Sequence[dict[str, Any]]
) -> None:
    """The same as are drawn in memory, and so the same as with any other layout."""
    settings: dict[str, Any] = {"per_triple": 4, "known": "train,validation", "epochs": "1-2", "seed": 5}
    found = []
    for layout in layouts:
        run(featurize_graph, spark, lake, ids="dense", **layout)
        made = run(sample_negatives, spark, lake, entities="degree", **settings)
        assert made["triples"] == len(np.unique(triples["train"], axis=0))
        rows = read(spark, load("gold/graph_negatives"), lake).where("epoch = 2").toPandas()
        found.append(rows.sort_values("key"))
    assert found[0]["key"].is_unique and not (lake / FOLDER).exists()
    for name in ("key", *NEGATIVE_COLUMNS):
        one, *others = (np.stack(rows[name].to_numpy()) for rows in found)
        assert all(np.array_equal(one, other) for other in others), name
    names = sorted(str(number) for number in range(RELATIONS))
    every = {(h, names.index(str(r)), t) for split in ("train", "valid") for h, r, t in triples[split].tolist()}
    ordered = np.array(sorted({(h, names.index(str(r)), t) for h, r, t in triples["train"].tolist()}))
    mine = Triples(*ordered.T.copy())
    options = Options(NODES, RELATIONS, 4, entities="degree")
    drawer = Negatives.of(mine, options, Known(Triples(*np.array(sorted(every)).T.copy()), options))
    drawn, at_head = drawer.draw(mine, 5, 2), drawer.at_head(mine, 5, 2)
    rows = found[0].sort_values(["head", "relation", "tail"])
    assert np.array_equal(rows[["head", "relation", "tail"]], ordered)
    assert np.array_equal(np.stack(rows["negative"]), np.where(at_head, drawn.head, drawn.tail))
    assert np.array_equal(np.stack(rows["side"]), np.where(at_head, 0, 1))
    for head, relation, tail, sides, ends in zip(*(rows[n] for n in NEGATIVE_COLUMNS), strict=True):
        for side, end in zip(sides, ends, strict=True):
            assert ((end, relation, tail) if side == 0 else (head, relation, end)) not in every


NEGATIVE_COLUMNS = ("head", "relation", "tail", "side", "negative")


def test_negatives_are_streamed(spark: SparkSession, lake: Path) -> None:
    run(featurize_graph, spark, lake, ids="dense")
    settings: dict[str, Any] = {"per_triple": 3, "sides": "uniform", "filtered": False, "negatives": "plain"}
    run(sample_negatives, spark, lake, splits="validation", **settings)
    pinned = open_rows(lake, {"graph": "wiki", "negatives": "plain", "split": "validation"}, "gold/graph_negatives")
    stream = Stream(pinned, DataConfig(lanes=1), batch_size=64)
    batch = next(iter(stream.epoch(0)))
    assert tuple(batch.tensors["negative"].shape) == tuple(batch.tensors["side"].shape) == (64, 3)
    assert batch.tensors["head"].shape == (64,)
    stream.close()


def test_what_cannot_be_drawn_is_said(spark: SparkSession, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, match in (
        ({"splits": "test"}, "no triple of --splits test"),
        ({"sides": "left"}, "sides"),
        ({"known": "trian"}, "--known: 'trian'"),
        ({"node_type": "paper"}, "no edges within node type 'paper'"),
        ({"per_triple": 0}, "1 or more"),
    ):
        with pytest.raises(UserError, match=match):
            sample_negatives.early(sample_negatives.Config(lake=str(lake), graph="wiki", **settings))
    monkeypatch.setattr(triple_negatives, "MAX_TRIPLES", 10)
    with pytest.raises(UserError, match="--sides uniform"):
        run(sample_negatives, spark, lake)
