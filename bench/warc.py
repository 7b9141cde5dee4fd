"""Row b: decompressed MB/s a core from WARC to Delta: ours, FastWARC and warcio, and what inflating alone takes.

"Spark + FastWARC" is the way of cc-pyspark, which is no package: an iterator in Spark's Python workers.

    python bench/warc.py [--megabytes 300] [--rounds 5] [--work DIR] [--real DIR]

One file is made of the members of real WARCs (or of generated pages), again and again up to that many megabytes
decompressed. Every contestant has one thread; records and the written tables are proved equal before anything counts.
Rounds are interleaved; seconds are wall, and CPU of the process (the JVM compiles and collects garbage beside the
task). One JSON line goes to docs/results/warc.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from fastwarc.warc import ArchiveIterator
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from headrace.catalog.spec import load
from headrace.session import build_session, configured

sys.path.insert(0, str(Path(__file__).resolve().parent))

from warc_file import build

PROJECT = Path(__file__).resolve().parents[1]
WRITING = load("bronze/commoncrawl").parquet
LEVEL = int(WRITING["parquet.compression.codec.zstd.level"])
HEADERS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
TABLE = pa.schema(
    [
        ("offset", pa.int64()),
        ("type", pa.string()),
        ("record_id", pa.string()),
        ("date", pa.timestamp("us", "UTC")),
        ("target_uri", pa.string()),
        ("warc_headers", HEADERS),
        ("content_type", pa.string()),
        ("http_status", pa.int32()),
        ("http_headers", HEADERS),
        ("http_content_type", pa.string()),
        ("payload", pa.binary()),
        ("payload_length", pa.int64()),
    ]
)
LOOKED_AT = [
    f"{name}.list.element.{part}" if part else name
    for name in TABLE.names
    for part in (("name", "value") if name.endswith("headers") else ("",))
    if name != "payload"
]


def inflate(path: Path, decompressobj: Callable[..., Any]) -> int:
    """The limit: every member inflated, nothing looked at."""
    data, at, size = memoryview(path.read_bytes()), 0, 0
    while at < len(data):
        inflater = decompressobj(wbits=31)
        # A member's end is not known: pieces, so that little is handed back as unused.
        while not inflater.eof:
            piece = data[at : at + 16384]
            size += len(inflater.decompress(piece))
            at += len(piece)
        at -= len(inflater.unused_data)
    return size


def fastwarc_records(path: Path) -> Iterator[tuple[Any, bytes]]:
    with path.open("rb") as file:
        for record in ArchiveIterator(file, parse_http=True):
            yield record, record.reader.read()


def fastwarc_read(path: Path) -> int:
    return sum(len(payload) for _, payload in fastwarc_records(path))


def fastwarc_digest(path: Path) -> int:
    """Payloads read, and block digests verified."""
    good = 0
    with path.open("rb") as file:
        for record in ArchiveIterator(file, parse_http=False):
            good += "WARC-Block-Digest" not in record.headers or record.verify_block_digest()
    return good


def fastwarc_parquet(path: Path, target: Path) -> int:
    """The same columns as ours, to one Parquet file with our level of zstd, 500 records a batch.

    Payloads without a dictionary, as ours: the input's members repeat, so that one would keep every payload once and
    leave most of the work out, which it cannot with a crawl's.
    """
    rows: list[tuple[Any, ...]] = []
    settings = {
        "compression": "zstd",
        "compression_level": LEVEL,
        "use_dictionary": LOOKED_AT,
        "write_statistics": LOOKED_AT,
    }
    with pq.ParquetWriter(target, TABLE, **settings) as writer:
        for record, payload in fastwarc_records(path):
            rows.append(_fields(record, payload))
            if len(rows) == 500:
                writer.write_batch(_batch(rows))
                rows.clear()
        writer.write_batch(_batch(rows))
    return pq.ParquetFile(target).metadata.num_rows


def _fields(record: Any, payload: bytes) -> tuple[Any, ...]:
    headers, http = record.headers, record.http_headers
    uri = headers.get("WARC-Target-URI")
    return (
        record.stream_pos,
        headers.get("WARC-Type"),
        record.record_id,
        record.record_date,
        uri[1:-1] if uri and uri[0] == "<" else uri,
        [{"name": k, "value": v} for k, v in headers],
        headers.get("Content-Type"),
        http.status_code if http else None,
        [{"name": k, "value": v} for k, v in http] if http else None,
        http.get("Content-Type") if http else None,
        payload,
        len(payload),
    )


def _batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(TABLE)
    return pa.record_batch([pa.array(list(c), f.type) for c, f in zip(columns, TABLE, strict=True)], schema=TABLE)


def warcio_read(path: Path) -> int:
    from warcio.archiveiterator import ArchiveIterator as Warcio

    with path.open("rb") as file:
        return sum(len(record.content_stream().read()) for record in Warcio(file))


def ours(spark: SparkSession, path: Path) -> DataFrame:
    return spark.read.format("warc").load(path.as_uri())


def ours_noop(spark: SparkSession, path: Path, *more: str) -> int:
    ours(spark, path).select(*TABLE.names, *more).write.format("noop").mode("overwrite").save()
    return 0


def ours_count(spark: SparkSession, path: Path) -> int:
    """Every record parsed and proved whole; of the block only its HTTP head is looked at."""
    return int(ours(spark, path).agg(F.sum("payload_length")).collect()[0][0])


def ours_delta(spark: SparkSession, path: Path, target: Path, *more: str) -> int:
    return _to_delta(spark, ours(spark, path).select(*TABLE.names, *more), target)


def _to_delta(spark: SparkSession, rows: DataFrame, target: Path) -> int:
    """Written as bronze/commoncrawl is."""
    with configured(spark, WRITING):
        rows.write.format("delta").mode("overwrite").save(str(target))
    return 0


def fastwarc_spark(spark: SparkSession, path: Path, target: Path) -> int:
    """FastWARC in a Python worker, its records by Arrow to Spark, which writes them as ours are written."""
    schema = ours(spark, path).select(*TABLE.names).schema

    def records(_: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows: list[tuple[Any, ...]] = []
        for record, payload in fastwarc_records(path):
            rows.append(_fields(record, payload))
            if len(rows) == 500:
                yield _batch(rows)
                rows.clear()
        yield _batch(rows)

    return _to_delta(spark, spark.range(1).mapInArrow(records, schema), target)


def prove(spark: SparkSession, path: Path, work: Path) -> int:
    """Every field of every record equal in FastWARC's Parquet and in our Delta table; gives the number of records."""
    fastwarc_parquet(path, work / "peer.parquet")
    ours_delta(spark, path, work / "delta", "digest_ok", "error")
    # Columns in turn: nothing but equality of everything counts.
    theirs = pq.read_table(work / "peer.parquet", columns=TABLE.names)
    mine = spark.read.format("delta").load(str(work / "delta")).orderBy("offset")
    fastwarc_spark(spark, path, work / "peer")
    if _sum(mine) != _sum(spark.read.format("delta").load(str(work / "peer"))):
        raise SystemExit("rows differ between ours and those of FastWARC in Spark")
    bad = mine.filter("error IS NOT NULL OR NOT digest_ok").count()
    if bad:
        raise SystemExit(f"{bad} records are refused by us and read by FastWARC")
    for name in TABLE.names:
        column = mine.select(F.sha2(F.col(name), 256).alias(name) if name == "payload" else F.col(name))
        got = [row[0] for row in column.collect()]
        want = theirs[name].to_pylist()
        if name == "payload":
            want = [hashlib.sha256(value).hexdigest() for value in want]
        if name == "date":
            want = [value.replace(tzinfo=None) for value in want]
        if name.endswith("headers"):
            got = [value and [row.asDict() for row in value] for value in got]
        if got != want:
            raise SystemExit(f"column {name} differs from FastWARC's")
    return theirs.num_rows


