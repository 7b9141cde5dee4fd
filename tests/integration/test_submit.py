"""What set-up promises: spark-submit and plain Python start Spark from any folder, with nothing in the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headrace import __version__, resources
from headrace.errors import UserError
from headrace.session import LOG_STORE, build_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PROJECT = Path(__file__).resolve().parents[2]
SUBMIT = Path(sys.executable).parent / "spark-submit"

JOB = """
import json, os, sys
from headrace.session import build_session

spark = build_session("job", slots=3)
conf = spark.sparkContext.getConf()
spark.range(10).write.format("delta").save(sys.argv[1])
print(json.dumps({
    "rows": spark.read.format("delta").load(sys.argv[1]).count(),
    "slots": spark.sparkContext.defaultParallelism,
    "log_store": conf.get("spark.delta.logStore.file.impl"),
    "asked": spark.conf.get("spark.sql.shuffle.partitions"),
    "zone": spark.conf.get("spark.sql.session.timeZone"),
    "python": sys.executable,
    "worker": spark.sparkContext.range(1).map(lambda _: sys.executable).first(),
    "folder": os.getcwd(),
}))
spark.stop()
"""


def submit(folder: Path, *arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """spark-submit as a scheduler would start it: nothing in the environment, not even PATH and HOME."""
    return subprocess.run(
        [str(SUBMIT), "--driver-memory", "1g", *arguments],
        cwd=folder,
        env={},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.timeout(300)
def test_a_bare_submit_finds_jar_python_and_java_and_what_the_user_set_wins(tmp_path: Path) -> None:
    job = tmp_path / "a job.py"
    job.write_text(JOB)
    table = tmp_path / "lake" / "table"
    done = submit(tmp_path, "--master", "local[2]", "--conf", "spark.sql.shuffle.partitions=3", str(job), str(table))
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    python = os.path.abspath(sys.executable)
    assert said == {
        "rows": 10,
        "slots": 3,  # local[2] was asked for, and three ranks must fit
        "log_store": LOG_STORE,
        "asked": "3",
        "zone": "UTC",
        "python": python,
        "worker": python,
        "folder": str(tmp_path),
    }
    assert " WARN " not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a job.py", "lake"]  # nothing left lying about


@pytest.mark.timeout(600)
def test_every_job_file_is_a_shim_and_the_doctor_runs_deep_under_submit(tmp_path: Path) -> None:
    for job in (PROJECT / "jobs").glob("*.py"):
        assert len(job.read_text().splitlines()) <= 40
    done = submit(tmp_path, str(PROJECT / "jobs" / "doctor.py"), "--deep", timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    checks = json.loads(done.stdout.splitlines()[-1])["results"]["checks"]
    assert checks["spark"]["level"] == "ok"
    assert "Delta commits through HardLinkLogStore" in checks["spark"]["detail"]
    assert "FAIL" not in done.stdout  # spark-submit sends both streams of a Python job there


def test_a_user_mistake_under_submit_is_two_lines_and_status_two(tmp_path: Path) -> None:
    done = submit(tmp_path, str(PROJECT / "jobs" / "doctor.py"), "--depe", "true")
    assert done.returncode == 2
    assert done.stdout == "error: unknown option --depe\n  -> did you mean deep?\n"
    assert "Traceback" not in done.stderr


def test_the_builder_hands_out_the_running_session_and_says_when_it_is_too_small(spark: SparkSession) -> None:
    assert build_session("again") is spark
    with pytest.raises(UserError, match="64 tasks must run at the same time, this session has 4"):
        build_session(slots=64)
    assert build_session(conf={"spark.sql.shuffle.partitions": "5"}) is spark
    assert spark.conf.get("spark.sql.session.timeZone") == "UTC"
    assert spark.conf.get("spark.sql.ansi.enabled") == "true"
    assert spark.conf.get("spark.sql.parquet.compression.codec") == "zstd"
    assert spark.conf.get("spark.sql.shuffle.partitions") == "4"  # others use it too: a late wish changes nothing


def test_plain_python_without_a_jar_says_what_builds_it(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from headrace import resources, session\n"
        "resources.jar = lambda version: Path('/nowhere/headrace-assembly-0.jar')\n"
        "try: session.build_session()\n"
        "except Exception as error: print(type(error).__name__, error.problem, '->', error.remedy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "UserError the jar /nowhere/headrace-assembly-0.jar is missing -> make scala"


def test_the_wheel_carries_settings_catalog_mains_and_the_jar(tmp_path: Path) -> None:
    # A copy, because a build writes beside its sources.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "python", "conf", "data_catalog", "jobs"):
        subprocess.run(["cp", "-r", str(PROJECT / name), str(source)], check=True)
    (source / ".build").mkdir()
    os.link(resources.jar(__version__), source / ".build" / resources.jar(__version__).name)
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    installed = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "zipfile", "-e", str(next(tmp_path.glob("*.whl"))), str(installed)], check=True
    )
    script = """
import headrace
from headrace import resources, session
session.check_jar(resources.jar(headrace.__version__))
names = "conf/local.yaml", "data_catalog/bronze/criteo.yaml", "jobs/doctor.py", "conf/spark/log4j2.properties"
print(resources.in_checkout(), *[resources.path(name).is_file() for name in names])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["False", "True", "True", "True", "True"]
