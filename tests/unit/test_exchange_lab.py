"""The bandwidth laboratory without a network: who takes part, what is due, figures of given counters, its page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from bench import exchange_lab, exchange_report
from bench.exchange_contestants import ENTRIES, PEERS, Entry, _low_rank
from bench.exchange_network import HEADER_BYTES, burst_bytes
from bench.exchange_rank import make_model
from bench.studies.lines import Lines, read
from headrace.compress import COMPRESSORS
from headrace.strategies.compression import POWERSGD


def args(**changes: Any) -> argparse.Namespace:
    given = {"only": [], "ranks": [2], "mbit": [100], "seeds": [0], "steps": 8}
    return argparse.Namespace(**(given | changes))


def of_rank(sent: int, formula: int, ms: float, loss: float = 0.5) -> dict[str, Any]:
    """What a rank of two steps finds; 10 packets."""
    counted = {"tx_bytes": sent, "rx_bytes": sent - 1, "tx_packets": 10, "rx_packets": 10}
    times = {"ms": [ms, 3 * ms], "cpu_ms": 1.0, "alone_ms": 2.0}
    return (
        counted | times | {"formula_bytes": formula, "loss": loss, "figures": {"encode_seconds": 0.25, "rounds": 1.0}}
    )


def line(entry: Entry, ms: float) -> dict[str, Any]:
    run = exchange_lab.run_of(entry, 2, 100, 8, 0)
    found = [of_rank(40_000, 39_000, ms), of_rank(42_000, 39_000, ms)]
    return {"run": run, **exchange_lab.summary(run, found), **exchange_lab.circumstances(0.0)}


def test_every_codec_takes_part_on_every_transport() -> None:
    ours = [entry for entry in ENTRIES.values() if not entry.peer]
    for transport in ("torch", "horovod"):
        assert {entry.codec for entry in ours if entry.transport == transport} == {*COMPRESSORS, POWERSGD}
    assert {entry.system for entry in PEERS} == {"ddp", "horovod"}


def test_figures_are_those_of_the_counters() -> None:
    found = line(PEERS[0], 10.0)
    assert (found["ms"], found["ms_median"], found["ms_spread"]) == (20.0, 20.0, [10.0, 30.0])
    assert found["bytes"] == 21_000 and found["link_ms"] == pytest.approx(8 * 21_000 / 100e6 * 1e3)
    assert found["of_formula"] == pytest.approx(82 / 78, abs=1e-4)
    assert found["of_formula_without_headers"] == pytest.approx((82_000 - 20 * HEADER_BYTES) / 78_000, abs=1e-4)
    assert found["same_loss"] and found["seconds"] == {"encode_seconds": 0.25}
    assert burst_bytes(1000) == 125_000 and burst_bytes(100) == 32_768


def test_the_hooks_formula_counts_thin_matrices_and_whole_vectors() -> None:
    shapes = [tuple(p.shape) for p in make_model(0).parameters()]
    thin = [2 * sum(shape) if len(shape) == 2 else shape[0] for shape in shapes]
    assert list(_low_rank(make_model(0).parameters(), 2)) == thin


def test_what_has_a_line_is_not_run_again_and_the_page_is_made_of_lines(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "exchange.jsonl")
    assert len(exchange_lab.due(args(), lines)) == len(ENTRIES)
    peer, ours = ENTRIES["ddp/torch/fp16"], ENTRIES["headrace/torch/int8"]
    for entry, ms in ((peer, 30.0), (ours, 10.0)):
        lines.append(line(entry, ms))
    assert len(exchange_lab.due(args(), lines)) == len(ENTRIES) - 2
    assert [run["entry"][2] for run in exchange_lab.due(args(only=["ddp"]), lines)] == ["none", "powersgd"]
    assert not exchange_lab.due(args(only=["headrace/torch/int8"]), lines)  # and not int8_nearest
    lines.close()
    exchange_report.write(read(tmp_path / "exchange.jsonl"), tmp_path / "exchange.md")
    page = (tmp_path / "exchange.md").read_text()
    rows = [row.split(" | ") for row in page.splitlines() if row.startswith(("| headrace", "| ddp"))]
    assert [row[0] for row in rows] == ["| headrace/torch/int8", "| ddp/torch/fp16"]
    assert [row[9] for row in rows] == ["3.00", ""]
    assert "exchange.svg" in page and (tmp_path / "exchange.svg").read_text().startswith("<?xml")
