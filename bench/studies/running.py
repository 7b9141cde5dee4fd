"""A study at work: what is due is run, one run after the other, until nothing is or the time is up."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench.studies.lines import Line, Lines, run_of
from bench.studies.task import Setting, Task, Watch
from headrace.errors import UserError

NOISY_LOAD = 2.5


@dataclass(frozen=True)
class Call:
    """What one call of a study may take.

    Args:
        minutes: no run is begun that its limit could carry beyond them on a quiet machine.
        runs: that are made at most; 0: no matter how many.
        run_seconds: CPU seconds of a run in place of the task's; 0: the task's.
        threads: of torch.
    """

    minutes: float
    runs: int = 0
    run_seconds: float = 0.0
    threads: int = 1


def add_arguments(parser: argparse.ArgumentParser, results: Path, limit: str, data: str) -> None:
    """What every study can be told; `limit` says what 0 stands for, `data` which folders are read."""
    parser.add_argument("--minutes", type=float, default=110.0, help="of this call")
    parser.add_argument("--runs", type=int, default=0, help="of this call, at most; 0: no limit")
    parser.add_argument("--run_seconds", type=float, default=0.0, help=f"CPU seconds of a run; 0: {limit}")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of generated Criteo, to train on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, help=f"folder of {data}")
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--report", action="store_true", help="run nothing, write the report")


def record(task: Task, setting: Setting, limit_s: float, threads: int) -> Line:
    """Make a run; its line."""
    load = os.getloadavg()[0]
    watch = Watch(limit_s)
    trained = task.train(setting, watch)
    return {
        "run": run_of(task, setting),
        "outcome": trained.outcome,
        "why": trained.why,
        "curve": watch.curve,
        "steps": watch.steps,
        "seconds": round(watch.seconds, 3),
        "cpu_seconds": round(watch.cpu_seconds, 3),
        "state_bytes": trained.state_bytes,
        **trained.more,
        "limit_s": limit_s,
        "threads": threads,
        "load_before": round(load, 2),
        "noisy": load > NOISY_LOAD,
        "cores": os.cpu_count(),
        "cpu": torch.backends.cpu.get_cpu_capability(),  # rounding, and so a run's bits, goes by it
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy")},
    }


def go_on(lines: Lines, due: Callable[[], Iterator[tuple[Task, Setting]]], call: Call) -> int:
    """Run what is due: `due()` names it in order and is asked anew after each run. The number of runs made."""
    end, made = time.monotonic() + 60.0 * call.minutes, 0
    while not call.runs or made < call.runs:
        found = next(due(), None)
        if found is None:
            _say("nothing is left to run")
            break
        task, setting = found
        limit = call.run_seconds or task.limit_s
        if time.monotonic() + limit > end:
            _say(f"{call.minutes:g} minutes are up: call again to go on")
            break
        line = record(task, setting, limit, call.threads)
        lines.append(line)
        made += 1
        _say(_told(task, setting, line))
    return made


def study(args: argparse.Namespace, due: Callable[[Lines], Iterator[tuple[Task, Setting]]]) -> None:
    """Go on with a study as its arguments (see `add_arguments`) say; `due(lines)` names what is left."""
    torch.set_num_threads(args.threads)
    lines = Lines(args.results)
    try:
        go_on(lines, lambda: due(lines), Call(args.minutes, args.runs, args.run_seconds, args.threads))
    finally:
        lines.close()


def named(names: str, tasks: Collection[str]) -> list[str]:
    """Tasks as they were given, by commas; ends the program where there is no such task."""
    given = names.split(",")
    if unknown := set(given) - set(tasks):
        raise SystemExit(f"no such task: {', '.join(sorted(unknown))}; there are {', '.join(tasks)}")
    return given


def command(main: Callable[[], None]) -> None:
    """Run a program; what its user can mend is one line."""
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def _told(task: Task, setting: Setting, line: Line) -> str:
    last: dict[str, Any] = line["curve"][-1] if line["curve"] else {}
    scores = f"{task.metric} {last['test']:.4f}" if last.get("test") is not None else ""
    return (
        f"{task.name:<8} {setting.told} batch {setting.batch:<5} seed {setting.seed} {line['outcome']:<9} {scores:<16} "
        f"{line['cpu_seconds']:6.1f} CPU s  load {line['load_before']:.1f}  {line['why'][:80]}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
