"""silver/ctr -> ranks -> a model: pin the table, launch, follow, and leave LAKE/runs/RUN behind.

The work of a rank is train/job.py; here is what the driver does around it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace import __version__
from headrace.catalog.pinned import PinnedTable, pin
from headrace.catalog.spec import load
from headrace.config import to_yaml
from headrace.errors import UserError
from headrace.launch import LAUNCHERS, LaunchOptions, RankFailed, RankResult, launch, values
from headrace.pipelines.run_ids import new_run_id
from headrace.pipelines.splits import pin_splits, require_table, sizes_of
from headrace.pipelines.train_checks import check_together
from headrace.pipelines.train_config import (
    AggregationConfig,
    CompressionConfig,
    DataSettings,
    HorovodConfig,
    LoopSettings,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    StrategyConfig,
    TrackingConfig,
    find_run,
    resumed,
)
from headrace.pipelines.train_exchange import tell_of_exchange, warn_of_feedback
from headrace.pipelines.train_monitor import Monitor
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from headrace.train.fit_config import FitConfig
    from headrace.train.job import TrainJob

_STOPPED = 143
_USERS = re.compile(r"^headrace\.[\w.]+: (?P<problem>.*?)(?:\n  -> (?P<remedy>[^\n]*))?\s*\Z", re.M | re.S)


@dataclass(kw_only=True)
class Config:
    """Train a click model on silver/ctr.

    Args:
        lake: directory of the tables; runs go to LAKE/runs.
        table_version: version of silver/ctr; default: the newest.
        ranks: number of ranks.
        launcher: horovod (processes by Horovod on Spark), torch (processes by TorchDistributor), local (threads of
            this process).
        seed: of parameters, order of rows, dropout.
        model: the model.
        optimizer: the optimizers.
        compression: of gradients on their way between ranks.
        aggregation: of the ranks' gradients.
        strategy: when ranks exchange what.
        parallel: what of the model lies on which rank.
        train: the loop.
        data: how rows become batches.
        tracking: where the run is recorded.
        horovod: what Horovod writes about its own work.
        reduction: ordered (the same bits under every launcher) or ring.
        device: auto (a GPU where there is one), cpu, cuda.
        threads: torch threads of a rank; 0: cores of this machine divided by ranks. Bits depend on it.
        resume: run id or path to go on with, or auto: the newest that has not ended. Its own settings are used.
        plan: say what the run would cost, run nothing.
        fast: a few batches of everything.
        timeout_minutes: end the job after so long; 0 never.
        stall_timeout_s: a rank silent for so long is taken for stopped.
    """

    lake: str
    table_version: int | None = None
    ranks: int = 1
    launcher: str = "horovod"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    train: LoopSettings = field(default_factory=LoopSettings)
    data: DataSettings = field(default_factory=DataSettings)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    horovod: HorovodConfig = field(default_factory=HorovodConfig)
    reduction: str = "ordered"
    device: str = "auto"
    threads: int = 0
    resume: str = ""
    plan: bool = False
    fast: bool = False
    timeout_minutes: float = 0.0
    stall_timeout_s: float = 60.0


def slots(cfg: Config) -> int:
    """Spark tasks that must run at once."""
    return cfg.ranks


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting, no table, no run to resume.
    """
    directory = find_run(cfg.lake, cfg.resume) if cfg.resume else None
    check(resumed(cfg, directory) if directory else cfg)
    require_table(cfg.lake)


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Train; see the module's docstring.

    Raises:
        UserError: a setting, table or checkpoint that the user can mend.
        RankFailed: a rank failed otherwise.
    """
    directory = find_run(cfg.lake, cfg.resume) if cfg.resume else None
    cfg = resumed(cfg, directory) if directory else cfg
    check(cfg)
    with report.stage("pin") as stage:
        tables = pin_splits(cfg.lake, cfg.table_version, stage)
    cfg.table_version = tables["train"].version
    cfg.train.batch_size = cfg.train.batch_size or automatic_batch(tables["train"].rows, cfg.data.lanes)
    cfg.threads = cfg.threads or max(1, (os.cpu_count() or 1) // cfg.ranks)
    directory = directory or Path(cfg.lake).absolute() / "runs" / new_run_id(cfg.model.name)
    job = make_job(cfg, tables, directory)
    if cfg.train.scaling != "none":
        rates = ", ".join(f"{part} {options['lr']:g}" for part, options in job.optimizers.items())
        rule = f"{cfg.train.scaling} from {cfg.train.base_batch:,}"
        report.say(f"learning rates for batches of {job.batch_size:,} rows, {rule}: {rates}")
    warn_of_feedback(cfg, report)
    if cfg.plan:
        return _plan(cfg, job, report)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(to_yaml(dataclasses.replace(cfg, resume="")), encoding="utf-8")
    report.results |= {"run_id": directory.name, "model": cfg.model.name, "launcher": cfg.launcher, "ranks": cfg.ranks}
    report.results |= {"optimizer": f"{cfg.optimizer.dense.name}+{cfg.optimizer.sparse.name}"}
    report.results |= {"strategy": cfg.strategy.name}
    report.results |= {"table": str(tables["train"])}
    report.paths["run"] = str(directory)
    return _train(spark, cfg, job, directory, report)


def check(cfg: Config) -> None:
    """Refuse before anything is read what could not work.

    Raises:
        UserError: naming the setting.
    """
    from headrace.data.plan import check_shares
    from headrace.models import MODELS
    from headrace.optim.scaling import SCALINGS
    from headrace.strategies import OVERLAP, REDUCERS

    for setting, value, known in (
        ("launcher", cfg.launcher, LAUNCHERS),
        ("reduction", cfg.reduction, tuple(REDUCERS)),
        ("model.name", cfg.model.name, tuple(MODELS)),
        ("train.overlap", cfg.train.overlap, OVERLAP),
        ("train.scaling", cfg.train.scaling, SCALINGS),
    ):
        if value not in known:
            raise UserError(f"--{setting} {value!r} is not one of {', '.join(known)}")
    check_shares(cfg.train.batch_size or cfg.data.lanes, cfg.data.lanes)
    if cfg.ranks < 1 or cfg.ranks > cfg.data.lanes:
        raise UserError(f"--ranks {cfg.ranks} with {cfg.data.lanes} lanes", "1 rank or more, at most --data.lanes")
    if cfg.train.base_batch < 0 or (cfg.train.scaling == "none") != (cfg.train.base_batch == 0):
        raise UserError(
            f"--train.scaling {cfg.train.scaling} with --train.base_batch {cfg.train.base_batch}",
            "linear or sqrt with the batch that the learning rates were tuned at, or neither",
        )
    fit_config(cfg)
    check_together(cfg)


def automatic_batch(rows: int, lanes: int) -> int:
    """4096 rows, or less where an epoch would have under 100 steps; a multiple of the lanes."""
    batch = 4096
    while batch > 64 and rows // batch < 100:
        batch //= 2
    return max(1, batch // lanes) * lanes


def make_job(cfg: Config, tables: dict[str, PinnedTable], directory: Path) -> TrainJob:
    """The run as values that are sent to the ranks."""
    from headrace.data.stream import DataConfig
    from headrace.train.job import TrainJob

    metadata = tables["train"].metadata
    model = _model_settings(cfg, tables["train"])
    kept = ("transform", "vocabulary_version", "bronze_version", "split")
    about = {name: metadata.get(name) for name in kept}
    about |= {"run_id": directory.name, "table": {"name": "silver/ctr", "version": tables["train"].version}}
    about |= {"fingerprint": str(tables["train"].fingerprint), "headrace": __version__}
    return TrainJob(
        tables=tables,
        model=model,
        optimizers={part: _scaled(getattr(cfg.optimizer, part).given(), cfg.train) for part in ("dense", "sparse")},
        data=DataConfig(seed=cfg.seed, **dataclasses.asdict(cfg.data)),
        batch_size=cfg.train.batch_size,
        fit=fit_config(cfg),
        reduction=cfg.reduction,
        compression=cfg.compression,
        aggregation=cfg.aggregation,
        strategy=cfg.strategy,
        parallel=cfg.parallel,
        device=cfg.device,
        directory=str(directory),
        keep=cfg.train.keep_checkpoints,
        overlap=cfg.train.overlap,
        about=about,
        fast=cfg.fast,
    )


def _scaled(given: dict[str, Any], loop: LoopSettings) -> dict[str, Any]:
    """Arguments of `optim.create` with learning rates for the run's batch."""
    from headrace.optim import spec_of
    from headrace.optim.scaling import scaled

    if loop.scaling == "none":
        return given
    rates = {
        name: value
        for name, value in {**spec_of(given["name"]).defaults, **given}.items()
        if (name == "lr" or name.endswith("_lr")) and value is not None
    }
    return given | {n: scaled(loop.scaling, float(rate), loop.batch_size, loop.base_batch) for n, rate in rates.items()}


