"""The report of the study of exchange: tables and figures of nothing but its lines; what is missing is blank."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.studies.exchange_cells import (
    CODECS,
    DENSE_RUN,
    EF,
    EF21,
    FIRST,
    LARGE,
    LONGER,
    NONE,
    OWN,
    RANKS,
    RATES,
    STEPS,
    key_of,
    missing,
)
from bench.studies.exchange_figures import against_bytes
from bench.studies.exchange_found import (
    CONFIDENCE,
    WITHIN,
    Result,
    milliseconds,
    pays_below,
    results,
    sections,
    signed_mean,
)
from bench.studies.found import TUNING_SEED, final, final_loss, spread
from bench.studies.lines import Line
from bench.studies.task import TIME
from headrace.compress import COMPRESSORS
from headrace.compress.spec import CONTRACTION, NO_SIZES, UNBIASED
from headrace.strategies import STRATEGIES

LINKS = (100, 1000)  # Mbit/s
_NUMBERS = 1_000_000  # of a tensor, for a codec's omega
HEADER = f"""# What ranks exchange: loss against bytes
Written by `python -m bench.studies.exchange --report` from `study_exchange.jsonl` (`make study-exchange` goes on with
it): no figure here comes from elsewhere, and what has not been run is blank. The design (questions, cells, rates,
order) is at the top of `bench/studies/exchange.py`.

Losses are of the test rows at the end of a run, mean and deviation over seeds. "to dense" is the mean of the
differences to the dense run with the same seed and ranks, with the {CONFIDENCE:.0%} interval of Student's t over seeds;
"within {WITHIN:g} %" is yes where the whole interval lies under {WITHIN:g} %, no where it lies above, else open. A cell
of six seeds got the last three because the first three left it open (question 8): a second look, not a larger plan.

Bytes are those that `Metered` counts, a step, of the rank that sends most: dense gradients, and rows of tables with
their ids; all are these with control words, which stand with the dense ones where ranks send each other parameters or
letters (gossip, servers). "of dense" is the share of the dense run's bytes of dense gradients. "codec" is CPU time a
rank spends encoding and decoding a step, of the run in which it was least. Every rank is a thread; a run began on a
busy machine where its load was over 2.5: losses do not depend on that, seconds do.

Servers, SSP and Hogwild run on a simulated cluster whose steps take unequal time, with a quarter of the rate, for they
make four times as many steps. Feedback: ef adds what was not sent to the next gradient, ef21 sends changes, own is the
codec's.
"""
_TITLES = {
    FIRST: "4 bits and the top 1 %, 2 and 4 ranks",
    STEPS: "When ranks meet: strategies",
    CODECS: "All other codecs",
    RANKS: "Signs at 4 ranks",
    LONGER: "Three times the epochs",
    RATES: "With a rate of their own",
    LARGE: "4 bits, the top 1 % and 1 bit with five times the rows",
}


def write(lines: Sequence[Line], path: Path) -> None:
    """The report at `path`, and a figure a section beside it."""
    parts, names = [HEADER], Counter[str]()
    for run, own in sections(lines):
        name = run["task"]["name"]
        names[name] += 1
        number = f"_{names[name]}" if names[name] > 1 else ""
        shortest = min(r["epochs"] for r, _ in sections(lines) if r["task"]["name"] == name)
        found = results(run, own, run["epochs"] // shortest)
        figure = path.with_name(f"{path.stem}_{name}{number}.svg")
        parts.append(_section(run, own, found))
        if against_bytes(found, figure):
            parts.append(f"![test loss against bytes a step, and validation loss against bytes sent]({figure.name})\n")
    if missing() and lines:
        parts.append(f"Asked for and not among the strategies yet: {', '.join(missing())}.\n")
    path.write_text("\n".join(parts))


def _section(run: Mapping[str, Any], lines: Sequence[Line], found: Sequence[Result]) -> str:
    task = run["task"]
    about = ", ".join(f"{key} {value}" for key, value in task.items() if key not in ("name", "metric"))
    noisy, threads = sum(line["noisy"] for line in lines), sorted({line["threads"] for line in lines})
    parts = [
        f"## {task['name']}, {run['epochs']} epoch{'s' if run['epochs'] > 1 else ''} of batch {run['batch']}",
        f"{about}. {len(lines)} runs, {sum(line['cpu_seconds'] for line in lines) / 3600:.2f} CPU hours of training, "
        f"threads a rank {', '.join(map(str, threads))}; {noisy} began on a busy machine.",
        "",
        *_rates(lines),
    ]
    for part, title in _TITLES.items():
        of_part = [result for result in found if result.cell.part == part]
        if any(result.runs for result in of_part):
            parts += [f"### {title}", "", *_table(of_part, task["metric"]), "", *_reasons(of_part)]
    return "\n".join([*parts, *_links(found)])


def _rates(lines: Sequence[Line]) -> list[str]:
    """How the dense run's rate was chosen."""
    tried = {line["run"]["options"]["lr"]: final_loss(line) for line in lines
             if line["run"]["seed"] == TUNING_SEED and key_of(line["run"]) == DENSE_RUN.key}  # fmt: skip
    if not tried:
        return []
    shown = ", ".join(f"{lr:g}: {'diverged' if loss is None else f'{loss:.4f}'}" for lr, loss in sorted(tried.items()))
    return [f"Learning rates of the dense run and their validation losses: {shown}.", ""]


