"""Servers in the loop: one rank is plain training, more learn, resume, and are released when one dies."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contract.mailbox_exam import TRANSPORTS
from convergence.local_rows import ROWS, run
from convergence.test_train_local import Job

from headrace import models
from headrace.comm import Collective, LocalGroup, Mailbox, SimulatedCluster
from headrace.comm.clock import Clock
from headrace.launch import RankFailed
from headrace.strategies import STRATEGIES, Equipment
from headrace.strategies.compression import CompressionConfig
from headrace.strategies.parameter_server import ParameterServer
from headrace.strategies.shard import Shard
from headrace.train.fit_config import FitConfig

REMOTE = sorted(name for name, spec in STRATEGIES.items() if spec.remote)
SECONDS = [128 / 1024, 257 / 1024, 515 / 1024]  # of a step: exact sums, never at the same time
ALONE = threading.Lock()
TUNED = {"tune": True, "bound": 1, "window": 2, "bound_max": 6}


class ServedJob(Job):
    """Takes time in forward, on a simulated cluster."""

    def equipment(self, model: models.ClickModel, worker: Any, asked: Callable[[], bool]) -> Equipment:
        made = super().equipment(model, worker, asked)
        clock: Clock | None = getattr(worker, "clock", None)
        if clock is None:
            return made
        seconds = SECONDS[worker.rank]
        model.register_forward_pre_hook(lambda *_: clock.spend(seconds))
        return dataclasses.replace(made, clock=clock)


def job(name: str = "parameter_server", options: dict[str, Any] | None = None, **settings: Any) -> ServedJob:
    settings = {"cfg": FitConfig(epochs=3, checkpoint_every=5, eval_every=7)} | settings
    return ServedJob(strategy={"name": name, **(options or {})}, **settings)


def worker(collective: Collective, mailbox: Mailbox, emit: Callable[[Any], None], clock: Clock | None = None) -> Any:
    return SimpleNamespace(
        collective=collective, mailbox=lambda: mailbox, rank=collective.rank, size=collective.size, emit=emit,
        alone=lambda: ALONE, clock=clock,
    )  # fmt: skip


def simulated(job: Job) -> tuple[dict[str, Any], SimulatedCluster, list[dict[str, Any]]]:
    """The first rank's answer; the cluster; events."""
    cluster = SimulatedCluster(len(SECONDS), latency_s=1 / 64)
    events: list[dict[str, Any]] = []

    def rank_main(rank: int) -> Any:
        return job(worker(cluster.collective(rank), cluster.mailbox(rank), events.append, cluster.clock(rank)))

    answers = cluster.run(rank_main)
    assert all(answer == answers[0] for answer in answers)
    return answers[0], cluster, events


@pytest.mark.parametrize("rule", ["adam", "lamb"])
@pytest.mark.parametrize("name", REMOTE)
def test_one_rank_is_plain_training_bit_for_bit(name: str, rule: str) -> None:
    cfg = FitConfig(epochs=2)
    options = {"compensation": "adaptive", "rates": "staleness"}
    assert run(job(name, options, dense=rule, cfg=cfg))["sha"] == run(Job(dense=rule, cfg=cfg))["sha"]


@pytest.mark.parametrize(
    "options", [{}, {"servers": 1, "bound": 0}, TUNED | {"compensation": "constant"}], ids=["all", "one", "tuned"]
)
def test_learns(options: dict[str, Any]) -> None:
    metrics = run(job("ssp", options), ranks=3)["metrics"]
    assert metrics["auc"] > 0.75 and metrics["normalized_entropy"] < 0.9


def test_learns_over_tcp() -> None:
    def one(mailbox: Mailbox, collective: Collective) -> Any:
        return job("ssp", {"servers": 2}, cfg=FitConfig(epochs=2))(worker(collective, mailbox, lambda event: None))

    answers = TRANSPORTS["tcp"](3, one)
    assert all(answer == answers[0] for answer in answers) and answers[0]["metrics"]["auc"] > 0.75


