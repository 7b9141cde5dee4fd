"""Driver's memory of a fit as partitions double: SagaLogisticRegression beside MLlib's L-BFGS.

    .venv/bin/python bench/saga_memory.py [--rows 1000000 --features 100000] [--partitions 1,2,4,16] [--fits saga,mllib]

The driver and two executors are processes of their own: `local-cluster[2,1,2048]`. Two figures of the driver's JVM.
Live heap: what is left after a full collection, which a thread asks for every --every seconds of the fit; its largest
is what the fit needs at least, and grows if anything there grows with partitions. Peak of the resident set, as the
kernel keeps it (VmHWM): what the system gave, garbage included, which depends on when the JVM chose to collect. Both,
because the first misses what lives shorter than a sample, and the second cannot tell need from leisure.

A run is a line of docs/results/saga_memory.jsonl; what has a line is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.linear_data import Source
from bench.saga import circumstances
from bench.studies.lines import Lines
from bench.studies.running import command

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "saga_memory.jsonl"
FITS = ("saga", "mllib")
REG = 1e-5


class LiveHeap:
    """The JVM's live heap, sampled by a thread inside the `with`."""

    def __init__(self, spark: Any, every: float) -> None:
        self._jvm, self._every = spark._jvm, every
        self._runtime = self._jvm.java.lang.Runtime.getRuntime()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.before = self.peak = self.now()

    def now(self) -> int:
        """Bytes after a full collection."""
        self._jvm.java.lang.System.gc()
        return int(self._runtime.totalMemory() - self._runtime.freeMemory())

    def _sample(self) -> None:
        while not self._done.wait(self._every):
            self.peak = max(self.peak, self.now())

    def __enter__(self) -> LiveHeap:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def resident_peak(self) -> int:
        """Bytes, since the JVM began."""
        status = Path(f"/proc/{self._jvm.java.lang.ProcessHandle.current().pid()}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


def estimator(run: dict[str, Any]) -> Any:
    """Of either fit, for as many passes over the rows."""
    from headrace.baselines import create
    from headrace.baselines.saga import SagaLogisticRegression

    if run["fit"] == "mllib":
        return create("lbfgs", reg_param=REG, tol=0.0, max_iter=run["epochs"])
    return SagaLogisticRegression(
        solver=run["fit"], regParam=REG, standardization=False, tol=1e-12, maxIter=run["epochs"],
        numPartitions=run["partitions"],
    )  # fmt: skip


def child(run: dict[str, Any]) -> None:
    """One run in a driver of its own; prints its figures as JSON."""
    from headrace.session import build_session

    collector = "-XX:+UseSerialGC"
    conf = {"spark.driver.memory": run["driver_memory"], "spark.executor.memory": "1g"}
    conf |= {f"spark.{who}.extraJavaOptions": collector for who in ("driver", "executor")}
    spark = build_session("saga-memory", master="local-cluster[2,1,2048]", conf=conf)
    source = Source("generated", run["rows"], run["features"])
    files = [str(file) for file in source.files(Path(run["work"]))]
    rows = spark.read.format("libsvm").option("numFeatures", str(source.features)).load(files)
    rows = rows.repartition(run["partitions"])
    start = time.perf_counter()
    with LiveHeap(spark, run["every"]) as heap:
        model = estimator(run).fit(rows)
    found = {"seconds": round(time.perf_counter() - start, 1), "live_before": heap.before, "live_peak": heap.peak}
    rounds = len(model.summary.objectiveHistory) if run["fit"] == "mllib" else model.summary.rounds[-1].number
    found |= {"live_after": heap.now(), "rss_peak": heap.resident_peak(), "rounds": rounds}
    print(json.dumps(found))
    spark.stop()


def measure(run: dict[str, Any], work: Path, every: float) -> dict[str, Any]:
    """A run's line."""
    load = os.getloadavg()[0]
    given = json.dumps({**run, "work": str(work), "every": every})
    done = subprocess.run(
        [sys.executable, __file__, "--child", given], stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        raise SystemExit(f"{run} ended with {done.returncode}")
    return {"run": run, **json.loads(done.stdout.splitlines()[-1]), **circumstances(load)}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=100_000)
    parser.add_argument("--partitions", default="1,2,4,16")
    parser.add_argument("--fits", default=",".join(FITS))
    parser.add_argument("--epochs", type=int, default=12, help="of a fit: enough for a few rounds")
    parser.add_argument("--every", type=float, default=0.25, help="seconds between collections")
    parser.add_argument("--driver_memory", default="1g")
    parser.add_argument("--work", type=Path, help="a folder that is kept; a temporary one by default")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(json.loads(args.child))
        return
    lines = Lines(args.results)
    with tempfile.TemporaryDirectory(prefix="headrace-saga-") as temporary:
        for partitions in map(int, args.partitions.split(",")):
            for fit in args.fits.split(","):
                run = {"what": "saga_memory", "fit": fit, "partitions": partitions, "rows": args.rows}
                run |= {"features": args.features, "epochs": args.epochs, "driver_memory": args.driver_memory}
                if lines.find(run) is None:
                    line = measure(run, args.work or Path(temporary), args.every)
                    lines.append(line)
                    print(json.dumps(line), flush=True)
    lines.close()


if __name__ == "__main__":
    command(main)
