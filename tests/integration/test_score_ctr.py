"""gold/ctr_predictions: the scores of training row by row, raw rows and bronze rows alike, each batch once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from integration import features_reference as slow

from headrace.catalog.delta import WriteOptions, commit_metadata, files_at, latest_version, pin, write
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.models import create
from headrace.pipelines import featurize_ctr, score_ctr
from headrace.report import Report
from headrace.train.export import copy_vocabulary, save_model

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")
SILVER, GOLD = load("silver/ctr"), load("gold/ctr_predictions")
ROWS = slow.synthetic(3, 200, seed=5)


def score(spark: SparkSession, lake: Path, **settings: Any) -> Report:
    return score_ctr.run(spark, score_ctr.Config(lake=str(lake), **settings), Report("score-ctr", out=io.StringIO()))


def predictions(lake: Path) -> list[slow.Row]:
    return [row for file in files_at(GOLD, lake) for row in pq.ParquetFile(file.path).read().to_pylist()]


@pytest.fixture(scope="module")
def trained(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A lake with features and the model of run r1: random weights will do, it is the way to it that is tested."""
    lake = tmp_path_factory.mktemp("trained")
    bare = [dict(row, day=7, key=row["key"] + (7 << 40), label=None) for row in ROWS if row["day"] == 0][:20]
    frame = spark.createDataFrame([tuple(row.values()) for row in ROWS + bare], slow.BRONZE_SCHEMA)
    write(frame, load("bronze/criteo"), lake, options=WriteOptions(quality=False))
    known = slow.slow_vocabulary([row for row in ROWS if row["day"] == 0], 3, {})
    middle = sorted(len(ids) for ids in known.values())[13]
    cfg = featurize_ctr.Config(lake=str(lake), min_count=3, hash_above=middle, hash_size=50)
    featurize_ctr.run(spark, cfg, Report("featurize-ctr", out=io.StringIO()))
    metadata = commit_metadata(SILVER.path(lake), latest_version(SILVER.path(lake)))
    kinds = {rule["kind"] for rule in metadata["transform"]["categories"].values()}
    assert kinds == {"hash", "vocabulary"}
    # Weights that keep logits below 40: at 95, as with 0.1, batches of other sizes differ by over 1e-6 in float32.
    settings = {"embedding_dim": 4, "hidden": (8,), "embedding_std": 0.02, "seed": 3}
    model = create("deepfm", metadata["cardinalities"], 13, **settings).eval()
    described = {"name": "deepfm", "cardinalities": metadata["cardinalities"], "num_dense": 13, **settings}
    about = {"run_id": "r1", "transform": metadata["transform"], "vocabulary_version": metadata["vocabulary_version"]}
    save_model(model, lake / "runs" / "r1", described, about)
    copy_vocabulary(pin(load("silver/ctr_vocabulary"), lake, metadata["vocabulary_version"]), lake / "runs" / "r1")
    return lake, model


def of_training(lake: Path, model: torch.nn.Module) -> dict[int, float]:
    """Probability by key as an evaluation in training has it: silver's tensors through the model."""
    found = {}
    for file in files_at(SILVER, lake):
        table = pq.ParquetFile(file.path).read().to_pandas()
        dense = torch.from_numpy(table[slow.INTS].to_numpy(np.float32))
        sparse = torch.from_numpy(table[slow.CATEGORIES].to_numpy(np.int64))
        with torch.no_grad():
            logits = model(dense, sparse).double()
        found |= dict(zip(table["key"].tolist(), torch.sigmoid(logits).tolist(), strict=True))
    return found


def test_scores_equal_those_of_training(spark: SparkSession, trained: tuple[Path, torch.nn.Module]) -> None:
    lake, model = trained
    report = score(spark, lake, run="r1")
    rows = predictions(lake)
    assert len(rows) == len({row["key"] for row in rows}) == report.results["rows"] == len(ROWS) + 20
    expected, raw = of_training(lake, model), {row["key"]: row for row in ROWS}
    labelled = {row["key"]: row for row in rows if row["label"] is not None}
    assert set(labelled) == set(expected)
    keys = sorted(expected)
    ours, theirs = [labelled[key]["probability"] for key in keys], [expected[key] for key in keys]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    assert np.std(theirs) > 0.01
    assert all(labelled[key]["label"] == raw[key]["label"] and labelled[key]["day"] == raw[key]["day"] for key in keys)
    assert {(row["run_id"], row["table_version"]) for row in rows} == {("r1", 1)}
    again = score(spark, lake, run="r1")
    assert again.results["nothing_to_do"] and again.results["batch"] == report.results["batch"]
    assert len(predictions(lake)) == len(rows)


def test_a_batch_raced_by_another_job_is_committed_once(
    spark: SparkSession, trained: tuple[Path, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, _ = trained
    score(spark, lake, run="r1", days="1")
    before = len(predictions(lake))
    monkeypatch.setattr(score_ctr, "_scored", lambda *_: False)  # as if the other job committed after we looked
    score(spark, lake, run="r1", days="1")
    assert len(predictions(lake)) == before


def test_raw_files_score_as_their_bronze_rows(
    spark: SparkSession, trained: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    lake, model = trained
    day = [row for row in ROWS if row["day"] == 2]
    lines = []
    for row in day:
        cells = ["" if row[n] is None else str(row[n]) for n in slow.INTS]
        cells += ["" if row[n] is None else f"{row[n]:08x}" for n in slow.CATEGORIES]
        lines.append("\t".join(cells))
    (tmp_path / "day_2").write_text("\n".join([*lines[:50], "broken", *lines[50:]]) + "\n")
    report = score(spark, lake, run="r1", source=str(tmp_path / "day_2"), labelled=False)
    assert (report.stages[-1].rows_in, report.stages[-1].quarantined) == (201, 1)
    assert "1 raw lines were refused" in report.warnings[0]
    expected = of_training(lake, model)
    mine = sorted((row["key"], row) for row in predictions(lake) if row["batch"] == report.results["batch"])
    assert [row["label"] for _, row in mine] == [None] * 200
    ours = [row["probability"] for _, row in mine]
    np.testing.assert_allclose(ours, [expected[row["key"]] for row in day], rtol=0, atol=1e-6)


def test_refusals(spark: SparkSession, trained: tuple[Path, torch.nn.Module]) -> None:
    lake, _ = trained
    with pytest.raises(UserError, match="either --run or --model"):
        score(spark, lake)
    with pytest.raises(UserError, match=r"no model in .*r2/model\n.*runs with a model: r1"):
        score(spark, lake, run="r2")
    with pytest.raises(UserError, match="is no run's id"):
        score(spark, lake, run="../../etc")
    with pytest.raises(UserError, match="mlflow artifacts download -u runs:/x/model"):
        score(spark, lake, model="runs:/x/model")
    with pytest.raises(UserError, match=r"--days 0-1: raw files .* are all of one day"):
        score(spark, lake, run="r1", source="nowhere", days="0-1")
    with pytest.raises(UserError, match=r"no rows of day 5\n.*0-2,7"):
        score(spark, lake, run="r1", days="1-2,5")