def test_a_resumed_simulated_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Optimizers and squares of servers, memory of pushes, the tuned bound; staleness is at work."""
    settings: dict[str, Any] = {
        "compression": CompressionConfig(name="qsgd", min_numel=64), "options": TUNED | {"compensation": "adaptive"},
    }  # fmt: skip
    whole, cluster, events = simulated(job(directory=tmp_path / "whole", **settings))
    assert any(event["type"] == "bound" for event in events)
    cut = tmp_path / "cut"
    assert simulated(job(directory=cut, stop_at=14, **settings))[0]["stopped"] == "asked"
    (cut / sorted(p.name for p in cut.iterdir())[-1]).rename(cut / "away")  # that of the stop itself: ranks met for it
    resumed, rest, events = simulated(job(directory=cut, **settings))
    assert any(event["type"] == "resume" for event in events) and rest.seconds < cluster.seconds
    assert resumed["sha"] == whole["sha"]


@pytest.mark.parametrize("name", REMOTE)
def test_a_stop_in_an_epoch_is_heard_and_resumed(name: str, tmp_path: Path) -> None:
    cfg = FitConfig(epochs=2)
    stopped = run(job(name, cfg=cfg, directory=tmp_path, stop_at=3), ranks=3)
    assert stopped["stopped"] == "asked" and stopped["step"] % (ROWS // 96), "in the middle of an epoch"
    events: list[dict[str, Any]] = []
    found = run(job(name, cfg=cfg, directory=tmp_path), ranks=3, events=events)
    assert events[0]["type"] == "resume" and found["step"] == 20
    assert [audit["rows"] + audit["dropped"] for audit in found["audits"]] == [ROWS] * 2
    assert found["metrics"]["auc"] > 0.7


def test_another_number_of_ranks_resumes(tmp_path: Path) -> None:
    run(job(directory=tmp_path, stop_at=4), ranks=2)
    events: list[dict[str, Any]] = []
    found = run(job(directory=tmp_path), ranks=3, events=events)
    assert [event["type"] for event in events[:2]] == ["reset", "resume"] and "servers" in events[0]["what"]
    assert found["metrics"]["auc"] > 0.75


def test_a_rank_with_a_bad_number_leaves_its_push_out_and_all_hear_of_it() -> None:
    events: list[dict[str, Any]] = []
    cfg = FitConfig(epochs=1, on_nonfinite="skip")
    found = run(job(cfg=cfg, source={"spoil": (2, 1)}), ranks=3, events=events)
    told = [event for event in events if event["type"] == "nonfinite"]
    assert found["skipped"] == 1 and [event["ranks"] for event in told] == [[1]]
    with pytest.raises(RankFailed, match="not a finite number in step . on rank 1"):
        run(job(source={"spoil": (2, 1)}), ranks=3)


@pytest.mark.parametrize("name", REMOTE)
def test_a_rank_without_rows_pushes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros would move momentum, and all parameters by it; nor is it a bad number that ranks would meet for."""
    applied, met = [], []
    apply, meet = Shard._apply, ParameterServer._meet

    def noted(self: Shard, rank: int, *args: Any) -> None:
        applied.append(rank)
        apply(self, rank, *args)

    monkeypatch.setattr(Shard, "_apply", noted)
    monkeypatch.setattr(ParameterServer, "_meet", lambda self: (met.append(self.mailbox.rank), meet(self)))
    cfg = FitConfig(epochs=1)
    found = run(job(name, {"servers": 1}, cfg=cfg, dense="momentum", source={"padded": 1}), ranks=2)
    steps = ROWS // 96
    assert applied == [0] * steps and (found["step"], found["skipped"]) == (steps, 0)
    assert sorted(met) == [0, 0, 1, 1], "once, at the end of the epoch"


def test_ranks_that_may_be_far_apart_meet_by_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations of transports are given up after minutes: checkpoints and evaluation begin with none of them."""
    apart: set[int] = set()
    found: list[str] = []
    push, meet = ParameterServer.push, ParameterServer._meet

    class Watched(LocalGroup):
        def exchange(self, rank: int, op: str, payload: Any) -> Any:
            found.extend([op] * (rank in apart))
            return super().exchange(rank, op, payload)

    def pushes(strategy: ParameterServer, *given: Any) -> None:
        apart.add(strategy.collective.rank)
        push(strategy, *given)

    def meets(strategy: ParameterServer) -> None:
        meet(strategy)
        apart.discard(strategy.collective.rank)

    monkeypatch.setattr(ParameterServer, "push", pushes)
    monkeypatch.setattr(ParameterServer, "_meet", meets)
    group, served = Watched(2), job(cfg=FitConfig(epochs=1, checkpoint_every=5, eval_every=4), directory=tmp_path)
    with ThreadPoolExecutor(2) as pool:
        ends = [worker(group.collective(r), group.mailbox(r), lambda event: None) for r in range(2)]
        assert len(set(map(str, pool.map(served, ends)))) == 1
    assert len(found) == 2 * 3, f"one each for the fingerprints of the first batches, and no more: {found}"


@pytest.mark.parametrize("name", REMOTE)
def test_a_dead_rank_releases_the_others(name: str) -> None:
    class Dies(ServedJob):
        def equipment(self, model: models.ClickModel, worker: Any, asked: Callable[[], bool]) -> Equipment:
            calls = []

            def dies() -> bool:
                calls.append(1)
                if worker.rank == 1 and len(calls) == 5:
                    raise ZeroDivisionError("of its own")
                return False

            return super().equipment(model, worker, dies)

    with pytest.raises(RankFailed, match="rank 1 of 3 failed") as caught:
        run(Dies(strategy={"name": name, "bound": 0}), ranks=3)
    assert caught.value.rank == 1 and "of its own" in str(caught.value)
