"""The bandwidth laboratory without a network: who takes part, what is due, figures of given counters, its page."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from contract.collective_exam import good, on_ranks
from torch.nn import functional

from bench import exchange_lab, exchange_report
from bench.exchange_contestants import ENTRIES, PEERS, SERVED, WITHOUT, Entry, _low_rank, contestant
from bench.exchange_network import HEADER_BYTES, burst_bytes
from bench.exchange_rank import Task, make_model
from bench.studies.lines import Lines, read
from headrace.comm import LocalCollective
from headrace.compress import COMPRESSORS
from headrace.strategies.compression import AUTO, POWERSGD, CompressionConfig, check


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
    return {"run": run, **exchange_lab.summary(run, found), **exchange_lab.circumstances(0, 0)}


def test_every_codec_takes_part_on_every_transport() -> None:
    ours = [entry for entry in ENTRIES.values() if not entry.peer]
    everyone = {*COMPRESSORS, POWERSGD, AUTO, "local_sgd", "gossip"}
    once = {*WITHOUT, "parameter_server", "ssp"}
    for transport, all_there in (("torch", everyone | once), ("horovod", everyone)):
        assert {entry.codec for entry in ours if entry.transport == transport} == all_there
    for codec in WITHOUT:
        name, feedback = codec.split(".")
        check(CompressionConfig(name=name, feedback=feedback))
        assert CompressionConfig(name=name).variant == "ef"
    assert {entry.system for entry in PEERS} == {"ddp", "horovod"}


@pytest.mark.parametrize("codec", [AUTO, "local_sgd", "gossip", "topk.none", "parameter_server", "ssp"])
def test_what_is_no_codec_trains_and_ends_with_one_model(codec: str) -> None:
    made_before = [(Task(0), make_model(0)) for _ in range(2)]  # threads that seed at once would mix their draws

    def fn(c: LocalCollective) -> tuple[float, float, float, bytes]:
        task, model = made_before[c.rank]
        made = contestant(Entry("headrace", "torch", codec), model, c)
        losses = []
        for number in range(11):
            x, classes = task.rows(number, c.rank, 32)
            made.optimizer.zero_grad()
            losses.append(functional.cross_entropy(made.module(x), classes))
            made.backward(losses[-1])
            made.optimizer.step()
        made.finish()
        bits = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().tobytes()
        return float(losses[0].detach()), float(losses[-1].detach()), made.sent(), bits

    found = good(on_ranks(2, fn))
    assert len({bits for *_, bits in found}) == 1
    exact = 11 * 4 * sum(p.numel() for p in make_model(0).parameters())
    for first, last, sent, _ in found:
        assert last < first and (0 < sent < exact or codec in ("gossip", *SERVED))


def test_figures_are_those_of_the_counters() -> None:
    found = line(PEERS[0], 10.0)
    assert (found["ms"], found["ms_median"], found["ms_spread"]) == (20.0, 20.0, [10.0, 30.0])
    assert found["bytes"] == 21_000 and found["link_ms"] == pytest.approx(8 * 21_000 / 100e6 * 1e3)
    assert found["of_formula"] == pytest.approx(82 / 78, abs=1e-4)
    assert found["of_formula_without_headers"] == pytest.approx((82_000 - 20 * HEADER_BYTES) / 78_000, abs=1e-4)
    assert found["same_loss"] and found["seconds"] == {"encode_seconds": 0.25}
    assert burst_bytes(1000) == 125_000 and burst_bytes(100) == 32_768


def test_a_loss_that_is_no_number_is_said_to_have_diverged(tmp_path: Path) -> None:
    entry = ENTRIES["headrace/torch/signsgd"]
    run = exchange_lab.run_of(entry, 2, 100, 8, 0)
    found = exchange_lab.summary(run, [of_rank(40_000, 39_000, 10.0, loss=float("nan"))] * 2)
    assert found["loss"] is None and found["same_loss"]
    lines = [{"run": run, **found, **exchange_lab.circumstances(0, 1)}, line(PEERS[0], 10.0)]
    assert "loss diverged; busy" in exchange_report.told(lines[0])
    exchange_report.write(lines, tmp_path / "exchange.md")
    assert [row.split(" | ")[8] for row in (tmp_path / "exchange.md").read_text().splitlines() if "/torch/" in row] == [
        "diverged",
        "0.5000",
    ]


def test_lines_compare_with_peers_that_learn_as_well() -> None:
    peers = [line(ENTRIES[name], ms) for name, ms in (("ddp/torch/powersgd", 5.0), ("horovod/horovod/fp16", 20.0))]
    peers[0]["loss"], ours = 0.52, line(ENTRIES["headrace/torch/int8"], 10.0)
    assert exchange_report.ratios(ours, peers) == ["0.50", "2.00", "2.00"]
    assert exchange_report.ratios({**ours, "loss": 0.515}, peers) == ["0.50", "0.50", "2.00"]
    assert exchange_report.ratios({**ours, "loss": None}, peers) == ["0.50", "", "2.00"]


def test_a_program_that_wants_a_core_is_seen_and_ranks_of_ones_own_are_not() -> None:
    endless = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", endless], stdout=subprocess.PIPE) as busy:
        try:
            assert busy.stdout is not None
            busy.stdout.readline()
            assert exchange_lab._running([busy.pid]) == 1
            assert exchange_lab.others([]) >= 1
        finally:
            busy.kill()
    assert exchange_lab._running([busy.pid]) == 0


def test_a_run_that_fails_ends_its_processes_and_the_rest_goes_on_in_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[dict[str, Any], list[str]]] = []
    ended: list[int] = []

    def measured(runs: list[dict[str, Any]], timeout_s: float) -> Iterator[dict[str, Any]]:
        started.append((exchange_lab.place_of(runs[0]), []))
        try:
            for run in runs:
                assert exchange_lab.place_of(run) == started[-1][0]
                started[-1][1].append(run["entry"][2])
                if run["entry"][2] == "fp16":
                    raise RuntimeError("a rank ended")
                yield {**line(Entry(*run["entry"]), 10.0), "run": run}
        finally:
            ended.append(len(started))

    monkeypatch.setattr(exchange_lab, "measured", measured)
    given = args(only=["ddp", "horovod/horovod"], mbit=[100, 1000], minutes=1.0, timeout=1.0)
    with contextlib.closing(Lines(tmp_path / "exchange.jsonl")) as lines:
        assert exchange_lab.go_on(given, lines) == 4
        left = exchange_lab.due(given, lines)
        assert exchange_lab.go_on(argparse.Namespace(**{**vars(given), "minutes": 0.0}), lines) == 0
    by_place = [["none", "fp16"], ["none", "fp16"], ["powersgd"]]
    assert [codecs for _, codecs in started] == 2 * by_place
    assert ended == [1, 2, 3, 4, 5, 6]
    assert {run["entry"][2] for run in left} == {"fp16"} and len(left) == 4
    said = capsys.readouterr()
    assert said.err.count("fp16 failed: a rank ended") == 4 and "4 runs are still due" in said.out


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
    assert [row[9:12] for row in rows] == [["3.00", "3.00", ""], ["", "", ""]]
    assert "exchange.svg" in page and (tmp_path / "exchange.svg").read_text().startswith("<?xml")
