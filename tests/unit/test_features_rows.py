"""The row transform, its settings, days and hashes, without Spark."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from integration import features_reference as slow

from headrace.errors import UserError
from headrace.features.ctr import unknown_shares
from headrace.features.hashing import bucket_of, murmur3, order_hash, places, slice_of, xxhash64
from headrace.features.layout import files_for
from headrace.features.row_transform import RowTransform, Vocabulary, arrow_cells, pandas_cells
from headrace.features.split import format_days, parse_days, split_days
from headrace.features.transform import CATEGORIES, INTS, CategoryRule, Transform
from headrace.features.vocabulary import check_size, choose_kinds, rules
from headrace.pipelines.featurize_ctr import by_column

INT64 = st.integers(-(2**63), 2**63 - 1)
HASHED = Transform("log", {}, dict.fromkeys(CATEGORIES, CategoryRule("hash", 10)), None)


def frame(**cells: object) -> pd.DataFrame:
    """One raw row, missing but for `cells`."""
    return pd.DataFrame({name: [cells.get(name)] for name in INTS + CATEGORIES}, dtype=object)


@given(st.lists(INT64, min_size=1, max_size=20), st.integers(0, 2**64 - 1))
def test_xxhash64_equals_the_specification(values: list[int], seed: int) -> None:
    array = np.array(values, np.int64)
    assert xxhash64(array, seed).tolist() == [slow.slow_xxhash64(value, seed) for value in values]
    assert bucket_of(array, 7).tolist() == [slow.slow_xxhash64(value) % 7 for value in values]


def test_golden_hashes() -> None:
    golden = json.loads((Path(__file__).parents[1] / "golden" / "xxhash64_long.json").read_text())
    values = np.array(golden["value"], np.int64)
    assert xxhash64(values).tolist() == golden["xxhash64"]
    assert order_hash(values, 7).tolist() == golden["order_seed_7"]


@given(st.lists(INT64, min_size=1, max_size=50), st.integers(1, 1000))
def test_slices_ascend_with_the_hash_and_are_equal_ranges(values: list[int], num: int) -> None:
    hashes = np.sort(np.array(values, np.int64))
    slices = slice_of(hashes, num)
    assert slices.tolist() == sorted(slices.tolist())
    expected = [((value + 2**63) >> 32) * num >> 32 for value in hashes.tolist()]
    assert slices.tolist() == expected and min(expected) >= 0 and max(expected) < num


@pytest.mark.parametrize("num", [1, 2, 7, 100, 5000])
def test_places_cover_every_partition_once(num: int) -> None:
    assert np.mod(murmur3(places(num)), num).tolist() == list(range(num))


def test_ints_by_log_keep_sign_and_tell_missing_from_every_count() -> None:
    transform = RowTransform(HASHED)
    values = [0, 1, -1, -2, 5, 10**15, 2**63 - 1, -(2**63)]
    got = transform.int_column("i1", (np.array(values), np.zeros(8, bool)))
    assert got.dtype == np.float32
    assert got.tolist() == [slow.slow_int(value) for value in values]
    missing = transform.int_column("i1", (np.array([0]), np.array([True])))[0]
    assert missing == -1.0
    assert missing not in transform.int_column("i1", (np.arange(-1000, 1000), np.zeros(2000, bool)))


def test_ints_by_quantile() -> None:
    cuts = {name: (0.0, 10.0, 100.0) for name in INTS}
    transform = RowTransform(Transform("quantile", cuts, HASHED.categories, None))
    got = transform.int_column("i1", (np.array([-5, 0, 1, 10, 11, 1000, 7]), np.arange(7) == 6))
    assert got.tolist() == [0.25, 0.25, 0.5, 0.5, 0.75, 1.0, 0.0]


def test_a_vocabulary_gives_reserved_ids_and_hides_later_growth() -> None:
    table = pa.table({"column": ["c1", "c2", "c1"], "value": [7, 7, 2**32 - 1], "id": pa.array([3, 3, 4], pa.int32())})
    known = Vocabulary.from_arrow(table)
    kinds = {name: CategoryRule("vocabulary", {"c1": 5, "c2": 4}.get(name, 3)) for name in CATEGORIES}
    transform = RowTransform(Transform("log", {}, kinds, 1), known)
    cells = (np.array([7, 2**32 - 1, 8, 0, 9]), np.array([False, False, False, True, False]))
    assert transform.category_column("c1", cells).tolist() == [3, 4, 2, 1, 2]
    assert transform.category_column("c2", cells).tolist() == [3, 2, 2, 1, 2]
    assert transform.category_column("c3", cells).tolist() == [2, 2, 2, 1, 2]
    earlier = RowTransform(Transform("log", {}, kinds | {"c1": CategoryRule("vocabulary", 4)}, 1), known)
    assert earlier.category_column("c1", cells).tolist() == [3, 2, 2, 1, 2]
    with pytest.raises(ValueError, match="a value twice"):
        Vocabulary.from_arrow(pa.concat_tables([table, table]))


def test_raw_cells_of_every_kind() -> None:
    dense, sparse = RowTransform(HASHED)(frame(i1=3, i2=-2, c1="000000ff", c2=255, c3="ff", c4="", c5="FF"))
    assert dense.shape == (1, 13) and sparse.shape == (1, 26)
    assert dense[0, :3].tolist() == pytest.approx([math.log(4), -math.log(3), -1.0])
    wanted = 3 + slow.slow_xxhash64(255) % 7
    assert sparse[0, :6].tolist() == [wanted, wanted, wanted, 1, wanted, 1]


def test_modulo_is_of_the_value_itself() -> None:
    """DLRM's `--max-ind-range`: raw ids modulo the size, here behind the three reserved ids."""
    rules = dict.fromkeys(CATEGORIES, CategoryRule("modulo", 10)) | {"c2": CategoryRule("modulo", 4)}
    cells = {"c1": "ffffffff", "c2": "0000000a", "c3": 7, "c4": "", "c5": 6}
    _, sparse = RowTransform(Transform("log", {}, rules, None))(frame(**cells))
    assert sparse[0, :5].tolist() == [3 + 0xFFFFFFFF % 7, 3, 3, 1, 9]


