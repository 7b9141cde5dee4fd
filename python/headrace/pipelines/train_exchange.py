"""What compression of gradients saved in a run of train-ctr, and what it took; how stale gradients were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headrace.report import Report

if TYPE_CHECKING:
    from headrace.pipelines.train_ctr import Config


def tell_of_bytes(answers: Sequence[dict[str, Any]], report: Report) -> None:
    """Of the rank that sent most: all, and apart what is of embedding tables, and of dense parameters (control words of
    some bytes a step among them); what is left are scores for evaluation. Letters to servers are not told apart."""
    most = max(answers, key=lambda answer: int(answer["bytes_sent"]))
    report.results["megabytes_sent"] = most["bytes_sent"] / 1e6
    if not most["exchange"].get("mailed_bytes"):
        dense = most["bytes_sent"] - most["bytes_of_tables"] - most["bytes_of_evaluation"]
        report.results |= {"megabytes_sent_dense": dense / 1e6, "megabytes_sent_tables": most["bytes_of_tables"] / 1e6}


def tell_of_compression(cfg: Config, figures: list[dict[str, float]], report: Report) -> None:
    """What compression saved, and what it took: the slowest rank's seconds."""
    given = cfg.compression
    if not given.compresses:
        return
    before, after = (sum(each.get(name, 0.0) for each in figures) for name in ("bytes_before", "bytes_after"))
    what = f"--compression.name {given.name}" if given.name != "none" else f"--compression.sparse {given.sparse}"
    if not after:
        report.warn(f"{what} never engaged: {_why_not_engaged(cfg)}")
        return
    report.results |= {"compression": given.name, "compression_ratio": before / after}
    if given.sparse != "none":
        report.results["compression_sparse"] = given.sparse
    for name in ("encode_seconds", "exchange_seconds", "decode_seconds"):
        report.results[name] = max(each.get(name, 0.0) for each in figures)


def tell_of_staleness(figures: list[dict[str, float]], report: Report) -> None:
    """Where servers applied gradients: how many updates these missed, and how long the rank that waited most did."""
    figures = [each for each in figures if "staleness_max" in each]
    if not figures:
        return
    report.results["staleness_max"] = int(max(each["staleness_max"] for each in figures))
    report.results["staleness_mean"] = sum(each["staleness_mean"] for each in figures) / len(figures)
    report.results["exchange_seconds"] = max(each["exchange_seconds"] for each in figures)


def _why_not_engaged(cfg: Config) -> str:
    from headrace.strategies.compression import POWERSGD

    if cfg.ranks == 1:
        return "one rank sends nothing"
    if cfg.compression.name == "none":
        return "no gradient is row-sparse"
    if cfg.compression.name == POWERSGD:
        return "no dense gradient is a matrix of --compression.min_numel numbers with 2 rank (n + m) <= n m"
    if cfg.compression.hierarchical:
        return "all ranks are on one host, or no dense gradient has --compression.min_numel numbers"
    return "no dense gradient has --compression.min_numel numbers"
