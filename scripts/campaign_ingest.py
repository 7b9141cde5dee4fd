"""Kill ingest at random moments, start it again, and compare with a run nobody disturbed.

    python scripts/campaign_ingest.py --kills 20 --seed 7 --results docs/results/ingest_kills.jsonl
    python scripts/campaign_ingest.py --kind commoncrawl --rows 60 --results docs/results/crawl_kills.jsonl
    python scripts/campaign_ingest.py --kind graph --results docs/results/graph_kills.jsonl        (and ratings)

A chain is one lake: a run is killed, started again, killed again, until one comes to its end before its moment. The
whole process group (Python, JVM, Python workers) is killed with SIGKILL at a moment drawn uniformly from the start of
the process (Python's and Java's start included) to the close of the last batch of the undisturbed run. The clock is the
CPU time of the group, in the undisturbed run as well: seconds on the wall would say nothing on a machine that is busy
with other things. Before every second restart a new file arrives. After each kill, no row may be there twice and closed
batches must be whole; at the end of the chain tables and accounts must be those of the undisturbed run. A chain's
lines, one a kill, are written when it is done; chains that have lines are not run again.
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
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import psutil

from headrace.ingest import generated_crawl, generated_crawl_pages

TIMEOUT_S = 900
POLL_S = 0.1
KILLS_A_CHAIN = 6  # twice the late files: one arrives before every second restart
SPARK_CONF = {  # a run is too short for the optimizing compiler to pay
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.sql.shuffle.partitions": "2",
}


@dataclass(frozen=True)
class Kind:
    """A source: the end of its tables' names, quarantine's column that says where in a file, and what its verb needs.

    `file` is what its files are called by number; none for crawls, which are made otherwise.
    """

    table: str
    place: str = "line"
    options: tuple[str, ...] = ()
    file: str = ""


_RATING = "user,item,rating,timestamp"
KINDS = {
    "criteo": Kind("criteo", file="day_{}"),
    "commoncrawl": Kind("commoncrawl", "offset"),
    "graph": Kind("edges", options=("--graph", "killed", "--header", "no"), file="edges_{}.tsv"),
    "ratings": Kind("ratings", options=("--dataset", "killed", "--columns", _RATING), file="ratings_{}.csv"),
}


@dataclass(frozen=True)
class Setting:
    """What a campaign works on: files of `rows` rows each, one commit a file; `late` more files come later.

    `kind` is one of `KINDS`; of commoncrawl rows are pages, and each has three records.
    """

    folder: Path
    files: int = 8
    rows: int = 400
    late: int = 3
    seed: int = 7
    master: str = "local[2]"
    kind: str = "criteo"

    def source(self, late: int) -> str:
        """What to ingest when so many late files have arrived."""
        return ",".join([f"{self.folder / 'source'}", *(f"{self.folder / f'then_{n}'}" for n in range(late))])


@dataclass(frozen=True)
class Kill:
    """One kill and what came of its chain.

    `between`: it fell between the intent and the close of a batch that this very run was at work on; a kill while Java
    was starting is none, though a batch may be open from the kill before.
    """

    chain: int
    kill: int
    seed: int
    cpu_s: float
    killed_at_cpu_s: float
    seconds: float
    between: bool
    batches_closed: int
    new_file_before_restart: bool
    load: float
    equal: bool
    difference: str


def write_files(setting: Setting) -> None:
    """The input: files in `source` with a bad line here and there, and in `then_N` those that come later."""
    if setting.kind == "commoncrawl":
        _write_crawl(setting)
        return
    rng = random.Random(setting.seed)
    line = {"criteo": _click, "graph": _edge, "ratings": _rating}[setting.kind]
    for number in range(setting.files + setting.late):
        part = setting.folder / ("source" if number < setting.files else f"then_{number - setting.files}")
        part.mkdir(parents=True, exist_ok=True)
        lines = [line(rng) if at == 0 or rng.random() > 0.02 else "broken" for at in range(setting.rows - 1)] + ["bad"]
        (part / KINDS[setting.kind].file.format(number)).write_text("".join(f"{line}\n" for line in lines))


def _write_crawl(setting: Setting) -> None:
    """The same with WARC files, one page in ten damaged."""
    mix = generated_crawl_pages.Mix(seed=setting.seed)
    options: dict[str, Any] = {"first_page": 0, "crawl": "CC-MAIN-2099-01", "bomb_bytes": 0, "text": False}
    count = setting.files + setting.late
    generation = generated_crawl.Generation(
        mix=mix, pages=count * setting.rows, pages_per_file=setting.rows, formats=("warc",), bad=0.1, **options
    )
    for number in range(count):
        generated_crawl.write_file(generation, number, setting.folder / "made")
        part = setting.folder / ("source" if number < setting.files else f"then_{number - setting.files}")
        part.mkdir(parents=True, exist_ok=True)
        made = setting.folder / "made" / generation.name("warc", number)
        made.rename(part / made.name)


def _click(rng: random.Random) -> str:
    label = str(int(rng.random() < 0.25))
    ints = ["" if rng.random() < 0.2 else str(rng.randint(-2, 5000)) for _ in range(13)]
    categories = ["" if rng.random() < 0.1 else f"{rng.getrandbits(32):08x}" for _ in range(26)]
    return "\t".join([label, *ints, *categories])


def _edge(rng: random.Random) -> str:
    return f"{rng.randrange(1000)}\t{rng.randrange(1000)}"


def _rating(rng: random.Random) -> str:
    return f"{rng.randrange(1000)},{rng.randrange(100)},{rng.randint(1, 10) / 2},{rng.randrange(1 << 30)}"


def start(setting: Setting, source: str, lake: Path, log: Path) -> subprocess.Popen[bytes]:
    """Ingest in a process group of its own."""
    command = [sys.executable, "-m", "headrace.pipelines.cli", f"ingest-{setting.kind}", "--lake", str(lake)]
    command += ["--source", source, "--batch_bytes", "1", "--session.master", setting.master]
    command += [*KINDS[setting.kind].options, "--session.driver_memory", "1g", "--session.conf", json.dumps(SPARK_CONF)]
    with open(log, "ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)


def complete(setting: Setting, source: str, lake: Path, log: Path) -> list[tuple[float, float]]:
    """Run ingest to its end; (time, CPU seconds of the group so far) all the while."""
    process = start(setting, source, lake, log)
    try:
        ticks = list(clock(process))
    finally:
        kill(process)
    if process.returncode:
        raise RuntimeError(f"ingest ended with status {process.returncode}:\n{log.read_text(errors='replace')[-3000:]}")
    return ticks


def clock(process: subprocess.Popen[bytes]) -> Iterator[tuple[float, float]]:
    """(time, CPU seconds of the group so far) until it ends."""
    began = time.time()
    while process.poll() is None:
        if time.time() - began > TIMEOUT_S:
            raise RuntimeError(f"ingest did not end within {TIMEOUT_S} s")
        yield time.time(), cpu_seconds(process.pid)
        time.sleep(POLL_S)


def cpu_seconds(pid: int) -> float:
    """Of a process and all below it, those that have ended and were waited for included."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for each in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


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
    """A Delta table's rows, without Spark; none where a kill came before it was there."""
    path = lake / name
    if not any((path / "_delta_log").glob("*.json")):
        return []
    rows: list[dict[str, Any]] = pl.read_delta(str(path)).to_dicts()
    return rows


