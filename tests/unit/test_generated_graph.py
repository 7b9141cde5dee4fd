"""The generated graph against slow references and its own claims; its files read back by other readers."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from headrace.errors import UserError
from headrace.ingest import generated_graph_folder as folder
from headrace.ingest.generated_graph import SPLITS, GraphModel, QuadrantTable, Scramble, nearest_mean_accuracy, truth
from headrace.ingest.generated_graph_files import Layout, Writer, generate, settings_of
from headrace.pipelines.generate_graph import Config, early

MODEL = GraphModel(seed=3, scale=10, num_edges=20_000, communities=8, feature_dim=12)


def test_an_edge_does_not_depend_on_the_block_it_is_made_in() -> None:
    whole = MODEL.edges(0, 20_000)
    for start, stop in ((0, 1), (777, 1_001), (19_999, 20_000)):
        for here, there in zip(MODEL.edges(start, stop), whole, strict=True):
            assert here.tolist() == there[start:stop].tolist()
    assert MODEL.features(100, 200).tolist() == MODEL.features(0, 300)[100:200].tolist()
    assert MODEL.labels(100, 200).tolist() == MODEL.labels(0, 300)[100:200].tolist()


def test_seed_changes_everything() -> None:
    other = replace(MODEL, seed=4)
    assert (MODEL.edges(0, 1_000)[0] == other.edges(0, 1_000)[0]).mean() < 0.02
    assert (MODEL.communities_of(0, 1_000) == other.communities_of(0, 1_000)).mean() < 0.25


@pytest.mark.parametrize("bits", [1, 2, 7, 12])
def test_scramble_is_a_bijection(bits: int) -> None:
    scramble = Scramble(99, bits)
    x = np.arange(1 << bits, dtype=np.uint64)
    assert sorted(scramble.forward(x).tolist()) == x.tolist()
    assert scramble.backward(scramble.forward(x)).tolist() == x.tolist()


def test_sparse_ids_are_distinct_and_wide() -> None:
    ids = replace(MODEL, sparse_ids=True).ids(np.arange(1024, dtype=np.uint64))
    assert len(set(ids.tolist())) == 1024
    assert ids.min() >= 0
    assert 2**31 < ids.max() < 2**62


def test_quadrants_are_drawn_with_their_shares() -> None:
    """Every cell of the first two levels, chi-square with 15 degrees of freedom under its 0.9999 quantile."""
    model = replace(MODEL, communities=1, within=1.0, label_noise=0.0, scale=2, noise=0.15)
    source, target = model.drawn_edges(0, 200_000)
    found = Counter(zip(source.tolist(), target.tolist(), strict=True))
    low, high = model.level_quadrants
    chi = 0.0
    for s in range(4):
        for t in range(4):
            share = low[2 * (s & 1) + (t & 1)] * high[2 * (s >> 1) + (t >> 1)]
            chi += (found[s, t] - 200_000 * share) ** 2 / (200_000 * share)
    assert chi < 44.3


def test_quadrant_tables_hold_the_product_of_their_levels() -> None:
    """The alias method's exact probabilities against the product, cell by cell."""
    quadrants = np.array([[0.57, 0.19, 0.19, 0.05], [0.6, 0.2, 0.15, 0.05], [1.0, 0.0, 0.0, 0.0]])
    table = QuadrantTable.of(quadrants)
    kept = table.threshold.astype(float) / 2**32
    share = kept.copy()
    np.add.at(share, table.alias.astype(int), 1 - kept)
    for cell in range(64):
        source, target = cell >> 3, cell & 7
        product = np.prod([quadrants[i][2 * (source >> i & 1) + (target >> i & 1)] for i in range(3)])
        assert share[cell] / 64 == pytest.approx(product, abs=1e-9)


def test_share_within_communities_is_what_was_asked_for() -> None:
    community = MODEL.communities_of(0, MODEL.num_nodes)
    assert np.bincount(community).tolist() == [128] * 8
    source, target = MODEL.edges(0, 20_000)
    assert (community[source] == community[target]).mean() == pytest.approx(0.8, abs=0.012)
    outside = Counter((community[target] - community[source])[community[source] != community[target]] % 8)
    assert max(outside.values()) < 1.25 * min(outside.values())  # the other communities are equally likely


