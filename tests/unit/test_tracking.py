"""The spool, what becomes a metric, and the report that warns in red."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import UserError
from headrace.train.events import EventLog, read_events
from headrace.train.report_html import figures, warnings_of, write_report
from headrace.train.spool import ENTRIES, MARK, Spool
from headrace.train.tracking import TrackingConfig, flat, metrics_of, store_uri, ui_line


def values(spool: Spool) -> list[int]:
    return [entry.value["n"] for entry in spool.pending()]


def test_a_spool_gives_each_entry_until_it_is_marked(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert values(spool) == []
    for n in range(4):
        spool.append({"n": n})
    entries = list(spool.pending())
    spool.set_mark(entries[1].end, "abc")
    assert values(Spool(tmp_path)) == [2, 3] and spool.mark()["run"] == "abc"


@pytest.mark.parametrize("cut", [1, 5, 8])
def test_a_line_cut_by_a_crash_is_left_out_and_swallows_nothing(tmp_path: Path, cut: int) -> None:
    spool = Spool(tmp_path)
    for n in range(3):
        spool.append({"n": n})
    path = tmp_path / ENTRIES
    path.write_bytes(path.read_bytes()[:-cut])
    assert values(spool) == [0, 1]
    spool.append({"n": 9})
    assert values(Spool(tmp_path)) in ([0, 1, 9], [0, 1, 2, 9])  # only the end of line may have been lost


@pytest.mark.parametrize("cut", [1, 5, 8])
def test_an_event_cut_by_a_crash_is_left_out_and_swallows_nothing(tmp_path: Path, cut: int) -> None:
    path, lost = tmp_path / "events.jsonl", []
    log = EventLog(path, lost.append)
    log.write({"type": "step", "n": 0})
    log.write({"type": "step", "n": 1})
    path.write_bytes(path.read_bytes()[:-cut])
    EventLog(path, lost.append).write({"type": "resume", "n": 2})
    assert [event["n"] for event in read_events(path)] in ([0, 2], [0, 1, 2])  # only the end of line may have been lost
    assert lost == []


@pytest.mark.parametrize("mark", ["", "{", '{"sent": "x"}', "[]"])
def test_a_broken_mark_sends_all_again(tmp_path: Path, mark: str) -> None:
    spool = Spool(tmp_path)
    spool.append({"n": 1})
    (tmp_path / MARK).write_text(mark)
    assert values(spool) == [1]


def test_one_sender_at_a_time(tmp_path: Path) -> None:
    with Spool(tmp_path).sender() as first, Spool(tmp_path).sender() as second:
        assert (first, second) == (True, False)
    with Spool(tmp_path).sender() as third:
        assert third


def test_threads_may_append(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    threads = [threading.Thread(target=lambda: [spool.append({"n": i}) for i in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(values(spool)) == sorted(list(range(50)) * 4)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"type": "step", "step": 3, "loss": 0.5, "rank": 0, "time": 1.0, "ok": True}, {"train/loss": 0.5}),
        ({"type": "eval", "split": "test", "metrics": {"auc": 0.7, "calibration": None}}, {"test/auc": 0.7}),
        ({"type": "epoch", "epoch": 1, "dropped": 2}, {"epoch/dropped": 2.0}),
        ({"type": "checkpoint", "path": "x", "bytes": 3}, {}),
    ],
)
def test_events_as_metrics(event: dict[str, Any], expected: dict[str, float]) -> None:
    assert metrics_of(event) == expected


def test_settings_as_parameters() -> None:
    assert flat({"a": {"b": {"c": 1}}, "d": [1, 2], "e": "x" * 900}) == {"a.b.c": "1", "d": "[1, 2]", "e": "x" * 500}


def test_stores(tmp_path: Path) -> None:
    uri = store_uri(TrackingConfig(), tmp_path / "a b")
    assert uri == f"sqlite:///{tmp_path}/a b/mlflow/mlflow.db"
    assert ui_line(uri) == f"mlflow ui --backend-store-uri '{uri}'"
    assert ui_line(store_uri(TrackingConfig(uri="http://host:5000"), tmp_path)) == "open http://host:5000"
    with pytest.raises(UserError, match="cannot lie in hdfs://x"):
        store_uri(TrackingConfig(), "hdfs://x")


GOOD = {"rows": 9, "auc": 0.7, "logloss": 0.5, "normalized_entropy": 0.9, "nonfinite": 0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"auc": 0.5049}, "no better than chance"),
        ({"auc": 0.4951}, "no better than chance"),
        ({"auc": 0.3}, "worse than chance"),
        ({"normalized_entropy": 1.0}, r"logloss 0.5000 is not under the entropy of the click rate \(0.5000\)"),
        ({"normalized_entropy": float("nan"), "logloss": float("nan")}, "not under the entropy"),
        ({"auc": None, "logloss": None, "normalized_entropy": None, "nonfinite": 3}, "3 scores are not numbers"),
    ],
)
def test_a_worthless_model_is_said_in_red(tmp_path: Path, change: dict[str, Any], said: str | None) -> None:
    metrics = GOOD | change
    found = warnings_of(metrics)
    assert len(found) == (said is not None)
    events = [{"type": "eval", "split": "test", "step": 1, "metrics": metrics, "curves": {}}]
    path = tmp_path / "report.html"
    write_report(path, "<run>", {"model": {"name": "<fm>"}}, events)
    page = path.read_text()
    assert ('class="warning"' in page) == (said is not None)
    assert "<run>" not in page and "<fm>" not in page and "&lt;fm&gt;" in page
    assert said is None or re.search(said, found[0])


def test_the_report_is_complete_in_itself(tmp_path: Path) -> None:
    curves = {"roc": [[0.0, 0.0], [1.0, 1.0]], "calibration": [[0.2, 0.1, 5.0]]}
    events = [
        {"type": "step", "step": 1, "loss": 0.6},
        {"type": "eval", "split": "validation", "step": 1, "metrics": GOOD | {"auc": 0.5}, "curves": curves},
        {"type": "eval", "split": "test", "step": 1, "metrics": GOOD, "curves": curves},
    ]
    path = tmp_path / "report.html"
    assert write_report(path, "run", {}, events) == []  # test counts, not validation
    page = path.read_text()
    assert page.count("data:image/png;base64,") == 5 and 'alt="gap"' not in page
    assert "http" not in page and "<script" not in page
    assert write_report(path, "run", {}, []) == ["the run was never evaluated"]


def test_the_report_has_the_runs_own_warnings_and_its_distance_from_the_minimum(tmp_path: Path) -> None:
    rounds = [{"type": "step", "step": at, "loss": 1.0, "gap": 10.0**-at, "epochs": 3.5 * at} for at in range(4)]
    evaluated = {"type": "eval", "split": "test", "step": 3, "metrics": GOOD | {"auc": 0.3}, "curves": {}}
    path = tmp_path / "report.html"
    own = "AUC 0.3000: the model ranks worse than chance"
    assert write_report(path, "run", {}, [*rounds, evaluated], [own, "ended < early"]) == [own, "ended < early"]
    page = path.read_text()
    assert 'alt="gap"' in page and page.count('class="warning"') == 2 and "ended &lt; early" in page
    (axes,) = figures(rounds)["gap"].axes
    assert axes.get_yscale() == "log" and list(axes.lines[0].get_xdata()) == [0.0, 3.5, 7.0, 10.5]