def _sum(rows: DataFrame) -> tuple[Any, ...]:
    """Rows, and the sum of their hashes."""
    return tuple(rows.agg(F.count("*"), F.sum(F.xxhash64(*TABLE.names).cast("decimal(38,0)"))).collect()[0])


def timed(run: Callable[[], int]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process and the JVM under it."""
    start, cpu = time.perf_counter(), _cpu()
    run()
    return time.perf_counter() - start, _cpu() - cpu


def _cpu() -> float:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def contestants(spark: SparkSession, path: Path, work: Path) -> dict[str, Callable[[], int]]:
    from isal import isal_zlib

    return {
        "limit: isal": lambda: inflate(path, isal_zlib.decompressobj),
        "limit: zlib": lambda: inflate(path, zlib.decompressobj),
        "FastWARC, read": lambda: fastwarc_read(path),
        "FastWARC, digests": lambda: fastwarc_digest(path),
        "FastWARC, Parquet": lambda: fastwarc_parquet(path, work / "peer.parquet"),
        "Spark + FastWARC, Delta": lambda: fastwarc_spark(spark, path, work / "peer"),
        "warcio, read": lambda: warcio_read(path),
        "ours, count": lambda: ours_count(spark, path),
        "ours, rows": lambda: ours_noop(spark, path),
        "ours, rows and digests": lambda: ours_noop(spark, path, "digest_ok"),
        "ours, Delta": lambda: ours_delta(spark, path, work / "delta"),
        "ours, Delta and digests": lambda: ours_delta(spark, path, work / "delta", "digest_ok"),
    }


RATIOS = [
    ("ours, Delta", "FastWARC, Parquet"),
    ("ours, Delta", "Spark + FastWARC, Delta"),
    ("ours, Delta", "FastWARC, read"),
    ("ours, rows", "FastWARC, read"),
    ("ours, count", "FastWARC, read"),
    ("ours, rows and digests", "FastWARC, digests"),
    ("ours, rows", "limit: zlib"),
    ("ours, rows", "limit: isal"),
    ("ours, Delta", "limit: isal"),
]


def measure(runs: dict[str, Callable[[], int]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Interleaved rounds after one cold and one warm round of ours."""
    times: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in runs}
    cold = {name: timed(run) for name, run in runs.items() if name.startswith("ours")}
    for name, (wall, cpu) in cold.items():
        times[name] |= {"cold": [wall, cpu]}
        timed(runs[name])
    for _ in range(rounds):
        for name, run in runs.items():
            wall, cpu = timed(run)
            times[name]["wall"].append(wall)
            times[name]["cpu"].append(cpu)
    return times


