"""bronze/criteo -> silver/ctr against the slow reference; order, growth, leaks, kills, refusals."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from integration import features_reference as slow

from headrace.catalog.delta import WriteOptions, commit_metadata, exists, files_at, latest_version, write
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import vocabulary
from headrace.features.hashing import bucket_column, bucket_of, murmur3, order_column, order_hash, xxhash64
from headrace.features.row_transform import RowTransform, Vocabulary, arrow_cells
from headrace.features.transform import Transform
from headrace.pipelines import featurize_ctr, featurize_rows, splits
from headrace.pipelines.featurize_ctr import Config, SplitConfig
from headrace.report import Report, Stage

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports", "generated_code")
SILVER, VOCABULARY, BRONZE = load("silver/ctr"), load("silver/ctr_vocabulary"), load("bronze/criteo")
ROWS = slow.synthetic(4, 400)


def ingest(spark: SparkSession, lake: Path, rows: list[slow.Row]) -> None:
    frame = spark.createDataFrame([tuple(row.values()) for row in rows], slow.BRONZE_SCHEMA)
    write(frame, BRONZE, lake, options=WriteOptions(quality=False))


def featurize(spark: SparkSession, lake: Path, **settings: Any) -> Report:
    settings = {"min_count": 3, "rows_per_file": 300, "rows_per_group": 1024, "categories": "vocabulary"} | settings
    return featurize_ctr.run(spark, Config(lake=str(lake), **settings), Report("featurize-ctr", out=io.StringIO()))


def silver(lake: Path, version: int | None = None) -> dict[str, list[slow.Row]]:
    """The rows of each split in the order of its files."""
    table: dict[str, list[slow.Row]] = {}
    for file in files_at(SILVER, lake, version):
        rows = pq.ParquetFile(file.path).read().to_pylist()
        table.setdefault(str(file.partition["split"]), []).extend(rows)
    return table


def ids(lake: Path, version: int | None = None) -> dict[str, dict[int, int]]:
    """The vocabulary of the table: ids by value by column."""
    found: dict[str, dict[int, int]] = {name: {} for name in slow.CATEGORIES}
    for file in files_at(VOCABULARY, lake, version):
        for entry in pq.ParquetFile(file.path).read().to_pylist():
            assert entry["value"] not in found[entry["column"]]
            found[entry["column"]][entry["value"]] = entry["id"]
    return found


def of_days(*days: int) -> list[slow.Row]:
    return [row for row in ROWS if row["day"] in days]


@pytest.fixture(scope="module")
def made(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """Days 0-3 featurized once with a vocabulary; some rows of day 3 have no label, day 9 has none at all."""
    lake = tmp_path_factory.mktemp("made")
    bare = [dict(row, key=row["key"] + 10**6, label=None) for row in of_days(3)[:5]]
    ingest(
        spark, lake, ROWS + bare + [dict(row, day=9, key=row["key"] + (9 << 40), label=None) for row in of_days(0)[:7]]
    )
    return lake, featurize(spark, lake)


def test_every_cell_equals_the_slow_reference(made: tuple[Path, Report]) -> None:
    lake, report = made
    known = slow.slow_vocabulary(of_days(0, 1), 3, {})
    assert ids(lake) == known
    table = silver(lake)
    days = {"train": (0, 1), "validation": (2,), "test": (3,)}
    assert set(table) == set(days)
    for split, wanted in days.items():
        expected = {row["key"]: row for row in of_days(*wanted)}
        assert sorted(row["key"] for row in table[split]) == sorted(expected)
        for row in table[split]:
            raw = expected[row["key"]]
            assert (row["day"], row["label"]) == (raw["day"], float(raw["label"]))
            assert [row[n] for n in slow.INTS] == [slow.slow_int(raw[n]) for n in slow.INTS]
            assert [row[n] for n in slow.CATEGORIES] == [slow.slow_id(raw[n], known[n]) for n in slow.CATEGORIES]
    assert report.results["rows"] == len(ROWS)
    assert report.results["cardinalities"] == {name: len(known[name]) + 3 for name in slow.CATEGORIES}


def test_share_of_unknown_cells_by_day(made: tuple[Path, Report]) -> None:
    lake, report = made
    known = ids(lake)
    for day in range(4):
        present = [(row[n], n) for row in of_days(day) for n in slow.CATEGORIES if row[n] is not None]
        unknown = sum(value not in known[name] for value, name in present)
        assert report.results["unknown"][str(day)]["share"] == pytest.approx(unknown / len(present))
        column = [row["c1"] not in known["c1"] for row in of_days(day) if row["c1"] is not None]
        assert report.results["unknown"][str(day)]["columns"]["c1"] == pytest.approx(np.mean(column))
    assert report.results["unknown"]["3"]["share"] > report.results["unknown"]["0"]["share"] > 0
    assert commit_metadata(SILVER.path(lake), 1)["unknown"] == report.results["unknown"]


def test_order_row_groups_types_and_metadata(made: tuple[Path, Report]) -> None:
    lake, report = made
    for split, rows in silver(lake).items():
        hashes = [slow.slow_xxhash64(row["key"], slow.slow_xxhash64(0) % 2**64) for row in rows]
        assert hashes == sorted(hashes), split
    assert max(f.rows for f in files_at(SILVER, lake, partition={"split": "test"})) < 400  # 300 a file: two files
    file = pq.ParquetFile(files_at(SILVER, lake)[0].path)
    types = [str(field.type) for field in file.schema_arrow]
    assert types == ["int64", "int32", "float"] + ["float"] * 13 + ["int32"] * 26
    assert file.metadata.row_group(0).column(5).compression == "ZSTD"
    metadata = commit_metadata(SILVER.path(lake), latest_version(SILVER.path(lake)))
    assert metadata["vocabulary_version"] == 1 and metadata["bronze_version"] == 1
    assert metadata["cardinalities"] == report.results["cardinalities"]
    assert Transform.from_json(metadata["transform"]).cardinalities() == metadata["cardinalities"]
    assert metadata["split"] == {"train": [0, 1], "validation": [2], "test": [3]}


def test_a_rerun_does_nothing(spark: SparkSession, made: tuple[Path, Report]) -> None:
    lake, first = made
    again = featurize(spark, lake)
    assert again.results["nothing_to_do"] and again.results["version"] == first.results["version"]
    assert again.results["cardinalities"] == first.results["cardinalities"]
    assert (latest_version(SILVER.path(lake)), latest_version(VOCABULARY.path(lake))) == (1, 1)


def test_row_transform_equals_spark_cell_by_cell(made: tuple[Path, Report]) -> None:
    import pandas as pd

    lake, _ = made
    metadata = commit_metadata(SILVER.path(lake), 1)
    known = featurize_ctr.load_vocabulary(str(lake), metadata["vocabulary_version"])
    transform = RowTransform(Transform.from_json(metadata["transform"]), known)
    stored = {row["key"]: row for rows in silver(lake).values() for row in rows}
    raw = pd.DataFrame(ROWS)  # ints with holes: float columns
    texts = raw.astype({name: object for name in slow.CATEGORIES})
    for name in slow.CATEGORIES:
        texts[name] = [None if row[name] is None else f"{row[name]:08x}" for row in ROWS]
    nullable = raw.astype({name: "Int64" for name in slow.INTS + slow.CATEGORIES})
    for frame in (raw, texts, nullable):
        dense, sparse = transform(frame)
        assert dense.dtype == np.float32 and sparse.dtype == np.int64
        assert dense.tolist() == [[stored[row["key"]][n] for n in slow.INTS] for row in ROWS]
        assert sparse.tolist() == [[stored[row["key"]][n] for n in slow.CATEGORIES] for row in ROWS]


def test_changing_days_to_be_judged_on_changes_nothing_learned(
    spark: SparkSession, made: tuple[Path, Report], lake: Path
) -> None:
    changed = [
        row if row["day"] < 2 else dict(row, label=1 - row["label"], c1=123456, c2=row["c3"], i1=5, i2=None)
        for row in ROWS
    ]
    ingest(spark, lake, changed + [dict(row, key=row["key"] + 10**6) for row in changed if row["day"] == 2])
    featurize(spark, lake)
    assert ids(lake) == ids(made[0])
    assert silver(lake)["train"] == silver(made[0])["train"]
    assert silver(lake)["test"] != silver(made[0])["test"]


def test_vocabulary_grows_by_appending(spark: SparkSession, lake: Path) -> None:
    ingest(spark, lake, of_days(0, 1, 2))
    featurize(spark, lake)
    first, old = ids(lake), silver(lake)
    assert first == slow.slow_vocabulary(of_days(0), 3, {})
    ingest(spark, lake, of_days(3))
    report = featurize(spark, lake)
    second = slow.slow_vocabulary(of_days(0, 1), 3, first)
    assert ids(lake) == second and any(len(second[n]) > len(first[n]) for n in second)
    assert ids(lake, 1) == first
    assert report.results["cardinalities"] == {name: len(second[name]) + 3 for name in slow.CATEGORIES}
    assert silver(lake, 1) == old
    with pytest.raises(UserError, match="counted on day 1, which no longer trains"):
        featurize(spark, lake, split=SplitConfig(train="0,2", validation="1"))
    split = SplitConfig(train="0,2", validation="1")
    featurize(spark, lake, split=split, vocabulary="rebuild", min_count=5, min_count_by_column="c3=20")
    limited, expected = ids(lake), slow.slow_vocabulary(of_days(0, 2), 5, {})
    wanted = expected | {"c3": slow.slow_vocabulary(of_days(0, 2), 20, {})["c3"]}
    assert limited == wanted != expected
    assert ids(lake, 2) == second


def test_two_that_grow_the_vocabulary_at_once_give_no_value_two_ids(
    spark: SparkSession, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(spark, lake, of_days(0, 1, 2))

    def raced(*args: Any, **kwargs: Any) -> Any:
        write(*args, **kwargs)  # the other one's commit, made of the same version
        return write(*args, **kwargs)

    monkeypatch.setattr(featurize_ctr, "write", raced)
    with pytest.raises(UserError, match="at the same time"):
        featurize(spark, lake)
    monkeypatch.undo()
    featurize(spark, lake, vocabulary="rebuild")
    assert ids(lake) == slow.slow_vocabulary(of_days(0), 3, {})


def test_killed_between_the_commits_and_laid_out_otherwise_it_is_the_same_table(
    spark: SparkSession, made: tuple[Path, Report], lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(spark, lake, ROWS[::-1])  # other files, other order, other partitions of Spark

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "7")
    try:
        with monkeypatch.context() as patch:
            patch.setattr(featurize_ctr.ctr, "count_cells", killed)
            with pytest.raises(KeyboardInterrupt):
                featurize(spark, lake)
        assert latest_version(VOCABULARY.path(lake)) == 1
        assert not exists(SILVER.path(lake))
        featurize(spark, lake)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)
    assert latest_version(VOCABULARY.path(lake)) == 1 and ids(lake) == ids(made[0])
    assert silver(lake) == silver(made[0])
    cuts = [[(file.rows, file.partition) for file in files_at(SILVER, where)] for where in (lake, made[0])]
    assert cuts[0] == cuts[1]


def test_day_by_day_and_gone_on_with_after_a_kill(
    spark: SparkSession, made: tuple[Path, Report], lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rare values go by the join here; the rows are those of the run that was not disturbed, in another order."""
    ingest(spark, lake, ROWS)
    settings: dict[str, Any] = {"order": "day", "rows_per_file": 150, "broadcast_entries": 50}
    original, days = featurize_rows.ctr.arrange, []

    def killed_on_day_2(cells: Any, order: Any) -> Any:
        days.append(len(days))
        if len(days) == 3:
            raise KeyboardInterrupt
        return original(cells, order)

    with monkeypatch.context() as patch:
        patch.setattr(featurize_rows.ctr, "arrange", killed_on_day_2)
        with pytest.raises(KeyboardInterrupt):
            featurize(spark, lake, **settings)
    assert commit_metadata(SILVER.path(lake), latest_version(SILVER.path(lake)))["unfinished"] == [2, 3]
    with pytest.raises(UserError, match="is unfinished: day 2-3 is still to come"):
        splits.pin_splits(str(lake), None, Stage("data"))
    assert [row["day"] for row in silver(lake)["train"]] == [0] * 400 + [1] * 400
    report = featurize(spark, lake, **settings)
    assert latest_version(SILVER.path(lake)) == 4  # created, and a commit a day
    metadata = commit_metadata(SILVER.path(lake), 4)
    assert "unfinished" not in metadata and report.results["rows"] == len(ROWS)
    assert metadata["unknown"] == made[1].results["unknown"]
    for split, rows in silver(lake).items():
        ranks = [(row["day"], slow.slow_xxhash64(row["key"], slow.slow_xxhash64(0) % 2**64)) for row in rows]
        assert ranks == sorted(ranks)
        assert sorted(rows, key=by_key) == sorted(silver(made[0])[split], key=by_key)
    assert featurize(spark, lake, **settings).results["nothing_to_do"]
    featurize(spark, lake, order="file", rows_per_file=150)
    for split, rows in silver(lake).items():
        assert rows == sorted(silver(made[0])[split], key=by_key)
    assert {file.rows for file in files_at(SILVER, lake, partition={"split": "test"})} == {150, 100}


