"""Row f: ms a step, bytes of the interfaces and loss after 200 steps, for 2 and 4 ranks behind links of 100 Mbit/s and
1 Gbit/s: every codec through our reducers, codecs chosen by tensor, local SGD and gossip beside DDP and Horovod.

    .venv/bin/python bench/exchange_lab.py [--only ddp,headrace/torch/int8] [--ranks 2,4] [--mbit 100,1000]
    .venv/bin/python bench/exchange_lab.py --report

Ranks are processes in network namespaces of their own (exchange_network.py) that train the same perceptron on the same
rows (exchange_rank.py). Contestants of one transport, link and number of ranks take turns in the same processes. One
JSON line a run is appended to docs/results/exchange.jsonl; what has a line is not run again. --report makes
docs/results/exchange.md and its figure of these lines. Where namespaces are not allowed, this says so and ends.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import platform
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import exchange_network as network
from bench import exchange_report
from bench.exchange_contestants import ENTRIES, Entry
from bench.exchange_rank import TASK
from bench.studies.lines import Line, Lines, read
from headrace.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "exchange.jsonl"
PLACE = ("ranks", "mbit", "transport")  # of runs that processes make one after another
LOOKS, APART_S = 10, 0.005  # at what else the machine does, between runs


class Ranks:
    """Processes, each with its link, that make runs of one place; all of it is gone after the `with`.

    Args:
        place: of PLACE.
    """

    def __init__(self, place: dict[str, Any]) -> None:
        self.place, self.processes = place, list[subprocess.Popen[str]]()

    def __enter__(self) -> Ranks:
        self._errors = tempfile.TemporaryFile("w+")
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.processes:
            process.kill()
        for rank, process in enumerate(self.processes):
            process.communicate()
            network.detach(rank)
        self._errors.close()

    def start(self, environments: Sequence[dict[str, str]], deadline: float) -> None:
        """Start them, join their namespaces to the hub."""
        command = [sys.executable, str(ROOT / "bench" / "exchange_rank.py")]
        pipe = subprocess.PIPE
        for _ in environments:
            self.processes.append(
                subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True, cwd=ROOT)
            )
        self._wait_for("up", deadline)
        for rank, environment in enumerate(environments):
            network.attach(rank, self.processes[rank].pid, self.place["mbit"])
            self._tell(rank, json.dumps({"rank": rank, "environment": environment, **self.place}))
        self._wait_for("joined", deadline)
        for rank in range(len(self.processes)):
            self._tell(rank, "go")
        self._wait_for("met", deadline)

    def results(self, run: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
        """Make a run, see `run_of`; what they found, in rank order.

        Raises:
            RuntimeError: a rank ended without a result, or not in time; with what they last said.
        """
        deadline = time.monotonic() + timeout_s
        for rank in range(len(self.processes)):
            self._tell(rank, json.dumps({"timeout": timeout_s, **run}))
        lines = [self._line(process, deadline) for process in self.processes]
        if not all(lines):
            raise RuntimeError(f"no result of rank {[bool(line) for line in lines].index(False)}: {self._said()}")
        return [json.loads(line) for line in lines]

    def _wait_for(self, word: str, deadline: float) -> None:
        for rank, process in enumerate(self.processes):
            if self._line(process, deadline) != f"{word}\n":
                raise RuntimeError(f"rank {rank} has not {word}: {self._said()}")

    def _tell(self, rank: int, text: str) -> None:
        pipe = self.processes[rank].stdin
        assert pipe is not None
        try:
            pipe.write(f"{text}\n")
            pipe.flush()
        except OSError:
            raise RuntimeError(f"rank {rank} has ended: {self._said()}") from None

    def _line(self, process: subprocess.Popen[str], deadline: float) -> str:
        """The next line, or nothing where the process ended or the time is up."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            ready = selector.select(max(0.0, deadline - time.monotonic()))
        return process.stdout.readline() if ready else ""

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-3000:] or "it said nothing within the time"


