"""Ranks under Horovod on Spark, under TorchDistributor, and as threads: the same bits, the same ways to fail."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from distributed.launch_ranks import by_signal, fail, gone_within, sit_exam

from headrace.errors import UserError
from headrace.launch import LAUNCHERS, LaunchOptions, RankFailed, launch, values

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FAST = LaunchOptions(stall_timeout_s=6.0, resume_hint="resume with: headrace train-ctr --resume")


def launch_exam(launcher: str, n: int, spark: Any) -> tuple[list[Any], list[tuple[int, str]]]:
    """Launch the exam; when every rank has done it, send this process the SIGTERM of a scheduler."""
    seen: list[tuple[int, str]] = []

    def on_event(rank: int, event: dict[str, Any]) -> None:
        seen.append((rank, event["kind"]))
        if sum(kind == "done" for _, kind in seen) == n:
            os.kill(os.getpid(), signal.SIGTERM)

    return values(launch(sit_exam, n, launcher=launcher, spark=spark, on_event=on_event)), seen


CASES = [
    ("horovod", 2),
    ("torch", 3),
    *[pytest.param(name, n, marks=pytest.mark.campaign) for name in ("horovod", "torch") for n in (1, 2, 3, 4)],
]


@pytest.mark.parametrize(("launcher", "n"), CASES)
def test_every_launcher_gives_the_bits_of_threads(spark: SparkSession, launcher: str, n: int) -> None:
    expected, _ = launch_exam("local", n, None)
    got, seen = launch_exam(launcher, n, spark)
    for key in ("rank", "size", "threads", "checks", "ordered", "sent", "stopped"):
        assert [g[key] for g in got] == [e[key] for e in expected], key
    assert [g["stopped"] for g in got] == [True] * n
    assert len({g["ordered"] for g in got}) == len({g["ring"] for g in got}) == 1
    assert sorted(seen) == sorted((r, kind) for r in range(n) for kind in ("begun", "done"))


@pytest.mark.parametrize("launcher", ["local", "horovod", pytest.param("torch", marks=pytest.mark.campaign)])
def test_an_error_comes_back_with_rank_and_cause(request: pytest.FixtureRequest, launcher: str) -> None:
    spark = None if launcher == "local" else request.getfixturevalue("spark")
    results = launch(fail, 2, launcher=launcher, spark=spark)
    assert "KeyError: 'the seventh row'" in str(results[1].error)
    assert not results[1].released
    assert results[0].released and "CollectiveError" in str(results[0].error)
    with pytest.raises(RankFailed, match="rank 1 of 2 failed.*") as caught:
        values(results)
    assert caught.value.rank == 1 and "the seventh row" in str(caught.value)


@pytest.mark.parametrize(
    ("launcher", "signum", "words"),
    [
        ("horovod", signal.SIGKILL, "died: "),
        ("torch", signal.SIGSTOP, "stalled: not heard of for"),
        pytest.param("torch", signal.SIGKILL, "died: ", marks=pytest.mark.campaign),
        pytest.param("horovod", signal.SIGSTOP, "stalled: not heard of for", marks=pytest.mark.campaign),
    ],
)
def test_a_dead_or_stopped_rank_is_named_and_nothing_is_left(
    spark: SparkSession, launcher: str, signum: int, words: str
) -> None:
    processes: dict[int, tuple[int, float]] = {}

    def on_event(rank: int, event: dict[str, Any]) -> None:
        processes[rank] = (event["pid"], event["started"])

    results = launch(by_signal(signum), 2, launcher=launcher, spark=spark, on_event=on_event, options=FAST)
    assert results[0].released
    error = str(results[1].error)
    assert error.startswith("rank 1 (host ") and f"pid {processes[1][0]})" in error and words in error
    assert signum != signal.SIGKILL or "killed" in error
    assert "resume with: headrace train-ctr --resume" in error
    assert len(processes) == 2 and gone_within(list(processes.values()), 10.0)


def test_too_few_slots_are_refused_with_the_numbers(spark: SparkSession) -> None:
    for launcher in (name for name in LAUNCHERS if name != "local"):
        with pytest.raises(UserError, match=r"(?s)1000 ranks need 1000 task slots.*has 4.*local\[1000\]"):
            launch(fail, 1000, launcher=launcher, spark=spark)


def test_a_launcher_that_needs_spark_says_so() -> None:
    with pytest.raises(UserError, match="needs a Spark session"):
        launch(fail, 2, launcher="torch")
