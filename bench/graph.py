"""Row c: an edge list to a deduplicated, renumbered CSR: ours into Delta, polars + scipy and networkit into memory.

    .venv/bin/python bench/graph.py --edges 10000000 --rounds 5

Input: bronze/edges, a Delta table of (src, dst), ids of 62 bits drawn by a power law, with duplicates and self-loops.
Ours reads it and commits nodes, CSR and manifest; the peers read the same Parquet files with polars and end with the
same three arrays on disk (numpy's format). Every output is proved equal to the others before its time counts. Limits,
in the same run: sorting the edges' 64-bit keys with numpy in one thread, and copying them. Two threads each. One JSON
line is appended to docs/results/graph.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

THREADS = 2
os.environ.setdefault("POLARS_MAX_THREADS", str(THREADS))
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "graph.jsonl"
CHUNK = 1 << 20
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd: a bijection of 64 bits, whose upper 62 serve as ids


def draw(rng: np.random.Generator, count: int, nodes: int) -> np.ndarray:
    """Ids of 62 bits, of which about `nodes` occur: squares of a uniform number, so that low ranks are hubs."""
    rank = (rng.random(count) ** 3 * nodes).astype(np.uint64)
    return ((rank * np.uint64(_MULTIPLIER)) >> np.uint64(2)).astype(np.int64)


def write_edges(path: Path, edges: int, nodes: int, seed: int) -> None:
    """A Parquet file of src, dst, a chunk at a time."""
    rng = np.random.default_rng(seed)
    schema = pa.schema([("src", pa.int64()), ("dst", pa.int64())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, edges, CHUNK):
            count = min(CHUNK, edges - start)
            writer.write_table(pa.table([draw(rng, count, nodes), draw(rng, count, nodes)], schema=schema))


def digest(indptr: np.ndarray, indices: np.ndarray) -> str:
    """The adjacency as one number of its own."""
    mine = hashlib.sha256()
    for array in (indptr, indices):
        mine.update(np.ascontiguousarray(array, np.int64).data)
    return mine.hexdigest()


def tree_cpu() -> float:
    """CPU seconds of this process, the JVM and the Python workers so far: a busy machine stretches time, not these."""
    root = psutil.Process()
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


class Contest:
    """The contestants over one lake; each returns the digest of what it made."""

    def __init__(self, spark: Any, work: Path, shard_edges: int) -> None:
        from headrace.catalog.delta import files_at
        from headrace.catalog.spec import load

        self.spark, self.work, self.shard_edges = spark, work, shard_edges
        self.lake = work / "lake"
        self.files = [file.path for file in files_at(load("bronze/edges"), self.lake, None, {"graph": "bench"})]

    def ours(self) -> Callable[[], str]:
        from headrace.features.csr import open_csr
        from headrace.pipelines import featurize_graph
        from headrace.report import Report

        cfg = featurize_graph.Config(lake=str(self.lake), graph="bench", nodes="rebuild", shard_edges=self.shard_edges)
        cfg.shard_bytes += time.time_ns() % 1000  # another request each time: else there is nothing to do
        report = Report("featurize-graph", out=io.StringIO())
        featurize_graph.run(self.spark, cfg, report)
        self.stages = {stage.name: round(stage.seconds, 2) for stage in report.stages}

        def prove() -> str:
            csr = open_csr(self.lake, "bench").whole()
            return digest(csr.indptr, csr.indices)

        return prove

    def polars_scipy(self) -> Callable[[], str]:
        """Unique rows by polars, ranks and CSR by numpy and scipy."""
        import polars as pl
        import scipy.sparse as sp

        edges = pl.scan_parquet(self.files).select("src", "dst").unique().collect()
        src, dst = edges["src"].to_numpy(), edges["dst"].to_numpy()
        ids = pl.concat([edges["src"], edges["dst"].rename("src")]).unique().sort().to_numpy()
        row, column = np.searchsorted(ids, src), np.searchsorted(ids, dst)
        matrix = sp.coo_matrix((np.ones(len(row), np.int8), (row, column)), (len(ids), len(ids))).tocsr()
        matrix.sort_indices()
        return self._save("polars", ids, matrix.indptr, matrix.indices)

    def polars_join(self) -> Callable[[], str]:
        """Everything by polars, ranks by joins."""
        import polars as pl

        edges = pl.scan_parquet(self.files).select("src", "dst").unique()
        ids = pl.concat([edges.select(id="src"), edges.select(id="dst")]).unique().sort("id").with_row_index("rank")
        rows = edges.join(ids, left_on="src", right_on="id").join(ids, left_on="dst", right_on="id", suffix="_dst")
        made, nodes = pl.collect_all([rows.select("rank", "rank_dst").sort("rank", "rank_dst"), ids])
        counts = np.bincount(made["rank"].to_numpy(), minlength=len(nodes))
        indptr = np.concatenate([[0], np.cumsum(counts)])
        return self._save("polars-join", nodes["id"].to_numpy(), indptr, made["rank_dst"].to_numpy())

    def networkit(self) -> Callable[[], str]:
        """Ranks by numpy, graph by networkit."""
        import networkit as nk
        import polars as pl

        nk.setNumberOfThreads(THREADS)
        edges = pl.read_parquet(self.files, columns=["src", "dst"])
        ids, ranks = np.unique(np.concatenate([edges["src"].to_numpy(), edges["dst"].to_numpy()]), return_inverse=True)
        half = len(ranks) // 2
        graph = nk.GraphFromCoo((ranks[:half], ranks[half:]), n=len(ids), directed=True)
        graph.removeMultiEdges()
        graph.sortEdges()
        matrix = nk.algebraic.adjacencyMatrix(graph, matrixType="sparse").tocsr()
        matrix.sort_indices()
        return self._save("networkit", ids, matrix.indptr, matrix.indices)

    def _save(self, name: str, ids: np.ndarray, indptr: np.ndarray, indices: np.ndarray) -> Callable[[], str]:
        """On disk, as ours is; the proof is not timed."""
        folder = self.work / name
        folder.mkdir(exist_ok=True)
        for stem, array in (("ids", ids), ("indptr", indptr), ("indices", indices)):
            np.save(folder / f"{stem}.npy", array.astype(np.int64, copy=False))
        return lambda: digest(np.load(folder / "indptr.npy"), np.load(folder / "indices.npy"))

    def limits(self, edges: int) -> dict[str, float]:
        """Seconds to sort as many keys, to copy them once, and to read the columns."""
        keys = np.random.default_rng(0).integers(0, 1 << 62, edges, np.int64).view(np.uint64)
        seconds = {}
        start = time.perf_counter()
        copy = keys.copy()
        seconds["copy"] = time.perf_counter() - start
        start = time.perf_counter()
        copy.sort()
        seconds["sort"] = time.perf_counter() - start
        start = time.perf_counter()
        for file in self.files:
            pq.read_table(file, columns=["src", "dst"], use_threads=False, partitioning=None)
        seconds["decode"] = time.perf_counter() - start
        return {name: round(value, 3) for name, value in seconds.items()}


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, default=10_000_000)
    parser.add_argument("--nodes", type=int, default=0, help="default: an eighth of the edges")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shard_edges", type=int, default=2_000_000)
    parser.add_argument("--driver_memory", default="4g")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--peers", default="polars_scipy,polars_join,networkit")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-graph-") as temporary:
        record = measure(args, args.work or Path(temporary))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record))


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Interleaved rounds; the first is warming."""
    from headrace.pipelines import ingest_files, ingest_graph
    from headrace.report import Report
    from headrace.session import build_session

    spark = build_session("bench-graph", master=f"local[{THREADS}]", conf={"spark.driver.memory": args.driver_memory})
    ingest_files.record_quality = lambda *_: None
    work.mkdir(parents=True, exist_ok=True)
    load_before = os.getloadavg()[0]
    write_edges(work / "edges.parquet", args.edges, args.nodes or args.edges // 8, args.seed)
    start = time.perf_counter()
    cfg = ingest_graph.Config(lake=str(work / "lake"), graph="bench", source=str(work / "edges.parquet"))
    ingest_graph.run(spark, cfg, Report("ingest-graph", out=io.StringIO()))
    ingest_seconds = time.perf_counter() - start
    contest = Contest(spark, work, args.shard_edges)
    names = ["ours", *filter(None, args.peers.split(","))]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    digests: dict[str, str] = {}
    for number in range(args.rounds + 1):
        for name in names:
            start, used = time.perf_counter(), tree_cpu()
            prove = getattr(contest, name)()
            taken = time.perf_counter() - start
            seconds[name].append(taken)
            cpu[name].append(tree_cpu() - used)
            if number < 2:
                digests[name] = prove()
            rate = f"{args.edges / taken / 1e6:6.2f} M edges/s  cpu {cpu[name][-1]:7.2f} s"
            print(f"round {number} {name:<14} {taken:8.2f} s  {rate}", flush=True)
    assert len(set(digests.values())) == 1, f"the contestants differ: {digests}"
    record = summary(args, seconds, ingest_seconds, contest, load_before)
    return record | {"cpu_s": {name: round(statistics.median(used[1:]), 2) for name, used in cpu.items()}}


def summary(
    args: argparse.Namespace, seconds: dict[str, list[float]], ingest_seconds: float, contest: Contest, load: float
) -> dict[str, Any]:
    """One line of figures."""
    ours = seconds["ours"][1:]
    ratios = {}
    for name, times in seconds.items():
        each = sorted(theirs / mine for theirs, mine in zip(times[1:], ours, strict=True))
        ratios[name] = {
            "median": round(statistics.median(each), 3),
            "min": round(each[0], 3),
            "max": round(each[-1], 3),
        }
    return {
        "what": "graph",
        "edges": args.edges,
        "seed": args.seed,
        "command": " ".join(["bench/graph.py", *sys.argv[1:]]).replace(str(args.work), "DIR"),
        "cold_s": {name: round(times[0], 2) for name, times in seconds.items()},
        "median_s": {name: round(statistics.median(times[1:]), 2) for name, times in seconds.items()},
        "ingest_s": round(ingest_seconds, 2),
        "speed_of_ours_over": ratios,
        "stages_s": contest.stages,
        "limits_s": contest.limits(args.edges),
        "load_before": load,
        "noisy": load > 2.5,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("pyspark", "delta-spark", "numpy", "polars", "scipy", "networkit")
        },
    }


if __name__ == "__main__":
    main()
