"""Criteo's text to a featurized table: ours against polars, DuckDB and plain Spark; row a of `make bench`.

    python -m bench.criteo [--rows 1500000] [--rounds 5] [--work DIR] [--contestants ours,polars]

Featurized means, the same for all: label as float32; i1 .. i13 as sign(x) log(1 + |x|), -1 where missing, float32;
c1 .. c26 as 3 + value mod 2^18, 1 where missing, int32 (peers have no xxhash64; DLRM's scripts take the modulus, too).
Ours reads with the format `criteo` by checked ranges (the scan with its SHA-256 counts), encodes with the category
encoder, keeps a key and a day besides, and commits a Delta version with its constraints, in row groups of 32,768.
`main_job` is ingest-criteo and featurize-ctr with ledger, quarantine, bronze, order and quality: shown beside. The
limit is pyarrow.csv parsing the same bytes. Before times count, rows and per-column sums are found equal to DuckDB's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

THREADS = 2
os.environ["POLARS_MAX_THREADS"] = str(THREADS)
INTS = [f"i{n}" for n in range(1, 14)]
CATEGORIES = [f"c{n}" for n in range(1, 27)]
COLUMNS = ["label", *INTS, *CATEGORIES]
SIZE = 1 << 18
RESULTS = Path(__file__).resolve().parents[1] / "docs/results/criteo.jsonl"
NOISY = 2.5


@dataclass
class Bench:
    """The input, where outputs go, and Spark."""

    spark: Any
    paths: list[str]
    work: Path
    rates: dict[str, list[float]] = field(default_factory=dict)

    @property
    def megabytes(self) -> float:
        return sum(os.path.getsize(path) for path in self.paths) / 1e6

    def fresh(self, name: str) -> Path:
        """An empty place for an output."""
        place = self.work / name
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        return place


def ours(bench: Bench) -> list[str]:
    from headrace.catalog import delta
    from headrace.catalog.log import Log
    from headrace.features import ctr, layout
    from headrace.features.category_encoder import CategoryEncoder
    from headrace.features.transform import CategoryRule, Transform
    from headrace.ingest.criteo import CriteoFormat
    from headrace.ingest.criteo_reader import read
    from headrace.ingest.lines import InputFile, scan_files

    lake = bench.fresh("ours")
    scans = scan_files(bench.spark, bench.paths)
    files = [InputFile(scans[path], day, day) for day, path in enumerate(bench.paths)]  # type: ignore[arg-type]
    rows = read(bench.spark, files, CriteoFormat())
    transform = Transform("log", {}, dict.fromkeys(CATEGORIES, CategoryRule("hash", SIZE + 3)), None)
    encoder = CategoryEncoder(inputCols=CATEGORIES, outputCols=CATEGORIES, kinds=["modulo"], hashSizes=[SIZE])
    cells = ctr.number_ints(encoder.fit(rows).transform(rows), transform)
    with layout.row_groups(bench.spark, 32_768, transform.features()):
        commit = delta.write(cells, _spec(), lake, options=delta.WriteOptions(quality=False))
    return [file.path for file in Log(commit.path).snapshot().files]


def _spec() -> Any:
    from headrace.catalog.spec import Column, TableSpec

    return TableSpec(
        name="silver/bench",
        columns=(
            Column("key", "bigint", nullable=False),
            Column("day", "int", nullable=False),
            Column("label", "float", nullable=False),
            *(Column(name, "float", nullable=False) for name in INTS),
            *(Column(name, "int", nullable=False) for name in CATEGORIES),
        ),
        keys=("key",),
        partition_by=("day",),
        checks={"label_is_0_or_1": "label IN (0, 1)"},
    )


def main_job(bench: Bench) -> list[str]:
    import io

    from headrace.catalog.log import Log
    from headrace.pipelines import featurize_ctr, ingest_criteo
    from headrace.report import Report

    lake = str(bench.fresh("main_job"))
    source = ",".join(bench.paths)
    ingest_criteo.run(
        bench.spark, ingest_criteo.Config(lake=lake, source=source), Report("ingest-criteo", out=io.StringIO())
    )
    config = featurize_ctr.Config(lake=lake, categories="hash")
    featurize_ctr.run(bench.spark, config, Report("featurize-ctr", out=io.StringIO()))
    return [file.path for file in Log(f"{lake}/silver/ctr").snapshot().files]


def plain_spark(bench: Bench) -> list[str]:
    from pyspark.sql import functions as F

    from headrace.catalog.log import Log

    schema = ", ".join(f"{name} {'string' if name in CATEGORIES else 'bigint'}" for name in COLUMNS)
    rows = bench.spark.read.csv(bench.paths, sep="\t", schema=schema)
    ids = [
        F.coalesce(F.conv(name, 16, 10).cast("bigint") % SIZE + 3, F.lit(1)).cast("int").alias(name)
        for name in CATEGORIES
    ]
    ints = [F.coalesce(F.signum(name) * F.log1p(F.abs(name)), F.lit(-1.0)).cast("float").alias(name) for name in INTS]
    place = str(bench.fresh("plain_spark"))
    rows.select(F.col("label").cast("float").alias("label"), *ints, *ids).write.format("delta").save(place)
    return [file.path for file in Log(place).snapshot().files]


def polars(bench: Bench) -> list[str]:
    import polars as pl

    types: dict[str, Any] = {"label": pl.Int32}
    types |= dict.fromkeys(INTS, pl.Int64) | dict.fromkeys(CATEGORIES, pl.String)
    rows = pl.scan_csv(bench.paths, separator="\t", has_header=False, schema=types, quote_char=None)
    ints = [(pl.col(n).sign() * pl.col(n).abs().log1p()).fill_null(-1.0).cast(pl.Float32) for n in INTS]
    ids = [(pl.col(n).str.to_integer(base=16) % SIZE + 3).fill_null(1).cast(pl.Int32) for n in CATEGORIES]
    place = bench.fresh("polars.parquet")
    rows.select(pl.col("label").cast(pl.Float32), *ints, *ids).sink_parquet(
        place, compression="zstd", compression_level=1
    )
    return [str(place)]


def duckdb(bench: Bench) -> list[str]:
    import duckdb as duck

    types = {n: "VARCHAR" if n in CATEGORIES else "BIGINT" for n in COLUMNS}
    ints = [f"coalesce(sign({n}) * ln(1 + abs({n})), -1)::FLOAT AS {n}" for n in INTS]
    ids = [f"coalesce(('0x' || {n})::BIGINT % {SIZE} + 3, 1)::INTEGER AS {n}" for n in CATEGORIES]
    place = bench.fresh("duckdb.parquet")
    reading = f"read_csv({bench.paths!r}, delim='\t', header=false, quote='', escape='', nullstr='', columns={types!r})"
    columns = ", ".join(["label::FLOAT AS label", *ints, *ids])
    with duck.connect(config={"threads": THREADS}) as connection:
        connection.sql(f"COPY (SELECT {columns} FROM {reading}) TO '{place}' (FORMAT parquet, COMPRESSION zstd)")
    return [str(place)]


def limit(bench: Bench) -> list[str]:
    import pyarrow as pa
    from pyarrow import csv

    pa.set_cpu_count(THREADS)
    types = {n: pa.string() if n in CATEGORIES else pa.int64() for n in COLUMNS}
    for path in bench.paths:
        reader = csv.open_csv(
            path,
            csv.ReadOptions(column_names=COLUMNS, block_size=4 << 20),
            csv.ParseOptions(delimiter="\t", quote_char=False),
            csv.ConvertOptions(column_types=types, strings_can_be_null=True),
        )
        for _ in reader:
            pass
    return []


CONTESTANTS: dict[str, Callable[[Bench], list[str]]] = {
    "ours": ours,
    "polars": polars,
    "duckdb": duckdb,
    "plain_spark": plain_spark,
    "main_job": main_job,
    "limit": limit,
}


def sums(files: list[str]) -> dict[str, float]:
    """Rows, and each column's sum in float64."""
    import duckdb as duck

    columns = ", ".join(["count(*) AS rows", *(f"sum({n}::DOUBLE) AS {n}" for n in COLUMNS)])
    with duck.connect(config={"threads": THREADS}) as connection:
        relation = connection.sql(f"SELECT {columns} FROM read_parquet({files!r}, hive_partitioning=false)")
        (values,) = relation.fetchall()
        return dict(zip(relation.columns, values, strict=True))


