"""Rows per second from Parquet to torch: our stream, petastorm's BatchedDataLoader, and decoding alone.

    python bench/streaming.py [--rows 1000000] [--batch-size 4096] [--repeats 3]

Generates a table of 13 float32 and 26 int32 columns (zstd, groups of 31,250 rows) in a temporary folder. What counts
are the ratios: they should be at least 2 against BatchedDataLoader and 0.5 against decoding.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.catalog.fingerprint import key_sum
from headrace.catalog.log import DataFile
from headrace.catalog.pinned import PinnedTable
from headrace.catalog.spec import Column, TableSpec, TensorSpec
from headrace.data.stream import DataConfig, Stream

DENSE = tuple(f"i{i}" for i in range(1, 14))
SPARSE = tuple(f"c{i}" for i in range(1, 27))
SPEC = TableSpec(
    name="silver/bench",
    columns=(
        Column("key", "bigint", nullable=False),
        Column("label", "float", nullable=False),
        *(Column(name, "float", nullable=False) for name in DENSE),
        *(Column(name, "int", nullable=False) for name in SPARSE),
    ),
    keys=("key",),
    tensors=(
        TensorSpec("dense", DENSE, "float32"),
        TensorSpec("sparse", SPARSE, "int64"),
        TensorSpec("label", ("label",), "float32"),
        TensorSpec("key", ("key",), "int64"),
    ),
)
FILES, GROUP_ROWS = 8, 31_250


def generate(folder: Path, rows: int) -> PinnedTable:
    """Write the table; power-law ids of up to six digits."""
    rng = np.random.default_rng(0)
    keys = np.array_split(np.arange(rows, dtype=np.int64), FILES)
    files = []
    for number, part in enumerate(keys):
        n = len(part)
        columns = {"key": part, "label": (rng.random(n) < 0.25).astype(np.float32)}
        columns |= {name: np.log1p(rng.poisson(20, n)).astype(np.float32) for name in DENSE}
        columns |= {name: (rng.zipf(1.3, n) % 10 ** (2 + i % 4)).astype(np.int32) for i, name in enumerate(SPARSE)}
        path = folder / f"part-{number}.parquet"
        pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=GROUP_ROWS)
        files.append(DataFile(path=str(path), rows=n, partition={}))
    total = sum(file.rows for file in files)
    return PinnedTable(SPEC, str(folder), 1, tuple(files), total, key_sum(np.arange(rows, dtype=np.int64)), {})


def decode(table: PinnedTable) -> int:
    """pyarrow alone, every column, group by group."""
    rows = 0
    for file in table.files:
        parquet = pq.ParquetFile(file.path)
        for group in range(parquet.num_row_groups):
            rows += len(parquet.read_row_group(group))
    return rows


def loader(table: PinnedTable, batch_size: int) -> int:
    """petastorm as its documentation uses it: one worker, no shuffling."""
    from petastorm import make_batch_reader
    from petastorm.pytorch import BatchedDataLoader

    urls = [Path(file.path).as_uri() for file in table.files]
    rows = 0
    with make_batch_reader(urls, num_epochs=1, workers_count=1, shuffle_row_groups=False) as reader:
        for batch in BatchedDataLoader(reader, batch_size=batch_size):
            rows += len(batch["label"])
    return rows


def stream(table: PinnedTable, batch_size: int, lanes: int) -> int:
    """One shuffled epoch, proved."""
    source = Stream(table, DataConfig(lanes=lanes, remainder="pad"), batch_size=batch_size)
    rows = sum(batch.rows for batch in source.epoch(0))
    source.audit(0).prove(table)
    return rows


def rate(run: Callable[[], int], rows: int, repeats: int) -> tuple[float, int]:
    """The best million rows/s of some runs, and the rows that were missing in the worst of them."""
    best, missing = 0.0, 0
    for _ in range(repeats):
        start = time.perf_counter()
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            got = run()
        best, missing = max(best, got / (time.perf_counter() - start) / 1e6), max(missing, rows - got)
    return best, missing


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = generate(Path(folder), args.rows)
        runs: dict[str, Callable[[], int]] = {
            "decoding alone": lambda: decode(table),
            "BatchedDataLoader": lambda: loader(table, args.batch_size),
            "stream, 16 lanes": lambda: stream(table, args.batch_size, 16),
            "stream, 64 lanes": lambda: stream(table, args.batch_size, 64),
        }
        rates = {}
        for name, run in runs.items():
            rates[name], missing = rate(run, table.rows, args.repeats)
            print(f"{name:<20} {rates[name]:6.2f} million rows/s" + (f", lost {missing:,} rows" if missing else ""))
    ratios = {name: rates["stream, 16 lanes"] / rates[name] for name in ("BatchedDataLoader", "decoding alone")}
    for name, ratio in ratios.items():
        print(f"stream, 16 lanes / {name}: {ratio:.2f}")
    print(json.dumps({"million_rows_per_s": rates, "ratios": ratios}))


if __name__ == "__main__":
    main()