def by_key(row: slow.Row) -> Any:
    return row["key"]


def test_hashing_and_auto_by_cardinality(spark: SparkSession, lake: Path) -> None:
    ingest(spark, lake, ROWS)
    report = featurize(
        spark, lake, categories="hash", hash_size=11, hash_size_by_column="c2=5", ints="quantile", num_bins=4
    )
    assert report.results["cardinalities"] == {n: 8 if n == "c2" else 14 for n in slow.CATEGORIES}
    raw = {row["key"]: row for row in ROWS}
    rows = silver(lake)["train"]
    for row in rows[:50]:
        values = [(raw[row["key"]][n], 5 if n == "c2" else 11) for n in slow.CATEGORIES]
        assert [row[n] for n in slow.CATEGORIES] == [
            1 if v is None else 3 + slow.slow_xxhash64(v) % s for v, s in values
        ]
    assert {row["i1"] for row in rows if raw[row["key"]]["i1"] is None} == {0.0}
    _check_quantiles(lake, rows, raw)
    sizes = {name: len(known) for name, known in slow.slow_vocabulary(of_days(0, 1), 3, {}).items()}
    above = sorted(sizes.values())[13]
    report = featurize(spark, lake, categories="auto", hash_above=above, hash_size=7)
    wanted = {name: 10 if size > above else size + 3 for name, size in sizes.items()}
    assert report.results["cardinalities"] == wanted and 10 in wanted.values()
    assert set(report.results["unknown"]["2"]["columns"]) == {name for name, size in sizes.items() if size <= above}


