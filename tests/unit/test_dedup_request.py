"""When a crawl is compared again, and which ones were compared with what no longer is."""

from __future__ import annotations

import pytest

from headrace.catalog.log import DataFile
from headrace.errors import UserError
from headrace.pipelines.dedup_request import check_earlier, compared_before, outdated, request

FILES = [DataFile("/lake/a.parquet", 3, {}, 100), DataFile("/lake/b.parquet", 4, {}, 200)]
SETTINGS = {"threshold": 0.8, "minhash": {"bands": 14}}


def test_a_request_is_the_same_where_the_result_must_be() -> None:
    first = request(FILES, SETTINGS, [], {})
    moved = [DataFile(f.path.replace("/lake", "/other"), f.rows, f.partition, f.size) for f in reversed(FILES)]
    assert request(moved, SETTINGS, [], {}) == first
    assert request(FILES[:1], SETTINGS, [], {}) != first
    assert request(FILES, SETTINGS | {"threshold": 0.9}, [], {}) != first
    after = request(FILES, SETTINGS, ["A"], {"A": first})
    assert after not in (first, request(FILES, SETTINGS, ["A"], {"A": after}))


def test_crawls_compared_with_an_earlier_state_are_named() -> None:
    first = request(FILES, SETTINGS, [], {})
    second = request(FILES, SETTINGS, ["A"], {"A": first})
    assert compared_before({"A": first, "B": second}) == []
    assert compared_before({"A": request(FILES[:1], SETTINGS, [], {}), "B": second}) == ["B"]
    assert compared_before({"B": second}) == ["B"]


def test_crawls_whose_verdicts_are_of_other_documents_are_named() -> None:
    a, b = ([DataFile(f.path, f.rows, {"crawl": crawl}, f.size) for f in FILES] for crawl in "AB")
    first = request(a, SETTINGS, [], {})
    done = {"A": first, "B": request(b, SETTINGS, ["A"], {"A": first})}
    assert outdated(done, [*a, *b]) == []
    assert outdated({"A": first}, [*a, *b]) == ["B"]
    assert outdated(done, [*a, b[0]]) == ["B"]
    assert outdated(done, b) == ["B"], "compared with a crawl that is gone"
    assert outdated(done | {"A": request(a, {"minhash": {}}, [], {})}, [*a, *b]) == ["B"]


def test_only_finished_crawls_of_the_same_settings_are_compared_with() -> None:
    done = {"A": request(FILES, SETTINGS, [], {})}
    check_earlier("B", ["A"], done, {"bands": 14})
    with pytest.raises(UserError, match="A was signed .*bands 14 -> 20"):
        check_earlier("B", ["A"], done, {"bands": 20})
    with pytest.raises(UserError, match="A2 comes before B"):
        check_earlier("B", ["A", "A2"], done, {"bands": 14})
