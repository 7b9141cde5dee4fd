"""A trained model over bronze/criteo, or over raw files, into gold/ctr_predictions: by Spark, each batch exactly once.

Rows pass the transform that the model was trained with (`model.json`, `vocabulary.parquet`), in the same numpy code.
The workers open the model's directory from its path, so it must be one that they see (as the lake is).
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.catalog.delta import Commit, WriteOptions, exists, latest_version, read, write
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features.ctr import BRONZE_COLUMNS
from headrace.features.split import format_days, parse_days

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

    from headrace.ingest.lines import InputFile
    from headrace.report import Report
    from headrace.train.pyfunc import ClickScorer

_SCHEMA = "key bigint, day int, label float, probability double"
RAW_VERSION = -1


@dataclass(kw_only=True)
class Config:
    """Settings of score-ctr.

    Args:
        lake: directory of the tables.
        run: id of a training run, whose model is in LAKE/runs/RUN/model.
        model: directory of a model instead (it holds model.json, model.safetensors, vocabulary.parquet).
        days: days of bronze/criteo to score, as 0-5 or 0,2; default: all. With `source`, the one day of its files;
            default: by their names.
        bronze_version: version of bronze/criteo to read; default: the newest.
        source: raw files in Criteo's format to score instead of bronze rows: patterns or folders, by commas.
        labelled: the raw files' lines begin with a label.
    """

    lake: str
    run: str = ""
    model: str = ""
    days: str | None = None
    bronze_version: int | None = None
    source: str = ""
    labelled: bool = True


@dataclass(frozen=True)
class _Input:
    """Rows to score, what they are called in the batch's name, and the version of bronze (RAW_VERSION: none)."""

    rows: DataFrame
    name: str
    version: int
    refused: int = 0


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Score; a batch (model, bronze version, days) that is in the table already is not scored again.

    Raises:
        UserError: no such model, no rows to score, days that are not there, raw files that cannot be read.
    """
    folder = model_folder(cfg)
    scorer, gold = _scorer(str(folder)), load("gold/ctr_predictions")
    about = scorer.about
    given = _raw(spark, cfg) if cfg.source else _bronze(spark, cfg)
    batch = f"{about.get('run_id') or folder.parent.name}:{_digest(folder)}:{given.name}"
    report.paths["predictions"] = gold.path(cfg.lake)
    report.results |= {"batch": batch, "run_id": about.get("run_id"), "model": str(folder)}
    if exists(gold.path(cfg.lake)) and _scored(spark, cfg, batch):
        report.say(f"nothing to do: gold/ctr_predictions holds batch {batch}")
        report.results |= {"nothing_to_do": True, "version": latest_version(gold.path(cfg.lake))}
        return report
    with report.stage("score") as stage:
        commit = _write(given, folder, str(about.get("run_id") or folder.parent.name), batch, cfg)
        stage.rows_out = _rows_of(spark, cfg, batch)
        stage.rows_in, stage.quarantined = stage.rows_out + given.refused, given.refused
        if given.refused:
            report.warn(f"{given.refused:,} raw lines were refused and not scored; headrace ingest-criteo says why")
    report.results |= {"version": commit.version, "rows": stage.rows_out}
    return report


def model_folder(cfg: Config) -> Path:
    """The directory of the model that `run` or `model` names, absolute.

    Raises:
        UserError: both or neither is given, or there is no model.
    """
    if bool(cfg.run) == bool(cfg.model):
        raise UserError("give either --run or --model", "--run ID of a training run of this lake, or --model DIR")
    if "://" in cfg.model or cfg.model.startswith(("runs:/", "models:/")):
        remedy = f"mlflow artifacts download -u {cfg.model} -d DIR, then --model DIR/model"
        raise UserError(f"--model {cfg.model} is not a directory", remedy)
    runs = Path(cfg.lake).absolute() / "runs"
    if cfg.run and not re.fullmatch(r"[\w.-]+", cfg.run, re.ASCII):
        raise UserError(f"--run {cfg.run!r} is no run's id", f"the ids are the names in {runs}")
    folder = runs / cfg.run / "model" if cfg.run else Path(cfg.model).absolute()
    if not (folder / "model.json").is_file():
        known = sorted(path.parent.parent.name for path in runs.glob("*/model/model.json"))
        remedy = f"runs with a model: {', '.join(known[-5:])}" if known else "train one: headrace train-ctr"
        raise UserError(f"there is no model in {folder}", remedy)
    return folder


def score(rows: DataFrame, folder: Path) -> DataFrame:
    """Predict.

    Args:
        rows: BRONZE_COLUMNS; the label may be null.
        folder: of the model, as every worker sees it.

    Returns:
        key, day, label float, probability double.
    """
    path = str(folder)

    def score_batches(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        scorer = _on_worker(path)
        return (score_batch(batch, scorer) for batch in batches)

    return rows.select(*BRONZE_COLUMNS).mapInArrow(score_batches, _SCHEMA)


def score_batch(batch: pa.RecordBatch, scorer: ClickScorer) -> pa.RecordBatch:
    """One Arrow batch of bronze rows as predictions."""
    import pyarrow as pa

    probability = pa.array(scorer.probabilities(*scorer.transform.inputs(batch)))
    label = batch.column("label").cast(pa.float32())
    columns = [batch.column("key"), batch.column("day"), label, probability]
    return pa.RecordBatch.from_arrays(columns, names=["key", "day", "label", "probability"])


def _on_worker(folder: str) -> ClickScorer:
    """The model, opened once by a worker process; Spark runs a worker a core, so each takes one thread."""
    import torch

    torch.set_num_threads(1)
    return _scorer(folder)


@functools.lru_cache(maxsize=1)
def _cached(folder: str, digest: str) -> ClickScorer:
    from headrace.train.pyfunc import ClickScorer

    return ClickScorer(folder)


def _scorer(folder: str) -> ClickScorer:
    return _cached(folder, _digest(Path(folder)))


def _digest(folder: Path) -> str:
    """What tells models apart: the first 12 hex digits of the SHA-256 of description and weights."""
    digest = hashlib.sha256((folder / "model.json").read_bytes())
    try:
        with open(folder / "model.safetensors", "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{folder}: {error}", "the model's directory is damaged: train again") from None
    return digest.hexdigest()[:12]


def _bronze(spark: SparkSession, cfg: Config) -> _Input:
    from pyspark.sql import functions as F

    spec = load("bronze/criteo")
    if not exists(spec.path(cfg.lake)):
        raise UserError(f"there is no bronze/criteo in --lake {cfg.lake}", "ingest first, or score raw files: --source")
    version = latest_version(spec.path(cfg.lake)) if cfg.bronze_version is None else cfg.bronze_version
    rows = read(spark, spec, cfg.lake, version)
    present = sorted(row["day"] for row in rows.select("day").distinct().collect())
    days = present if cfg.days is None else list(parse_days(cfg.days))
    if not days or not set(days) <= set(present):
        raise UserError(
            f"bronze/criteo version {version} has no rows of day {format_days(set(days) - set(present)) or '(any)'}",
            f"days that have: {format_days(present) or '(none)'}",
        )
    return _Input(rows.where(F.col("day").isin(days)), f"{spec.name}@{version}:{format_days(days)}", version)


def _raw(spark: SparkSession, cfg: Config) -> _Input:
    """Raw files through the reader of ingest; keys count files in the order of their paths."""
    from headrace.ingest.criteo import CriteoFormat
    from headrace.ingest.criteo_parse import looks_like_header
    from headrace.ingest.days import days_of, find_files
    from headrace.ingest.lines import InputFile, read_lines, scan_files

    one_day = None if cfg.days is None else _one_day(cfg.days)
    paths = find_files(cfg.source)
    scans = scan_files(spark, paths)
    broken = {path: text for path, text in scans.items() if isinstance(text, str)}
    if broken:
        path, text = next(iter(broken.items()))
        raise UserError(f"{path}: {text}", "mend the file, or leave it out of --source")
    days = days_of(paths, "auto") if one_day is None else dict.fromkeys(paths, one_day)
    files = []
    for number, path in enumerate(paths):
        scan = scans[path]
        assert not isinstance(scan, str)
        files.append(InputFile(scan, number, days[path], looks_like_header(scan.head)))
    fmt = CriteoFormat(labelled=cfg.labelled)
    return _Input(read_lines(spark, files, fmt), _name_of(files), RAW_VERSION, _refused(spark, files, fmt))


def _one_day(text: str) -> int:
    days = parse_days(text)
    if len(days) > 1:
        raise UserError(
            f"--days {text}: raw files scored with it are all of one day", "one day, or none: by their names"
        )
    return days[0]


def _refused(spark: SparkSession, files: Sequence[InputFile], fmt: Any) -> int:
    from headrace.ingest.lines import read_lines

    return read_lines(spark, files, fmt, "rejected").count()


def _name_of(files: Sequence[InputFile]) -> str:
    """Raw files in a batch's name: by what is in them, not where they lie."""
    told = " ".join(f"{file.day} {file.scan.sha256}" for file in files)
    return f"raw-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def _write(given: _Input, folder: Path, run_id: str, batch: str, cfg: Config) -> Commit:
    from pyspark.sql import functions as F

    scored = score(given.rows, folder).select(
        "*",
        F.lit(run_id).alias("run_id"),
        F.lit(given.version).cast("bigint").alias("table_version"),
        F.lit(batch).alias("batch"),
    )
    # The transaction identifier settles it where two jobs score one batch at the same time: one of them commits.
    options = WriteOptions(txn=(f"score-ctr {batch}", 1))
    metadata = {"batch": batch, "run_id": run_id, "bronze_version": given.version}
    return write(scored, load("gold/ctr_predictions"), cfg.lake, metadata=metadata, batch_id=batch, options=options)


def _scored(spark: SparkSession, cfg: Config, batch: str) -> bool:
    return _rows_of(spark, cfg, batch) > 0


def _rows_of(spark: SparkSession, cfg: Config, batch: str) -> int:
    rows = read(spark, load("gold/ctr_predictions"), cfg.lake)
    return int(rows.where(rows["batch"] == batch).count())