def run_of(entry: Entry, ranks: int, mbit: int, steps: int, seed: int) -> dict[str, Any]:
    """What a run is known by."""
    place = {"entry": [entry.system, entry.transport, entry.codec], "transport": entry.transport}
    return {**place, "ranks": ranks, "mbit": mbit, "steps": steps, "seed": seed, "task": dict(TASK)}


@contextlib.contextmanager
def environments(place: dict[str, Any]) -> Iterator[list[dict[str, str]]]:
    """What each rank finds in its environment; while inside, Horovod's ranks find each other."""
    plain = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": network.LINK}
    if place["transport"] != "horovod":
        yield [plain] * place["ranks"]
        return
    from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
    from horovod.runner.gloo_run import create_run_env_vars, create_slot_env_vars
    from horovod.runner.http.http_server import RendezvousServer

    slots = get_host_assignments(parse_hosts(",".join(f"host{r}:1" for r in range(place["ranks"]))), place["ranks"])
    server = RendezvousServer()
    port = server.start()
    try:
        server.init(slots)
        common = {**plain, **create_run_env_vars(network.HUB_ADDRESS, [network.LINK], port)}
        common |= {"HOROVOD_LOG_LEVEL": "error", "HOROVOD_GLOO_TIMEOUT_SECONDS": "120"}
        yield [{name: str(value) for name, value in (common | create_slot_env_vars(s)).items()} for s in slots]
    finally:
        server.stop()


def measured(runs: Sequence[dict[str, Any]], timeout_s: float) -> Iterator[Line]:
    """The lines of runs of one place, made one after another.

    Raises:
        RuntimeError: of the run whose line is due, see `Ranks.results`; the processes are gone then.
    """
    place = place_of(runs[0])
    with environments(place) as given, Ranks(place) as ranks:
        ranks.start(given, time.monotonic() + timeout_s)
        ours = [process.pid for process in ranks.processes]
        for run in runs:
            before = others(ours)
            found = ranks.results(run, timeout_s)
            yield {"run": run, **summary(run, found), **circumstances(before, others(ours))}


def place_of(run: dict[str, Any]) -> dict[str, Any]:
    """Of a run, what its processes are started with."""
    return {name: run[name] for name in PLACE}


