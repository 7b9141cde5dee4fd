"""Settings of train-ctr that cannot be, or do not go together: refused before anything is read."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from headrace.errors import UserError

if TYPE_CHECKING:
    from headrace.pipelines.train_ctr import Config


def check_together(cfg: Config) -> None:
    """All of these checks.

    Raises:
        UserError: the first thing that cannot be.
    """
    checks = (check_optimizers, check_compression, check_aggregation, check_strategy, check_parallel, check_horovod)
    for check in checks:
        check(cfg)


def check_optimizers(cfg: Config) -> None:
    """Make the optimizers for a model of the run's layers and tables of a few rows.

    Raises:
        UserError: they cannot be, or not with the run's other settings.
    """
    import torch

    from headrace.models import create as create_model
    from headrace.optim import create, create_parts
    from headrace.optim.clipping import check_clipping
    from headrace.optim.name_patterns import check_patterns
    from headrace.train.precision import cast_parameters

    parts = {"dense": cfg.optimizer.dense.given(), "sparse": cfg.optimizer.sparse.given()}
    options = {name: value for name, value in dataclasses.asdict(cfg.model).items() if name != "standardize"}
    probe = create_model(options.pop("name"), {"c1": 3, "c2": 3}, 2, **options)
    cast_parameters(probe.dense_parameters(), cfg.train.precision)
    made = create_parts(probe, parts)
    check_clipping(cfg.train.clipping, made)
    check_patterns("train.clipping.exclude", cfg.train.clipping.exclude, [name for name, _ in probe.named_parameters()])
    for part, optimizer in made.parts.items():
        names = [name for group in optimizer.param_groups for name in group.get("param_names", ())]
        check_patterns(f"optimizer.{part}.exclude", optimizer.param_groups[0].get("exclude", ()), names)
    create(**parts["sparse"], model_or_params=[torch.nn.Parameter(torch.zeros(1))])  # also where there are no tables


def check_compression(cfg: Config) -> None:
    """Refuse compression that cannot be, or not with this optimizer.

    Raises:
        UserError: which, and what to do.
    """
    from headrace.compress.spec import OWN_MOMENTUM
    from headrace.optim import spec_of
    from headrace.optim.spec import OWN_GRADIENT, STATEFUL
    from headrace.strategies.compression import check

    check(cfg.compression)
    if OWN_MOMENTUM in cfg.compression.traits and STATEFUL in spec_of(cfg.optimizer.dense.name).traits:
        raise UserError(
            f"{cfg.compression.name} applies momentum itself, and {cfg.optimizer.dense.name} has moments of its own",
            "--optimizer.dense.name sgd",
        )
    own = [name for name, traits in _used(cfg).items() if OWN_GRADIENT in traits]
    if own and cfg.strategy.spec.synchronous and cfg.compression.name != "none":
        raise UserError(
            f"--compression.name {cfg.compression.name}: {own[0]} steps along gradients that it evaluates itself and "
            "sums as they are: compressed ones would be sent for nothing, or make its estimate wrong",
            "--compression.name none, or another --optimizer.dense.name",
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
    from headrace.strategies.surroundings import Surroundings

    precision = cfg.train.precision
    around = Surroundings(
        ranks=cfg.ranks,
        precision=precision.compute,
        parameters=precision.parameters,
        overlap=cfg.train.overlap,
        aggregation=cfg.aggregation.name,
        compression=cfg.compression,
        reduction=cfg.reduction,
        device=cfg.device,
        rules=_used(cfg),
    )
    check(cfg.strategy, around)


def check_parallel(cfg: Config) -> None:
    """Refuse what of the model cannot lie on single ranks, or not with these settings.

    Raises:
        UserError: which, and what to do.
    """
    from headrace.parallel.parallel_config import check_parallel as check

    check(
        cfg.parallel,
        categories=cfg.model.categories,
        strategy=cfg.strategy.name,
        synchronous=cfg.strategy.spec.synchronous,
        aggregation=cfg.aggregation.name,
        row_codec=cfg.compression.sparse,
        rules=_used(cfg),
    )


def check_horovod(cfg: Config) -> None:
    """Refuse what only Horovod writes where another launcher is set.

    Raises:
        UserError: which, and what to do.
    """
    for name in ("timeline", "autotune"):
        if getattr(cfg.horovod, name) and cfg.launcher != "horovod":
            raise UserError(
                f"--horovod.{name} with --launcher {cfg.launcher}: no Horovod runs there that could do it",
                "--launcher horovod, or leave it out",
            )


def _used(cfg: Config) -> dict[str, frozenset[str]]:
    """Traits of the run's optimizers and wrappers by name."""
    from headrace.optim import OPTIMIZERS, WRAPPERS

    used = {name: OPTIMIZERS[name].traits for name in (cfg.optimizer.dense.name, cfg.optimizer.sparse.name)}
    return used | {name: WRAPPERS[name].traits for name in cfg.optimizer.dense.wrappers}
