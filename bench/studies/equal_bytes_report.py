"""Reports of studies at equal bytes: tables and figures of nothing but their lines; what is missing is blank."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.studies.equal_bytes import Plan, of_task, rate_of, results
from bench.studies.exchange_found import Result, signed_mean
from bench.studies.figures import figure_of, save
from bench.studies.found import final, final_loss, spread
from bench.studies.lines import Line


def write(plan: Plan, lines: Sequence[Line], path: Path) -> None:
    """The report at `path`, and a figure a task beside it."""
    parts, numbers = [plan.header], Counter[str]()
    for about in [task for k, line in enumerate(lines) if (task := line["run"]["task"]) not in _tasks(lines[:k])]:
        own = of_task(lines, about)
        numbers[about["name"]] += 1
        number = f"_{numbers[about['name']]}" if numbers[about["name"]] > 1 else ""
        figure = path.with_name(f"{path.stem}_{about['name']}{number}.svg")
        found = results(plan, own)
        parts.append(_section(plan, own, found))
        if _curves([r for group in found for r in group if r.runs], figure):
            parts.append(f"![validation loss by epochs]({figure.name})\n")
    path.write_text("\n".join(parts))


def _tasks(lines: Sequence[Line]) -> list[Any]:
    return [line["run"]["task"] for line in lines]


def _section(plan: Plan, lines: Sequence[Line], found: Sequence[Sequence[Result]]) -> str:
    run = lines[0]["run"]
    about = ", ".join(f"{key} {value}" for key, value in run["task"].items() if key not in ("name", "metric"))
    rates = ", ".join(f"{rule} {rate_of(lines, plan, rule) or '-'}" for rule in plan.rates)
    busy = sum(line["noisy"] for line in lines)
    head = (
        f"| what | rate's rule | test loss | to the rule alone, % | {run['task']['metric']} | dense bytes a step "
        "| of alone | error | codec ms | seeds |"
    )
    rows = [row for group in found for row in (_row(result) for result in group)]
    return "\n".join(
        [
            f"## {run['task']['name']}, {run['epochs']} epochs of batch {run['batch']}, {plan.ranks} ranks",
            f"{about}. Rates: {rates}. {len(lines)} runs, {sum(line['cpu_seconds'] for line in lines) / 60:.1f} CPU "
            f"minutes of training; {busy} began on a busy machine.",
            "",
            head,
            "| --- " * 10 + "|",
            *rows,
            "",
            *_pairs(found),
            *_chosen(found),
        ]
    )


def _row(result: Result) -> str:
    sent = result.bytes_a_step("dense")
    alone = Result(result.cell, result.ranks, result.dense, result.dense).bytes_a_step("dense")
    metrics = [value for line in result.lines if (value := final(line, "test")) is not None]
    cells = [
        result.cell.label, result.cell.rule, spread(result.losses) + f" ({result.diverged} diverged)" * (
            result.diverged > 0
        ),
        signed_mean(result.against_dense) if result.runs is not result.dense else "",
        spread(metrics), f"{sent:,.0f}" if sent else "", f"{100 * sent / alone:.3g} %" if sent and alone else "",
        result.cell.compression.get("options", {}).get("error", ""),
        f"{result.codec_ms:.1f}" if result.codec_ms else "", str(len(result.runs) or ""),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _pairs(found: Sequence[Sequence[Result]]) -> list[str]:
    """Of each cell beside a fixed one: by how much its test loss lies above that, seed by seed."""
    said = []
    for fixed, *others in found:
        for other in others:
            pairs = [(final(x, "test_loss"), final(fixed.runs[s], "test_loss")) for s, x in other.runs.items()
                     if s in fixed.runs]  # fmt: skip
            values = [100.0 * (own / base - 1.0) for own, base in pairs if own is not None and base is not None]
            if values:
                said.append(f"- {other.cell.label}, against {fixed.cell.label}: {signed_mean(values)} %.")
    return ["Test loss against the fixed codec at its bytes, same seed, with the 95 % interval:", "", *said, ""]


def _chosen(found: Sequence[Sequence[Result]]) -> list[str]:
    """Codecs at the end of the first run of each cell that chose."""
    said = []
    for result in (result for group in found for result in group):
        chosen = next((line["chosen"] for line in result.lines if line.get("chosen")), None)
        if chosen:
            said.append(f"- {result.cell.label}: " + ", ".join(f"{name} {label}" for name, label in chosen.items()))
    return ["Chosen at the end, first seed:", "", *said, ""] if said else []


def _curves(shown: Sequence[Result], path: Path) -> bool:
    """Validation loss by epochs and by bytes that a rank sent, means over seeds."""
    if not shown:
        return False
    import matplotlib

    figure = figure_of(13.0, 5.5)
    axes = figure.subplots(1, 2)
    for k, result in enumerate(shown):
        color = matplotlib.colormaps["turbo"](0.05 + 0.9 * k / max(1, len(shown) - 1))
        points = list(zip(*(line["curve"] for line in result.lines), strict=False))
        points = [some for some in points if all(p["validation_loss"] is not None for p in some)]
        y = [statistics.fmean(p["validation_loss"] for p in some) for some in points]
        style = "--" if result.cell.compression["name"] == "auto" else "-"
        for axis, what in zip(axes, ("epoch", "sent_bytes"), strict=True):
            x = [statistics.fmean(p[what] for p in some) for some in points]
            axis.plot(x, y, style, color=color, label=result.cell.label, linewidth=1.2, marker=".", markersize=3)
    ends = sorted(loss for r in shown for line in r.lines if (loss := final_loss(line)) is not None)
    for axis, what in zip(axes, ("epochs", "bytes that a rank has sent"), strict=True):
        axis.set_xlabel(what)
        axis.grid(alpha=0.3)
        if ends:
            axis.set_ylim(0.9 * ends[0], 2.5 * ends[len(ends) // 2] - 1.5 * ends[0] + 0.1 * ends[0])
    axes[0].set_ylabel("validation loss")
    axes[1].set_xscale("log")
    axes[0].legend(fontsize=7)
    save(figure, path)
    return True
