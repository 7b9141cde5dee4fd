"""Settings of train-ctr, and a run's directory: LAKE/runs/RUN with config.yaml, events.jsonl, checkpoints/, model/,
report.json."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from headrace.config import typed
from headrace.errors import UserError
from headrace.free_options import FREE
from headrace.optim import OPTIMIZERS, WRAPPERS
from headrace.optim.clipping import ClippingConfig
from headrace.optim.schedules import ScheduleConfig
from headrace.optim.spec import ACCEPTS_SPARSE
from headrace.options import described
from headrace.parallel.parallel_config import ParallelConfig
from headrace.strategies.aggregation import AggregationConfig
from headrace.strategies.compression import CompressionConfig
from headrace.strategies.strategy_config import StrategyConfig
from headrace.train.precision import PrecisionConfig
from headrace.train.tracking import TrackingConfig

__all__ = [
    "AggregationConfig", "ClippingConfig", "CompressionConfig", "DataSettings", "DenseRuleConfig", "HorovodConfig",
    "LoopSettings", "ModelConfig", "OptimizerConfig", "ParallelConfig", "PrecisionConfig", "RuleConfig",
    "ScheduleConfig", "StrategyConfig", "TrackingConfig",
]  # fmt: skip
RESUMABLE = (
    "ranks", "launcher", "device", "plan", "fast", "tracking", "timeout_minutes", "stall_timeout_s", "train.epochs",
    "train.checkpoint_every", "train.checkpoint_minutes", "train.keep_checkpoints", "train.log_every",
    "train.on_nonfinite", "train.overlap",
)  # fmt: skip
_CHOSEN = ("train.batch_size", "threads", "table_version")  # by the run, where they are at their defaults
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(kw_only=True)
class ModelConfig:
    """The model.

    Args:
        name: logistic, fm, deepfm or dlrm.
        embedding_dim: floats a category.
        hidden: widths of the perceptron's hidden layers (deepfm; dlrm's top).
        bottom: widths of dlrm's bottom perceptron before the last.
        categories: false leaves the categorical columns out.
        dropout: share of hidden units dropped in training.
        embedding_std: standard deviation of the initial embeddings.
        standardize: subtract mean and divide by standard deviation of the dense columns (of training rows, kept in the
            model).
    """

    name: str = "deepfm"
    embedding_dim: int = 16
    hidden: list[int] = field(default_factory=lambda: [256, 128])
    bottom: list[int] = field(default_factory=lambda: [128])
    categories: bool = True
    dropout: float = 0.0
    embedding_std: float = 0.01
    standardize: bool = True


@dataclass(kw_only=True)
class RuleConfig:
    """The optimizer of the embedding tables; the help is made of OPTIMIZERS, below."""

    name: str = "rowwise_adagrad"
    options: dict[str, Any] = field(default_factory=dict, metadata=FREE)

    def given(self) -> dict[str, Any]:
        """Arguments of `optim.create`.

        Raises:
            UserError: an option that only the dense part has.
        """
        if own := [name for name in self.options if name in ("wrappers", "layer_decay", *WRAPPERS)]:
            raise UserError(f"--optimizer.sparse.{own[0]}: tables have none", f"--optimizer.dense.{own[0]}")
        return {"name": self.name, **self.options}


@dataclass(kw_only=True)
class DenseRuleConfig(RuleConfig):
    """The optimizer of all other parameters; the help is made of OPTIMIZERS and WRAPPERS, below."""

    name: str = "adam"
    wrappers: list[str] = field(default_factory=list)
    layer_decay: float = 1.0

    def given(self) -> dict[str, Any]:
        """Arguments of `optim.create`.

        Raises:
            UserError: options of a wrapper that is not there.
        """
        if idle := [name for name in WRAPPERS if name in self.options and name not in self.wrappers]:
            raise UserError(f"options of {idle[0]}, which is not there", f"--optimizer.dense.wrappers [{idle[0]}]")
        rule = {name: value for name, value in self.options.items() if name not in self.wrappers}
        around = {name: self.options.get(name, {}) for name in self.wrappers}
        return {"name": self.name, **rule, "wrappers": around, "layer_decay": self.layer_decay}


def _options_of(specs: Mapping[str, Any], prefix: str) -> str:
    """`sgd: lr 0.01, weight_decay 0.0; adam: ...`, for help."""
    return "; ".join(f"{prefix}{name}: {described(spec.defaults) or 'none'}" for name, spec in specs.items())


_TABLE_RULES = {name: spec for name, spec in OPTIMIZERS.items() if ACCEPTS_SPARSE in spec.traits}

RuleConfig.__doc__ = f"""The optimizer of the embedding tables.

    Args:
        name: one of {", ".join(_TABLE_RULES)} (rules that update touched rows only).
        options: of the rule, each a setting by its own name, as in --optimizer.sparse.lr 0.02. With their defaults:
            {_options_of(_TABLE_RULES, "")}.
    """
DenseRuleConfig.__doc__ = f"""The optimizer of all other parameters.

    Args:
        name: one of {", ".join(OPTIMIZERS)}.
        options: of the rule, each a setting by its own name, as in --optimizer.dense.lr 0.01. With their defaults:
            {_options_of(OPTIMIZERS, "")}. And of wrappers, as in --optimizer.dense.sam.rho 0.1:
            {_options_of(WRAPPERS, "")}.
        wrappers: around the rule, the innermost first, as in [sam,ema]: of {", ".join(WRAPPERS)}.
        layer_decay: each layer's rate is so many times that of the next; 1: one rate.
    """


@dataclass(kw_only=True)
class OptimizerConfig:
    """Two optimizers, each for its part of the model.

    Args:
        dense: for all parameters but embedding tables.
        sparse: for embedding tables (row-sparse gradients).
    """

    dense: DenseRuleConfig = field(default_factory=DenseRuleConfig)
    sparse: RuleConfig = field(default_factory=RuleConfig)


@dataclass(kw_only=True)
class LoopSettings:
    """The loop.

    Args:
        batch_size: rows of a global batch, over all ranks; 0 chooses: 4096, or less where an epoch would have under
            100 steps.
        scaling: none, linear or sqrt: carry both optimizers' learning rates from batches of base_batch rows to
            batch_size: lr batch_size / base_batch (SGD, momentum), or by the square root of it (LAMB, Adam).
        base_batch: rows of the batch that the learning rates were tuned at; with scaling only.
        epochs: passes over the training rows.
        eval_every: steps between evaluations on validation; 0: at the end of an epoch.
        checkpoint_every: steps between checkpoints; 0: at the end of an epoch.
        checkpoint_minutes: and after so many minutes; 0 never.
        keep_checkpoints: how many of the newest stay.
        log_every: steps between figures of the loss.
        on_nonfinite: stop or skip, when a loss or gradient is not a number.
        accumulate: parts that a rank's rows of a batch go through in: less memory, the same step.
        patience: stop after so many evaluations without a better logloss; 0 never.
        overlap: on or off: exchange dense gradients while backward runs; auto: where ranks are on several machines.
            The bits are the same.
        schedule: of the learning rates.
        clipping: of the gradients.
        precision: types of numbers.
    """

    batch_size: int = 0
    scaling: str = "none"
    base_batch: int = 0
    epochs: int = 1
    eval_every: int = 0
    checkpoint_every: int = 0
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2
    log_every: int = 20
    on_nonfinite: str = "stop"
    accumulate: int = 1
    patience: int = 0
    overlap: str = "auto"
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clipping: ClippingConfig = field(default_factory=ClippingConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)


@dataclass(kw_only=True)
class DataSettings:
    """How rows become batches.

    Args:
        lanes: ranges of rows that batches are made of, a power of two: the most ranks that can ever serve the run.
        remainder: the rows after the last whole batch: drop (read for the audit only), pad, or wrap.
        prefetch: row groups read ahead.
        workers: decoding threads of a rank.
    """

    lanes: int = 16
    remainder: str = "drop"
    prefetch: int = 4
    workers: int = 1


@dataclass(kw_only=True)
class HorovodConfig:
    """What Horovod writes about its own work; with --launcher horovod. Of one call: a resumed run asks for it anew.

    Args:
        timeline: what it did when, in horovod_timeline.json in the run's directory, for chrome://tracing.
        autotune: let it tune its fusion and cycle time; what it tried in horovod_autotune.csv there.
    """

    timeline: bool = False
    autotune: bool = False

    def files(self, directory: Path) -> dict[str, Path]:
        """The files of a call by setting; a run that is resumed has some of an earlier call, which are kept."""
        kinds = {"timeline": "json", "autotune": "csv"}
        return {name: _unused(directory, f"horovod_{name}", kinds[name]) for name in kinds if getattr(self, name)}


def _unused(directory: Path, stem: str, suffix: str) -> Path:
    numbers = itertools.chain([""], (f"_{n}" for n in itertools.count(2)))
    paths = (directory / f"{stem}{number}.{suffix}" for number in numbers)
    return next(path for path in paths if not path.exists())


def from_dict(cls: type[Any], values: dict[str, Any]) -> Any:
    """A configuration from plain values, nested dataclasses included.

    Raises:
        UserError: a key that the configuration has not.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    free = next((f.name for f in fields.values() if f.metadata.get("free")), "")
    unknown = {name: value for name, value in values.items() if name not in fields}
    if unknown and not free:
        raise UserError(
            f"{cls.__name__} has no setting {sorted(unknown)[0]!r}", "the run was made by another version of headrace"
        )
    made: dict[str, Any] = {free: unknown} if free else {}
    for name, value in values.items():
        if name in unknown:
            continue
        factory = fields[name].default_factory
        nested = factory() if factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(nested):
            if not isinstance(value, dict):
                raise UserError(f"setting {name} was {value!r}", "the run was made by another version of headrace")
            value = from_dict(type(nested), value)
        made[name] = value
    return cls(**made)


