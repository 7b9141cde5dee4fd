"""Ingest as a process of its own, killed at moments nobody chose, and an executor killed in the middle of a write."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).resolve().parents[2]

# The first task that reads lines kills the JVM of its executor; Spark gives the task to another one.
EXECUTOR_KILLER = """
import sys
from pathlib import Path
from headrace.ingest import commit
from headrace.ingest.criteo import read_lines
from headrace.pipelines import ingest_criteo
from headrace.report import Report
from headrace.session import build_session

source, lake, mark = sys.argv[1:]

def read_and_die(spark, files, fmt, part="accepted"):
    lines = read_lines(spark, files, fmt, part)
    def dies_once(batches):
        import os, signal, psutil
        for batch in batches:
            yield batch
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            (executor,) = [p for p in psutil.Process().parents() if "CoarseGrainedExecutor" in " ".join(p.cmdline())]
            executor.send_signal(signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
    return lines.mapInArrow(dies_once, lines.schema)

commit.read_lines = read_and_die
conf = {"spark.sql.shuffle.partitions": "2", "spark.executor.memory": "512m", "spark.driver.memory": "1g"}
spark = build_session("kill an executor", master="local-cluster[2,1,1024]", conf=conf)
ingest_criteo.run(spark, ingest_criteo.Config(lake=lake, source=source, range_bytes=20000), Report("ingest-criteo"))
spark.stop()
"""


@pytest.fixture(scope="module")
def campaign() -> ModuleType:
    spec = importlib.util.spec_from_file_location("campaign_ingest", PROJECT / "scripts" / "campaign_ingest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["campaign_ingest"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def undisturbed(campaign: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, float]:
    """The input, the lake of a run that nobody disturbed, and how long that took."""
    setting = campaign.Setting(tmp_path_factory.mktemp("kills"), files=2, rows=200, seed=11)
    campaign.write_files(setting)
    return setting, campaign.undisturbed(setting)


@pytest.mark.parametrize("number", [0, 1])
def test_killed_anywhere_and_started_again(
    campaign: ModuleType, undisturbed: tuple[object, float], number: int
) -> None:
    """Trial 1 has a file arrive before the restart."""
    setting, duration = undisturbed
    result = campaign.trial(setting, number, duration)
    assert result.equal, result.difference
    assert result.late_file == (number == 1)


def test_an_executor_killed_in_a_write(campaign: ModuleType, undisturbed: tuple[object, float], tmp_path: Path) -> None:
    setting, _ = undisturbed
    lake, mark = tmp_path / "lake", tmp_path / "killed"
    script = tmp_path / "kill_executor.py"
    script.write_text(EXECUTOR_KILLER)
    source = str(setting.folder / "source")  # type: ignore[attr-defined]
    done = subprocess.run(
        [sys.executable, str(script), source, str(lake), str(mark)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert mark.exists(), "no executor was killed"
    keys = sorted(row["key"] for row in campaign.table(lake, "bronze/criteo"))
    expected = sorted(row["key"] for row in campaign.table(setting.folder / "expected", "bronze/criteo"))  # type: ignore[attr-defined]
    assert keys == [key for key in expected if key >> 40 < 2]
    assert len(campaign.table(lake, "quarantine/criteo")) == 400 - len(keys)
