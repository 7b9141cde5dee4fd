"""The exchange of gradients in train-ctr: settings that do not go together, and what compression saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import UserError
from headrace.report import Report

if TYPE_CHECKING:
    from headrace.pipelines.train_ctr import Config


def check_compression(cfg: Config) -> None:
    """Refuse compression that cannot be, or not with this optimizer.

    Raises:
        UserError: which, and what to do.
    """
    from headrace.compress.spec import OWN_MOMENTUM
    from headrace.optim import spec_of
    from headrace.optim.spec import STATEFUL
    from headrace.strategies.compression import check

    check(cfg.compression)
    if OWN_MOMENTUM in cfg.compression.traits and STATEFUL in spec_of(cfg.optimizer.dense.name).traits:
        raise UserError(
            f"{cfg.compression.name} applies momentum itself, and {cfg.optimizer.dense.name} has moments of its own",
            "--optimizer.dense.name sgd",
        )


def check_aggregation(cfg: Config) -> None:
    """Refuse aggregation that cannot be, or would not reach all that is exchanged.

    Raises:
        UserError: which, and what to do.
    """
    from headrace.optim.spec import NEEDS_CLOSURE
    from headrace.strategies.aggregation import check_aggregation as check

    rule = cfg.aggregation
    check(rule, cfg.ranks, tables=cfg.model.categories, overlap=cfg.train.overlap)
    if rule.name == "none":
        return
    if cfg.compression.compresses or cfg.compression.hierarchical:
        raise UserError(
            f"--aggregation.name {rule.name} is of gradients as they are, not of compressed ones or of hosts' sums",
            "--aggregation.name none, or leave --compression.* out",
        )
    if own := [name for name, traits in _used(cfg).items() if NEEDS_CLOSURE in traits]:
        raise UserError(
            f"--aggregation.name {rule.name}: {own[0]} sums over ranks what it evaluates itself, corrupted or not",
            f"leave {own[0]} out, or --aggregation.name none",
        )


def check_strategy(cfg: Config) -> None:
    """Refuse a strategy that cannot be, or not with these settings.

    Raises:
        UserError: which, and what to do.
    """
    from headrace.strategies.strategy_config import check_strategy as check

    precision, overlap = cfg.train.precision.compute, cfg.train.overlap
    check(cfg.strategy, precision=precision, overlap=overlap, aggregation=cfg.aggregation.name, rules=_used(cfg))


def _used(cfg: Config) -> dict[str, frozenset[str]]:
    """Traits of the run's optimizers and wrappers by name."""
    from headrace.optim import OPTIMIZERS, WRAPPERS

    used = {name: OPTIMIZERS[name].traits for name in (cfg.optimizer.dense.name, cfg.optimizer.sparse.name)}
    return used | {name: WRAPPERS[name].traits for name in cfg.optimizer.dense.wrappers}


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
