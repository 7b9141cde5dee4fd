"""Settings of train-ctr, and a run's directory: LAKE/runs/RUN with config.yaml, events.jsonl, checkpoints/, model/,
report.json."""

from __future__ import annotations

import dataclasses
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from headrace.errors import UserError
from headrace.train.tracking import TrackingConfig

__all__ = [
    "DataSettings", "LoopSettings", "ModelConfig", "OptimizerConfig", "RuleConfig", "TrackingConfig",
]  # fmt: skip
RESUMABLE = (
    "lake", "ranks", "launcher", "resume", "device", "plan", "fast", "tracking", "timeout_minutes", "stall_timeout_s",
)  # fmt: skip
_RESUMABLE_TRAIN = (
    "epochs", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "log_every", "on_nonfinite", "overlap",
)  # fmt: skip
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
    """An optimizer; what is left out is the rule's own default.

    Args:
        name: adam, adamw, adagrad, rowwise_adagrad, sgd, momentum or nesterov; embedding tables take those that update
            touched rows only (rowwise_adagrad, adagrad, sgd).
        lr: learning rate; null, here and below: the rule's own default.
        weight_decay: so much of a parameter is added to its gradient (adamw: times lr, taken off the parameter).
        eps: added to a denominator.
        momentum: of momentum and nesterov.
        betas: of the Adam family, as [0.9,0.999].
        initial_accumulator: of the AdaGrad family.
        options: further options by name.
    """

    name: str = "adam"
    lr: float | None = None
    weight_decay: float | None = None
    eps: float | None = None
    momentum: float | None = None
    betas: list[float] | None = None
    initial_accumulator: float | None = None
    options: dict[str, float | str | None] = field(default_factory=dict)

    def given(self) -> dict[str, Any]:
        """Name and the options that are set."""
        settings = {k: v for k, v in dataclasses.asdict(self).items() if v is not None and k != "options"}
        return settings | self.options


@dataclass(kw_only=True)
class OptimizerConfig:
    """Two optimizers, each for its part of the model.

    Args:
        dense: for all parameters but embedding tables.
        sparse: for embedding tables (row-sparse gradients).
    """

    dense: RuleConfig = field(default_factory=lambda: RuleConfig(name="adam"))
    sparse: RuleConfig = field(default_factory=lambda: RuleConfig(name="rowwise_adagrad"))


@dataclass(kw_only=True)
class LoopSettings:
    """The loop.

    Args:
        batch_size: rows of a global batch, over all ranks; 0 chooses: 4096, or less where an epoch would have under
            100 steps.
        epochs: passes over the training rows.
        eval_every: steps between evaluations on validation; 0: at the end of an epoch.
        checkpoint_every: steps between checkpoints; 0: at the end of an epoch.
        checkpoint_minutes: and after so many minutes; 0 never.
        keep_checkpoints: how many of the newest stay.
        log_every: steps between figures of the loss.
        on_nonfinite: stop or skip, when a loss or gradient is not a number.
        schedule: constant or linear (falls to 0).
        warmup: steps over which learning rates rise.
        patience: stop after so many evaluations without a better logloss; 0 never.
        overlap: on or off: exchange dense gradients while backward runs; auto: where ranks are on several machines.
            The bits are the same.
    """

    batch_size: int = 0
    epochs: int = 1
    eval_every: int = 0
    checkpoint_every: int = 0
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2
    log_every: int = 20
    on_nonfinite: str = "stop"
    schedule: str = "constant"
    warmup: int = 0
    patience: int = 0
    overlap: str = "auto"


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


def from_dict(cls: type[Any], values: dict[str, Any]) -> Any:
    """A configuration from plain values, nested dataclasses included.

    Raises:
        UserError: a key that the configuration has not.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(
            f"{cls.__name__} has no setting {unknown[0]!r}", "the run was made by another version of headrace"
        )
    made = {}
    for name, value in values.items():
        factory = fields[name].default_factory
        nested = factory() if factory is not dataclasses.MISSING else None
        made[name] = from_dict(type(nested), value) if dataclasses.is_dataclass(nested) else value
    return cls(**made)


def new_run_id(model: str) -> str:
    """Sorts by time; not to be guessed twice in a second."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{model}-{secrets.token_hex(2)}"


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
    for name in (f.name for f in dataclasses.fields(cfg)):
        given, usual = getattr(cfg, name), getattr(default, name)
        if name in ("lake", "resume") or (name in RESUMABLE and given != usual):
            setattr(saved, name, given)
        elif name == "train":
            _take(saved.train, given, usual, _RESUMABLE_TRAIN)
        elif given not in (usual, getattr(saved, name)):
            raise UserError(
                f"--{name} differs from that of the run being resumed, {run.name}: {getattr(saved, name)}",
                "leave it out, or start a new run without --resume",
            )
    return saved


def _take(saved: LoopSettings, given: LoopSettings, usual: LoopSettings, names: tuple[str, ...]) -> None:
    for name in (f.name for f in dataclasses.fields(given)):
        value = getattr(given, name)
        if value in (getattr(usual, name), getattr(saved, name)):
            continue
        if name not in names:
            raise UserError(f"--train.{name} cannot change when a run is resumed", "leave it out, or start a new run")
        setattr(saved, name, value)
