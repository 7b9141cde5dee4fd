"""Studies at equal bytes: what is due, budgets from what fixed codecs took, reports from given lines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from bench.studies import adaptive, lars_qsgd
from bench.studies.equal_bytes import Plan, due, rate_of, results
from bench.studies.equal_bytes_report import write
from bench.studies.lines import Line, Lines, read, run_of
from bench.studies.ranks import Exchange, Ranked
from headrace.strategies.compression import CompressionConfig, check


class Base:
    """What a study asks of a task before it runs it."""

    name, metric, batch, epochs, limit_s = "fake", "accuracy", 8, 2, 1.0

    def about(self) -> dict[str, Any]:
        return {"name": self.name, "metric": self.metric, "train": 80}


LEFT = {"qsgd": 8, "onebit": 7, "topk": 5, "auto": 4, "none": 12}  # of 12 bytes


def line_of(task: Ranked, setting: Exchange) -> Line:
    """As if it had run: the middle rate is the best, auto is better than fixed."""
    lr, compression = setting.options["lr"], setting.compression
    rates = (adaptive.RATES if setting.rule == "momentum" else lars_qsgd.RATES["lars"])[1]
    loss = 1.0 + abs(lr - rates) - 0.1 * (compression["name"] == "auto") + 0.01 * setting.seed
    point = {"epoch": 2, "step": 20, "validation_loss": loss, "test_loss": loss, "test": 0.5, "sent_bytes": 80}
    figures = {
        "bytes_before": 12,
        "bytes_after": LEFT[compression["name"]],
        "encode_cpu_seconds": 0.1,
        "decode_cpu_seconds": 0.1,
    }
    exchange = [{} if compression["name"] == "none" else figures] * setting.ranks
    return {
        "run": run_of(task, setting), "outcome": "done", "curve": [point], "steps": 20, "cpu_seconds": 1.0,
        "noisy": False, "sent": {"dense": [80] * setting.ranks, "sparse": [0] * setting.ranks, "rest": [0]},
        "exchange": exchange, "chosen": {"w": "qsgd 7"} if compression["name"] == "auto" else {},
    }  # fmt: skip


@pytest.mark.parametrize("made", [adaptive.plan, lars_qsgd.plan])
def test_rates_then_seeds_then_cells_at_the_bytes_of_fixed_ones(made: Any, tmp_path: Path) -> None:
    plan: Plan = made(tmp_path / "lines.jsonl")
    task: Ranked = Ranked(Base())  # type: ignore[arg-type]
    lines, run = Lines(plan.path), list[Exchange]()
    while (found := next(due(plan, [task], lines), None)) is not None:
        setting = found[1]
        assert isinstance(setting, Exchange)
        check(CompressionConfig(**setting.compression))
        lines.append(line_of(task, setting))
        run.append(setting)
    lines.close()
    tuning = sum(len(rates) for rates in plan.rates.values())
    assert [s.seed for s in run] == sorted(s.seed for s in run) and [s.seed for s in run].count(0) == tuning
    assert all(s.compression["name"] == "none" for s in run[:tuning])
    rest = run[tuning:]
    for rule, rates in plan.rates.items():
        assert {s.options["lr"] for s in rest if s.rule == rule} == {rate_of(lines.all, plan, rule)}
        assert rate_of(lines.all, plan, rule) in rates
    budgets = {s.compression["options"]["budget"] for s in rest if "budget" in s.compression.get("options", {})}
    assert budgets == {
        math.floor(1e6 * plan.slack * (LEFT[cell.compression["name"]] / 12)) / 1e6
        for cell in plan.fixed
        if cell.compression["name"] != "auto"
    }
    groups = results(plan, lines.all)
    assert sum(len(group) for group in groups) * 3 == len(rest)
    assert all(sorted(result.runs) == [1, 2, 3] for group in groups for result in group)
    write(plan, read(plan.path), tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "w qsgd 7" in text and "against" in text and (tmp_path / "report_fake.svg").exists()
    for group in groups[len(plan.rates) :]:
        assert all(other.cell.label in text for other in group)


def test_a_report_of_nothing_is_its_header(tmp_path: Path) -> None:
    plan = adaptive.plan(tmp_path / "none.jsonl")
    write(plan, [], tmp_path / "report.md")
    assert (tmp_path / "report.md").read_text() == plan.header
