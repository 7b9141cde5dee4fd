"""Killed anywhere and resumed: the same bits as the run that was not killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from distributed.ctr_lake import make_ctr_lake

from headrace.errors import UserError
from headrace.pipelines import train_ctr
from headrace.pipelines.train_config import LoopSettings, ModelConfig, TrackingConfig
from headrace.report import Report
from headrace.train.events import read_events

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

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


@pytest.mark.parametrize("seed", range(2))
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


def test_a_run_of_threads_goes_on_under_horovod(spark: SparkSession, ctr_lake: Path, undisturbed: str) -> None:
    run, _, _ = interrupt(ctr_lake, 30, signal.SIGKILL)
    saved = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(saved.replace("launcher: local", "launcher: horovod"))
    cfg = train_ctr.Config(lake=str(ctr_lake), resume=run.name)
    report = train_ctr.run(spark, cfg, Report("x", progress="none"))
    assert report.results["launcher"] == "horovod"
    assert report.results["weights_sha256"] == undisturbed
