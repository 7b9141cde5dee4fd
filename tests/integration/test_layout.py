"""What `layout.row_groups` writes: groups of one size, and statistics and dictionaries where they are of use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from headrace.features import layout

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DICTIONARY = {"PLAIN_DICTIONARY", "RLE_DICTIONARY"}


def test_groups_statistics_and_dictionaries(spark: SparkSession, tmp_path: Path) -> None:
    rows = spark.range(0, 5000, 1, 1).selectExpr(
        "id AS key", "float(id % 3) AS label", "int(id % 7) AS few", "int(id % 7) AS many", "float(id % 7) AS open"
    )
    place, setting = str(tmp_path / "rows"), "parquet.enable.dictionary#many"
    with layout.row_groups(spark, 2048, {"few": 4096, "many": 4097, "open": None}):
        rows.write.parquet(place)
        assert spark.conf.get(setting) == "false"
    assert spark.conf.get(setting, None) is None
    (path,) = Path(place).glob("*.parquet")
    file = pq.ParquetFile(path).metadata
    assert [file.row_group(n).num_rows for n in range(file.num_row_groups)] == [2048, 2048, 904]
    columns = {file.schema.column(n).name: file.row_group(1).column(n) for n in range(file.num_columns)}
    assert [name for name, column in columns.items() if column.is_stats_set] == ["key", "label"]
    assert (columns["key"].statistics.min, columns["key"].statistics.max) == (2048, 4095)
    assert {name for name, column in columns.items() if DICTIONARY & set(column.encodings)} == {"label", "few", "open"}
    assert pq.read_table(path).to_pydict() == rows.toPandas().to_dict("list")
