"""Ranks under Horovod on Spark, under TorchDistributor, and as threads: the same bits, the same ways to fail."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from contract.collective_exam import robust_rules
from distributed.ctr_lake import make_ctr_lake, small_config, small_job
from distributed.exchange_runs import (
    HALT_AT,
    HOSTS,
    PLAIN,
    ROWS,
    SHARDED,
    check_halted,
    compare,
    exchange_runs,
    has_tables,
)
from distributed.launch_ranks import by_signal, fail, gone_within, sit_exam

from headrace.errors import UserError
from headrace.launch import LAUNCHERS, LaunchOptions, RankFailed, launch, values
from headrace.strategies import STRATEGIES
from headrace.strategies.aggregation import AGGREGATIONS
from headrace.train.job import TrainJob

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
WITHIN_S = 60.0  # a rank's end is told, by its number
FAST = LaunchOptions(stall_timeout_s=6.0, resume_hint="resume with: headrace train-ctr --resume")


@pytest.fixture(scope="module")
def ctr_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ctr_lake(tmp_path_factory.mktemp("lake"), {"train": 1500, "validation": 200, "test": 200})


def launch_exam(
    launcher: str,
    n: int,
    spark: Any,
    job: TrainJob,
    runs: dict[str, TrainJob],
    options: LaunchOptions | None = None,
) -> tuple[list[Any], list[tuple[int, str]]]:
    """Launch exam and training; when every rank has done both, send this process the SIGTERM of a scheduler."""
    seen: list[tuple[int, str]] = []

    def on_event(rank: int, event: dict[str, Any]) -> None:
        if "kind" in event:
            seen.append((rank, event["kind"]))
        if event == {"kind": "trained"} and sum(kind == "trained" for _, kind in seen) == n:
            os.kill(os.getpid(), signal.SIGTERM)

    halted = dict.fromkeys((name for name in runs if name.endswith(f"/{PLAIN}")), HALT_AT)
    fn = functools.partial(sit_exam, job=job, jobs=runs, halted=halted if launcher != "local" and n > 1 else {})
    return values(launch(fn, n, launcher=launcher, spark=spark, on_event=on_event, options=options)), seen


CASES = [
    ("horovod", 2),
    ("torch", 2),
    *[
        pytest.param(name, n, marks=pytest.mark.campaign)
        for name in ("horovod", "torch")
        for n in (1, 2, 3, 4)
        if (name, n) not in (("horovod", 2), ("torch", 2))
    ],
]


@pytest.mark.parametrize(("launcher", "n"), CASES)
def test_every_launcher_gives_the_bits_of_threads(
    spark: SparkSession, ctr_lake: Path, tmp_path: Path, launcher: str, n: int
) -> None:
    """One launch: the exam of collectives, sums of gradients (compressed, within and between hosts, of coded rows,
    robust), pipelines and split layers, training; its exchange during backward where n = 2; runs of all strategies, in
    which rank 1 is stopped for some seconds, of all kinds of sums, and one with sharded tables; Horovod's own files."""
    cfg = small_config(ctr_lake, ranks=n)
    runs = exchange_runs(ctr_lake, tmp_path / "runs_of_threads", n)
    together = {name: run for name, run in runs.items() if run.strategy.spec.repeatable}
    expected, _ = launch_exam("local", n, None, small_job(cfg, tmp_path / "threads"), together)
    job = small_job(cfg, tmp_path / "processes", overlap="on" if n == 2 else "off", bucket_bytes=2000)
    runs = exchange_runs(ctr_lake, tmp_path / "runs_of_processes", n)
    own = {name: str(tmp_path / name) for name in ("timeline", "autotune") if launcher == "horovod"}
    got, seen = launch_exam(launcher, n, spark, job, runs, LaunchOptions(**own))
    if own:
        assert '"allgather.headrace"' in Path(own["timeline"]).read_text()
        assert "tensor_fusion_threshold" in Path(own["autotune"]).read_text()
    check_runs(n, [g["runs"] for g in got], [e["runs"] for e in expected])
    sums = ("compressed", "hosts", "coded_rows", "robust")
    exams = ("checks", "ordered", "overlapped", "sent", *sums, "sent_coded", "mailbox", "parallel")
    for key in ("rank", "size", "threads", *exams, "stopped"):
        assert [g[key] for g in got] == [e[key] for e in expected], key
    assert all(g[key] == got[0][key] for key in sums for g in got), "ranks agree"
    assert set(got[0]["robust"]) == {1: set(), 2: {"norm_clip"}}.get(n, set(AGGREGATIONS))
    for key in ("weights_sha256", "audits", "validation", "test", "steps"):
        assert [g["trained"][key] for g in got] == [e["trained"][key] for e in expected], key
    assert got[0]["trained"]["steps"] == 22 and got[0]["trained"]["test"]["rows"] == 200
    assert [g["stopped"] for g in got] == [True] * n
    assert len({g["ordered"] for g in got} | {g["overlapped"] for g in got}) == len({g["ring"] for g in got}) == 1
    assert sorted(seen) == sorted((r, kind) for r in range(n) for kind in ("begun", "done", "trained"))


def check_runs(n: int, got: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Runs by rank and name: bits of those that repeat, steps of those in which a rank was stopped."""
    for name in got[0]:
        strategy, _, codec = name.partition("/")
        ranks = [rank[name] for rank in got]
        if STRATEGIES[strategy].repeatable:
            compare(ranks, [rank[name] for rank in expected], alone=n == 1, tables=has_tables(codec))
        if codec == PLAIN and n > 1:
            check_halted(strategy, ranks)
        if codec == SHARDED:
            replicated = [rank[f"{strategy}/{PLAIN}"] for rank in got]
            assert [run["weights_sha256"] for run in ranks] == [run["weights_sha256"] for run in replicated]
            assert n == 1 or all(run["lookups"]["rows_served"] > 0 for run in ranks)
        if codec in (HOSTS, ROWS, *robust_rules(n)) and n > 1:  # all ranks are on one host, whose sums are exact
            plain = got[0][f"{strategy}/{PLAIN}"]
            assert (ranks[0]["weights_sha256"] == plain["weights_sha256"]) == (codec == HOSTS)
    print({name: [len(run["curve"]), run["bytes_of_tables"], run["bytes_sent"]] for name, run in got[0].items()})


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
    before: dict[int, float] = {}  # the signal, by the clock of the machine

    def on_event(rank: int, event: dict[str, Any]) -> None:
        processes[rank] = (event["pid"], event["started"])
        before[rank] = event["at"]

    results = launch(by_signal(signum), 2, launcher=launcher, spark=spark, on_event=on_event, options=FAST)
    assert 0 < time.monotonic() - before[1] < WITHIN_S
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


DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from distributed.launch_ranks import sleep
from headrace.launch import launch
from headrace.session import build_session

spark = build_session("killed", master="local[2]", conf={"spark.driver.memory": "1g"})
launch(sleep, 2, spark=spark, on_event=lambda rank, event: print(event["pid"], event["started"], flush=True))
"""


@pytest.mark.campaign
def test_ranks_of_a_killed_driver_end_themselves() -> None:
    command = [sys.executable, "-c", DRIVER, str(Path(__file__).parents[1])]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        ranks = [driver.stdout.readline().split() for _ in range(2)]
        below = [(p.pid, p.create_time()) for p in psutil.Process(driver.pid).children(recursive=True)]
    finally:
        driver.kill()
        driver.wait()
    assert gone_within([(int(pid), float(started)) for pid, started in ranks], 10.0)
    assert len(below) > 2 and gone_within(below, 30.0)
