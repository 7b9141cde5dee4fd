"""Peak memory of featurize-graph as edges double and partitions double, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_workers_hold_a_range_whatever_the_graph(tmp_path: Path) -> None:
    argv = [sys.executable, str(PROJECT / "bench" / "graph_memory.py"), "--edges", "1000000,2000000,4000000"]
    argv += ["--partitions", "4,8", "--driver_memory", "1g", "--shard_edges", "250000", "--work", str(tmp_path)]
    argv += ["--results", str(tmp_path / "results.jsonl")]
    subprocess.run(argv, check=True, env=os.environ | {"PYTHONPATH": str(PROJECT / "python")})
    runs: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    peaks = [run["stages"]["featurize"]["peak_bytes"]["all"] for run in runs]
    assert len(peaks) == 6
    assert max(peaks) < 1.3 * min(peaks), peaks
