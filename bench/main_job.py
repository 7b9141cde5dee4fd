"""The main job at a given size, stage by stage: seconds, rows/s, MB/s and peak memory of the whole process tree.

    .venv/bin/python bench/main_job.py --rows 10000000 --work DIR

Every stage is the same command a user types, in a process of its own. Memory is the proportional set size (pages shared
by several processes count once), summed over the process tree and sampled every half second. One JSON line a run is
appended to docs/results/main_job.jsonl. A load average over 2.5 beside our own work marks the run "noisy".
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
_PLANTED = (
    "--model.embedding_dim 8 --model.hidden [64,32] --model.embedding_std 0.03 --train.batch_size 4096"
    " --optimizer.dense.lr 0.001 --optimizer.sparse.lr 0.02 --optimizer.sparse.eps 1e-8"
    " --optimizer.sparse.initial_accumulator 0"
)
"""Settings found for the planted model: docs/decisions/0004-planted-model.md."""
RESULTS = ROOT / "docs" / "results" / "main_job.jsonl"


def tree_memory(root: psutil.Process) -> dict[str, int]:
    """Proportional set size in bytes of a process tree, in all and by program."""
    sizes: dict[str, int] = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            sizes[process.name()] = sizes.get(process.name(), 0) + process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, ProcessLookupError):
            continue  # it ended between being listed and being read
    return sizes | {"all": sum(sizes.values())}


def run_stage(argv: list[str], log: Path) -> dict[str, Any]:
    """Run one command to its end; its last line of JSON, wall seconds, and the peak of the tree's memory."""
    peak: dict[str, int] = {}
    start = time.perf_counter()
    with log.open("ab") as errors:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT)
        done = threading.Event()

        def sample() -> None:
            root = psutil.Process(process.pid)
            while not done.wait(0.5):
                try:
                    for name, size in tree_memory(root).items():
                        peak[name] = max(peak.get(name, 0), size)
                except psutil.NoSuchProcess:
                    return

        sampler = threading.Thread(target=sample)
        sampler.start()
        out, _ = process.communicate()
        done.set()
        sampler.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(argv)} ended with {process.returncode}; see {log}")
    report = json.loads(out.decode().strip().splitlines()[-1])
    return {"seconds": round(time.perf_counter() - start, 2), "peak_bytes": peak, "report": report}


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """The stages as a user types them."""
    headrace = str(Path(sys.executable).parent / "headrace")
    data, lake = str(args.work / "data"), str(args.work / "lake")
    generate = ["generate-criteo", "--dest", data, "--rows", str(args.rows), "--days", str(args.days)]
    features = ["featurize-ctr", "--lake", lake, "--min_count", str(args.min_count), "--categories", "vocabulary"]
    ranks = ["--ranks", str(args.ranks), "--launcher", args.launcher]
    train = ["train-ctr", "--lake", lake, *ranks, *_PLANTED.split(), *args.train]
    stages = {
        "generate": [*generate, "--seed", str(args.seed)],
        "ingest": ["ingest-criteo", "--lake", lake, "--source", f"{data}/day_*"],
        "featurize": features,
        "deepfm": [*train, "--model.name", "deepfm"],
        "logistic": [*train, "--model.name", "logistic"],
        "no-categories": [*train, "--model.name", "deepfm", "--model.categories", "false"],
    }
    return {name: [headrace, *argv, "--screen.progress", "log"] for name, argv in stages.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--days", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--launcher", default="horovod")
    parser.add_argument("--min_count", type=int, default=200)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the data and the lake")
    parser.add_argument("--stages", default="generate,ingest,featurize,deepfm,logistic,no-categories")
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], help="further options for train-ctr, last")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "what": "main_job",
        "rows": args.rows,
        "seed": args.seed,
        "command": " ".join(["bench/main_job.py", *(a if a != str(args.work) else "DIR" for a in sys.argv[1:])]),
        "load_before": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("pyspark", "delta-spark", "torch", "horovod", "petastorm")},
        "stages": {},
    }
    record["noisy"] = record["load_before"] > 2.5
    for name, argv in commands(args).items():
        if name in args.stages.split(","):
            record["stages"][name] = result = run_stage(argv, args.work / f"{name}.log")
            peak = result["peak_bytes"].get("all", 0) / 1e9
            print(f"{name:<10} {result['seconds']:9.1f} s  peak {peak:6.2f} GB", flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record).replace(str(args.work), "DIR").replace(str(ROOT), ".")
    with RESULTS.open("a") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    main()