def fit_config(cfg: Config) -> FitConfig:
    """Settings of the loop.

    Raises:
        UserError: one that makes no sense.
    """
    from headrace.train.fit_config import FitConfig
    from headrace.train.job import FAST_STEPS

    others = ("batch_size", "scaling", "base_batch", "keep_checkpoints", "overlap")
    loop = {f.name: getattr(cfg.train, f.name) for f in dataclasses.fields(cfg.train) if f.name not in others}
    if cfg.fast:
        loop |= {"epochs": 1, "max_steps": FAST_STEPS, "checkpoint_every": 4, "eval_every": 4, "log_every": 1}
    return FitConfig(**loop, seed=cfg.seed)


def _model_settings(cfg: Config, table: PinnedTable) -> dict[str, Any]:
    """Arguments of `models.create` as JSON."""
    from headrace.train.statistics import dense_statistics

    tensors = {tensor.name: tensor.columns for tensor in table.spec.tensors}
    options = dataclasses.asdict(cfg.model)
    mean, std = dense_statistics(table) if options.pop("standardize") else (None, None)
    made = {"cardinalities": sizes_of(table), "num_dense": len(tensors["dense"]), "seed": cfg.seed}
    return options | made | {"dense_mean": mean, "dense_std": std}


def resume_line(cfg: Config, run_id: str) -> str:
    """What to type to go on."""
    words = ["headrace", "train-ctr", "--lake", cfg.lake, "--resume", run_id]
    return f"resume with: {shlex.join(words)}"