def _table(found: Sequence[Result], metric: str) -> list[str]:
    head = (
        f"| what | feedback | ranks | test loss | to dense, % | within {WITHIN:g} % | {metric} | dense bytes a step "
        "| of dense | sparse bytes a step | all bytes a step | codec ms | seeds |"
    )
    return [head, "| --- " * 13 + "|", *(_row(result) for result in found)]


def _row(result: Result) -> str:
    dense = _dense_of(result)
    sent, whole = result.bytes_a_step("dense"), dense.bytes_a_step("dense") if dense else None
    sparse, every = result.bytes_a_step("sparse"), result.bytes_a_step("all")
    codec, metrics = result.codec_ms, [value for line in result.lines if (value := final(line, "test")) is not None]
    is_dense = dense is not None and result.cell.key == dense.cell.key
    cells = [
        result.cell.label + ("*" if any(line["outcome"] == TIME for line in result.lines) else ""),
        result.cell.feedback,
        str(result.ranks),
        (spread(result.losses) + (f" ({result.diverged} diverged)" if result.diverged else "")).strip(),
        "" if is_dense else signed_mean(result.against_dense),
        "" if is_dense else result.verdict,
        spread(metrics),
        f"{sent:,.0f}" if sent is not None else "",
        f"{100 * sent / whole:.3g} %" if sent is not None and whole else "",
        f"{sparse:,.0f}" if sparse is not None else "",
        f"{every:,.0f}" if every is not None else "",
        f"{codec:.1f}" if codec else "",
        str(len(result.runs)) if result.runs else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _dense_of(result: Result) -> Result | None:
    """The dense runs of its ranks."""
    return replace(result, cell=DENSE_RUN, runs=result.dense) if result.dense else None


def _reasons(found: Sequence[Result]) -> list[str]:
    """Of every cell that is not within WITHIN per cent: what theory says."""
    said = [f"- {result.cell.label}{_with(result)}, {result.ranks} ranks: {reason(result)}."
            for result in found if result.verdict == "no"]  # fmt: skip
    return [f"Not within {WITHIN:g} %:", *said, ""] if said else []


def _with(result: Result) -> str:
    return {EF: " with feedback", EF21: " with ef21", NONE: " without feedback"}.get(result.cell.feedback, "")


def reason(result: Result) -> str:
    """Why a cell may lose, by what its codec and strategy are, and by how late it was seen to send."""
    cell = result.cell
    said = []
    if "jitter" in cell.strategy:
        said.append("gradients are of parameters that others have changed meanwhile, and of a part of the batch each")
    elif not STRATEGIES[cell.strategy["name"]].synchronous:
        said.append("between rounds every rank goes its own way, by gradients of a part of the batch")
    name, options = cell.compression["name"], cell.compression.get("options", {})
    if name in COMPRESSORS and name != "none":
        spec = COMPRESSORS[name]
        omega = spec.omega(_NUMBERS, {**spec.defaults, **options}) if spec.omega else 0.0
        if cell.feedback == NONE:
            kept = f"right in the mean with a variance of up to {omega:.3g} times the square"
            said.append(kept if UNBIASED in spec.traits else "biased, and what is left out is never sent")
        elif cell.feedback in (EF, EF21) and omega >= 1:
            said.append(f"no contraction (omega {omega:.3g}): feedback may add up more than it sends")
        elif cell.feedback in (EF, EF21) and CONTRACTION in spec.traits and spec.delta is not None:
            delta = spec.delta(_NUMBERS, {**spec.defaults, **options})
            said.append(
                f"a contraction by delta {delta:.3g} at worst: what is sent lags behind by up to 1 / delta steps"
            )
        elif cell.feedback in (EF, EF21):
            said.append("no bound holds for what feedback keeps")
        else:
            said.append("momentum and memory are the codec's own, and few numbers are sent at the beginning of a run")
    elif name == "powersgd":
        said.append(
            "what lies outside of the approximation is " + ("sent late" if cell.feedback == EF else "never sent")
        )
    return "; ".join([*said, *_measured(result)]) or "not explained"


def _measured(result: Result) -> list[str]:
    """How late its codec sent, in the mean over the runs that looked (see bench/studies/lag.py); of a codec that is
    given what it keeps itself, or sends no sizes, nothing can be said."""
    found = [line["lag"] for line in result.lines if line.get("lag")]
    if not found or result.cell.feedback == OWN or NO_SIZES in COMPRESSORS[result.cell.compression["name"]].traits:
        return []
    at_once, held = (fmean(each[name] for each in found) for name in ("at_once", "held"))
    steps = fmean(line["steps"] for line in result.lines)
    sends = f"sends {100 * at_once:.3g} % of" if at_once > 0 else f"is off by {1 - at_once:.3g} times"
    memory = f", and its memory is as long as {held:.3g} gradients" if result.cell.feedback == EF else ""
    return [f"measured: a turn {sends} the energy that it is given{memory}, of {steps:.0f} steps"]


def _links(found: Sequence[Result]) -> list[str]:
    """Milliseconds a step by formula."""
    rows = [row for result in found if (row := _link_row(result))]
    if not rows:
        return []
    head = "| what | feedback | ranks | " + " | ".join(f"{m} Mbit/s: ms" for m in LINKS) + " | pays below, Mbit/s |"
    return [
        "### Exchange a step over a link: computed, not measured",
        "",
        "codec ms of the table above + 8 bytes / bandwidth, of the rank that sends most, all kinds of bytes; no "
        "latency, no overlap with computing, and codecs as fast as they were in threads of a busy machine. "
        '"pays below" is the bandwidth at which the dense exchange takes as long.',
        "",
        head,
        "| --- " * (4 + len(LINKS)) + "|",
        *rows,
        "",
    ]


def _link_row(result: Result) -> str:
    dense = _dense_of(result)
    sent, whole = result.bytes_a_step("all"), dense.bytes_a_step("all") if dense else None
    if sent is None or whole is None or result.codec_ms is None or result.diverged:
        return ""
    below = pays_below(whole, sent, result.codec_ms)
    cells = [
        result.cell.label, result.cell.feedback, str(result.ranks),
        *(f"{milliseconds(sent, result.codec_ms, link):.1f}" for link in LINKS),
        "" if below is None else "any" if math.isinf(below) else f"{below:,.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"
