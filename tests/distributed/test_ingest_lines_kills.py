"""Graphs and ratings killed within a batch, both by one kill: between its two commits, and wherever a seed says."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from distributed import ingest_campaign

from headrace.pipelines import ingest_files, ingest_graph, ingest_ratings
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

VERBS = {"graph": ingest_graph, "ratings": ingest_ratings}
OPTIONS = {
    "graph": {"graph": "killed", "header": "no"},
    "ratings": {"dataset": "killed", "columns": "user,item,rating,timestamp"},
}
FILES = 1

# Each verb in a thread of its own, so that one start of Java serves both. Before its n-th commit a thread waits for the
# other; then both go on for `delay` seconds (0: they do not), and the process group is killed.
KILLED = """
import io, json, os, signal, sys, threading, time
from headrace.catalog import delta
from headrace.pipelines import ingest_files, ingest_graph, ingest_ratings
from headrace.report import Report
from headrace.session import build_session

plan, delay = json.loads(sys.argv[1]), float(sys.argv[2])
arrived, go, mine = threading.Semaphore(0), threading.Event(), threading.local()
save = delta._save

def counted(*request):
    mine.left -= 1
    if mine.left == 0:
        arrived.release()
        go.wait()
    return save(*request)

def work(module, settings, at):
    mine.left = at
    try:
        module.run(spark, module.Config(**settings), Report("killed", out=io.StringIO()))
    finally:
        arrived.release()  # it came to its end: that is a moment too

delta._save, ingest_files.record_quality = counted, lambda *_: None
conf = {"spark.sql.shuffle.partitions": "2", "spark.driver.memory": "1g"}
conf["spark.driver.extraJavaOptions"] = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
spark = build_session("to be killed", master="local[2]", conf=conf)
modules = {"graph": ingest_graph, "ratings": ingest_ratings}
for kind, (settings, at) in plan.items():
    threading.Thread(target=work, args=(modules[kind], settings, at), daemon=True).start()
for _ in plan:
    arrived.acquire()
if delay:
    go.set()
    time.sleep(delay)
os.killpg(os.getpgid(0), signal.SIGKILL)
"""


@pytest.fixture(scope="module", autouse=True)
def _no_reports() -> Any:
    """Quality reports have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_files, "record_quality", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def campaign() -> ModuleType:
    return ingest_campaign.load()


@pytest.fixture(scope="module")
def settings(spark: SparkSession, campaign: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By kind: the input, and in `expected` the lake of a run that nobody disturbed."""
    made = {}
    for kind in VERBS:
        made[kind] = campaign.Setting(tmp_path_factory.mktemp(kind), files=FILES, rows=100, late=0, seed=3, kind=kind)
        campaign.write_files(made[kind])
        ingest(spark, made[kind], "expected")
    return made


def config(setting: Any, lake: str) -> dict[str, Any]:
    return {"lake": str(setting.folder / lake), "source": setting.source(0), "batch_bytes": 1, **OPTIONS[setting.kind]}


def ingest(spark: SparkSession, setting: Any, lake: str) -> None:
    verb = VERBS[setting.kind]
    verb.run(spark, verb.Config(**config(setting, lake)), Report("ingest", out=io.StringIO()))


def kill(settings: dict[str, Any], lake: str, moments: dict[str, int], delay: float, script: Path) -> None:
    """Start both, and kill both before their n-th commits, or `delay` seconds after they went on from there."""
    script.write_text(KILLED)
    plan = {kind: (config(setting, lake), moments[kind]) for kind, setting in settings.items()}
    command = [sys.executable, str(script), json.dumps(plan), str(delay)]
    died = subprocess.run(command, capture_output=True, text=True, timeout=500, start_new_session=True)
    assert died.returncode == -9, died.stderr[-3000:]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.campaign)])
def test_killed_between_two_commits_and_started_again(
    spark: SparkSession, campaign: ModuleType, settings: dict[str, Any], tmp_path: Path, again: bool
) -> None:
    """A restart makes an undisturbed run's tables, also after one that was killed at a moment that a seed chose.

    A file's commits are those of intent, bronze, quarantine, account.
    """
    name = f"lake-{again}"
    kill(settings, name, dict.fromkeys(settings, 3), 0, tmp_path / "killed.py")
    for kind, setting in settings.items():
        lake, tables = setting.folder / name, campaign.KINDS[kind].table
        opened, closed = campaign.batches(lake)
        assert (len(opened), len(closed)) == (1, 0)
        assert campaign.table(lake, f"bronze/{tables}") and not campaign.table(lake, f"quarantine/{tables}")
    if again:
        rng = random.Random(7)
        moments = {kind: rng.randint(1, 3) for kind in settings}
        kill(settings, name, moments, rng.uniform(0.1, 1.0), tmp_path / "killed.py")
    for kind, setting in settings.items():
        lake, expected = setting.folder / name, setting.folder / "expected"
        assert campaign.damage(lake, campaign.batches(lake)[1], kind) == ""
        ingest(spark, setting, name)
        assert campaign.difference(lake, expected, FILES, kind) == ""
        assert len(campaign.table(lake, f"quarantine/{campaign.KINDS[kind].table}")) >= FILES


@pytest.mark.campaign
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", sorted(VERBS))
def test_killed_anywhere_and_started_again(campaign: ModuleType, tmp_path: Path, kind: str) -> None:
    """Chains of kills at moments nobody chose, a new file before every second restart; `--kind graph`, `ratings`."""
    setting = campaign.Setting(tmp_path, files=3, rows=200, late=2, seed=5, kind=kind)
    campaign.write_files(setting)
    duration = campaign.undisturbed(setting)
    for number in range(3):
        kills = campaign.chain(setting, number, duration, 4)
        assert [kill.difference for kill in kills] == [""] * len(kills)