def test_modulo(spark: SparkSession, lake: Path) -> None:
    """Spark's cells are those of the row transform that is kept for scoring; the same again is nothing to do."""
    ingest(spark, lake, ROWS)
    settings = {"categories": "modulo", "hash_size": 11, "hash_size_by_column": "c2=5"}
    report = featurize(spark, lake, **settings)
    assert report.results["cardinalities"] == {n: 8 if n == "c2" else 14 for n in slow.CATEGORIES}
    kept = commit_metadata(SILVER.path(lake), latest_version(SILVER.path(lake)))["transform"]
    scoring = RowTransform(Transform.from_json(kept))
    raw = {row["key"]: row for row in ROWS}
    rows = [row for part in silver(lake).values() for row in part]
    _, sparse = scoring(pd.DataFrame([{n: raw[row["key"]][n] for n in (*slow.INTS, *slow.CATEGORIES)} for row in rows]))
    assert [[row[n] for n in slow.CATEGORIES] for row in rows] == sparse.tolist()
    for row in rows:
        values = [(raw[row["key"]][n], 5 if n == "c2" else 11) for n in slow.CATEGORIES]
        assert [row[n] for n in slow.CATEGORIES] == [1 if v is None else 3 + v % s for v, s in values]
    assert featurize(spark, lake, **settings).results["nothing_to_do"]