def find_run(lake: str, resume: str) -> Path:
    """The directory of the run to resume: an id, a path, or `auto`, the newest that has not ended.

    Raises:
        UserError: there is none.
    """
    runs = Path(lake) / "runs"
    if resume == "auto":
        open_runs = [p.parent for p in sorted(runs.glob("*/config.yaml")) if not (p.parent / "report.json").exists()]
        if not open_runs:
            raise UserError(f"no run in {runs} waits to be resumed", "name one: --resume RUN")
        return open_runs[-1]
    path = Path(resume) if "/" in resume else runs / resume
    if not _RUN.fullmatch(path.name) or not (path / "config.yaml").is_file():
        known = ", ".join(p.parent.name for p in sorted(runs.glob("*/config.yaml"))[-5:]) or "none"
        raise UserError(f"no run {resume} in {runs}", f"the newest are: {known}")
    return path


def resumed(cfg: Any, run: Path) -> Any:
    """The run's own configuration, with what this command line may change of it.

    Raises:
        UserError: a setting was given that would make it another run.
    """
    saved = from_dict(type(cfg), yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    default = type(cfg)(lake=cfg.lake)
    for name in ("lake", "resume", "horovod"):
        setattr(saved, name, getattr(cfg, name))
    for path, before, given, usual in _members(saved, cfg, default):
        left_out = given == usual and (path in _CHOSEN or not typed(cfg, path))
        if given == before or left_out or (isinstance(given, dict) and given.items() <= before.items()):
            continue
        if not any(f"{path}.".startswith(f"{each}.") for each in RESUMABLE):
            if isinstance(given, dict):  # free options, which are named beside their group's settings
                option = next(name for name, value in given.items() if before.get(name) != value)
                path, before = f"{path.rpartition('.')[0]}.{option}", before.get(option, "its default")
            raise UserError(
                f"--{path} differs from that of the run being resumed, {run.name}: {before}",
                "leave it out, or start a new run without --resume",
            )
        *groups, name = path.split(".")
        setattr(functools.reduce(getattr, groups, saved), name, given)
    return saved


def _members(saved: Any, given: Any, usual: Any, path: str = "") -> Iterator[tuple[str, Any, Any, Any]]:
    """Every setting by its path, as it was, is, and is by default; of free options those that have a dictionary."""
    for name in (f.name for f in dataclasses.fields(saved)):
        each = [getattr(of, name) for of in (saved, given, usual)]
        if dataclasses.is_dataclass(each[0]):
            yield from _members(each[0], each[1], each[2], f"{path}{name}.")
        else:
            yield f"{path}{name}", each[0], each[1], each[2]
