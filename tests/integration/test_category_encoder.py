"""The JVM's category encoder: ids against plain Python, the join of rare values, hashes, persistence, refusals."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.usefixtures("generated_code")
Cells = list[int | None]


def frame(spark: SparkSession, a: Cells, b: Cells) -> DataFrame:
    rows = [(at, *pair) for at, pair in enumerate(zip(a, b, strict=True))]
    return spark.createDataFrame(rows, "key bigint, a bigint, b bigint").repartition(2)


def slow_ids(learned: Cells, cells: Cells, min_count: int) -> list[int]:
    counts = Counter(value for value in learned if value is not None)
    kept = sorted((value for value in counts if counts[value] >= min_count), key=lambda value: (-counts[value], value))
    ids = {value: at for at, value in enumerate(kept, 3)}
    return [1 if value is None else ids.get(value, 2) for value in cells]


def test_ids_whether_all_is_broadcast_or_the_rare_are_joined(spark: SparkSession, tmp_path: Path) -> None:
    """One unknown value fills half of the rows to encode, another half of one task."""
    from headrace.features.category_encoder import CategoryEncoder, CategoryEncoderModel

    rng = random.Random(1)
    learned = [[rng.choice([None, -(1 << 63), int(rng.paretovariate(0.7))]) for _ in range(600)] for _ in range(2)]
    cells = [[rng.choice([None, 10**9, 10**9, int(rng.paretovariate(0.5))]) for _ in range(500)] for _ in range(2)]
    known, rows = frame(spark, *learned), frame(spark, *cells)
    for limit in (10**6, 20):
        encoder = CategoryEncoder(
            inputCols=["a", "b"], outputCols=["x", "b"], minCounts=[1, 2], maxBroadcast=limit, rowKeyCol="key", salts=3
        )
        model = encoder.fit(known)
        model.write().overwrite().save(str(tmp_path / "model"))
        for each in (model, CategoryEncoderModel.load(str(tmp_path / "model"))):
            found = each.transform(rows).orderBy("key").collect()
            assert [row.a for row in found] == cells[0]
            assert [row.x for row in found] == slow_ids(learned[0], cells[0], 1)
            assert [row.b for row in found] == slow_ids(learned[1], cells[1], 2)
        model.release()
    again = model.transform(rows)
    assert again.schema["x"].dataType.simpleString() == "int" and again.count() == 500


def test_hashes_are_those_of_the_golden_vectors(spark: SparkSession, tmp_path: Path) -> None:
    from headrace.features.category_encoder import CategoryEncoder

    golden = json.loads((Path(__file__).parents[1] / "golden/xxhash64_long.json").read_text())
    rows = frame(spark, golden["value"], golden["value"])
    encoder = CategoryEncoder(
        inputCols=["a", "b"], outputCols=["a", "b"], kinds=["hash", "modulo"], hashSizes=[1000, 7]
    )
    encoder.write().overwrite().save(str(tmp_path / "encoder"))
    found = CategoryEncoder.load(str(tmp_path / "encoder")).fit(rows).transform(rows).orderBy("key").collect()
    assert [row.a for row in found] == [3 + bucket for bucket in golden["bucket_of_1000"]]
    assert [row.b for row in found] == [3 + value % 7 for value in golden["value"]]


def test_refusals(spark: SparkSession) -> None:
    from headrace.features.category_encoder import CategoryEncoder

    rows = frame(spark, [1, 2], [1, 2])
    both = {"inputCols": ["a", "b"], "outputCols": ["a", "b"]}
    with pytest.raises(Exception, match="kinds"):
        CategoryEncoder(**both, kinds=["onehot"]).fit(rows)
    with pytest.raises(Exception, match="minCounts has 3 values for 2 columns"):
        CategoryEncoder(**both, minCounts=[1, 2, 3]).fit(rows)
    with pytest.raises(Exception, match="column a is string, not bigint"):
        CategoryEncoder(**both).fit(rows.selectExpr("string(a) a", "b"))
    with pytest.raises(Exception, match="set rowKeyCol"):
        CategoryEncoder(**both, maxBroadcast=1).fit(rows).transform(rows)


def test_hashing_forty_columns_is_one_method_that_hotspot_compiles(
    spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    """HotSpot never compiles a method of over 8,000 bytes: Spark would cut it up, with copies of each row between."""
    from headrace.features.category_encoder import CategoryEncoder
    from headrace.features.ctr import BRONZE_COLUMNS, number_ints
    from headrace.features.transform import CATEGORIES, INTS, Transform

    types = ["key bigint", "day int", "label int", *(f"{name} bigint" for name in (*INTS, *CATEGORIES))]
    # Rows that the optimizer cannot foresee: of an empty relation no code is made.
    rows = spark.range(1).mapInArrow(lambda _: (), ", ".join(types))
    for kind in ("hash", "modulo"):
        encoder = CategoryEncoder(inputCols=list(CATEGORIES), outputCols=list(CATEGORIES), kinds=[kind])
        cells = number_ints(encoder.fit(rows).transform(rows), Transform("log", {}, {}, None)).select(*BRONZE_COLUMNS)
        cells.explain("codegen")
        sizes = [int(size) for size in re.findall(r"maxMethodCodeSize:(\d+)", capsys.readouterr().out)]
        assert sizes and max(sizes) <= 8000, kind
