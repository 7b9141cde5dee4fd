"""`spark.read.format("warc")` on every real archive: counts, digests, FastWARC's fields, cuts, splits, bombs."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pyspark.sql import Row, SparkSession

pytestmark = pytest.mark.usefixtures("generated_code")
# Records and responses by file, as shared/data/README.md and the files' own notes have them.
INTACT = {
    "cc_whirlwind/whirlwind.warc": (4, 1),
    "cc_whirlwind/whirlwind.warc.gz": (4, 1),
    "cc_whirlwind/whirlwind.warc.wat": (2, 0),
    "cc_whirlwind/whirlwind.warc.wat.gz": (2, 0),
    "cc_whirlwind/whirlwind.warc.wet": (2, 0),
    "cc_whirlwind/whirlwind.warc.wet.gz": (2, 0),
    "cc_jwarc/cc.warc.gz": (1, 1),
    "cc_jwarc/gzip_extra_sl.warc.gz": (1, 0),
    "cc_dolma_warc/sample-0000.warc.gz": (48, 22),
    "cc_dolma_warc/sample-0001.warc.gz": (34, 15),
    "warc_resiliparse/warcfile.warc": (50, 16),
    "warc_resiliparse/warcfile.warc.gz": (50, 16),
    "warc_resiliparse/warcfile.warc.lz4": (50, 16),
    "warc_resiliparse/block-sized-records.warc": (3, 0),
    "warc_resiliparse/block-sized-records.warc.gz": (3, 0),
    "warc_resiliparse/block-sized-records.warc.lz4": (3, 0),
    "warc_resiliparse/clueweb-quirk.warc.gz": (30, 29),
    "warc_broken/example.warc": (6, 1),
    "warc_broken/example.warc.gz": (6, 1),
    "warc_broken/example-bad-non-chunked.warc.gz": (6, 1),
    "warc_broken/example-bad.warc.gz.bad": (6, 2),
    "warc_broken/example-digest.warc": (4, 0),
    "warc_broken/example-iana.org-chunked.warc": (3, 1),
    "warc_broken/example-resource.warc.gz": (3, 0),
    "warc_broken/example-space-in-target-uri.warc.gz": (2, 0),
    "warc_broken/example-wget-bad-target-uri.warc.gz": (6, 1),
    "warc_broken/post-test.warc.gz": (6, 3),
    "warc_broken/example.arc": (2, 1),
    "warc_broken/example.arc.gz": (2, 1),
}
# (offset, length, beginning of the reason) of what is bad, and how many records are good.
DAMAGED = {
    "warc_resiliparse/clipped.warc.gz": ([(0, 18184, "the file is cut")], 0),
    "warc_broken/example-trunc.warc": ([(1197, 1369, "the record does not end")], 3),
    "warc_broken/example-wrong-chunks.warc.gz": (
        [(0, 516, "Content-Length is 1613, 343"), (516, 614, "no record begins here")],
        1,
    ),
    "warc_broken/example-space-in-url.arc": ([(151, 1722, "Archive-length is 1591, 1579")], 1),
    "warc_broken/bad.arc": (
        [(0, 134, "Archive-length is '-1'"), (134, 68, "Archive-length is '-1'"), (262, 69, "Archive-length is 'abc'")],
        1,
    ),
}
# Digests that do not hold: of bodies that ClueWeb's makers decoded, a wrong one, of a revisit that was changed.
BAD_DIGESTS = {
    "warc_resiliparse/clueweb-quirk.warc.gz": 29,
    "warc_broken/example-digest.warc": 1,
    "warc_broken/example-bad-non-chunked.warc.gz": 1,
}


@pytest.fixture(scope="module")
def real(cc_archives: Path, spark: SparkSession) -> dict[str, list[Row]]:
    """Rows of every real archive, read once, by name."""
    names = [*INTACT, *DAMAGED]
    frame = spark.read.format("warc").option("body", "true").load([str(cc_archives / name) for name in names])
    found: dict[str, list[Row]] = {name: [] for name in names}
    for row in frame.collect():
        found["/".join(row.file.split("/")[-2:])].append(row)
    return found


def test_every_real_archive_is_in_the_list(cc_archives: Path) -> None:
    there = {
        f"{file.parent.name}/{file.name}"
        for folder in ("cc_whirlwind", "cc_jwarc", "cc_dolma_warc", "warc_resiliparse", "warc_broken")
        for file in (cc_archives / folder).iterdir()
        if "paths" not in file.name
    }
    assert there == INTACT.keys() | DAMAGED.keys()


def test_bytes_are_accounted_for(real: dict[str, list[Row]], cc_archives: Path) -> None:
    for name, rows in real.items():
        assert [row.offset for row in rows[1:]] == [row.offset + row.length for row in rows[:-1]], name
        assert sum(row.length for row in rows) == (cc_archives / name).stat().st_size, name


def test_counts_and_digests(real: dict[str, list[Row]]) -> None:
    for name, (records, responses) in INTACT.items():
        rows = real[name]
        assert not [row.error for row in rows if row.error], name
        assert (len(rows), sum(row.type == "response" for row in rows)) == (records, responses), name
        assert sum(row.digest_ok is False for row in rows) == BAD_DIGESTS.get(name, 0), name
    assert Counter(row.digest_ok for row in real["warc_resiliparse/warcfile.warc.gz"]) == {True: 16, None: 34}
    assert all(row.digest_ok for row in real["cc_dolma_warc/sample-0000.warc.gz"])


def test_damage_is_where_it_is(real: dict[str, list[Row]]) -> None:
    for name, (bad, good) in DAMAGED.items():
        rows = real[name]
        found = [(row.offset, row.length, row.error) for row in rows if row.error]
        assert [(o, n, e[: len(b[2])]) for (o, n, e), b in zip(found, bad, strict=True)] == bad, name
        assert sum(row.error is None for row in rows) == good, name
        assert all(row.payload is None for row in rows if row.error), name


def test_fields_are_fastwarcs(real: dict[str, list[Row]], cc_archives: Path) -> None:
    """Of every record of every intact WARC file.

    ClueWeb's HTTP heads have LF only, where FastWARC takes pages for heads: there blocks are compared.
    """
    from fastwarc.warc import ArchiveIterator

    for name in (name for name in INTACT if ".arc" not in name):
        with (cc_archives / name).open("rb") as file:
            for row, record in zip(real[name], ArchiveIterator(file, parse_http=False), strict=True):
                _assert_equal(row, record, http="clueweb" not in name)


def _assert_equal(row: Row, record: Any, http: bool) -> None:
    headers = record.headers
    if row.member_offset == 0:  # of records within one member FastWARC tells other places
        assert row.offset == record.stream_pos
    assert [tuple(pair) for pair in row.warc_headers] == [(k, v) for k, v in headers]
    assert (row.type, row.record_id) == (headers.get("WARC-Type"), headers.get("WARC-Record-ID"))
    assert row.content_type == headers.get("Content-Type")
    assert (row.target_uri or "") == headers.get("WARC-Target-URI", "").removeprefix("<").removesuffix(">")
    assert (row.payload_digest, row.block_digest) == (
        headers.get("WARC-Payload-Digest"),
        headers.get("WARC-Block-Digest"),
    )
    assert row.date == (record.record_date and record.record_date.replace(tzinfo=None))
    record.freeze()
    block = record.reader.read()
    assert block.endswith(row.payload) and (row.http_headers is not None or block == row.payload)
    if not http or not record.is_http:
        return
    record.reader.seek(0)
    record.parse_http()
    assert record.reader.read() == row.payload
    assert row.payload_length == len(row.payload)
    assert row.http_status == record.http_headers.status_code
    assert [tuple(pair) for pair in row.http_headers] == [(k, v) for k, v in record.http_headers]
    assert row.http_content_type == record.http_headers.get("Content-Type")


def test_bodies_are_decoded(real: dict[str, list[Row]]) -> None:
    chunked = real["warc_broken/example-iana.org-chunked.warc"][1]
    assert chunked.payload.startswith(b"001c37\r\n") and chunked.body.startswith(b"<!doctype html>")
    page = next(row for row in real["warc_broken/example.warc.gz"] if row.type == "response")
    assert page.payload[:2] == b"\x1f\x8b" and page.body == gzip.decompress(page.payload)
    quirk = real["warc_resiliparse/clueweb-quirk.warc.gz"][1]
    assert quirk.body == quirk.payload, "a page that says it is gzip and is not"
    assert not [row.body_error for rows in real.values() for row in rows if row.body_error]


def test_200_cuts(spark: SparkSession, cc_archives: Path, tmp_path: Path, real: dict[str, list[Row]]) -> None:
    """Complete records once, the cut told with its offset; a cut between two members cannot be seen."""
    data = (cc_archives / "warc_resiliparse/warcfile.warc.gz").read_bytes()
    whole = [(row.offset, row.length, row.record_id) for row in real["warc_resiliparse/warcfile.warc.gz"]]
    rng = random.Random(11)
    cuts = sorted(rng.sample(range(1, len(data)), 200))
    for cut in cuts:
        (tmp_path / f"{cut}.warc.gz").write_bytes(data[:cut])
    columns = ("file", "offset", "length", "record_id", "error")
    found: dict[int, list[Row]] = {cut: [] for cut in cuts}
    for row in spark.read.format("warc").load(str(tmp_path)).select(*columns).collect():
        found[int(Path(row.file).name.split(".")[0])].append(row)
    for cut, rows in found.items():
        kept = [record for record in whole if record[0] + record[1] <= cut]
        assert [(row.offset, row.length, row.record_id) for row in rows if row.error is None] == kept
        end = kept[-1][0] + kept[-1][1] if kept else 0
        told = [(row.offset, row.length) for row in rows if row.error]
        assert told == ([(end, cut - end)] if cut > end else [])


def test_splits_give_every_record_once(spark: SparkSession, cc_archives: Path, real: dict[str, list[Row]]) -> None:
    for name in ("warc_resiliparse/warcfile.warc.gz", "warc_resiliparse/warcfile.warc"):
        want = [(row.offset, row.length, row.record_id) for row in real[name]]
        for size, lookback in ((7_001, 0), (50_000, 1_000)):
            reader = spark.read.format("warc").option("splitBytes", size).option("splitLookback", lookback)
            frame = reader.load(str(cc_archives / name)).select("offset", "length", "record_id")
            assert [tuple(row) for row in frame.collect()] == want, (name, size)


def test_types_filters_and_account(spark: SparkSession, cc_archives: Path) -> None:
    path = str(cc_archives / "warc_broken/example-trunc.warc")
    frame = spark.read.format("warc").load(path)
    assert frame.filter("type = 'response' OR error IS NOT NULL").count() == 1
    assert [row.type for row in frame.filter("type IN ('request')").select("type").collect()] == ["request"]
    assert frame.filter("NOT type = 'warcinfo' AND error IS NULL").count() == 1
    some = spark.read.format("warc").option("types", "request").load(path).collect()
    assert sum(row.length for row in some) == os.path.getsize(path)
    assert [row.type for row in some if row.payload is not None] == ["request"]


def test_single_records_by_manifest(
    spark: SparkSession, cc_archives: Path, tmp_path: Path, real: dict[str, list[Row]]
) -> None:
    name = "warc_resiliparse/warcfile.warc.gz"
    wanted = [real[name][i] for i in (40, 3, 7)]
    lines = [f"{name}\t{row.offset}\t{row.length}\n" for row in wanted] + [f"{name}\t17\t1000\n"]
    (tmp_path / "lookups.tsv").write_text("".join(lines))
    reader = spark.read.format("warc").option("manifest", str(tmp_path / "lookups.tsv"))
    rows = reader.option("root", str(cc_archives)).load().collect()
    assert [(row.offset, row.record_id, row.payload) for row in rows[:3]] == [
        (row.offset, row.record_id, row.payload) for row in wanted
    ]
    assert rows[3].error is not None and rows[3].offset == 17, "a wrong place is told"
    assert sum(row.length for row in rows[3:]) == 1000
    (tmp_path / "lookups.tsv").write_text("../x\t0\t10\n")
    with pytest.raises(Exception, match="leads out of the root"):
        reader.option("root", str(cc_archives)).load().collect()


def test_strict_mode_and_mistakes(spark: SparkSession, cc_archives: Path) -> None:
    path = str(cc_archives / "warc_resiliparse/clipped.warc.gz")
    with pytest.raises(Exception, match=r"clipped.warc.gz, offset 0: the file is cut"):
        spark.read.format("warc").option("mode", "strict").load(path).count()
    with pytest.raises(Exception, match="unknown option 'maxrecordbyte'"):
        spark.read.format("warc").option("maxRecordByte", "1").load(path).count()
    with pytest.raises(Exception, match="there is no such file"):
        spark.read.format("warc").load(path + ".missing").count()


BOMB = """
import sys
import psutil
from headrace.session import build_session
conf = {
    "spark.driver.memory": "256m",
    "spark.testing.memory": str(512 << 20),
    "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:ReservedCodeCacheSize=48m -XX:TieredStopAtLevel=1",
}
spark = build_session("bomb", master="local[1]", conf=conf)
frame = spark.read.format("warc").load(sys.argv[1])
rows = frame.select("offset", "length", "type", "payload_length", "error").collect()
print("ROWS", [tuple(row) for row in rows])
java = [p for p in psutil.Process().children(recursive=True) if "java" in p.name()]
peak = max(int(line.split()[1]) for p in java for line in open(f"/proc/{p.pid}/status") if line.startswith("VmHWM"))
print("PEAK", peak * 1024)
"""


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A record of 512 MiB in 0.5 MB, with a good record behind it."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.warc.gz"
    size = 512 << 20
    head = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: %d\r\n\r\n"
    packer = zlib.compressobj(9, wbits=31)
    with path.open("wb") as out:
        out.write(packer.compress(head % size))
        for _ in range(512):
            out.write(packer.compress(bytes(1 << 20)))
        out.write(packer.compress(b"\r\n\r\n") + packer.flush())
        out.write(gzip.compress(head % 4 + b"good\r\n\r\n"))
    yield path
    path.unlink()


def test_a_bomb_stays_small(bomb: Path) -> None:
    """In a JVM of its own, whose whole resident memory is measured."""
    run = subprocess.run([sys.executable, "-c", BOMB, str(bomb)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    printed = dict(line.split(" ", 1) for line in run.stdout.splitlines() if line.startswith(("ROWS", "PEAK")))
    assert "maxRatio" in printed["ROWS"] and "'response', 4, None)" in printed["ROWS"]
    assert bomb.stat().st_size < 600_000
    assert int(printed["PEAK"]) < 512 << 20, printed["PEAK"]
