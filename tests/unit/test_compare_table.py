"""Runs beside each other: what tells them apart has a column, and what a run has not is a dash."""

from __future__ import annotations

from headrace.pipelines.compare import table


def test_strategies_and_codecs_tell_runs_apart() -> None:
    same = {"model": "deepfm", "optimizer": "adam+rowwise_adagrad", "launcher": "local", "ranks": 2}
    rows = [
        {"run_id": "a", "strategy": "gossip", "compression": "topk", "megabytes_sent": 3.18, **same},
        {"run_id": "b", "strategy": "allreduce", "megabytes_sent": 17.2, **same},
        {"run_id": "c", "model": "als"},
    ]
    lines = [line.split() for line in table(rows).splitlines()]
    assert lines[0][:5] == ["run", "model", "optimizer", "strategy", "compression"]
    assert [line[3:5] for line in lines[1:]] == [["gossip", "topk"], ["allreduce", "-"], ["-", "-"]]