def test_degrees_have_a_heavy_tail() -> None:
    model = GraphModel(seed=1, scale=14, num_edges=16 << 14)
    degree = np.sort(np.bincount(model.edges(0, model.num_edges)[0], minlength=model.num_nodes))[::-1]
    assert degree[0] > 15 * degree.mean()
    assert degree[: model.num_nodes // 100].sum() > 0.08 * degree.sum()
    assert np.median(degree) < 0.7 * degree.mean()


def test_best_guess_of_features_is_as_good_as_the_truth_says() -> None:
    model = replace(MODEL, scale=15)
    community = model.communities_of(0, model.num_nodes)
    guess = np.argmax(model.features(0, model.num_nodes) @ model.centroids.T, axis=1)
    known = truth(model)
    assert (guess == community).mean() == pytest.approx(known["community_accuracy_of_features"], abs=0.01)
    labels = model.labels(0, model.num_nodes)
    assert (guess == labels).mean() == pytest.approx(known["label_accuracy_of_features"], abs=0.01)
    assert (labels == community).mean() == pytest.approx(known["label_accuracy_of_community"], abs=0.005)
    assert np.abs(model.centroids @ model.centroids.T - 4 * np.eye(8)).max() < 1e-12


def test_nearest_mean_accuracy_has_its_known_values() -> None:
    assert nearest_mean_accuracy(0.0, 8) == pytest.approx(1 / 8, abs=1e-9)
    assert nearest_mean_accuracy(2.0, 2) == pytest.approx(0.9213503964748575, abs=1e-9)  # Phi(sqrt 2)
    assert nearest_mean_accuracy(5.0, 1) == pytest.approx(1.0, abs=1e-9)


def read_back(dest: Path, fmt: str) -> tuple[np.ndarray, np.ndarray]:
    """Edges as [2, E] and labels by id of whatever format."""
    if fmt == "npy":
        return np.load(dest / "edge_index.npy"), np.load(dest / "node_label.npy")
    if fmt == "parquet":
        edges = pq.read_table(sorted(dest.glob("edges-*")))
        nodes = pq.read_table(sorted(dest.glob("nodes-*"))).sort_by("id")
        return np.stack([edges["src"].to_numpy(), edges["dst"].to_numpy()]), nodes["label"].to_numpy()
    text = "".join(gzip.decompress(f.read_bytes()).decode() for f in sorted(dest.glob("edges-*.gz")))
    lines = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    edges = np.array([[int(x) for x in line] for line in lines]).T
    rows = [line.split("\t") for f in sorted(dest.glob("labels-*")) for line in f.read_text().splitlines()]
    return edges, np.array([int(label) for _, label, _ in sorted(rows, key=lambda row: int(row[0]))])


@pytest.mark.parametrize("fmt", ["snap", "parquet", "npy"])
def test_every_format_holds_the_same_graph(tmp_path: Path, fmt: str) -> None:
    layout = Layout(format=fmt, edges_a_file=7_000, nodes_a_file=400, gzip=fmt == "snap")
    writer = Writer(MODEL, layout, tmp_path)
    assert generate(writer) == 20_000 + 1_024
    assert generate(writer) == 0  # units that are there are not made again
    edges, labels = read_back(tmp_path, fmt)
    assert np.array_equal(edges, np.stack(MODEL.edges(0, 20_000)))
    assert np.array_equal(labels, MODEL.labels(0, 1_024))
    found = writer.finish()
    community = MODEL.communities_of(0, 1_024)
    assert found["counts"]["within"] == (community[edges[0]] == community[edges[1]]).sum()
    assert found["counts"]["self_loops"] == (edges[0] == edges[1]).sum()
    assert [found["counts"][name] for name in SPLITS] == np.bincount(MODEL.splits(0, 1_024)).tolist()
    assert {f["name"] for f in found["files"]} == {
        str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*.*") if folder.RECORDS_DIR not in str(f)
    }


def test_numpy_layout_is_ogbs(tmp_path: Path) -> None:
    writer = Writer(MODEL, Layout(format="npy", feature_dtype="float16"), tmp_path)
    generate(writer)
    writer.finish()
    features = np.load(tmp_path / "node_feat.npy", allow_pickle=False)
    assert features.dtype == np.float16
    assert np.array_equal(features, MODEL.features(0, 1_024).astype(np.float16))
    parts = [np.load(tmp_path / "split" / f"{name}.npy") for name in ("train", "valid", "test")]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1_024))


def test_text_features_are_exact(tmp_path: Path) -> None:
    generate(Writer(MODEL, Layout(format="snap"), tmp_path))
    features = np.zeros((1_024, 12), np.float32)
    for line in (tmp_path / "features-00000.tsv").read_text().splitlines():
        node, pairs = line.split("\t")
        for pair in pairs.split(" "):
            place, value = pair.split(":")
            features[int(node), int(place) - 1] = float(value)
    assert np.array_equal(features, MODEL.features(0, 1_024))


def test_bad_lines_are_planted_and_counted(tmp_path: Path) -> None:
    writer = Writer(MODEL, Layout(format="snap", edges_a_file=6_000, bad_lines=10), tmp_path)
    generate(writer)
    lines = [line for f in sorted(tmp_path.glob("edges-*")) for line in f.read_text().splitlines()]
    good = [
        line
        for line in lines
        if line[0] != "#" and len(line) < 20 and line.replace("\t", "").isdigit() and "\t" in line
    ]
    assert len(good) == 20_000
    assert len(lines) - len(good) == 10 + 3
    assert writer.finish()["counts"]["bad_lines"] == 10


def test_another_generation_is_not_overwritten(tmp_path: Path) -> None:
    layout = Layout(format="snap")
    assert not folder.claim(settings_of(MODEL, layout), tmp_path, False)
    with pytest.raises(UserError, match="seed 3 there, 9 asked for"):
        folder.claim(settings_of(replace(MODEL, seed=9), layout), tmp_path, False)
    folder.claim(settings_of(replace(MODEL, seed=9), layout), tmp_path, True)
    assert json.loads((tmp_path / folder.SETTINGS_FILE).read_bytes())["seed"] == 9
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "edges-00000.txt").write_text("1\t2\n")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="another origin"):
            folder.claim(settings_of(MODEL, layout), strange, overwrite)
    assert (strange / "edges-00000.txt").read_text() == "1\t2\n"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"communities": 3}, "power of two"),
        ({"feature_dim": 5}, "right angles"),
        ({"within": 1.5}, "within 0 and 1"),
        ({"quadrants": "0.9,0.2,0.2"}, "shares of at most 1"),
        ({"quadrants": "0.9,0.1"}, "not three numbers"),
        ({"split": "0.9,0.2,0.2"}, "add up to 1"),
        ({"format": "csv"}, "snap, parquet, npy"),
        ({"format": "npy", "sparse_ids": True}, "row numbers"),
        ({"scale": 70}, "within 1 and 40"),
        ({"noise": 0.4}, "negative"),
        ({"format": "npy", "bad_lines": 2}, "SNAP text"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], match: str) -> None:
    with pytest.raises(UserError, match=match):
        early(Config(dest="unused", **settings))  # type: ignore[arg-type]