def ratios(times: dict[str, dict[str, list[float]]], kind: str) -> dict[str, list[float]]:
    """Speed of the first against the second, round by round: median, least, most."""
    found = {}
    for first, second in RATIOS:
        each = [b / a for a, b in zip(times[first][kind], times[second][kind], strict=True)]
        found[f"{first} / {second}"] = [statistics.median(each), min(each), max(each)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", help="a folder that is kept; a temporary one by default")
    parser.add_argument("--real", type=Path, default=PROJECT.parent / "shared" / "data")
    args = parser.parse_args()
    work = Path(args.work or tempfile.mkdtemp(prefix="headrace-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    # Statistics for as many columns as the lake's tables have them.
    indexed = "spark.databricks.delta.properties.defaults.dataSkippingNumIndexedCols"
    spark = build_session("bench-warc", master="local[1]", conf={"spark.driver.memory": "2g", indexed: "4"})
    try:
        path, size, count = build(work, args.megabytes, args.real)
        proved = prove(spark, path, work)
        print(f"{count:,} records, {size / 1e6:.0f} MB decompressed, {path.stat().st_size / 1e6:.0f} MB: all equal")
        times = measure(contestants(spark, path, work), args.rounds)
    finally:
        spark.stop()
        if not args.work:
            shutil.rmtree(work)
    record = {
        "what": "warc",
        "command": f"bench/warc.py --megabytes {args.megabytes} --rounds {args.rounds}",
        "bytes": size,
        "records": proved,
        "load_before": load,
        "noisy": load > 2.5,
        "cores": os.cpu_count(),
        "versions": _versions(),
        "seconds": times,
        "ratios": ratios(times, "wall"),
        "ratios_cpu": ratios(times, "cpu"),
    }
    _print(times, size, record)
    with (PROJECT / "docs" / "results" / "warc.jsonl").open("a") as out:
        out.write(json.dumps(record) + "\n")


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    java = subprocess.run(
        [os.environ.get("JAVA_HOME", "/usr") + "/bin/java", "-version"], capture_output=True, text=True, check=False
    )
    names = ("pyspark", "delta-spark", "fastwarc", "warcio", "isal", "pyarrow")
    return {name: version(name) for name in names} | {
        "python": sys.version.split()[0],
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
        "java": java.stderr.splitlines()[0] if java.stderr else "",
    }


def _print(times: dict[str, dict[str, list[float]]], size: int, record: dict[str, Any]) -> None:
    for name, kinds in times.items():
        wall, cpu = (size / 1e6 / statistics.median(kinds[kind]) for kind in ("wall", "cpu"))
        print(f"{name:<26} {wall:6.0f} MB/s {cpu:6.0f} MB a CPU second")
    for name, (middle, least, most) in record["ratios"].items():
        cpu = record["ratios_cpu"][name][0]
        print(f"{name:<52} {middle:5.2f} ({least:.2f} to {most:.2f}), by CPU {cpu:.2f}")
    print(f"load before {record['load_before']:.1f}" + (": noisy" if record["noisy"] else ""))


if __name__ == "__main__":
    main()