def check(name: str, found: dict[str, float], expected: dict[str, float]) -> None:
    """Equal rows and sums: of ids and labels exactly, of logarithms to 1e-6."""
    for column, value in expected.items():
        exact = column not in INTS
        if found[column] != value if exact else abs(found[column] - value) > 1e-6 * abs(value):
            raise SystemExit(f"{name}: {column} sums up to {found[column]!r}, duckdb's to {value!r}")


def measure(bench: Bench, names: list[str], rounds: int) -> None:
    """Round after round; the first two, in which the JVM gets warm, are kept apart."""
    expected = sums(duckdb(bench))
    for turn in range(-2, rounds):
        for name in names:
            start = time.perf_counter()
            files = CONTESTANTS[name](bench)
            rate = bench.megabytes / (time.perf_counter() - start)
            if turn == -2 and name not in ("limit", "main_job"):
                check(name, sums(files), expected)
            key = f"{name} cold" if turn == -2 else f"{name} second" if turn == -1 else name
            bench.rates.setdefault(key, []).append(rate)
            print(f"round {turn:>2}  {name:<12} {rate:7.1f} MB/s", flush=True)


def summary(bench: Bench, names: list[str], rows: int) -> dict[str, Any]:
    """Medians, and ours over each peer round by round."""
    load = os.getloadavg()[0]
    ratios = {}
    for name in names:
        if name != "ours":
            each = [a / b for a, b in zip(bench.rates["ours"], bench.rates[name], strict=True)]
            ratios[name] = {"median": statistics.median(each), "min": min(each), "max": max(each)}
    return {
        "bench": "criteo",
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rows": rows,
        "megabytes": round(bench.megabytes, 1),
        "mb_per_s": {name: statistics.median(rates) for name, rates in bench.rates.items()},
        "ours_over": ratios,
        "load": load,
        "noisy": load > NOISY,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("headrace", "pyspark", "polars", "duckdb", "pyarrow")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def generate(spark: Any, work: Path, rows: int) -> list[str]:
    """Four days of plain text from the planted model."""
    from headrace.pipelines import generate_criteo
    from headrace.report import Report

    config = generate_criteo.Config(dest=str(work / "criteo"), rows=rows, days=4, gzip=False, overwrite=True)
    generate_criteo.run(spark, config, Report("generate-criteo"))
    return sorted(str(path) for path in (work / "criteo").glob("day_*"))


def main() -> None:
    """Measure and print; the last line is JSON, and is appended to docs/results/criteo.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_500_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", help="a folder that is kept; a temporary one by default")
    parser.add_argument("--source", help="plain files of other rows, separated by commas, instead of generated ones")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    args = parser.parse_args()
    from headrace.session import build_session

    names = ["ours", *(name for name in args.contestants.split(",") if name != "ours")]
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as temporary:
        work = Path(args.work or temporary)
        spark = build_session("bench", master=f"local[{THREADS}]")
        paths = args.source.split(",") if args.source else generate(spark, work, args.rows)
        bench = Bench(spark, paths, work)
        limit(bench)  # into the page cache
        measure(bench, names, args.rounds)
        found = summary(bench, names, args.rows)
    for name, ratio in found["ours_over"].items():
        print(f"ours / {name}: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    line = json.dumps(found)
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