@pytest.mark.parametrize(
    ("name", "cell", "message"),
    [
        ("c1", "0123456g", "column c1: '0123456g' is not 1 to 8 hex digits"),
        ("c1", "012345678", "not 1 to 8 hex digits"),
        ("c1", "1\u0660", "not 1 to 8 hex digits"),
        ("i1", 1.5, "column i1: '1.5' is no whole number"),
        ("i1", "x", "column i1: 'x' is no whole number"),
        ("i1", 2**63, "no whole number"),
        ("i1", math.inf, "no whole number"),
    ],
)
def test_cells_that_are_refused(name: str, cell: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RowTransform(HASHED)(frame(**{name: cell}))


def test_columns_that_are_missing_or_fractional() -> None:
    with pytest.raises(UserError, match="no column i3, c26"):
        RowTransform(HASHED)(frame().drop(columns=["i3", "c26"]))
    with pytest.raises(UserError, match="column i1, row 1: 0.5"):
        pandas_cells(pd.Series([1.0, 0.5, np.nan]), "i1")
    with pytest.raises(UserError, match="no whole number"):
        pandas_cells(pd.Series([2.0**60]), "i1")


@given(st.lists(st.one_of(st.none(), st.integers(0, 2**32 - 1)), max_size=30))
def test_pandas_and_arrow_cells_agree(cells: list[int | None]) -> None:
    values, missing = arrow_cells(pa.array(cells, pa.int64()))
    texts = [None if cell is None else f"{cell:08x}" for cell in cells]
    for series in (
        pd.Series(cells, dtype=object),
        pd.Series(cells, dtype="Int64"),
        pd.Series(cells, dtype=float),
        pd.Series(texts, dtype=object),
    ):
        got, absent = pandas_cells(series, "c1", hexadecimal=True)
        assert absent.tolist() == missing.tolist() == [cell is None for cell in cells]
        assert got[~absent].tolist() == values[~missing].tolist() == [cell for cell in cells if cell is not None]


def test_transform_round_trip_and_hostile_json() -> None:
    cuts = {name: (0.0, 0.5) for name in INTS}
    whole = Transform("quantile", cuts, HASHED.categories, 4)
    assert Transform.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    for change in (
        {"format": 2},
        {"ints": "exp"},
        {"categories": {}},
        {"boundaries": {"i1": [1, 0]}},
        {"categories": whole.to_json()["categories"] | {"c1": {"kind": "hash", "num_ids": 2**40}}},
        {"categories": whole.to_json()["categories"] | {"c1": {"kind": "modulo", "num_ids": 3}}},
        {"categories": whole.to_json()["categories"] | {"c1": {"kind": "remainder", "num_ids": 10}}},
    ):
        with pytest.raises(UserError, match="model.json: no transform of ours"):
            Transform.from_json(whole.to_json() | change, "model.json")
    with pytest.raises(UserError, match="no transform"):
        Transform.from_json(None)


def test_a_models_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.json"):
        RowTransform.from_directory(tmp_path)
    kinds = dict.fromkeys(CATEGORIES, CategoryRule("vocabulary", 4))
    about = {"transform": Transform("log", {}, kinds, 1).to_json(), "model": {"categories": True}}
    (tmp_path / "model.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"vocabulary\.parquet"):
        RowTransform.from_directory(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(about | {"model": {"categories": False}}))
    _, sparse = RowTransform.from_directory(tmp_path)(frame(c1="ff"))
    assert sparse[0, :2].tolist() == [2, 1]


@pytest.mark.parametrize(("text", "days"), [("0-3", (0, 1, 2, 3)), ("7", (7,)), ("4,0-1, 3", (0, 1, 3, 4))])
def test_days_are_read(text: str, days: tuple[int, ...]) -> None:
    assert parse_days(text) == days
    assert parse_days(format_days(days)) == days


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-1", "0,,1", "1e3"])
def test_days_that_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--split.train"):
        parse_days(text, "split.train")


def test_default_and_given_splits() -> None:
    split = split_days(range(8))
    assert (split.train, split.validation, split.test) == ((0, 1, 2, 3, 4, 5), (6,), (7,))
    assert split_days([3, 5, 9]).of_day() == {3: "train", 5: "validation", 9: "test"}
    split = split_days(range(5), train="0", test="1-2")
    assert (split.train, split.validation, split.test) == ((0,), (4,), (1, 2))


@pytest.mark.parametrize(
    ("present", "given_days", "message"),
    [
        ([0], {}, r"no day is left for split.train.*day 0\n.*at least three days"),
        ([0, 1], {}, "no day is left for split.train"),
        ([], {}, r"no day is left for split.train.*\(none\)"),
        ([0, 1, 2], {"train": "0-1", "test": "1"}, "day 1 is in split.train and in split.test"),
        ([0, 1, 2], {"train": "0-5"}, "day 3 has no labelled rows"),
    ],
)
def test_splits_that_are_refused(present: list[int], given_days: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_days(present, **given_days)


def test_kinds_rules_and_limits() -> None:
    sizes = {"c1": 5, "c2": 50}
    kinds = choose_kinds("auto", sizes, 10, {})
    assert (kinds["c1"], kinds["c2"], kinds["c3"]) == ("vocabulary", "hash", "vocabulary")
    assert choose_kinds("auto", {"c1": 500}, 10, kinds)["c1"] == "vocabulary", "ids may not change"
    table = rules(kinds, sizes, 100, {"c2": 20})
    assert [table[name].num_ids for name in ("c1", "c2", "c3")] == [8, 23, 3]
    with pytest.raises(UserError, match=r"55 entries.*c2 alone has 50\n.*--categories auto"):
        check_size(sizes, 54)
    check_size(sizes, 55)
    assert files_for({"train": 1001, "test": 0}, 500) == {"train": 3, "test": 1}


def test_settings_by_column() -> None:
    assert by_column("c3=20,c4=5", "x") == by_column({"c3": 20, "c4": 5}, "x") == {"c3": 20, "c4": 5}
    for bad in ("c0=1", "c3", "c3=0", "c3=-1"):
        with pytest.raises(UserError, match="--x: "):
            by_column(bad, "x")


def test_shares_of_unknown_cells() -> None:
    row = {"day": 4, "split": "test", "rows": 10, "missing_c1": 5, "unknown_c1": 1, "missing_c2": 10, "unknown_c2": 0}
    report = unknown_shares([row], ("c1", "c2"), {4: "test"})["4"]
    assert (report["cells"], report["missing"], report["unknown"], report["share"]) == (20, 15, 1, 0.2)
    assert report["columns"] == {"c1": 0.2, "c2": 0.0}
