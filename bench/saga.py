"""Row g: logistic regression to a relative gap of 1e-6, ours beside scikit-learn's saga and sag, liblinear, newton-cg
and MLlib's L-BFGS.

    .venv/bin/python bench/saga.py [--sources a9a,generated] [--rows N --features N]     curves: goes on with them
    .venv/bin/python bench/saga.py --race [--rounds 5]                                   seconds: on a quiet machine
    .venv/bin/python bench/saga.py --report

A curve is one contestant on one problem (rows, penalty, with or without intercept), gap against epochs and seconds; see
linear_contestants.py. Ours takes 1, 2, 4 and 16 partitions, dealt at random or sorted by label. A race is the time that
counts: of each contestant the fewest iterations whose curve is within 1e-6, and of ours (`saga`) a fit that does not
know them and proves the gap itself, `--rounds` times by turns, the JVM warmed twice; curves that it needs and that are
not there are made first; `saga unproved` has the epochs of its curve, as the others have their iterations. Results are
proved equal first: every objective is computed anew from coefficients, by the same lines of numpy, and one that is not
within 1e-6 of the least known is no contestant.

One JSON line a curve, or a race, is appended to docs/results/saga.jsonl; a curve that has a line is not run again.
--report makes docs/results/saga.md and its figures of the lines of this, saga_memory.py and als.py.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

THREADS = 2
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import saga_report  # noqa: E402
from bench.linear_contestants import PEERS, SOLVERS, Arena, Entry, curve, fit, mllib_curve, ours  # noqa: E402
from bench.linear_data import A9A, Problem, Source  # noqa: E402
from bench.saga_report import TARGET  # noqa: E402
from bench.studies.lines import Line, Lines, read  # noqa: E402
from bench.studies.running import NOISY_LOAD, command  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "saga.jsonl"
DEEPER = 1e-8  # what curves go to: beyond the target, so that it is not the end of the picture
PENALTIES = {"l2": 0.0, "l1": 1.0, "elastic_net": 0.5}
STRENGTH = 10.0  # penalty by rows of generated data: as hard at a thousandth of the size
PARTITIONS = (1, 2, 4, 16)
RACERS = (Entry("saga", 2), *(Entry(name) for name in PEERS))
UNPROVED = "saga unproved"


def sources(args: argparse.Namespace) -> list[tuple[Source, float]]:
    """The data sets that were asked for, each with the weight of its penalty."""
    generated = Source("generated", args.rows, args.features)
    known = {"a9a": (A9A, 1e-4), "generated": (generated, STRENGTH / args.rows)}
    return [known[name] for name in args.sources]


def due(args: argparse.Namespace) -> Iterator[tuple[Problem, Entry]]:
    """All curves, the most telling first: ours before the others of a problem, whose curves end by it."""
    for source, reg in sources(args):
        for name in args.penalties:
            yield from racing(Problem(source, reg, PENALTIES[name], intercept=False))
    for source, reg in sources(args):
        for name in args.penalties:
            yield from partitioned(Problem(source, reg, PENALTIES[name], intercept=True), name == "l2")


def racing(problem: Problem) -> Iterator[tuple[Problem, Entry]]:
    """The racers that have the penalty."""
    yield from ((problem, entry) for entry in RACERS if entry.accepts(problem))


def partitioned(problem: Problem, whole: bool) -> Iterator[tuple[Problem, Entry]]:
    """Ours by partitions and order, beside what peers make of an intercept; the other solvers where `whole`."""
    for order in ("dealt", "by_label"):
        for size in PARTITIONS:
            if size != 1 or order == "dealt":
                yield problem, Entry("saga", size, order)
    if whole:
        yield from ((problem, Entry(peer)) for peer in PEERS)
        yield from ((problem, Entry(name, 4, order)) for order in ("dealt", "by_label") for name in SOLVERS)


def run_of(problem: Problem, entry: Entry) -> dict[str, Any]:
    """What a curve is known by."""
    return {"what": "curve", **problem.about(), "entry": asdict(entry)}


def measure(args: argparse.Namespace, arena: Arena, lines: Lines, problem: Problem, entry: Entry) -> Line:
    """One curve."""
    load = os.getloadavg()[0]
    if entry.ours:
        found = ours(arena, problem, entry, DEEPER, args.epochs)
    elif entry.name == "mllib":
        found = mllib_curve(arena, problem, args.epochs)
    else:
        least = saga_report.least(lines.all, problem.about())
        assert least is not None, "ours comes first"
        points = curve(lambda k: fit(arena, problem, entry, k), least, DEEPER, args.peer_seconds)
        found = {"points": points, "seconds": points[-1]["seconds"], "cpu_seconds": points[-1]["cpu_seconds"]}
    nonzeros = int(arena.arrays(problem.source).x.nnz)
    return {"run": run_of(problem, entry), **found, "nonzeros": nonzeros, **circumstances(load)}


def race(args: argparse.Namespace, arena: Arena, lines: Lines, problem: Problem) -> Line:
    """Who is there first, by turns."""
    load, about = os.getloadavg()[0], problem.about()
    least = saga_report.least(lines.all, about)
    firsts = {entry: saga_report.first_at(lines.all, about, entry, TARGET) for entry in RACERS}
    left_out = [entry.name for entry, first in firsts.items() if first is None]
    if least is None or RACERS[0].name in left_out:
        raise SystemExit(f"{about} has no curve of ours within {TARGET:g}: more --minutes, or more --epochs")
    racers = [(entry.name, entry, first) for entry, first in firsts.items() if first is not None]
    racers.insert(1, (UNPROVED, *racers[0][1:]))
    points: dict[str, list[dict[str, Any]]] = {name: [] for name, *_ in racers}
    for turn in range(-2, args.rounds):
        for name, entry, first in racers:
            if turn == -1 and not (entry.ours or name == "mllib"):
                continue  # only the JVM is warmed twice
            if entry.ours:
                epochs = math.ceil(first["epochs"]) if name == UNPROVED else args.epochs
                point = ours(arena, problem, entry, TARGET, epochs)
                point |= point["points"][-1] | {"seconds": point["seconds"]}
            else:
                point = fit(arena, problem, entry, first["setting"])
            gap = point["objective"] / least - 1
            if gap > TARGET:
                raise SystemExit(f"{name} ended {gap:.2g} from the least objective: it is no contestant")
            kept = {what: point.get(what) for what in ("setting", "epochs", "seconds", "cpu_seconds", "objective")}
            points[name].append(kept | {"turn": turn})
            print(f"turn {turn:>2} {name:<13} {point['seconds']:8.2f} s {gap:9.2g}", flush=True)
    nonzeros = int(arena.arrays(problem.source).x.nnz)
    at = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    figures = {name: {"turns": some, "ratio": ratios(points["saga"], some)} for name, some in points.items()}
    found = {"left_out": left_out, "racers": figures, "nonzeros": nonzeros}
    return {"run": {"what": "race", **about, "rounds": args.rounds, **at}, **found, **circumstances(load)}


def ratios(mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Their seconds over ours, turn by turn: median, least, greatest; by the clock and by CPU."""
    by_turn = {each["turn"]: each for each in theirs}
    found = {}
    for what in ("seconds", "cpu_seconds"):
        each = [by_turn[m["turn"]][what] / m[what] for m in mine if m["turn"] >= 0]
        found[what] = [round(x, 3) for x in (statistics.median(each), min(each), max(each))]
    return found