def summary(run: dict[str, Any], found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a run from those of its ranks; a step's time is rank 0's."""
    steps = len(found[0]["ms"])
    sent, formula = (sum(each[name] for each in found) for name in ("tx_bytes", "formula_bytes"))
    headers = network.HEADER_BYTES * sum(each["tx_packets"] for each in found)
    most = max(max(each["tx_bytes"], each["rx_bytes"]) for each in found) / steps
    first = found[0]
    return {
        "ms": round(sum(first["ms"]) / steps, 3),
        "ms_median": statistics.median(first["ms"]),
        "ms_spread": [min(first["ms"]), max(first["ms"])],
        "alone_ms": max(each["alone_ms"] for each in found),
        "cpu_ms": round(max(each["cpu_ms"] for each in found), 3),
        "bytes": round(most, 1),
        "formula": round(max(each["formula_bytes"] for each in found) / steps, 1),
        "of_formula": round(sent / formula, 4),
        "of_formula_without_headers": round((sent - headers) / formula, 4),
        "link_ms": round(8e-3 * most / run["mbit"], 3),
        "packets": round(max(each["tx_packets"] for each in found) / steps, 2),
        "loss": round(first["loss"], 5) if math.isfinite(first["loss"]) else None,
        "same_loss": len({str(each["loss"]) for each in found}) == 1,
        "seconds": {n: round(v, 3) for n, v in first["figures"].items() if n.endswith("_seconds")},
        "burst": network.burst_bytes(run["mbit"]),
        **({"as_is": first["figures"]["turns_as_is"]} if "turns_as_is" in first["figures"] else {}),
    }


def others(ours: Sequence[int]) -> int:
    """Tasks of other programs that want a core, between runs: the least of a few looks.

    Args:
        ours: processes of this program beside this one; Horovod's talk in every millisecond, also between runs.
    """
    least = sys.maxsize
    for _ in range(LOOKS):
        before = _running(ours)
        every = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
        least = min(least, every - 1 - min(before, _running(ours)))
        time.sleep(APART_S)
    return max(0, least)


def _running(processes: Sequence[int]) -> int:
    """Tasks of processes that have a core or want one."""
    found = 0
    for task in itertools.chain.from_iterable(Path(f"/proc/{process}/task").glob("*/stat") for process in processes):
        with contextlib.suppress(OSError):  # it has ended
            found += task.read_text().rpartition(")")[2].split()[0] == "R"
    return found


def circumstances(before: int, after: int) -> dict[str, Any]:
    """Of the machine; what `others` said before and after a run."""
    return {
        "others": [before, after],
        "noisy": max(before, after) > 0,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "horovod")},
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def due(args: argparse.Namespace, lines: Lines) -> list[dict[str, Any]]:
    """Runs without a line, those of a place together."""
    chosen = [e for e in ENTRIES.values() if not args.only or any(f"{e.name}/".startswith(f"{o}/") for o in args.only)]
    chosen.sort(key=lambda entry: entry.transport)
    places = itertools.product(args.mbit, args.ranks, chosen, args.seeds)
    runs = [run_of(e, ranks, mbit, args.steps, seed) for mbit, ranks, e, seed in places]
    return [run for run in runs if lines.find(run) is None]


def go_on(args: argparse.Namespace, lines: Lines) -> int:
    """Make runs that are due, until the time is up; the number of those that failed."""
    end, failed = time.monotonic() + 60.0 * args.minutes, 0
    runs = due(args, lines)
    print(f"{len(runs)} runs are due", flush=True)
    for _, group in itertools.groupby(runs, place_of):
        of_place = list(group)
        while of_place and time.monotonic() < end:
            failed += _part(of_place, lines, end, args.timeout)
    if left := due(args, lines):
        print(f"{len(left)} runs are still due: call again to go on")
    return failed


def _part(left: list[dict[str, Any]], lines: Lines, end: float, timeout_s: float) -> int:
    """Make runs of one place until one fails, which ends its processes, or the time is up; those made are taken from
    `left`. How many failed."""
    with contextlib.closing(measured(list(left), timeout_s)) as found:
        try:
            for line in found:
                del left[0]
                lines.append(line)
                print(exchange_report.told(line), flush=True)
                if time.monotonic() > end:
                    break
        except RuntimeError as error:
            print(f"{'/'.join(left.pop(0)['entry'])} failed: {error}", file=sys.stderr, flush=True)
            return 1
    return 0


def main() -> None:
    """See the module's docstring."""
    args = arguments()
    if args.report:
        exchange_report.write(read(args.results), args.results.with_suffix(".md"))
        return
    try:
        network.enter()
        network.make_hub()
        lines = Lines(args.results)
    except UserError as error:
        sys.exit(f"row f was not measured: {error}")
    try:
        sys.exit(1 if go_on(args, lines) else 0)
    finally:
        lines.close()


def arguments() -> argparse.Namespace:
    """Command line."""

    def numbers(text: str) -> list[int]:
        return [int(each) for each in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="beginnings of names")
    parser.add_argument("--ranks", type=numbers, default=[2, 4])
    parser.add_argument("--mbit", type=numbers, default=[100, 1000])
    parser.add_argument("--seeds", type=numbers, default=[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=100.0, help="no run is begun after so many")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds of a run")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="run nothing, write the report")
    args = parser.parse_args()
    names = [f"{name}/" for name in ENTRIES]
    if unknown := [only for only in args.only if not any(name.startswith(f"{only}/") for name in names)]:
        parser.error(f"no contestant begins with {unknown[0]}; there are {', '.join(ENTRIES)}")
    return args


if __name__ == "__main__":
    main()
