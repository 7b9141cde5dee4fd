"""What the lines of the study of exchange say of its cells: losses beside dense, bytes, seconds of codecs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as students_t

from bench.studies.exchange_cells import DENSE_RUN, Cell, cells, key_of
from bench.studies.found import TUNING_SEED, final
from bench.studies.lines import Line, identity
from bench.studies.task import DIVERGED, DONE

CONFIDENCE = 0.95
WITHIN = 1.0  # per cent of dense


@dataclass(frozen=True)
class Result:
    """A cell at a number of ranks on a task.

    Args:
        cell: what it is.
        ranks: how many.
        runs: with seeds, by seed; all of one learning rate.
        dense: the dense runs of the same task and ranks by seed.
    """

    cell: Cell
    ranks: int
    runs: Mapping[int, Line]
    dense: Mapping[int, Line]

    @property
    def lines(self) -> list[Line]:
        """Its runs."""
        return list(self.runs.values())

    @property
    def losses(self) -> list[float]:
        """Of the test rows, of runs that have one."""
        return [loss for line in self.lines if (loss := final(line, "test_loss")) is not None]

    @property
    def diverged(self) -> int:
        """Runs without a loss at their end."""
        return sum(line["outcome"] == DIVERGED for line in self.lines)

    @property
    def against_dense(self) -> list[float]:
        """Per cent that the test loss lies above that of the dense run with the same seed."""
        pairs = ((final(line, "test_loss"), final(self.dense[s], "test_loss")) for s, line in self.runs.items()
                 if s in self.dense)  # fmt: skip
        return [100.0 * (own / dense - 1.0) for own, dense in pairs if own is not None and dense is not None]

    @property
    def verdict(self) -> str:
        """Whether the loss is within WITHIN per cent of dense, as far as the interval says; blank of one run."""
        if self.diverged:
            return "no"
        found = interval(self.against_dense)
        if found is None:
            return ""
        return "yes" if found[1] <= WITHIN else "no" if found[0] > WITHIN else "open"

    def bytes_a_step(self, kind: str) -> float | None:
        """Sent by the rank that sent most, in the mean over runs; kind: "dense", "sparse", "rest", "all"."""
        found = []
        for line in self.lines:
            kinds = line["sent"].values() if kind == "all" else [line["sent"][kind]]
            if line["steps"] and any(line["sent"].values()):
                found.append(max(map(sum, zip(*kinds, strict=True))) / line["steps"])
        return statistics.fmean(found) if found else None

    @property
    def codec_ms(self) -> float | None:
        """CPU milliseconds a step that a rank encodes and decodes, of the run in which they were fewest."""
        found = []
        for line in self.lines:
            own = [f.get("encode_cpu_seconds", 0.0) + f.get("decode_cpu_seconds", 0.0) for f in line["exchange"]]
            if line["outcome"] == DONE:
                found.append(1000.0 * statistics.fmean(own) / line["steps"])
        return min(found, default=None)

    @property
    def step_ms(self) -> float | None:
        """CPU milliseconds a step and rank of all that a rank does, of the run in which they were fewest."""
        found = [1000.0 * x["cpu_seconds"] / x["steps"] / self.ranks for x in self.lines if x["outcome"] == DONE]
        return min(found, default=None)


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's interval of CONFIDENCE about the mean; None of less than two values."""
    if len(values) < 2:
        return None
    mean, count = statistics.fmean(values), len(values)
    half = students_t.ppf(0.5 + CONFIDENCE / 2, count - 1) * statistics.stdev(values) / math.sqrt(count)
    return mean - half, mean + half


def signed_mean(values: Sequence[float]) -> str:
    """Mean and interval, as reports show them; nothing of no values."""
    if not values:
        return ""
    around = interval(values)
    mean = f"{statistics.fmean(values):+.2f}"
    return mean if around is None else f"{mean} ({around[0]:+.2f} to {around[1]:+.2f})"


def milliseconds(sent: float, codec_ms: float, megabits: float) -> float:
    """Of exchange a step by formula: encoding and decoding, then bytes over a link of so many Mbit/s."""
    return codec_ms + 8.0 * sent / (1000.0 * megabits)


def pays_below(dense: float, sent: float, codec_ms: float) -> float | None:
    """Mbit/s under which a codec's exchange is the faster one; None where it sends no less."""
    if sent >= dense:
        return None
    return math.inf if codec_ms <= 0 else 8.0 * (dense - sent) / (1000.0 * codec_ms)


def sections(lines: Sequence[Line]) -> list[tuple[dict[str, Any], list[Line]]]:
    """Lines by task, its size, batch and epochs, in the order in which they first come."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(identity({key: line["run"][key] for key in ("task", "batch", "epochs")}), []).append(line)
    return [(some[0]["run"], some) for some in groups.values()]


def steps_of(run: Mapping[str, Any]) -> int:
    """Of a whole run."""
    return int(run["epochs"]) * max(1, int(run["task"]["train"]) // int(run["batch"]))


def results(run: Mapping[str, Any], lines: Sequence[Line], longer: int = 1) -> list[Result]:
    """Of a section, in the order of its cells, by ranks; a cell without runs has a result without runs.

    Args:
        run: one of its runs.
        lines: all of them.
        longer: how many times the epochs of the task the section has.
    """
    by: dict[tuple[str, int, float], dict[int, Line]] = {}
    for line in lines:
        own = line["run"]
        by.setdefault((key_of(own), own["ranks"], own["options"]["lr"]), {})[own["seed"]] = line
    lr = next((rate for rate in _rates(by, DENSE_RUN.key) if _seeded(by[rate])), ("", 0, 0.0))[2]
    made = []
    for cell in (cell for cell in cells(run["task"]["name"], steps_of(run)) if cell.longer == longer):
        for ranks in cell.ranks:
            rates = [key for key in _rates(by, cell.key) if key[1] == ranks]
            own_rate = cell.factors != (1.0,)
            runs = next((_seeded(by[key]) for key in rates if (key[2] != lr) == own_rate and _seeded(by[key])), {})
            dense = _seeded(by.get((DENSE_RUN.key, ranks, lr), {}))
            made.append(Result(cell, ranks, runs, dense))
    return made


def _rates(by: Mapping[tuple[str, int, float], object], key: str) -> list[tuple[str, int, float]]:
    return [found for found in by if found[0] == key]


def _seeded(runs: Mapping[int, Line]) -> dict[int, Line]:
    return {seed: line for seed, line in sorted(runs.items()) if seed != TUNING_SEED}
