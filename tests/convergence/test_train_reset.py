"""A checkpoint of another number of ranks: the `reset` event names what begins anew, and nothing that was not there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from convergence.local_rows import run
from convergence.test_train_local import Job

from headrace.pipelines import train_ctr
from headrace.pipelines.train_config import TrackingConfig
from headrace.pipelines.train_monitor import Monitor
from headrace.report import Report
from headrace.strategies import STRATEGIES
from headrace.strategies.compression import CompressionConfig
from headrace.train.events import read_events
from headrace.train.fit_config import FitConfig

MEMORY, CODECS, STATE = "memory of compression", "the codecs chosen by layer", "the strategy's state"
RANDOM = "random state"
OTHERS, SERVERS = "all ranks' optimizers but the first's", "the servers' optimizers"


def lost(directory: Path, before: int, after: int, strategy: str = "allreduce", **compression: Any) -> set[str]:
    """What a reset event says, of a run of some ranks that was stopped and goes on with others."""
    codec = CompressionConfig(min_numel=64, **compression)
    settings: dict[str, Any] = {
        "strategy": {"name": strategy}, "compression": codec, "dense": "sgd", "cfg": FitConfig(epochs=2)
    }  # fmt: skip
    assert run(Job(directory, stop_at=4, **settings), before)["stopped"] == "asked"
    events: list[dict[str, Any]] = []
    run(Job(directory, **settings), after, events)
    assert [event["type"] for event in events[:2]] == ["reset", "resume"] and events[0]["was"] == before
    assert sum(event["type"] == "reset" for event in events) == 1
    said = events[0]["what"].split(", ")
    assert len(said) == len(set(said))
    return set(said)


@pytest.mark.parametrize(
    ("compression", "more"),
    [
        ({}, set()),
        ({"name": "qsgd", "feedback": "none"}, set()),  # its draws are kept, and are numbers of turns
        ({"name": "topk"}, {MEMORY}),
        ({"name": "qsgd", "feedback": "ef"}, {MEMORY}),
        ({"name": "topk", "feedback": "ef21"}, {MEMORY}),
        ({"name": "powersgd"}, {MEMORY}),
        ({"name": "dgc"}, {MEMORY}),
        ({"name": "auto", "options": {"budget": 0.5, "switch": False}}, {MEMORY, CODECS}),
        ({"name": "auto", "feedback": "none", "options": {"budget": 0.5, "switch": False}}, {CODECS}),
        ({"sparse": "qsgd"}, set()),
        ({"name": "topk", "sparse": "qsgd"}, {MEMORY}),
        ({"name": "topk", "hierarchical": True}, {MEMORY}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_memory_is_named_where_a_codec_had_one(tmp_path: Path, compression: dict[str, Any], more: set[str]) -> None:
    assert lost(tmp_path, 2, 4, **compression) == {RANDOM} | more


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_strategys_state_is_named_where_it_keeps_one(tmp_path: Path, name: str) -> None:
    spec = STRATEGIES[name]
    more = {SERVERS} if spec.remote else set() if spec.synchronous else {OTHERS}
    more |= {STATE} if spec.stateful else set()
    assert lost(tmp_path, 2, 3, name) == {RANDOM} | more


@pytest.mark.parametrize("name", ["local_sgd", "gossip", "parameter_server"])
def test_memory_is_named_within_a_strategys_state(tmp_path: Path, name: str) -> None:
    more = {SERVERS} if STRATEGIES[name].remote else {OTHERS}
    assert lost(tmp_path, 2, 3, name, name="topk") == {RANDOM, STATE, MEMORY} | more


def test_one_rank_had_no_memory_and_no_other_ranks(tmp_path: Path) -> None:
    assert lost(tmp_path, 1, 2, "local_sgd", name="topk") == {RANDOM, STATE}


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            {"what": "memory of compression, random state", "was": 2},
            "a checkpoint of 2 ranks goes on with 4; started anew: memory of compression, random state",
        ),
        ({"what": "random state", "was": 1}, "a checkpoint of 1 rank goes on with 4; started anew: random state"),
        (
            {"what": "memory of compressed gradients", "why": "of other hosts' chunks"},
            "memory of compressed gradients of other hosts' chunks: started anew",
        ),
    ],
)
def test_a_reset_is_a_warning_and_a_line_of_the_log(tmp_path: Path, event: dict[str, Any], words: str) -> None:
    cfg = train_ctr.Config(lake=str(tmp_path), ranks=4, tracking=TrackingConfig(enabled=False))
    job: Any = SimpleNamespace(tables={"train": SimpleNamespace(rows=10)}, batch_size=5)
    report = Report("train-ctr", progress="none")
    Monitor(cfg, job, tmp_path, report)(0, {"type": "reset", **event})
    assert report.warnings == [words]
    logged = read_events(tmp_path / "events.jsonl")[-1]
    assert {name: logged[name] for name in ("type", "rank", *event)} == {"type": "reset", "rank": 0, **event}
