"""Kill ingest at random moments, start it again, and compare with a run nobody disturbed.

    python scripts/campaign_ingest.py --kills 20 --seed 7 --results docs/results/ingest_kills.jsonl

Every trial has its own lake. The whole process group (Python, JVM, Python workers) is killed with SIGKILL at a moment
drawn uniformly over the undisturbed run's duration; in every second trial a new file arrives before the restart. A
trial's line is written when it is done, and trials that have a line are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

TIMEOUT_S = 600


@dataclass(frozen=True)
class Setting:
    """What a campaign works on: files of `rows` rows each, one commit a file."""

    folder: Path
    files: int = 6
    rows: int = 400
    seed: int = 7
    master: str = "local[2]"


@dataclass(frozen=True)
class Trial:
    """One kill and what came of it. `between`: it fell between the first and the last commit of a batch."""

    trial: int
    seed: int
    duration_s: float
    killed_at_s: float
    killed: bool
    between: bool
    batches_closed: int
    late_file: bool
    equal: bool
    difference: str


def write_files(setting: Setting) -> None:
    """The input: `source/day_N` with a bad line here and there, and `late/day_N` for the file that comes later."""
    rng = random.Random(setting.seed)
    for day in range(setting.files + 1):
        part = setting.folder / ("late" if day == setting.files else "source")
        part.mkdir(parents=True, exist_ok=True)
        lines = [_line(rng) if rng.random() > 0.02 else b"broken\tline" for _ in range(setting.rows)]
        (part / f"day_{day}").write_bytes(b"".join(line + b"\n" for line in lines))


def _line(rng: random.Random) -> bytes:
    label = str(int(rng.random() < 0.25))
    ints = ["" if rng.random() < 0.2 else str(rng.randint(-2, 5000)) for _ in range(13)]
    categories = ["" if rng.random() < 0.1 else f"{rng.getrandbits(32):08x}" for _ in range(26)]
    return "\t".join([label, *ints, *categories]).encode()


def start(setting: Setting, source: str, lake: Path, log: Path) -> subprocess.Popen[bytes]:
    """Ingest in a process group of its own."""
    command = [sys.executable, "-m", "headrace.pipelines.cli", "ingest-criteo", "--lake", str(lake)]
    command += ["--source", source, "--batch_bytes", "1", "--session.master", setting.master]
    command += ["--session.driver_memory", "1g", "--session.conf.spark.sql.shuffle.partitions", "2"]
    with open(log, "ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)


def complete(setting: Setting, source: str, lake: Path, log: Path) -> float:
    """Run ingest to its end; its duration in seconds."""
    began = time.monotonic()
    process = start(setting, source, lake, log)
    try:
        status = process.wait(TIMEOUT_S)
    finally:
        kill(process)
    if status:
        raise RuntimeError(f"ingest ended with status {status}:\n{log.read_text(errors='replace')[-3000:]}")
    return time.monotonic() - began


def kill(process: subprocess.Popen[bytes]) -> bool:
    """SIGKILL to the whole group; False where it had ended by itself."""
    running = process.poll() is None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        running = False
    process.wait()
    return running


def table(lake: Path, name: str) -> list[dict[str, Any]]:
    """A Delta table's rows, without Spark; none where it is not there yet."""
    from deltalake.exceptions import TableNotFoundError

    try:
        return pl.read_delta(str(lake / name)).to_dicts()
    except TableNotFoundError:
        return []


def batches(lake: Path) -> tuple[set[str], set[str]]:
    """Batches that were opened, and those that were closed."""
    rows = table(lake, "meta/ledger")
    events = {event: {row["batch_id"] for row in rows if row["event"] == event} for event in ("open", "close")}
    return events["open"], events["close"]


