"""Write Criteo logs of any size from the planted model; what the best possible model would score lies beside them."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import UserError
from headrace.ingest import generated_criteo as files
from headrace.ingest.generated_criteo import Generation
from headrace.ingest.planted import PlantedModel, calibrate
from headrace.ingest.planted_truth import Evidence, Truth
from headrace.report import Report

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

_POLL_S = 0.5


@dataclass(kw_only=True)
class Config:
    """Generated Criteo logs: day_0.gz ... and truth.json.

    Args:
        dest: folder to write to; executors on other machines must see it too.
        rows: good rows over all days.
        days: day files; the last is meant for test, the one before for validation.
        seed: of everything; the same settings give the same bytes on any number of cores.
        click_rate: mean click probability on day 0 (0.25 as Kaggle's sample, 0.03 as the Terabyte logs).
        gzip: write day_0.gz ... rather than day_0 ....
        bad_rows: lines to plant that an ingest must refuse, in addition to the good rows; counted in truth.json.
        parts: Spark tasks; 0 = one a block of 131,072 rows.
        write_truth_rows: also write truth_day_0.npy ...: the true click probability of each good row, float64.
        overwrite: replace another generation in `dest`.
    """

    dest: str
    rows: int = 1_000_000
    days: int = 7
    seed: int = 1
    click_rate: float = 0.25
    gzip: bool = True
    bad_rows: int = 0
    parts: int = 0
    write_truth_rows: bool = False
    overwrite: bool = False

    def generation(self) -> Generation:
        """The part of the settings that the bytes depend on."""
        return Generation(
            rows=self.rows,
            days=self.days,
            seed=self.seed,
            click_rate=self.click_rate,
            gzip=self.gzip,
            bad_rows=self.bad_rows,
        )


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Generate, join, and write the truth; nothing where all is there already.

    Raises:
        UserError: settings that make no sense, or `dest` holds another generation.
    """
    generation = cfg.generation()
    generation.check()
    if cfg.parts < 0:
        raise UserError(f"--parts {cfg.parts} is negative", "give 0 for one task a block")
    dest = Path(cfg.dest).absolute()
    report.paths |= {"dest": str(dest), "truth": str(dest / files.TRUTH_FILE)}
    done = files.prepare(generation, dest, cfg.overwrite)
    if done and not (cfg.write_truth_rows and not _has_truth_rows(generation, dest)):
        report.say(f"{dest} is complete: nothing to do")
    else:
        _make(spark, cfg, generation, dest, report)
    report.results |= json.loads((dest / files.TRUTH_FILE).read_bytes())["splits"]
    return report


def _make(spark: SparkSession, cfg: Config, generation: Generation, dest: Path, report: Report) -> None:
    with report.stage("calibrate") as stage:
        model = calibrate(cfg.seed, cfg.click_rate)
        stage.note = f"bias {model.bias:.3f}"
    with report.stage("generate") as stage:
        made = _write_blocks(spark, model, generation, cfg.parts, dest, report)
        stage.rows_out = generation.rows
        stage.note = "" if made == generation.rows else f"{generation.rows - made:,} rows were there already"
    with report.stage("truth") as stage:
        truth = _gather(generation, dest, cfg.write_truth_rows)
        stage.rows_in, stage.bytes_in = generation.rows, truth.text_bytes
    with report.stage("join") as stage:
        joined = [files.join_day(generation, day, dest) for day in range(generation.days)]
        stage.rows_in = stage.rows_out = generation.rows + generation.bad_rows
        stage.bytes_in = truth.text_bytes
    body = {"settings": generation.settings(), "files": joined, "model": _model_figures(model), **truth.figures()}
    files.replace_file(dest / files.TRUTH_FILE, json.dumps(body, indent=1).encode())
    shutil.rmtree(dest / files.PARTS_DIR)


def _write_blocks(
    spark: SparkSession, model: PlantedModel, generation: Generation, parts: int, dest: Path, report: Report
) -> int:
    """Make the blocks that are missing, on Spark; returns the rows made."""
    folder = dest / files.PARTS_DIR
    folder.mkdir(exist_ok=True)
    blocks = generation.blocks()

    def make(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        import pyarrow

        for batch in batches:
            made = [files.write_block(model, generation, blocks[i], folder) for i in batch.column(0).to_pylist()]
            yield pyarrow.RecordBatch.from_arrays([pyarrow.array(made, pyarrow.int64())], ["rows"])

    tasks = min(parts or len(blocks), len(blocks))
    with report.bar(generation.rows, "generating") as bar, _Watch(folder, generation, bar):
        made = spark.range(0, len(blocks), 1, tasks).mapInArrow(make, "rows long").groupBy().sum("rows").collect()
    return int(made[0][0])


class _Watch:
    """Moves the bar by looking at which parts are complete: tasks report to nobody else while they run."""

    def __init__(self, folder: Path, generation: Generation, bar: Any) -> None:
        self._sizes = {block.name: block.stop - block.start for block in generation.blocks()}
        self._folder, self._bar = folder, bar
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="generate-progress", daemon=True)

    def _follow(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._count()

    def _count(self) -> None:
        for name in [name for name in self._sizes if (self._folder / name).exists()]:
            self._bar.update(self._sizes.pop(name))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._count()


def _gather(generation: Generation, dest: Path, write_rows: bool) -> Truth:
    """Read every block's evidence once, in order, one at a time."""
    truth = Truth(generation.days, files.BAD_KINDS)
    for day in range(generation.days):
        probabilities = []
        for block in generation.blocks():
            if block.day == day:
                evidence = Evidence.from_bytes((dest / files.PARTS_DIR / f"{block.name}.npz").read_bytes())
                truth.add(day, evidence)
                if write_rows:
                    probabilities.append(evidence.probability)
        if write_rows:
            temporary = dest / f".truth_day_{day}.npy"
            np.save(temporary, np.concatenate(probabilities))
            temporary.replace(dest / f"truth_day_{day}.npy")
    return truth


def _has_truth_rows(generation: Generation, dest: Path) -> bool:
    return all((dest / f"truth_day_{day}.npy").exists() for day in range(generation.days))


def _model_figures(model: PlantedModel) -> dict[str, float]:
    return {
        "bias": model.bias,
        "int_scale": model.int_scale,
        "main_scale": model.main_scale,
        "pair_scale": model.pair_scale,
    }
