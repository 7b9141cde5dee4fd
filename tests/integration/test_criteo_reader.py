"""The JVM's reader of Criteo lines equals the plain one: same rows, same refusals, on real and on hostile files."""

from __future__ import annotations

import gzip
import itertools
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from criteo_lines import good_lines, hostile, line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.ingest import criteo_reader
from headrace.ingest.criteo import SCHEMA, CriteoFormat
from headrace.ingest.lines import REJECTED_SCHEMA, InputFile, range_batches, scan_files
from headrace.ingest.textfiles import FileRange, scan

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("generated_code")
FILES = 150
Rows = list[dict[str, object]]
FORMATS = (
    CriteoFormat(),
    CriteoFormat(labelled=False, raw_bytes=5),
    CriteoFormat(max_line_bytes=120, raw_bytes=10),
    CriteoFormat(max_line_bytes=30, raw_bytes=1 << 16),
)
LONG = b"x" * 70_000


@dataclass(frozen=True)
class Made:
    """A file to be read: its bytes, whether it is packed and how, its header, and where it is cut into ranges."""

    lines: tuple[bytes, ...]
    ends: tuple[bytes, ...]
    mark: bool
    whole: bool
    header: bool
    gzip: bool
    cuts: tuple[int, ...]

    def content(self) -> bytes:
        text = b"".join(raw + end for raw, end in zip(self.lines, self.ends, strict=False))
        return (b"\xef\xbb\xbf" if self.mark else b"") + (text if self.whole else text.rstrip(b"\n"))

    def write(self, path: Path) -> Path:
        content = self.content()
        if self.gzip:
            places = [0, *sorted(cut % (len(content) + 1) for cut in self.cuts), len(content)]
            members = [gzip.compress(content[a:b]) for a, b in itertools.pairwise(places)]
            content = (b"\0" * len(self.cuts)).join(members) + b"\0" * 3
        path.write_bytes(content)
        return path


lines_of_a_file = st.lists(
    st.one_of(good_lines, good_lines, hostile, st.sampled_from([LONG, b"", b"\r", b"a\rb", line()])), max_size=10
)
files = st.builds(
    Made,
    lines_of_a_file.map(tuple),
    st.lists(st.sampled_from([b"\n", b"\n", b"\r\n"]), min_size=10, max_size=10).map(tuple),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 1 << 16), max_size=4).map(tuple),
)


def drawn(count: int) -> list[Made]:
    """Many examples, so that one Spark job reads them all."""
    found: list[Made] = []

    @settings(max_examples=count, database=None, suppress_health_check=list(HealthCheck))
    @given(files)
    def collect(made: Made) -> None:
        found.append(made)

    collect()
    return found


def cut(file: InputFile, content: bytes, places: Sequence[int]) -> InputFile:
    """The file with ranges that begin at other lines: wherever lines begin, a range may."""
    starts = [0, *(at + 1 for at, byte in enumerate(content) if byte == 10 and at + 1 < len(content))]
    chosen = sorted({0, *(place % len(starts) for place in places)}) if content else []
    pieces = []
    for first, last in zip(chosen, [*chosen[1:], len(starts)], strict=True) if chosen else []:
        start, end = starts[first], starts[last] if last < len(starts) else len(content)
        crc = zlib.crc32(content[start:end])
        pieces.append(FileRange(file.scan.path, start, end, first, last - first, crc, False))
    return replace(file, scan=replace(file.scan, ranges=tuple(pieces)))


def plain(files: Sequence[InputFile], fmt: CriteoFormat) -> tuple[Rows, Rows]:
    """Accepted and refused lines by the reference, without Spark."""

    def rows(part: str) -> Iterator[dict[str, object]]:
        for file in files:
            for piece in file.scan.ranges:
                for batch in range_batches(file, piece, fmt, part):  # type: ignore[arg-type]
                    yield from batch.to_pylist()

    return list(rows("accepted")), list(rows("rejected"))


def fast(spark: SparkSession, files: Sequence[InputFile], fmt: CriteoFormat) -> tuple[Rows, Rows]:
    """The same by the JVM."""
    accepted = criteo_reader.read(spark, files, fmt)
    rejected = criteo_reader.read(spark, files, fmt, "rejected")
    assert accepted.columns == SCHEMA.names and rejected.columns == REJECTED_SCHEMA.names
    return accepted.toArrow().to_pylist(), rejected.toArrow().to_pylist()