def batches(lake: Path) -> tuple[set[str], set[str]]:
    """Batches that were opened, and those that were closed."""
    rows = table(lake, "meta/ledger")
    events = {event: {row["batch_id"] for row in rows if row["event"] == event} for event in ("open", "close")}
    return events["open"], events["close"]


def difference(lake: Path, expected: Path, files: int, kind: str = "criteo") -> str:
    """Empty if both lakes hold the same rows, keys and accounts of the first `files` files; else what differs."""
    tables = KINDS[kind].table
    for name, order in ((f"bronze/{tables}", ["key"]), (f"quarantine/{tables}", ["file_ordinal", KINDS[kind].place])):
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
    """Make the reference lake, late files included; CPU seconds from the start to the last close of a file in time."""
    expected = setting.folder / "expected"
    ticks = complete(setting, setting.source(setting.late), expected, setting.folder / "expected.log")
    closed = [row for row in table(expected, "meta/ledger") if row["event"] == "close"]
    last = max(row["at"].timestamp() for row in closed if row["file_ordinal"] < setting.files)
    return max(cpu for at, cpu in ticks if at <= last)


def chain(setting: Setting, number: int, duration: float, most: int) -> list[Kill]:
    """Start and kill, at most `most` times, until a run ends; then compare."""
    rng = random.Random(setting.seed * 1000 + number)
    lake, log = setting.folder / f"lake_{number}", setting.folder / f"chain_{number}.log"
    kills: list[Kill] = []
    late = 0
    while len(kills) < most:
        at, load, began = rng.uniform(0, duration), os.getloadavg()[0], time.time()
        known, said = batches(lake)[0], log.stat().st_size if log.exists() else 0
        process = start(setting, setting.source(late), lake, log)
        for _, cpu in clock(process):
            if cpu >= at:
                break
        if not kill(process):
            break  # it came to its end, or failed, which the run to the end below will show
        opened, closed = batches(lake)
        resumed = b"finishing batch" in log.read_bytes()[said:]
        arrives = (number + len(kills)) % 2 == 1 and late < setting.late
        late += arrives
        hit = Kill(
            chain=number,
            kill=len(kills),
            seed=setting.seed,
            cpu_s=round(duration, 2),
            killed_at_cpu_s=round(at, 2),
            seconds=round(time.time() - began, 1),
            between=bool(opened - closed) and (resumed or not opened - closed <= known),
            batches_closed=len(closed),
            new_file_before_restart=arrives,
            load=round(load, 1),
            equal=True,
            difference=damage(lake, closed, setting.kind),
        )
        kills.append(hit)
    if process.returncode:  # killed, the last time as well
        complete(setting, setting.source(late), lake, log)
    differs = difference(lake, setting.folder / "expected", setting.files + late, setting.kind)
    found = [(each, differs or each.difference) for each in kills]
    return [replace(each, equal=not text, difference=text) for each, text in found]