def circumstances(load: float) -> dict[str, Any]:
    """Of the machine."""
    return {
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
        "noisy": load > NOISY_LOAD,
        "cores": os.cpu_count(),
        "jvm": os.environ.get("SPARK_SUBMIT_OPTS", ""),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("pyspark", "scikit-learn", "scipy", "numpy")},
    }


def go_on(
    args: argparse.Namespace, arena: Arena, lines: Lines, curves: Iterable[tuple[Problem, Entry]] | None = None
) -> int:
    """Curves that are due (None: all), until the time is up; their number."""
    end, made = time.monotonic() + 60 * args.minutes, 0
    for problem, entry in due(args) if curves is None else curves:
        if lines.find(run_of(problem, entry)) is not None or (args.runs and made == args.runs):
            continue
        if time.monotonic() > end:
            print(f"{args.minutes:g} minutes are up: call again to go on")
            break
        line = measure(args, arena, lines, problem, entry)
        lines.append(line)
        made += 1
        print(saga_report.told(line, saga_report.least(lines.all, problem.about()) or 0.0), flush=True)
    return made


def main() -> None:
    """See the module's docstring."""
    args = arguments()
    if args.report:
        saga_report.write(read(args.results), args.results.with_suffix(".md"))
        return
    from headrace.session import build_session

    with tempfile.TemporaryDirectory(prefix="headrace-saga-") as temporary:
        conf = {"spark.driver.memory": args.driver_memory}
        spark = build_session("bench-saga", master=f"local[{THREADS}]", conf=conf)
        lines = Lines(args.results)
        try:
            compete(args, Arena(spark, args.work or Path(temporary), args.data), lines)
        finally:
            lines.close()
            spark.stop()


def compete(args: argparse.Namespace, arena: Arena, lines: Lines) -> None:
    """Curves, or a race of each problem that has them."""
    if not args.race:
        go_on(args, arena, lines)
        return
    for source, reg in sources(args):
        for name in args.penalties:
            problem = Problem(source, reg, PENALTIES[name], intercept=False)
            go_on(args, arena, lines, racing(problem))
            line = race(args, arena, lines, problem)
            lines.append(line)
            print(saga_report.told_race(line), flush=True)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""

    def names(known: Sequence[str]) -> Any:
        def parse(text: str) -> list[str]:
            if unknown := set(text.split(",")) - set(known):
                raise argparse.ArgumentTypeError(f"no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
            return text.split(",")

        return parse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=names(("a9a", "generated")), default=["a9a", "generated"])
    parser.add_argument("--penalties", type=names(list(PENALTIES)), default=list(PENALTIES))
    parser.add_argument("--rows", type=int, default=1_000_000, help="of generated data")
    parser.add_argument("--features", type=int, default=100_000, help="of generated data")
    parser.add_argument("--epochs", type=int, default=1000, help="of a fit of ours, at most")
    parser.add_argument("--peer_seconds", type=float, default=300.0, help="CPU seconds of a peer's curve, at most")
    parser.add_argument("--race", action="store_true", help="seconds by turns, with iterations that the curves say")
    parser.add_argument("--rounds", type=int, default=5, help="of a race")
    parser.add_argument("--runs", type=int, default=0, help="curves of this call, at most; 0: no limit")
    parser.add_argument("--minutes", type=float, default=60.0, help="no curve is begun after so many")
    parser.add_argument("--driver_memory", default="4g")
    parser.add_argument("--work", type=Path, help="a folder that is kept; a temporary one by default")
    parser.add_argument("--data", type=Path, help="folder of the folder a9a")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="run nothing, write the report")
    return parser.parse_args(given)


if __name__ == "__main__":
    command(main)