def test_hostile_files_give_the_same_rows_and_refusals(spark: SparkSession, tmp_path: Path) -> None:
    made = drawn(FILES)
    every_byte = tuple(bytes([byte]) + line() for byte in range(256) if byte != 10)
    every_byte += tuple(line()[:20] + bytes([byte]) + line()[21:] for byte in range(256) if byte != 10)
    made.append(Made(every_byte, (b"\n",) * 600, False, True, False, False, (17, 99)))
    inputs = []
    for at, each in enumerate(made):
        path = each.write(tmp_path / f"file {at};$(x)'\"%20{{}}*\n")
        file = InputFile(scan(str(path), 1 << 20), at * 7, at % 5, each.header and bool(each.content()))
        inputs.append(file if each.gzip else cut(file, each.content(), each.cuts))
    for fmt in FORMATS:
        accepted, rejected = fast(spark, inputs, fmt)
        expected = plain(inputs, fmt)
        assert accepted == expected[0]
        assert rejected == expected[1]
        assert len(accepted) + len(rejected) == sum(file.rows for file in inputs)
    assert expected[1], "nothing hostile was drawn"


def test_long_lines_at_the_borders_of_buffers(spark: SparkSession, tmp_path: Path) -> None:
    rng = random.Random(5)
    sizes = [*(2**20 + around for around in (-2, -1, 0, 1, 2)), 3 * 2**20 + 5, 5, 0]
    content = b"".join(
        bytes(rng.choice(b"0a\t") for _ in range(7)) + b"z" * size + b"\r\n" + line() + b"\n" for size in sizes
    )
    path = tmp_path / "day_0"
    for whole in (content, content + b"y" * (2**20 + 9), content + line()):
        path.write_bytes(whole)
        file = InputFile(scan(str(path), 1 << 30), 3, 1)
        for fmt in (CriteoFormat(max_line_bytes=2**20 + 7), CriteoFormat(max_line_bytes=200, raw_bytes=300)):
            assert fast(spark, [file], fmt) == plain([file], fmt)


@pytest.mark.parametrize("name", ["criteo_kaggle", "criteo_short"])
def test_real_files_give_the_same_rows_and_refusals(
    spark: SparkSession, name: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(name)
    paths = sorted(str(path) for path in folder.glob("*.tsv"))
    scans = scan_files(spark, paths)
    inputs = [InputFile(scans[path], at, at, False) for at, path in enumerate(paths)]  # type: ignore[arg-type]
    for fmt in (CriteoFormat(), CriteoFormat(labelled=False)):
        assert fast(spark, inputs, fmt) == plain(inputs, fmt)


def test_a_changed_file_fails_the_read(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "day_0"
    path.write_bytes(line() + b"\n")
    packed = tmp_path / "day_1.gz"
    packed.write_bytes(gzip.compress(line() + b"\n"))
    for changed, content in ((path, line("0") + b"\n"), (path, b""), (packed, gzip.compress(line("0") + b"\n"))):
        before = changed.read_bytes()
        file = InputFile(scan(str(changed), 1 << 20), 0, 0)
        changed.write_bytes(content)
        with pytest.raises(Exception, match="ChangedFileError") as caught:
            criteo_reader.read(spark, [file], CriteoFormat()).collect()
        assert changed.name in str(caught.value)
        changed.write_bytes(before)
    file = InputFile(scan(str(packed), 1 << 20), 0, 0)
    packed.write_bytes(packed.read_bytes()[:-1])
    with pytest.raises(Exception, match="is truncated"):
        criteo_reader.read(spark, [file], CriteoFormat()).collect()


def test_columns_are_pruned_and_days_need_no_sort(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "day_0"
    path.write_bytes(line(cats=("ff",) * 26) + b"\n" + b"bad\n" + line() + b"\n")
    rows = criteo_reader.read(spark, [InputFile(scan(str(path), 1 << 20), 2, 6)], CriteoFormat())
    assert rows.count() == 2
    assert [tuple(row) for row in rows.select("c26", "day").collect()] == [(255, 6), (None, 6)]
    rows.sortWithinPartitions("day", "key").explain()
    assert "Sort" not in capsys.readouterr().out


def test_names_the_jvm_cannot_open_go_the_plain_way(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "journée"
    path.write_bytes(line() + b"\n")
    files = [InputFile(scan(str(path), 1 << 20), 0, 0)]
    assert criteo_reader.read(spark, files, CriteoFormat()).count() == 1
