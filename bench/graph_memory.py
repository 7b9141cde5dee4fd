"""Peak memory of ingest-graph and featurize-graph as edges and partitions double: driver, executors, Python workers.

    .venv/bin/python bench/graph_memory.py --edges 25000000,50000000 --partitions 8,16 --work DIR

Each command is what a user types, in processes of its own, with a heap of --driver_memory (local mode: the executors
live in it). Memory is the proportional set size of the process tree, sampled every half second (see main_job.py). One
JSON line a run is appended to docs/results/graph_memory.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from graph import write_edges
from main_job import ROOT, run_stage

RESULTS = ROOT / "docs" / "results" / "graph_memory.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", default="25000000,50000000")
    parser.add_argument("--partitions", default="8,16")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--driver_memory", default="2g")
    parser.add_argument("--shard_edges", type=int, default=2_000_000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for edges in map(int, args.edges.split(",")):
        folder = args.work / str(edges)
        folder.mkdir(exist_ok=True)
        if not (folder / "edges.parquet").exists():
            write_edges(folder / "edges.parquet", edges, edges // 8, args.seed)
        for partitions in map(int, args.partitions.split(",")):
            report(args, run(args, folder, edges, partitions))


def run(args: argparse.Namespace, folder: Path, edges: int, partitions: int) -> dict[str, Any]:
    """Both commands at one size."""
    conf = json.dumps({"spark.sql.shuffle.partitions": str(partitions)})
    session = ["--session.master", "local[2]", "--session.driver_memory", args.driver_memory, "--session.conf", conf]
    common = ["--lake", str(folder / "lake"), "--graph", "memory", "--screen.progress", "log", *session]
    headrace = [sys.executable, "-m", "headrace.pipelines.cli"]
    record: dict[str, Any] = {"what": "graph_memory", "edges": edges, "partitions": partitions, "stages": {}}
    record |= {
        "driver_memory": args.driver_memory,
        "shard_edges": args.shard_edges,
        "seed": args.seed,
        "load_before": os.getloadavg()[0],
    }
    rebuild = ["--nodes", "rebuild", "--shard_edges", str(args.shard_edges)]
    rebuild += ["--shard_bytes", str((16 << 20) + partitions)]  # another request: else there is nothing to do
    commands = {
        "ingest": ["ingest-graph", "--source", str(folder / "edges.parquet"), *common],
        "featurize": ["featurize-graph", *common, *rebuild],
    }
    for name, argv in commands.items():
        done = run_stage([*headrace, *argv], folder / f"{name}-{partitions}.log")
        results = done["report"].get("results", {})
        figures = {key: results[key] for key in ("rows_committed", "nodes", "edges", "shards") if key in results}
        record["stages"][name] = {"seconds": done["seconds"], "peak_bytes": done["peak_bytes"]} | figures
    return record


def report(args: argparse.Namespace, record: dict[str, Any]) -> None:
    for name, stage in record["stages"].items():
        peak = {program: f"{size / 1e9:.2f} GB" for program, size in stage["peak_bytes"].items()}
        size = f"{record['edges']:>12,} edges {record['partitions']:>4} partitions"
        print(f"{size} {name:<10} {stage['seconds']:8.1f} s {peak}")
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with args.results.open("a") as file:
        file.write(json.dumps(record).replace(str(args.work), "DIR") + "\n")


if __name__ == "__main__":
    main()
