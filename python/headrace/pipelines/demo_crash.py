"""Kill the main job in the middle of ingest and of training, start it again, and hold the results against a run
that nobody disturbed: the same table, the same weights, to the bit.

Every step is a command of its own in a process group of its own, killed by SIGKILL: nothing gets to clean up.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.catalog.delta import files_at
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.report import Report

_POLL_S = 0.02
_PATIENCE_S = 600.0


@dataclass(kw_only=True)
class Config:
    """Killed and resumed against undisturbed.

    Args:
        folder: where both lakes go; must not exist or be of an earlier run of this verb.
        rows: rows to generate.
        days: day files, each ingested as a batch of its own.
        ranks: ranks that train.
        launcher: who starts them: local (threads), horovod or torch.
        seed: of the data and of training.
    """

    folder: str = "demo-crash"
    rows: int = 60_000
    days: int = 5
    ranks: int = 2
    launcher: str = "local"
    seed: int = 1


def run(spark: None, cfg: Config, report: Report) -> Report:
    """Run both ways and compare.

    Raises:
        UserError: a step failed; its output is named.
    """
    folder = Path(cfg.folder)
    if (folder / "calm").exists():
        raise UserError(f"{folder} holds an earlier run", f"rm -r {shlex.quote(str(folder))}, or --folder elsewhere")
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data"
    size = ["--rows", str(cfg.rows), "--days", str(cfg.days), "--seed", str(cfg.seed)]
    _stage(report, "generate", lambda: _command(folder, ["generate-criteo", "--dest", str(data), *size]))
    calm, killed = folder / "calm", folder / "killed"
    _stage(report, "undisturbed", lambda: _undisturbed(cfg, calm, data))
    _stage(report, "killed, resumed", lambda: _disturbed(cfg, killed, data, report))
    report.results |= compare(calm, killed)
    same = all(report.results[name] for name in ("same_bronze", "same_silver", "same_weights"))
    report.say(_verdict(same, report))
    report.results["exit_status"] = 0 if same else 1
    report.paths |= {"undisturbed": str(calm), "killed": str(killed)}
    return report


def compare(calm: Path, killed: Path) -> dict[str, Any]:
    """Content of bronze (rows as a multiset), silver (rows in their order) and the weights of the two lakes."""
    bronze = [_content(lake, "bronze/criteo", ordered=False) for lake in (calm, killed)]
    silver = [_content(lake, "silver/ctr", ordered=True) for lake in (calm, killed)]
    weights = [_weights(lake) for lake in (calm, killed)]
    return {
        "same_bronze": bronze[0] == bronze[1],
        "same_silver": silver[0] == silver[1],
        "same_weights": weights[0] == weights[1],
        "rows": bronze[0][0],
        "weights_sha256": weights[0],
    }


def _undisturbed(cfg: Config, lake: Path, data: Path) -> None:
    _command(lake, _ingest(lake, data))
    _command(lake, _featurize(lake))
    _command(lake, _train(cfg, lake))


def _disturbed(cfg: Config, lake: Path, data: Path, report: Report) -> None:
    second_batch = lake / "bronze" / "criteo" / "_delta_log" / f"{2:020}.json"
    _command(lake, _ingest(lake, data), kill_when=second_batch.exists)
    report.say("ingest killed after its second batch was committed; started again")
    _command(lake, _ingest(lake, data))
    _command(lake, _featurize(lake))
    _command(lake, _train(cfg, lake), kill_when=lambda: any(lake.glob("runs/*/checkpoints/step-*")))
    report.say("training killed after its first checkpoint; resumed")
    _command(lake, ["train-ctr", "--lake", str(lake), "--resume", "auto"])


def _ingest(lake: Path, data: Path) -> list[str]:
    return ["ingest-criteo", "--lake", str(lake), "--source", f"{data}/day_*", "--batch_bytes", "1"]


def _featurize(lake: Path) -> list[str]:
    return ["featurize-ctr", "--lake", str(lake), "--min_count", "2"]


def _train(cfg: Config, lake: Path) -> list[str]:
    run = ["--ranks", str(cfg.ranks), "--launcher", cfg.launcher, "--seed", str(cfg.seed), "--train.epochs", "2"]
    return ["train-ctr", "--lake", str(lake), *run, "--train.checkpoint_every", "10", "--tracking.enabled", "false"]


def _command(lake: Path, argv: list[str], kill_when: Callable[[], bool] | None = None) -> None:
    """Run one verb in its own process group; with `kill_when`, SIGKILL the group as soon as it is true."""
    lake.mkdir(parents=True, exist_ok=True)
    log = lake / "output.log"
    command = [sys.executable, "-m", "headrace.pipelines.cli", *argv, "--screen.progress", "log"]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            killed = _watch(process, kill_when)
        except BaseException:
            _kill(process)
            raise
    if killed:
        return
    if kill_when is not None:
        raise UserError(f"{argv[0]} ended before it could be killed", "give more --rows")
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise UserError(f"headrace {shlex.join(argv)} ended with {process.returncode}\n{tail}", f"see {log}")


def _watch(process: subprocess.Popen[bytes], kill_when: Callable[[], bool] | None) -> bool:
    deadline = time.monotonic() + _PATIENCE_S
    while process.poll() is None:
        if kill_when is not None and kill_when():
            _kill(process)
            return True
        if time.monotonic() > deadline:
            raise UserError(f"no end after {_PATIENCE_S:.0f} s: {process.args!r}")
        time.sleep(_POLL_S)
    return False


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _content(lake: Path, table: str, *, ordered: bool) -> tuple[int, str]:
    """Rows and a hash of what they say; `batch_id` is the ingest's own and left out."""
    import numpy as np
    import pandas as pd
    import pyarrow.parquet as pq

    total, rows, sequence = 0, 0, hashlib.sha256()
    for file in files_at(load(table), str(lake)):
        frame = pq.ParquetFile(file.path).read().to_pandas()
        hashes = pd.util.hash_pandas_object(frame.drop(columns="batch_id", errors="ignore"), index=False).to_numpy()
        rows += len(hashes)
        total = (total + int(hashes.sum(dtype=np.uint64))) % 2**64
        sequence.update(hashes.tobytes())
    return rows, sequence.hexdigest() if ordered else f"{total:016x}"


def _weights(lake: Path) -> str:
    reports = sorted(lake.glob("runs/*/report.json"))
    return str(json.loads(reports[-1].read_text())["results"]["weights_sha256"])


def _stage(report: Report, name: str, work: Callable[[], None]) -> None:
    with report.stage(name):
        work()


def _verdict(same: bool, report: Report) -> str:
    green, red, plain = ("\033[32m", "\033[31m", "\033[0m") if report.out.isatty() else ("", "", "")
    if not same:
        differ = [name[5:] for name in ("same_bronze", "same_silver", "same_weights") if not report.results[name]]
        return f"{red}killed and resumed: different {', '.join(differ)}{plain}"
    rows, digest = report.results["rows"], report.results["weights_sha256"][:12]
    return f"{green}killed twice and resumed: same tables ({rows:,} rows), same weights ({digest}){plain}"
