"""Which files a source names, and the day each gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.errors import UserError
from headrace.ingest.days import day_range, days_of, find_files


def test_days_come_from_names() -> None:
    assert days_of(["/a/day_7.gz", "/a/day_12"]) == {"/a/day_7.gz": 7, "/a/day_12": 12}
    known = ["/a/train.tsv", "/a/valid.csv", "/a/dev.tsv", "/a/test_x1.txt"]
    assert list(days_of(known).values()) == [0, 1, 1, 2]


def test_days_of_other_names_must_be_given() -> None:
    with pytest.raises(UserError, match=r"clicks.tsv.*\n.*--days_by_name clicks.tsv=0"):
        days_of(["/a/clicks.tsv"])
    with pytest.raises(UserError, match="train.tsv"):
        days_of(["/a/train.tsv"], "name")
    with pytest.raises(UserError, match="train_test"):
        days_of(["/a/train_test.tsv"])
    assert days_of(["/b/y", "/a/z"], "order") == {"/a/z": 0, "/b/y": 1}
    assert days_of(["/a/clicks.tsv", "/a/day_3"], by_name="clicks.tsv=9") == {"/a/clicks.tsv": 9, "/a/day_3": 3}


@pytest.mark.parametrize("setting", ["clicks.tsv", "clicks.tsv=x", "=3"])
def test_a_wrong_day_setting_is_shown(setting: str) -> None:
    with pytest.raises(UserError, match="days_by_name"):
        days_of(["/a/clicks.tsv"], by_name=setting)


def test_day_ranges() -> None:
    assert day_range(None) is None
    assert day_range("3-7") == range(3, 8)
    assert day_range("3") == range(3, 4)
    for wrong in ("a", "7-3", "3-", "-3"):
        with pytest.raises(UserError, match="days"):
            day_range(wrong)


def test_sources_name_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("day_0.gz", "day_[1]", "_SUCCESS", ".hidden", "other"):
        (tmp_path / name).touch()
    named = [str(tmp_path / name) for name in ("day_0.gz", "day_[1]", "other")]
    assert find_files(str(tmp_path)) == named
    assert find_files(f"{tmp_path}/day_[1],{tmp_path}/day_0*,{tmp_path}/day_0.gz") == named[:2]
    monkeypatch.chdir(tmp_path)
    assert find_files("day_*") == named[:2]
    with pytest.raises(UserError, match=r"names no file[\s\S]*holds .*day_0.gz"):
        find_files(f"{tmp_path}/nothing/*.tsv")
    for wrong in ("", "s3://bucket/day_0.gz"):
        with pytest.raises(UserError):
            find_files(wrong)


def test_names_with_commas_and_names_that_are_no_text(tmp_path: Path) -> None:
    """An existing path is one path, whatever is in it; a name that cannot be kept is refused at once."""
    named = tmp_path / "x=1,y=2"
    named.mkdir()
    (named / "day_0").touch()
    assert find_files(f"{named}/day_0") == find_files(str(named)) == [str(named / "day_0")]
    (named / "day_1").touch()
    assert len(find_files(f"{tmp_path}/*/day_0")) == 1
    with open(os.fsencode(named / "day_") + b"\xff", "wb"):
        pass
    with pytest.raises(UserError, match=r"day_\\xff': its name is not UTF-8\n.*rename it"):
        find_files(str(named))
