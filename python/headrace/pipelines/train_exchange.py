"""What compression of gradients saved in a run of train-ctr, what it took and decided; how stale gradients were; how
evenly tables lay on ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.report import Report
from headrace.train.events import Event

if TYPE_CHECKING:
    from headrace.pipelines.train_ctr import Config


@dataclass
class Decisions:
    """What `--compression.name auto` has decided so far.

    Args:
        layers: the codec that each has.
        switched: why compression is off; empty while it is on.
        changes: how often it went off or on.
    """

    layers: dict[str, str] = field(default_factory=dict)
    switched: str = ""
    changes: int = 0

    def take(self, event: Event) -> str:
        """A `compression` event; what to tell people of it, if anything."""
        self.layers |= event.get("layers", {})
        lines = []
        if event.get("layers"):
            counts = Counter(self.layers.values()).most_common()
            lines.append("codecs: " + ", ".join(f"{label} ({n})" for label, n in counts))
        if event.get("changed"):
            self.changes += 1
            way = "on" if event["compress"] else "off"
            times = f"{1e3 * event['compressed']:.3g} ms compressed, {1e3 * event['as_is']:.3g} ms as it is"
            lines.append(f"compression goes {way} after exchange {event['turn']}: it takes {times}")
            self.switched = "" if event["compress"] else lines[-1]
        elif event.get("compress") is False and not self.switched:
            self.switched = "compression was off where the run was resumed"
        return "; ".join(lines)


def tell_of_exchange(
    cfg: Config, answers: Sequence[dict[str, Any]], report: Report, decisions: Decisions
) -> dict[str, float]:
    """All that this module has to say of the ranks' answers; the numbers among it."""
    figures, before = [answer["exchange"] for answer in answers], set(report.results)
    tell_of_bytes(answers, report)
    tell_of_seconds(answers, report)
    tell_of_compression(cfg, figures, report, decisions)
    tell_of_staleness(figures, report)
    tell_of_tables(cfg, [answer["lookups"] for answer in answers], report)
    new = {name: value for name, value in report.results.items() if name not in before}
    return {name: value for name, value in new.items() if isinstance(value, int | float)}


def warn_of_feedback(cfg: Config, report: Report) -> None:
    """Before training: feedback by hand may add more and more to gradients where a codec's errors are large."""
    given = cfg.compression
    if given.variant in ("ef", "ef21") and given.error >= 1 and cfg.ranks > 1:
        report.warn(
            f"--compression.feedback {given.feedback}: errors of {given.name} are up to {given.error:.3g} times the"
            " gradient (squared), so what is added to the next one may grow without bound; auto would be none here"
        )


def tell_of_seconds(answers: Sequence[dict[str, Any]], report: Report) -> None:
    """In steps, of the slowest rank each: sending to others, and waiting for them or for servers."""
    if len(answers) == 1:
        return
    served = [answer["exchange"] if "mailed_bytes" in answer["exchange"] else {} for answer in answers]
    mailed = [each.get("send_seconds", 0.0) for each in served]
    awaited = [each.get("exchange_seconds", 0.0) for each in served]
    report.results |= {
        "send_seconds": max(a["send_seconds"] + s for a, s in zip(answers, mailed, strict=True)),
        "wait_seconds": max(a["wait_seconds"] + s for a, s in zip(answers, awaited, strict=True)),
    }


def tell_of_bytes(answers: Sequence[dict[str, Any]], report: Report) -> None:
    """Of the rank that sent most: all, and apart what is of embedding tables, and of dense parameters (control words of
    some bytes a step among them); what is left are scores for evaluation."""
    most = max(answers, key=lambda answer: int(answer["bytes_sent"]))
    dense = most["bytes_sent"] - most["bytes_of_tables"] - most["bytes_of_evaluation"]
    report.results |= {
        "megabytes_sent": most["bytes_sent"] / 1e6,
        "megabytes_sent_dense": dense / 1e6,
        "megabytes_sent_tables": most["bytes_of_tables"] / 1e6,
    }


def tell_of_compression(
    cfg: Config, figures: list[dict[str, float]], report: Report, decisions: Decisions | None = None
) -> None:
    """What compression saved, and what it took: the slowest rank's seconds."""
    given = cfg.compression
    if not given.compresses:
        return
    names = ("bytes_before", "bytes_after", "row_bytes_after")
    before, after, rows = (sum(each.get(name, 0.0) for each in figures) for name in names)
    what = f"--compression.name {given.name}" if given.name != "none" else f"--compression.sparse {given.sparse}"
    if given.name != "none" and after == rows:
        report.warn(f"--compression.name {given.name} never engaged: {_why_not_engaged(cfg)}")
    if given.sparse != "none" and not rows:
        why = "one rank sends nothing" if cfg.ranks == 1 else "no gradient is row-sparse"
        report.warn(f"--compression.sparse {given.sparse} never engaged: {why}")
    if not after:
        return
    report.results |= {"compression": given.name, "compression_ratio": before / after}
    if given.sparse != "none":
        report.results["compression_sparse"] = given.sparse
    if decisions is not None and decisions.layers:
        report.results |= {"compression_layers": decisions.layers, "compression_switches": decisions.changes}
        report.results["compression_off_share"] = figures[0]["turns_as_is"] / max(1.0, figures[0]["turns"])
        if decisions.switched:
            report.warn(f"{what} is off at the end: {decisions.switched} (--compression.switch false keeps it on)")
    for name in ("encode_seconds", "exchange_seconds", "decode_seconds"):
        report.results[name] = max(each.get(name, 0.0) for each in figures)
    report.results["codec_kernels"] = kernels_said()


def kernels_said() -> str:
    """What codecs' work was done by, where this process runs: ranks on other hosts may have another answer."""
    from headrace.compress import kernels

    return kernels.found().said.split(":")[0]


def tell_of_staleness(figures: list[dict[str, float]], report: Report) -> None:
    """Where servers applied gradients: how many updates these missed, and how long the rank that waited most did."""
    figures = [each for each in figures if "staleness_max" in each]
    if not figures:
        return
    report.results["staleness_max"] = int(max(each["staleness_max"] for each in figures))
    report.results["staleness_mean"] = sum(each["staleness_mean"] for each in figures) / len(figures)
    report.results["exchange_seconds"] = max(each["exchange_seconds"] for each in figures)


def tell_of_tables(cfg: Config, figures: list[dict[str, float]], report: Report) -> None:
    """The rows that a rank holds, and how many times the mean the busiest rank served."""
    if not cfg.parallel.sharded:
        return
    served = [each.get("rows_served", 0.0) for each in figures]
    balance = max(served) * len(served) / max(1.0, sum(served))
    report.results |= {"table_rows_held": max(int(each["rows_held"]) for each in figures), "table_balance": balance}


def _why_not_engaged(cfg: Config) -> str:
    from headrace.strategies.compression import POWERSGD

    if cfg.ranks == 1:
        return "one rank sends nothing"
    least = f"--compression.min_numel {cfg.compression.min_numel}"
    if cfg.compression.name == POWERSGD:
        return f"no dense gradient is a matrix of {least} numbers with 2 rank (n + m) <= n m"
    if cfg.compression.hierarchical:
        return f"all ranks are on one host, or no dense gradient has {least} numbers"
    return f"no dense gradient has {least} numbers"