def difference(lake: Path, expected: Path, files: int) -> str:
    """Empty if both lakes hold the same rows, keys and accounts of the first `files` files; else what differs."""
    for name, order in (("bronze/criteo", ["key"]), ("quarantine/criteo", ["file_ordinal", "line"])):
        ours, theirs = _content(lake, name, order, files), _content(expected, name, order, files)
        if ours != theirs:
            return f"{name}: {len(ours)} rows, {len(theirs)} expected"
    return "" if _accounts(lake, files) == _accounts(expected, files) else "meta/ledger: other accounts"


def _content(lake: Path, name: str, order: list[str], files: int) -> list[dict[str, object]]:
    rows = table(lake, name)
    rows = [row for row in rows if (row["key"] >> 40 if "key" in row else row["file_ordinal"]) < files]
    return sorted(rows, key=lambda row: [row[column] for column in order])


def _accounts(lake: Path, files: int) -> list[tuple[object, ...]]:
    """Closed accounts, and nothing left open."""
    rows = table(lake, "meta/ledger")
    columns = ["event", "batch_id", "file", "file_ordinal", "checksum"]
    columns += ["rows_read", "rows_committed", "rows_quarantined"]
    found = [tuple(row[column] for column in columns) for row in rows if row["file_ordinal"] < files]
    return sorted(found, key=lambda row: (row[3], row[0]))


def undisturbed(setting: Setting) -> float:
    """The reference lake, late file included; how long it took."""
    both = f"{setting.folder / 'source'},{setting.folder / 'late'}"
    return complete(setting, both, setting.folder / "expected", setting.folder / "expected.log")


def trial(setting: Setting, number: int, duration: float) -> Trial:
    """Start, kill, perhaps add a file, start again, compare."""
    rng = random.Random(setting.seed * 1000 + number)
    at, late = rng.uniform(0, duration), number % 2 == 1
    lake, log = setting.folder / f"lake_{number}", setting.folder / f"trial_{number}.log"
    source = str(setting.folder / "source")
    process = start(setting, source, lake, log)
    with contextlib.suppress(subprocess.TimeoutExpired):  # the usual case: it is at work, and is killed now
        process.wait(at)
    killed = kill(process)
    opened, closed = batches(lake)
    again = f"{source},{setting.folder / 'late'}" if late else source
    complete(setting, again, lake, log)
    differs = difference(lake, setting.folder / "expected", setting.files + late)
    seconds = (round(duration, 2), round(at, 2))
    return Trial(number, setting.seed, *seconds, killed, bool(opened - closed), len(closed), late, not differs, differs)


def main() -> int:
    """Run the trials that have no line yet; status 1 if one differs or too few fell between two commits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--results", type=Path, default=Path("docs/results/ingest_kills.jsonl"))
    args = parser.parse_args()
    done = _done(args.results, args.seed)
    todo = [number for number in range(args.kills) if number not in done]
    with tempfile.TemporaryDirectory(prefix="headrace-kills-") as folder:
        setting = Setting(Path(folder), files=args.files, seed=args.seed)
        write_files(setting)
        duration = undisturbed(setting) if todo else 0.0
        for number in todo:
            result = trial(setting, number, duration)
            done[number] = asdict(result)
            args.results.parent.mkdir(parents=True, exist_ok=True)
            with open(args.results, "a") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            print(result, flush=True)
    return _verdict(list(done.values()))


def _done(results: Path, seed: int) -> dict[int, dict[str, object]]:
    lines = results.read_text().splitlines() if results.exists() else []
    rows = [json.loads(line) for line in lines]
    return {row["trial"]: row for row in rows if row["seed"] == seed}


def _verdict(trials: list[dict[str, object]]) -> int:
    equal = sum(bool(each["equal"]) for each in trials)
    between = sum(bool(each["between"]) for each in trials)
    killed = sum(bool(each["killed"]) for each in trials)
    print(f"{killed} kills in {len(trials)} trials, {between} between two commits of one batch, {equal} tables equal")
    return 0 if equal == len(trials) and 3 * between >= len(trials) else 1


if __name__ == "__main__":
    sys.exit(main())