def damage(lake: Path, closed: set[str], kind: str = "criteo") -> str:
    """Empty if, right after a kill, no row is there twice and every closed batch is as its account says."""
    rows, refused = [table(lake, f"{layer}/{KINDS[kind].table}") for layer in ("bronze", "quarantine")]
    keys = [row["key"] for row in rows]
    places = [(row["file_ordinal"], row[KINDS[kind].place]) for row in refused]
    if len(set(keys)) != len(keys) or len(set(places)) != len(places):
        return "rows twice after a kill"
    for row in table(lake, "meta/ledger"):
        if row["event"] == "close":
            good = sum(key >> 40 == row["file_ordinal"] for key in keys)
            bad = sum(ordinal == row["file_ordinal"] for ordinal, _ in places)
            if (good, bad) != (row["rows_committed"], row["rows_quarantined"]):
                return f"a closed batch of {len(closed)} is not whole after a kill"
    return ""


def main() -> int:
    """Run chains until there are enough kills; status 1 if one differs or too few fell between two commits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kind", choices=sorted(KINDS), default="criteo")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--results", type=Path, default=Path("docs/results/ingest_kills.jsonl"))
    args = parser.parse_args()
    done = _done(args.results, args.seed)
    if len(done) < args.kills:
        with tempfile.TemporaryDirectory(prefix="headrace-kills-") as folder:
            setting = Setting(Path(folder), args.files, args.rows, seed=args.seed, kind=args.kind)
            done += _run(setting, args.kills, done, args.results)
    return _verdict(done)


def _run(setting: Setting, wanted: int, done: list[dict[str, Any]], results: Path) -> list[dict[str, Any]]:
    write_files(setting)
    duration = undisturbed(setting)
    print(f"undisturbed: {duration:.1f} CPU s", flush=True)
    number = max((int(each["chain"]) for each in done), default=-1)
    new: list[dict[str, Any]] = []
    while len(done) + len(new) < wanted:
        number += 1
        most = min(KILLS_A_CHAIN, wanted - len(done) - len(new))
        kills = [asdict(each) for each in chain(setting, number, duration, most)]
        new += kills
        results.parent.mkdir(parents=True, exist_ok=True)
        with open(results, "a") as file:
            file.writelines(json.dumps(each) + "\n" for each in kills)
        print(f"chain {number}: {kills}", flush=True)
    return new


def _done(results: Path, seed: int) -> list[dict[str, Any]]:
    lines = results.read_text().splitlines() if results.exists() else []
    return [row for row in map(json.loads, lines) if row["seed"] == seed]


def _verdict(kills: list[dict[str, Any]]) -> int:
    equal = sum(bool(each["equal"]) for each in kills)
    between = sum(bool(each["between"]) for each in kills)
    print(f"{len(kills)} kills, {between} between two commits of one batch, {equal} with equal tables")
    return 0 if equal == len(kills) and 3 * between >= len(kills) else 1


if __name__ == "__main__":
    sys.exit(main())
