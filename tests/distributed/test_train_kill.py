"""Killed anywhere and resumed: the same bits as the run that was not killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from deltalake import DeltaTable
from distributed.ctr_lake import make_ctr_lake

from headrace.errors import UserError
from headrace.pipelines import train_ctr
from headrace.pipelines.train_config import LoopSettings, ModelConfig, TrackingConfig
from headrace.report import Report
from headrace.session import LOG_STORE
from headrace.train.events import read_events

EPOCHS = 3
STEPS = EPOCHS * (1500 // 64)
DRIVER = "import sys; sys.path.insert(0, sys.argv[1]); from distributed.test_train_kill import main; main(sys.argv[2])"


def config(lake: Path, launcher: str = "local") -> train_ctr.Config:
    return train_ctr.Config(
        lake=str(lake),
        ranks=2,
        launcher=launcher,
        threads=1,
        device="cpu",
        model=ModelConfig(embedding_dim=4, hidden=[16], dropout=0.1),
        train=LoopSettings(batch_size=64, epochs=EPOCHS, checkpoint_every=10, eval_every=17, log_every=1),
        tracking=TrackingConfig(enabled=False),
    )


def main(lake: str) -> None:
    """The process that is killed."""
    report = train_ctr.run(None, config(Path(lake)), Report("train-ctr"))
    sys.exit(report.results.get("exit_status", 0))


@pytest.fixture(scope="module")
def ctr_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ctr_lake(tmp_path_factory.mktemp("lake"), {"train": 1500, "validation": 200, "test": 200})


@pytest.fixture(scope="module")
def undisturbed(ctr_lake: Path) -> str:
    return str(train_ctr.run(None, config(ctr_lake), Report("train-ctr", progress="none")).results["weights_sha256"])


def interrupt(lake: Path, after: int, signum: int) -> tuple[Path, int, str]:
    """Start a run in its own process, signal it after so many steps: its directory, exit status, what it printed."""
    known = set((lake / "runs").iterdir())
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(Path(__file__).parents[1]), str(lake)], stderr=subprocess.PIPE, text=True
    )
    try:
        run = _wait(lake, known, after, process)
        os.kill(process.pid, signum)
        _, printed = process.communicate(timeout=60)
    finally:
        process.kill()
    return run, process.returncode, printed


def _wait(lake: Path, known: set[Path], after: int, process: subprocess.Popen[str]) -> Path:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for run in set((lake / "runs").iterdir()) - known:
            events = run / "events.jsonl"
            if events.exists() and sum(e["type"] == "step" for e in read_events(events)) >= after:
                return run
        time.sleep(0.01)
    raise AssertionError(f"the run ended or hung before step {after}: {process.communicate()[1]}")


def resume(run: Path) -> dict[str, object]:
    report = train_ctr.run(
        None, train_ctr.Config(lake=str(run.parents[1]), resume=run.name), Report("x", progress="none")
    )
    return report.results


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in (2, 3))])
def test_sigkill_and_resume(ctr_lake: Path, undisturbed: str, seed: int) -> None:
    after = random.Random(seed).randrange(1, STEPS // 2)
    run, status, _ = interrupt(ctr_lake, after, signal.SIGKILL)
    assert status == -signal.SIGKILL
    results = resume(run)
    assert results["weights_sha256"] == undisturbed
    assert len(results["audits"]) == EPOCHS
    kinds = [event["type"] for event in read_events(run / "events.jsonl")]
    assert ("resume" in kinds) == ("checkpoint" in kinds[: kinds.index("start", 1)])


def test_sigterm_keeps_a_checkpoint_and_says_how_to_go_on(ctr_lake: Path, undisturbed: str) -> None:
    run, status, printed = interrupt(ctr_lake, 7, signal.SIGTERM)
    assert status == 143
    assert f"resume with: headrace train-ctr --lake {ctr_lake} --resume {run.name}" in printed
    stopped = [event["step"] for event in read_events(run / "events.jsonl") if event["type"] == "checkpoint"][-1]
    results = resume(run)
    resumed = [event["step"] for event in read_events(run / "events.jsonl") if event["type"] == "resume"]
    assert resumed == [stopped]
    assert results["weights_sha256"] == undisturbed
    with pytest.raises(UserError, match="waits to be resumed"):
        train_ctr.run(None, train_ctr.Config(lake=str(ctr_lake), resume="auto"), Report("x", progress="none"))


def test_resume_refuses_what_would_be_another_run(ctr_lake: Path, undisturbed: str) -> None:
    run = sorted((ctr_lake / "runs").iterdir())[0]
    for changed in ({"seed": 5}, {"train": LoopSettings(batch_size=128)}, {"model": ModelConfig(name="fm")}):
        with pytest.raises(UserError, match="differs|cannot change"):
            train_ctr.run(None, train_ctr.Config(lake=str(ctr_lake), resume=run.name, **changed), Report("x"))
    with pytest.raises(UserError, match="no run nothing"):
        train_ctr.run(None, train_ctr.Config(lake=str(ctr_lake), resume="nothing"), Report("x"))


CLUSTER = """
import json, os, sys
from headrace.pipelines import train_ctr
from headrace.report import Report
from headrace.session import build_session

lake, run = sys.argv[1:]
spark = build_session("executors", master="local-cluster[2,1,2048]", conf={"spark.driver.memory": "1g"})
about = {"app": spark.sparkContext.applicationId}
spark.range(100, numPartitions=2).write.format("delta").save(f"{lake}/by_executors")
about["log_store"] = spark.conf.get("spark.delta.logStore.file.impl")

def where(part):
    import headrace, psutil
    yield os.getcwd(), [p.pid for p in psutil.Process().parents() if p.name() == "java"][0], headrace.__version__

about["executors"] = spark.sparkContext.parallelize(range(4), 4).mapPartitions(where).collect()
results = train_ctr.run(spark, train_ctr.Config(lake=lake, resume=run), Report("x", progress="none")).results
print(json.dumps(about | {name: results[name] for name in ("launcher", "weights_sha256")}))
spark.stop()
"""


def test_a_run_of_threads_goes_on_in_executors_under_horovod(ctr_lake: Path, undisturbed: str, tmp_path: Path) -> None:
    """`local-cluster`: executors are processes of their own, which get the jar, the Python and the package."""
    run, _, _ = interrupt(ctr_lake, 30, signal.SIGKILL)
    saved = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(saved.replace("launcher: local", "launcher: horovod"))
    scrubbed = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", CLUSTER, str(ctr_lake), run.name]
    done = subprocess.run(command, env=scrubbed, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    about = json.loads(done.stdout.splitlines()[-1])
    folders = {Path(folder) for folder, _, _ in about["executors"]}
    try:
        assert {folder.parent.name for folder in folders} == {about["app"]} and len(folders) == 2
        assert all(list(folder.glob("headrace-assembly-*.jar")) for folder in folders)
        assert len({pid for _, pid, _ in about["executors"]}) == 2
        assert DeltaTable(ctr_lake / "by_executors").to_pyarrow_table().num_rows == 100
        assert about["log_store"] == LOG_STORE
        assert about["launcher"] == "horovod"
        assert about["weights_sha256"] == undisturbed
    finally:
        for folder in folders:  # Spark leaves its executors' folders, with a copy of the jar in each
            shutil.rmtree(folder.parent, ignore_errors=True)