def _plan(cfg: Config, job: TrainJob, report: Report) -> Report:
    from headrace.train.estimate import estimate

    with report.stage("plan"):
        figures = estimate(job, cfg.ranks, cfg.threads, cfg.launcher)
    for line in figures.lines():
        report.say(line)
    report.results |= dataclasses.asdict(figures)
    return report


def _train(spark: SparkSession, cfg: Config, job: TrainJob, directory: Path, report: Report) -> Report:
    hint = resume_line(cfg, directory.name)
    with Monitor(cfg, job, directory, report) as monitor:
        with report.stage("train") as stage:
            answers = _launch(spark, cfg, job, monitor, hint)
            audits = answers[0]["audits"]
            proved = sum(a["rows"] + a["dropped"] for a in audits)
            stage.rows_in = stage.rows_out = proved or answers[0]["steps"] * job.batch_size
            stage.note = f"{answers[0]['rows_per_second']:,.0f} rows/s in steps"
        if answers[0]["stopped"] == "asked":
            report.say(hint)
            report.results |= {"stopped": "asked", "exit_status": _STOPPED, "resume": hint}
            return report
        with report.stage("record"):
            _finish(cfg, job, directory, answers, report, monitor)
    return report


def _launch(spark: SparkSession, cfg: Config, job: TrainJob, monitor: Monitor, hint: str) -> list[dict[str, Any]]:
    """The ranks' values; on any failure the line to resume with is printed."""
    options = LaunchOptions(
        threads=cfg.threads,
        stall_timeout_s=cfg.stall_timeout_s,
        resume_hint=hint,
        timeline=str(monitor.of_horovod.get("timeline", "")),
        autotune=str(monitor.of_horovod.get("autotune", "")),
    )
    timeout = 60.0 * cfg.timeout_minutes or None
    try:
        results = launch(
            job, cfg.ranks, launcher=cfg.launcher, spark=spark, on_event=monitor, timeout_s=timeout, options=options
        )
        return _answers(results)
    except BaseException:
        monitor.report.say(hint)
        raise


def _answers(results: list[RankResult]) -> list[dict[str, Any]]:
    """The ranks' values; a rank's UserError in its own words with the rank before it."""
    try:
        return values(results)
    except RankFailed as error:
        own = _USERS.search(str(error))
        if own is None:
            raise
        raise UserError(f"rank {error.rank}: {own['problem']}", own["remedy"] or "") from None


def _finish(
    cfg: Config, job: TrainJob, directory: Path, answers: list[dict[str, Any]], report: Report, monitor: Monitor
) -> None:
    """Results, warnings, vocabulary, report.json."""
    from headrace.train.export import copy_vocabulary

    first = answers[0]
    version = job.about.get("vocabulary_version")
    if version is not None:
        copy_vocabulary(pin(load("silver/ctr_vocabulary"), cfg.lake, version), directory)
    test = first["test"] or {}
    names = {
        "auc": "test_auc",
        "logloss": "test_logloss",
        "normalized_entropy": "test_ne",
        "calibration": "test_calibration",
    }
    report.results |= {ours: test.get(theirs) for theirs, ours in names.items()}
    report.results |= {"validation": first["validation"], "weights_sha256": first["weights_sha256"]}
    report.results |= {"rows_per_s": first["rows_per_second"], "train_seconds": first["train_seconds"]}
    exchanged = tell_of_exchange(cfg, answers, report, monitor.decisions)
    monitor(0, {"type": "exchange", "step": first["steps"], **exchanged})
    report.results |= {name: first[name] for name in ("epochs", "steps", "audits", "stopped")}
    report.results |= {name: first[name] for name in ("skipped_steps", "overflow_steps", "clipped_steps")}
    report.paths["model"] = str(directory / "model")
    monitor.finish()
    (directory / "report.json").write_text(report.to_json(), encoding="utf-8")
