"""Parsers of graph files: fast against exact on hostile lines, array headers, which file is what."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UserError
from headrace.ingest import edges, named_lines
from headrace.ingest.edges import BLANKS, EdgeFormat
from headrace.ingest.graph_arrays import RowFormat, check_array, range_rows, scan_rows
from headrace.ingest.graph_parquet import check_types
from headrace.ingest.graph_plan import Reading, ogb_files
from headrace.ingest.lines import InputFile, range_batches
from headrace.ingest.named_lines import NamedFormat
from headrace.ingest.npy import open_array
from headrace.ingest.textfiles import Block, BrokenFileError, ChangedFileError, FileScan, scan

FILE = InputFile(FileScan("f", 0, 0, "", 0, b"", False, ()), 3, None)
PLAIN = st.lists(st.integers(0, 10**19).map(str), min_size=1, max_size=4).map("\t".join).map(str.encode)
ODD = st.sampled_from(
    [
        b"", b" ", b"1", b"1\t2", b"1 2", b"1\t2\r", b"1\t2\r\r", b"\r", b"1\t-2", b"+1\t2", b"0x1\t2",
        b"1\t2\t", b"\t1\t2", b"# 1\t2", b"1\t2 ", b" 1\t2", b"1_0\t2", b"\xff\t2", b"1\t\x00", b"NA\t1",
        b"null\t1", b'"1"\t2', b"1e3\t2", b"1.0\t2", b"9223372036854775807\t0", b"9223372036854775808\t0",
        b"18446744073709551616\t0", b"1\t2\tnan", b"1\t2\t1e999", b"1\t2\t.5", b"1\t2\t5.", b"1\t2\t.",
        b"1\t2\te5", b"1\t2\t-1e-3", b"1\t2\t+", b"1\t2\tinf", b"00012\t0007", b"1\t2\t1e-999",
    ]
)  # fmt: skip
LINES = st.lists(
    st.one_of(PLAIN, ODD, st.binary(max_size=12).map(lambda b: b.replace(b"\n", b""))), min_size=1, max_size=12
)
FORMATS = st.sampled_from(
    [
        EdgeFormat(),
        EdgeFormat(2, "\t"),
        EdgeFormat(3, "\t", weight=2),
        EdgeFormat(3, BLANKS, weight=2),
        EdgeFormat(3, "\t", 0, 2, relation=1),
        EdgeFormat(2, ",", 1, 0),
        EdgeFormat(4, " ", 3, 1),
    ]
)


@given(LINES, FORMATS, st.integers(0, 1))
def test_blocks_say_what_lines_say(lines: list[bytes], fmt: EdgeFormat, first_line: int) -> None:
    lines = [line.replace(b"\t", fmt.delimiter.encode()) if fmt.delimiter in ", " else line for line in lines]
    batch, rejects = fmt.parse(FILE, Block(b"".join(line + b"\n" for line in lines), first_line, 0))
    expected, refused, offset = [], [], 0
    for index, line in enumerate(lines):
        found = edges.parse_line(line, fmt, first=first_line + index == 0)
        if isinstance(found, str):
            refused.append((index, offset, line, found))
        else:
            expected.append(((3 << 40) + first_line + index, *found))
        offset += len(line) + 1
    assert [tuple(row[name] for name in fmt.schema.names) for row in batch.to_pylist()] == expected
    assert [(reject.index, reject.offset, reject.raw, reject.reason) for reject in rejects] == refused
    assert batch.schema == fmt.schema


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1)), min_size=1, max_size=20))
def test_plain_blocks_take_the_fast_way(pairs: list[tuple[int, int]]) -> None:
    for delimiter, ending in (("\t", "\n"), (" ", "\r\n")):
        data = "".join(f"{a}{delimiter}{b}{ending}" for a, b in pairs).encode()
        columns = EdgeFormat()._fast(data)
        assert columns is not None
        assert list(zip(*(column.to_pylist() for column in columns), strict=True)) == pairs


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), min_size=1, max_size=8))
def test_no_line_is_lost_whatever_it_holds(lines: list[bytes]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    for fmt in (
        NamedFormat("triples"),
        NamedFormat("features"),
        NamedFormat("labels"),
        NamedFormat("labels", named=True),
    ):
        batch, rejects = fmt.parse(FILE, Block(data, 0, 0))
        assert batch.num_rows + len(rejects) == len(lines)
        assert all(reject.reason for reject in rejects)


@pytest.mark.parametrize(
    ("kind", "line", "expected"),
    [
        ("triples", b"a\tr\tb", ("a", "r", "b")),
        ("triples", b"a\tr", "2 columns instead of 3"),
        ("triples", b"a\t\tb", "relation is empty"),
        ("features", b"7\t1:0.5 3:-2e1", (7, None, 3, [0, 2], np.array([0.5, -20], "<f4").tobytes())),
        ("features", b"7", (7, None, 0, [], b"")),
        ("features", b"7\t0:1", "a feature's index is out of range"),
        ("features", b"7\t2:1 2:1", "indices do not ascend"),
        ("features", b"7\t2:nan", "a feature's value is not a finite number"),
        ("features", b"7\t2:1e39", "a feature's value is not a finite number"),
        ("features", b"7\tx", "a feature is not index:value"),
        ("labels", b"5\t3\tval", (5, None, 3, "validation")),
        ("labels", b"5\t3\tnone", (5, None, 3, None)),
        ("labels", b"5\t\ttrain", (5, None, None, "train")),
        ("labels", b"5\t3\tholdout", "split is none of train, validation, test"),
        ("labels", b"-5\t3", "node is negative"),
        ("labels", b"5\t-1", "label is negative"),
    ],
)
def test_lines(kind: str, line: bytes, expected: Any) -> None:
    assert named_lines.parse_line(line, NamedFormat(kind)) == expected


def header(text: str, version: int = 1, data: bytes = b"") -> bytes:
    body = text.encode()
    length = struct.pack("<H" if version == 1 else "<I", len(body))
    return b"\x93NUMPY" + bytes([version, 0]) + length + body + data


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04" + b"0" * 20, "no numpy array"),
        (b"\x93NUMPY", "no numpy array"),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"), "pickled"),
        (header("{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3), }", data=b"0" * 47), "promises"),
        (header("{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3), }", data=b"0" * 49), "promises"),
        (
            header("{'descr': '<i8', 'fortran_order': False, 'shape': (999999999999999999, 999999999999999999), }"),
            "promises",
        ),
        (header("{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3, 4), }", data=b"0" * 192), "two dimensions"),
        (header("{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (1,), }", data=b"0" * 8), "two dimensions"),
        (header("__import__('os').abort() or {'descr': '<i8', 'fortran_order': False, 'shape': ()}"), "two dimensions"),
        (header("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,), }"), "two dimensions"),
        (header("{'descr': '<U8', 'fortran_order': False, 'shape': (1,), }", data=b"0" * 32), "two dimensions"),
        (header("(" * 60_000), "header of"),
        (header("x", version=9), "version 9"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31), "header of"),
    ],
)
def test_hostile_arrays_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(BrokenFileError, match=reason):
        open_array(str(path))
    assert reason in str(scan_rows(str(path), 1 << 20))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_array_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.npy"
    path.write_bytes(b"\x93NUMPY" + content)
    with pytest.raises(BrokenFileError):
        open_array(str(path))


def rows(path: Path, fmt: RowFormat, range_bytes: int = 1 << 20) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    found = scan_rows(str(path), range_bytes, pairs=fmt.kind == "edges")
    assert isinstance(found, FileScan), found
    file = InputFile(found, 1, None)
    parts = {}
    for part in ("accepted", "rejected"):
        batches = [b for piece in found.ranges for b in range_rows(file, piece, fmt, part)]  # type: ignore[arg-type]
        parts[part] = [row for batch in batches for row in batch.to_pylist()]
    assert len(parts["accepted"]) + len(parts["rejected"]) == found.lines
    return parts["accepted"], parts["rejected"]


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<u8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("pairs_by_row", [False, True])
def test_edge_arrays(tmp_path: Path, dtype: str, order: Any, pairs_by_row: bool) -> None:
    array = np.arange(40, dtype=np.uint64 if dtype == "<u8" else np.int64).reshape(2, 20)
    array[0, 3] = {"<u8": (1 << 63) + 5, "<i8": -4, ">i4": 9}[dtype]
    stored = np.array(array.T if pairs_by_row else array, dtype, order=order)
    np.save(tmp_path / "edge_index.npy", stored)
    accepted, rejected = rows(tmp_path / "edge_index.npy", RowFormat("edges"), range_bytes=64)
    bad = {"<u8": ["source overflows 64 bits"], "<i8": ["source is negative"], ">i4": []}[dtype]
    assert [row["reason"] for row in rejected] == bad
    expected = [(k, int(a), int(b)) for k, (a, b) in enumerate(array.T) if k != 3 or not bad]
    assert [(row["key"] & 0xFFFF, row["src"], row["dst"]) for row in accepted] == expected


def test_feature_and_label_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "node_feat.npy", np.array([[1, 2], [np.inf, 0], [3, 4]], np.float16))
    accepted, rejected = rows(tmp_path / "node_feat.npy", RowFormat("features"))
    assert [row["node"] for row in accepted] == [0, 2] and rejected[0]["line"] == 1
    assert np.frombuffer(accepted[1]["values"], "<f2").tolist() == [3, 4]
    assert (accepted[0]["dim"], accepted[0]["dtype"]) == (2, "float16")
    np.save(tmp_path / "node_label.npy", np.array([[3.0], [np.nan], [0.5], [np.inf], [-1.0]]))
    accepted, rejected = rows(tmp_path / "node_label.npy", RowFormat("labels", (("label", ""),)))
    assert [(row["node"], row["label"]) for row in accepted] == [(0, 3), (1, None), (4, None)]
    assert {row["reason"] for row in rejected} == {"label is not a whole number"}
    np.save(tmp_path / "train.npy", np.array([5, -2, 7]))
    accepted, rejected = rows(tmp_path / "train.npy", RowFormat("labels", (("train", ""),)))
    assert [(row["node"], row["split"]) for row in accepted] == [(5, "train"), (7, "train")] and len(rejected) == 1


def test_parquet_rows(tmp_path: Path) -> None:
    path = tmp_path / "edges.parquet"
    table = pa.table(
        {"s": [1, None, -3, 4], "t": [5, 6, 7, 8], "w": [1.0, 2.0, 3.0, float("nan")], "r": ["a", "b", "c", ""]}
    )
    pq.write_table(table, path, row_group_size=3)
    accepted, rejected = rows(
        path, RowFormat("edges", (("src", "s"), ("dst", "t"), ("weight", "w"), ("relation", "r")))
    )
    assert [(row["src"], row["dst"], row["weight"], row["relation"]) for row in accepted] == [(1, 5, 1.0, "a")]
    reasons = ["source is missing", "source is negative", "weight is not a finite number"]
    assert [row["reason"] for row in rejected] == reasons and [row["line"] for row in rejected] == [1, 2, 3]
    nodes = pa.table({"id": [3, 4], "x": [[1.0, 2.0], [3.0, None]], "label": [2, -1], "split": ["val", "what"]})
    pq.write_table(nodes, tmp_path / "nodes.parquet")
    accepted, rejected = rows(tmp_path / "nodes.parquet", RowFormat("features", (("node", "id"), ("features", "x"))))
    assert [row["node"] for row in accepted] == [3] and len(rejected) == 1
    columns = (("node", "id"), ("label", "label"), ("split", "split"))
    accepted, rejected = rows(tmp_path / "nodes.parquet", RowFormat("labels", columns))
    assert accepted[0]["split"] == "validation" and rejected[0]["reason"] == "label is negative"


def test_a_file_that_changed_since_its_scan(tmp_path: Path) -> None:
    path = tmp_path / "edge_index.npy"
    np.save(path, np.zeros((2, 5), np.int64))
    found = scan_rows(str(path), 1 << 20, pairs=True)
    assert isinstance(found, FileScan)
    np.save(path, np.ones((2, 5), np.int64))
    with pytest.raises(ChangedFileError):
        list(range_rows(InputFile(found, 0, None), found.ranges[0], RowFormat("edges"), "accepted"))


def test_arrays_of_the_wrong_kind_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    array = open_array(str(tmp_path / "a.npy"))
    assert "edges are integers" in check_array(array, RowFormat("edges"))
    assert "float16 or float32" in check_array(array, RowFormat("features"))
    assert "labels are numbers" in check_array(array, RowFormat("labels"))


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("# c\n# d\n1\t2\n", {}, ("edges", 2, 0, 1, None, None, 2)),
        ("1 2 7\n", {}, ("edges", 3, 0, 1, None, None, 0)),
        (
            "from,to,w\n1,2,3\n",
            {"columns": {"src": "from", "dst": "to", "weight": "w"}},
            ("edges", 3, 0, 1, 2, None, 1),
        ),
        ("a,b\n1,2\n", {"format": "csv"}, ("edges", 2, 0, 1, None, None, 1)),
        ("1\t0\t2\n", {"format": "triples"}, ("edges", 3, 0, 2, None, 1, 0)),
        ("1\t2\t0\n", {"format": "triples", "order": "htr"}, ("edges", 3, 0, 1, None, 2, 0)),
        ("", {}, ("edges", 2, 0, 1, None, None, 0)),
    ],
)
def test_plans_of_text(tmp_path: Path, text: str, settings: dict[str, Any], expected: tuple[Any, ...]) -> None:
    path = tmp_path / "x.txt"
    path.write_text(text)
    reading = Reading("g", **settings)
    table, binary = reading.table_of(str(path))
    plan = reading.plan(scan(str(path), 1 << 20))
    assert isinstance(plan.format, EdgeFormat) and not binary
    fmt = plan.format
    assert (table, fmt.fields, fmt.src, fmt.dst, fmt.weight, fmt.relation, plan.header) == expected


@pytest.mark.parametrize("text", ["src\tdst\tweight\n1\t2\t0.5\n", "1\t1e-3\t2\n", "user\titem\ttime\n1\t2\t88\n"])
def test_columns_with_a_header_are_no_triples(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.tsv"
    path.write_text(text)
    assert Reading("g").table_of(str(path)) == ("edges", False)


def test_fractions_in_parquet_are_no_ids(tmp_path: Path) -> None:
    nan = float("nan")
    sources, targets = pa.array([1.5, nan, 1e30, 2.0, None]), pa.array([1, -1, 2, 3, 4])
    pq.write_table(pa.table({"src": sources, "dst": targets, "text": ["a"] * 5}), tmp_path / "x.parquet")
    columns = (("src", "src"), ("dst", "dst"))
    found = scan_rows(str(tmp_path / "x.parquet"), 1 << 20)
    assert isinstance(found, FileScan)
    fmt = RowFormat("edges", columns, False)
    rows = [r for part in ("accepted", "rejected") for r in rows_of(found, fmt, part)]
    assert [(row["src"], row["dst"]) for row in rows if "src" in row] == [(2, 3)]
    assert [row["line"] for row in rows if "line" in row] == [0, 1, 2, 4]
    with pytest.raises(UserError, match=r"column text \(src\) is of type string; a number is needed"):
        check_types(str(tmp_path / "x.parquet"), (("src", "text"), ("dst", "dst")), False)


def rows_of(found: FileScan, fmt: RowFormat, part: Any) -> list[dict[str, Any]]:
    file = InputFile(found, 0, None)
    return [row for piece in found.ranges for batch in range_rows(file, piece, fmt, part) for row in batch.to_pylist()]


def test_triples_by_name_are_told_from_ids(tmp_path: Path) -> None:
    path = tmp_path / "valid.txt"
    path.write_text("00260881\t_hypernym\t00260622\n")
    for settings in ({}, {"format": "triples"}):
        reading = Reading("g", **settings)
        assert reading.table_of(str(path)) == ("triples", False)
        assert reading.plan(scan(str(path), 1 << 20)).constants["split"] == "validation"


def test_a_header_and_comments_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("% note\nsource,target\n1,2\nx,3\n4,5\n")
    found = scan(str(path), 8)
    plan = Reading("g").plan(found)
    file = InputFile(found, 0, None, plan.header)
    assert plan.header == 2 and file.rows == 3
    for part, lines in (("accepted", [2, 4]), ("rejected", [3])):
        batches = [b for piece in found.ranges for b in range_batches(file, piece, plan.format, part)]  # type: ignore[arg-type]
        column = "key" if part == "accepted" else "line"
        assert [row[column] for batch in batches for row in batch.to_pylist()] == lines


def test_ogb_layout(tmp_path: Path) -> None:
    for name in ("edge_index.npy", "split/time/train.npy", "split/time/valid.npy", "other.npy", "train.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / name, np.zeros(3, np.int64))
    taken, others = ([Path(path).name for path in paths] for paths in ogb_files(str(tmp_path)))
    assert taken == ["edge_index.npy", "train.npy", "valid.npy"] and others == ["other.npy", "train.npy"]
    with pytest.raises(UserError, match="none of OGB's arrays"):
        ogb_files(str(tmp_path / "split" / "nothing"))


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    reading = Reading("g", format="csv", columns={"src": "c"})
    with pytest.raises(UserError, match="no column 'c'"):
        reading.plan(scan(str(tmp_path / "x.csv"), 100))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    found = scan_rows(str(tmp_path / "x.parquet"), 100)
    assert isinstance(found, FileScan)
    with pytest.raises(UserError, match="no column 'src or source"):
        Reading("g").plan(found)
