"""Table descriptions: the strict loader, and what is rendered from them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from headrace.catalog import datasets, spec, strict_yaml
from headrace.catalog.differences import compare, table
from headrace.errors import UserError

GOOD = """\
name: silver/toy
doc: A toy.
columns:
  - {name: key, type: bigint, nullable: false, doc: the key}
  - {name: i1..i3, type: float, doc: a number}
  - {name: part, type: string, doc: a part}
keys: key
partition_by: [part]
checks:
  positive: key >= 0
source: nowhere
licence: free
tensors:
  dense: {columns: "i1..i3", dtype: float32}
parquet:
  parquet.enable.dictionary#key: "false"
"""


def write(tmp_path: Path, text: str, name: str = "silver/toy") -> Path:
    file = tmp_path / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_good_file(tmp_path: Path) -> None:
    found = spec.load_file(write(tmp_path, GOOD))
    assert [c.name for c in found.columns] == ["key", "i1", "i2", "i3", "part"]
    assert (found.layer, found.keys, found.partition_by) == ("silver", ("key",), ("part",))
    assert found.tensors == (spec.TensorSpec("dense", ("i1", "i2", "i3"), "float32"),)
    assert found.path("/lake/") == "/lake/silver/toy"
    assert found.fingerprint_key == "key"
    assert found.to_arrow(partitions=False).names == ["key", "i1", "i2", "i3"]
    assert found.to_arrow().field("key") == pa.field("key", pa.int64(), nullable=False)
    assert found.to_spark()["key"].nullable is False
    assert found.to_spark()["i1"].metadata == {"comment": "a number"}
    assert found.parquet == {"parquet.enable.dictionary#key": "false"}
    assert "<td>key</td>" in found._repr_html_()


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("licence: free", "license: free", 12, "did you mean licence?"),
        ("type: float", "type: flaot", 5, "did you mean float?"),
        ("keys: key", "keys: kye", 7, "did you mean key?"),
        ("nullable: false, doc: the key", "nulable: false, doc: the key", 4, "did you mean nullable?"),
        ("nullable: false", "nullable: no", 4, "true or false"),
        ("dtype: float32", "dtype: float23", 14, "did you mean float32?"),
        ("i1..i3, type", "i3..i1, type", 5, "range"),
        ("name: part,", "name: I1,", 3, "twice"),
        ("name: silver/toy", "name: silver/tow", 1, "does not fit the file"),
        ("nullable: false, ", "", 7, "may be null"),
        ("doc: A toy.", "doc: A toy.\ndoc: Again.", 3, "twice"),
        ("positive: key", "po sitive: key", 10, "not a name"),
        ("dictionary#key", "dictionary#kye", 16, "did you mean key?"),
        ("parquet.enable.dictionary#key", "spark.sql.ansi.enabled", 16, "not a setting of Parquet's writer"),
    ],
)
def test_mistakes_name_file_line_and_remedy(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    assert old in GOOD
    file = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        spec.load_file(file)
    assert f"{file}:{line}" in str(error.value)
    assert says in str(error.value)


def test_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'source' is missing"):
        spec.load_file(write(tmp_path, GOOD.replace("source: nowhere\n", "")))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n- b",
        "a: [1",
        "a: &x {b: *x}",
        "? {a: 1}\n: 2",
        "a: !!python/object/apply:os.getcwd []",
        "\0",
        "x" * (1 << 21),
    ],
    ids=["empty", "list", "unclosed", "loop", "mapping-key", "python-tag", "nul", "huge"],
)
def test_hostile_files_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError):
        spec.load_file(write(tmp_path, text))


def test_scalars_stay_text(tmp_path: Path) -> None:
    entry = strict_yaml.load(write(tmp_path, "a: no\nb: 1e3\nc: 2020-01-01\nd: ~\n")).mapping()
    assert [at.value for at in entry.values()] == ["no", "1e3", "2020-01-01", None]


def test_every_table_of_the_catalog_loads_and_renders() -> None:
    tables = spec.load_all()
    promised = {
        "bronze/criteo",
        "quarantine/criteo",
        "meta/ledger",
        "meta/quality",
        "silver/ctr",
        "silver/ctr_vocabulary",
        "gold/ctr_predictions",
    }
    assert promised <= set(tables)
    for found in tables.values():
        assert found.to_spark().names == found.to_arrow().names == [c.name for c in found.columns]
        assert all(column.doc for column in found.columns)


def test_ctr_tensors_cover_the_features() -> None:
    shapes = {t.name: (len(t.columns), t.dtype) for t in spec.load("silver/ctr").tensors}
    assert shapes == {"key": (1, "int64"), "label": (1, "float32"), "dense": (13, "float32"), "sparse": (26, "int64")}


def test_unknown_table_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean silver/ctr?"):
        spec.load("silver/crt")
    with pytest.raises(UserError, match="did you mean silver/ctr?"):
        spec.load("../data_catalog/silver/ctr")


def test_data_sets_load() -> None:
    assert {"criteo_kaggle", "criteo_terabyte", "generated_criteo"} <= set(datasets.names())
    for name in datasets.names():
        found = datasets.load(name)
        assert all(found.texts().values())
        assert (found.table in spec.load_all()) != (found.table == datasets.NONE_YET)
    with pytest.raises(UserError, match="did you mean criteo_kaggle?"):
        datasets.load("criteo_kagle")


def test_a_data_set_that_is_not_ingested_says_so(tmp_path: Path) -> None:
    text = (spec.catalog_dir() / "datasets/imagenet.yaml").read_text()
    file = write(tmp_path, text, "imagenet")
    assert datasets.load_file(file).ingested_by == "none yet"
    file = write(tmp_path, text.replace("ingested_by: none yet", "ingested_by: ingest-images"), "imagenet")
    with pytest.raises(UserError, match="go together"):
        datasets.load_file(file)
    file = write(tmp_path, text.replace("table: none yet", "table: none"), "imagenet")
    with pytest.raises(UserError, match="no table 'none'"):
        datasets.load_file(file)


def test_binary_cells_say_what_they_hold(tmp_path: Path) -> None:
    text = GOOD.replace("type: string, doc", "type: binary, element: uint16, shape: [2, 3], doc")
    column = spec.load_file(write(tmp_path, text)).column("part")
    assert (column.element, column.shape) == ("uint16", (2, 3))
    for wrong, says in (("element: uint61", "did you mean uint16?"), ("shape: [2, 3]", "no element")):
        changed = text.replace("element: uint16", wrong) if "uint61" in wrong else text.replace("binary", "string")
        with pytest.raises(UserError, match=says):
            spec.load_file(write(tmp_path, changed))


def test_differences_are_shown() -> None:
    found = compare({"a": "int", "b": "int not null", "c": "int"}, {"a": "int", "b": "int", "d": "string"})
    assert [(d.kind, d.column) for d in found] == [("changed", "b"), ("missing", "c"), ("added", "d")]
    assert "changed  b       int not null  int" in table(found)