def _check_quantiles(lake: Path, rows: list[slow.Row], raw: dict[int, slow.Row]) -> None:
    metadata = commit_metadata(SILVER.path(lake), latest_version(SILVER.path(lake)))
    assert metadata["vocabulary_version"] is None
    for name in ("i1", "i13"):
        values = sorted(row[name] for row in of_days(0, 1) if row[name] is not None)
        cuts = sorted({values[-(-len(values) * part // 4) - 1] for part in (1, 2, 3)} - {values[-1]})
        assert metadata["transform"]["boundaries"][name] == cuts
        for row in rows[:50]:
            value = raw[row["key"]][name]
            rank = 0.0 if value is None else (1 + sum(cut < value for cut in cuts)) / (1 + len(cuts))
            assert row[name] == pytest.approx(rank, rel=1e-6)


def test_refusals(spark: SparkSession, made: tuple[Path, Report], lake: Path) -> None:
    with pytest.raises(UserError, match=r"there is no bronze/criteo.*\n.*ingest-criteo"):
        featurize(spark, lake)
    with pytest.raises(UserError, match="more than max_vocabulary 10"):
        featurize(spark, made[0], max_vocabulary=10)
    with pytest.raises(UserError, match="day 7 has no labelled rows; days that have: 0-3"):
        featurize(spark, made[0], split=SplitConfig(test="7"))
    with pytest.raises(UserError, match="min_count_by_column: 'c27'"):
        featurize(spark, lake, min_count_by_column="c27=3")
    assert latest_version(VOCABULARY.path(made[0])) == latest_version(SILVER.path(made[0])) == 1


def test_real_rows(spark: SparkSession, criteo_kaggle: Path, lake: Path) -> None:
    names = ("train", "dev", "test")
    rows = [row for day, name in enumerate(names) for row in slow.parse(criteo_kaggle / f"{name}.tsv", day, day)]
    ingest(spark, lake, rows)
    report = featurize(spark, lake, min_count=10, rows_per_file=524_288)
    known = slow.slow_vocabulary([row for row in rows if row["day"] == 0], 10, {})
    assert ids(lake) == known
    table, raw = silver(lake), {row["key"]: row for row in rows}
    assert {split: len(part) for split, part in table.items()} == {"train": 7200, "validation": 409, "test": 391}
    for row in table["train"][:500] + table["test"]:
        cells = raw[row["key"]]
        assert [row[n] for n in slow.INTS] == [slow.slow_int(cells[n]) for n in slow.INTS]
        assert [row[n] for n in slow.CATEGORIES] == [slow.slow_id(cells[n], known[n]) for n in slow.CATEGORIES]
    groups = pq.ParquetFile(files_at(SILVER, lake, partition={"split": "train"})[0].path).metadata
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [1024] * 7 + [32]
    assert any("out of vocabulary" in warning for warning in report.warnings)


def test_logarithms_of_spark_and_of_scoring_are_the_same_floats(spark: SparkSession) -> None:
    from pyspark.sql import functions as F

    large = [sign * (n * 7919) ** power for n in range(1, 250) for power in (2, 3) for sign in (1, -1)]
    every = spark.range(-1000, 1 << 20).union(spark.createDataFrame([(x,) for x in large], "id bigint"))
    transform = Transform("log", {}, {}, None)
    names = [F.col("id").alias(name) for name in ("x", *slow.INTS)]
    found = featurize_rows.ctr.number_ints(every.select(*names, F.lit(1).alias("label")), transform)
    table = found.select("x", "i1", "i13").toArrow()
    wanted = RowTransform(transform).int_column("i1", arrow_cells(table["x"].combine_chunks()))
    assert table["i1"].to_numpy().tolist() == table["i13"].to_numpy().tolist() == wanted.tolist()


def test_hashes_equal_sparks(spark: SparkSession) -> None:
    from pyspark.sql import functions as F

    golden = json.loads((Path(__file__).parents[1] / "golden" / "xxhash64_long.json").read_text())
    frame = spark.createDataFrame([(value,) for value in golden["value"]], "x bigint")
    small = F.col("x").bitwiseAND(F.lit(2**31 - 1)).cast("int")
    columns = [F.xxhash64("x"), order_column(F.col("x"), 7), bucket_column(F.col("x"), 1000), F.hash(small), small]
    found = np.array([tuple(row) for row in frame.select(*columns).collect()], np.int64).T
    values = np.array(golden["value"], np.int64)
    assert found[0].tolist() == golden["xxhash64"] == xxhash64(values).tolist()
    assert found[1].tolist() == order_hash(values, 7).tolist() == golden["order_seed_7"]
    assert found[2].tolist() == bucket_of(values, 1000).tolist() == golden["bucket_of_1000"]
    assert found[3].tolist() == murmur3(found[4].astype(np.int32)).tolist()


def test_vocabulary_survives_its_files(spark: SparkSession, made: tuple[Path, Report], tmp_path: Path) -> None:
    known = vocabulary.load(files_at(VOCABULARY, made[0]))
    known.save(tmp_path / "v.arrow")
    mapped = Vocabulary.open(tmp_path / "v.arrow", known.spans)
    again = Vocabulary.from_arrow(known.to_arrow())
    probe = np.array([0, 1, 5, 2**32 - 1, -1, 2**40])
    for name in slow.CATEGORIES:
        expected = [slow.slow_id(int(value), ids(made[0])[name]) for value in probe]
        assert mapped.lookup(name, probe).tolist() == again.lookup(name, probe).tolist() == expected
