"""Ingest as a process of its own, killed at moments nobody chose; workers and executors killed within a write."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from deltalake import DeltaTable
from distributed import ingest_campaign

# A task that has given over its first lines dies, once with its Python worker and once with its executor's JVM; Spark
# gives it to another one.
WORKER_KILLER = """
import sys
from pathlib import Path
from headrace.ingest import criteo_reader
from headrace.ingest.criteo_reader import read
from headrace.pipelines import ingest_criteo
from headrace.report import Report
from headrace.session import build_session

source, lake, mark = sys.argv[1:]

def read_and_die(*request):
    rows = read(*request)
    def dies(batches):
        import os, signal, psutil
        for batch in batches:
            yield batch
            for what in ("worker", "executor"):
                try:
                    os.close(os.open(f"{mark}.{what}", os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
                if what == "executor":
                    above = psutil.Process().parents()
                    next(p for p in above if "CoarseGrainedExecutor" in " ".join(p.cmdline())).kill()
                os.kill(os.getpid(), signal.SIGKILL)
    return rows.mapInArrow(dies, rows.schema)

criteo_reader.read = read_and_die
conf = {"spark.sql.shuffle.partitions": "2", "spark.executor.memory": "512m", "spark.driver.memory": "1g"}
conf |= {f"spark.{who}.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC" for who in ("driver", "executor")}
spark = build_session("kill an executor", master="local-cluster[2,1,1024]", conf=conf)
ingest_criteo.run(spark, ingest_criteo.Config(lake=lake, source=source, range_bytes=20000), Report("ingest-criteo"))
spark.stop()
"""


@pytest.fixture(scope="module")
def campaign() -> ModuleType:
    return ingest_campaign.load()


@pytest.fixture(scope="module")
def undisturbed(campaign: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, float]:
    """The input, the lake of a run that nobody disturbed, and how long that took."""
    setting = campaign.Setting(tmp_path_factory.mktemp("kills"), files=2, rows=200, late=1, seed=11)
    campaign.write_files(setting)
    return setting, campaign.undisturbed(setting)


@pytest.mark.timeout(600)
def test_killed_anywhere_and_started_again(campaign: ModuleType, undisturbed: tuple[Any, float]) -> None:
    """A kill and a new file before the restart; `scripts/campaign_ingest.py` is the long form."""
    setting, duration = undisturbed
    kills = campaign.chain(setting, 1, duration, 1)
    assert kills and kills[0].new_file_before_restart
    assert [kill.difference for kill in kills] == [""] * len(kills)


def test_what_a_kill_may_not_leave_is_noticed(campaign: ModuleType, undisturbed: tuple[Any, float]) -> None:
    """The comparison itself: a row less, and a row twice."""
    setting, _ = undisturbed
    expected, spoilt = setting.folder / "expected", setting.folder / "spoilt"
    shutil.copytree(expected, spoilt)
    assert campaign.difference(spoilt, expected, 3) == ""
    bronze = DeltaTable(str(spoilt / "bronze/criteo"))
    bronze.delete("key = 0")
    assert "rows" in campaign.difference(spoilt, expected, 3)
    assert "not whole" in campaign.damage(spoilt, {"one"})


@pytest.mark.timeout(600)
def test_workers_killed_in_a_write(campaign: ModuleType, undisturbed: tuple[Any, float], tmp_path: Path) -> None:
    """On `local-cluster`, executors as processes of their own: a Python worker dies, then an executor."""
    setting, _ = undisturbed
    lake, mark, script = tmp_path / "lake", tmp_path / "killed", tmp_path / "kill_workers.py"
    script.write_text(WORKER_KILLER)
    done = subprocess.run(
        [sys.executable, str(script), setting.source(0), str(lake), str(mark)],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in tmp_path.glob("killed.*")} == {"killed.worker", "killed.executor"}
    keys = sorted(row["key"] for row in campaign.table(lake, "bronze/criteo"))
    expected = sorted(row["key"] for row in campaign.table(setting.folder / "expected", "bronze/criteo"))
    assert keys == [key for key in expected if key >> 40 < 2]
    assert len(campaign.table(lake, "quarantine/criteo")) == 400 - len(keys)
