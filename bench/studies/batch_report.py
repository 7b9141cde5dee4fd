"""The report of the study of batches: a table and a figure of nothing but its lines; what is missing is blank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.studies.batch import BASE, FACTORS, SCALING, WARMUP, rounded
from bench.studies.figures import against_batch
from bench.studies.found import Entry, final, spread
from bench.studies.lines import Line, identity
from bench.studies.space import BUDGET
from bench.studies.task import DIVERGED
from headrace.optim.scaling import scaled

_SCALED, _TIMES = ", ".join(f"{rule} {how}" for rule, how in SCALING.items()), ", ".join(f"{f:.3g}" for f in FACTORS)
HEADER = f"""# Accuracy against batch at a fixed number of epochs
Written by `python -m bench.studies.batch --report` from `study_batch.jsonl` (`make study-batch` goes on with it):
no figure here comes from elsewhere, and what has not been run is blank.

At {BASE} rows every rule is tuned over {BUDGET} learning rates. At another batch the best is scaled ({_SCALED})
and tried times {_TIMES}; the least validation loss chooses, by one run with seed 0. Rates rise
linearly over the first {WARMUP:.0%} of the epochs and fall linearly to 0. "times" is the chosen rate over the scaled
one.
"""

Entries = dict[tuple[str, int], Entry]


def sections(lines: Sequence[Line]) -> list[tuple[dict[str, object], int, Entries]]:
    """Task, epochs, and entries by rule and batch."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(identity({"task": line["run"]["task"], "epochs": line["run"]["epochs"]}), []).append(line)
    return [(some[0]["run"]["task"], some[0]["run"]["epochs"], _entries(some)) for some in groups.values()]


def _entries(lines: Sequence[Line]) -> Entries:
    by: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        by.setdefault((line["run"]["rule"], line["run"]["batch"]), []).append(line)
    return {key: Entry.of(some) for key, some in sorted(by.items(), key=lambda item: item[0][1])}


def write(lines: Sequence[Line], path: Path) -> None:
    """The report at `path`, and a figure a section beside it."""
    parts = [HEADER]
    for task, epochs, entries in sections(lines):
        figure = path.with_name(f"{path.stem}_{task['name']}_{epochs}.svg")
        metric = task["metric"]
        series = {rule: {b: _tests(e) for (r, b), e in entries.items() if r == rule} for rule in SCALING}
        against_batch(series, f"test {metric}", figure)
        about = ", ".join(f"{key} {value}" for key, value in task.items() if key not in ("name", "metric"))
        noisy = sum(line["noisy"] for entry in entries.values() for line in (*entry.tuning, *entry.runs))
        busy = f" {noisy} runs began on a busy machine." if noisy else ""
        head = f"| rule | batch | steps | tried | lr | times | test {metric} | seeds |"
        rows = [_row(rule, batch, entry, entries) for (rule, batch), entry in sorted(entries.items())]
        parts += [
            f"## {task['name']}, {epochs} epoch{'s' if epochs > 1 else ''}", f"{about}.{busy}", "", head,
            "| --- " * 8 + "|", *rows, "", f"![test {metric} against batch]({figure.name})", "",
        ]  # fmt: skip
    path.write_text("\n".join(parts))


def _tests(entry: Entry) -> list[float]:
    return [value for line in entry.runs if (value := final(line, "test")) is not None]


def _row(rule: str, batch: int, entry: Entry, entries: Entries) -> str:
    best = entry.best
    base = entries[rule, BASE].best if (rule, BASE) in entries else None
    lr = best["run"]["options"]["lr"] if best else None
    times = ""
    if best and base and batch != BASE:
        times = f"{lr / rounded(scaled(SCALING[rule], base['run']['options']['lr'], batch, BASE)):.2g}"
    diverged = entry.count(DIVERGED)
    cells = [
        rule, str(batch), str(best["steps"]) if best else "",
        f"{len(entry.tuning)}" + (f" ({diverged} diverged)" if diverged else ""), f"{lr:g}" if lr is not None else "",
        times, spread(_tests(entry)), str(len(entry.runs)) if entry.runs else "",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"
