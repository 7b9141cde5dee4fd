"""Write files of ratings from the planted model; what the best prediction would score lies beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import UserError
from headrace.ingest.generated_ratings import FORMATS, Generation, Truth, figures, make_block
from headrace.report import Report

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

TRUTH_FILE = "truth.json"


@dataclass(kw_only=True)
class Config:
    """Generated ratings: files in a MovieLens format, and truth.json.

    Args:
        dest: folder to write to; executors on other machines must see it too.
        rows: ratings, each pair of user and item once.
        num_users: number of users; 0 = one for 100 ratings.
        num_items: number of items; 0 = a fifth of the users, at least 200.
        rank: numbers in a user's and an item's factor.
        noise: standard deviation of the noise, before ratings are rounded to half stars.
        seed: of everything; the same settings give the same bytes on any number of cores.
        format: csv (with header, as MovieLens 20M to 32M), tsv (as 100k) or double_colon (as 1M and 10M).
        duplicates: rows that rate a pair a second time, later, in addition.
        bad_rows: lines to plant that an ingest must refuse, in addition.
        write_truth_rows: also write truth_00000.parquet ...: user, item, timestamp, expectation, variance of each row.
        overwrite: replace another generation in `dest`.
    """

    dest: str
    rows: int = 1_000_000
    num_users: int = 0
    num_items: int = 0
    rank: int = 8
    noise: float = 0.75
    seed: int = 1
    format: str = "csv"
    duplicates: int = 0
    bad_rows: int = 0
    write_truth_rows: bool = False
    overwrite: bool = False

    def generation(self) -> Generation:
        """The part of the settings that the bytes depend on."""
        users = self.num_users or max(20, self.rows // 100)
        return Generation(
            rows=self.rows,
            users=users,
            items=self.num_items or max(200, users // 5),
            rank=self.rank,
            noise=self.noise,
            seed=self.seed,
            format=self.format,
            duplicates=self.duplicates,
            bad_rows=self.bad_rows,
        )


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: settings that make no sense, or `dest` holds another generation.
    """
    cfg.generation().check()
    _done(cfg)


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Generate; nothing where all is there already.

    Raises:
        UserError: as `early`.
    """
    early(cfg)
    dest, generation = Path(cfg.dest).absolute(), cfg.generation()
    report.paths |= {"dest": str(dest), "truth": str(dest / TRUTH_FILE)}
    if _done(cfg):
        report.say(f"{dest} is complete: nothing to do")
    else:
        dest.mkdir(parents=True, exist_ok=True)
        (dest / TRUTH_FILE).unlink(missing_ok=True)
        with report.stage("generate") as stage:
            truth = Truth()
            for made in _write_blocks(spark, cfg, generation, dest):
                truth.add(made)
            stage.rows_out = truth.rows + truth.bad_rows
            stage.note = f"{generation.blocks} files"
        _replace(dest / TRUTH_FILE, json.dumps(truth.figures(generation), indent=1).encode())
    report.results |= json.loads((dest / TRUTH_FILE).read_bytes())
    return report


def _done(cfg: Config) -> bool:
    """Is the same generation there, complete?"""
    dest = Path(cfg.dest)
    truth = dest / TRUTH_FILE
    if truth.exists():
        same = json.loads(truth.read_bytes()).get("settings") == asdict(cfg.generation())
        if same and not (cfg.write_truth_rows and not (dest / "truth_00000.parquet").exists()):
            return True
        if not same and not cfg.overwrite:
            raise UserError(f"{dest} holds another generation", "name another --dest, or --overwrite true")
    elif dest.is_dir() and any(dest.iterdir()) and not cfg.overwrite:
        names = {name.format(0)[:-9] for name, _ in FORMATS.values()}
        if not all(child.name.startswith((".", "truth_", *names)) for child in dest.iterdir()):
            raise UserError(f"{dest} is not empty", "name another --dest, or --overwrite true")
    return False


def _write_blocks(spark: SparkSession, cfg: Config, generation: Generation, dest: Path) -> list[dict[str, Any]]:
    """One file a block, a task each; their figures in the order of blocks."""
    with_truth = cfg.write_truth_rows

    def make(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        import pyarrow

        for batch in batches:
            made = [json.dumps(_write(generation, number, dest, with_truth)) for number in batch.column(0).to_pylist()]
            yield pyarrow.RecordBatch.from_arrays([batch.column(0), pyarrow.array(made)], ["id", "made"])

    blocks = spark.range(0, generation.blocks, 1, generation.blocks).mapInArrow(make, "id long, made string")
    return [json.loads(row.made) for row in sorted(blocks.collect(), key=lambda row: int(row.id))]


def _write(generation: Generation, number: int, dest: Path, with_truth: bool) -> dict[str, Any]:
    block = make_block(generation, number)
    _replace(dest / FORMATS[generation.format][0].format(number), block.text)
    if with_truth:
        import io

        import pyarrow
        import pyarrow.parquet as pq

        names = ("user", "item", "timestamp", "rating", "expectation", "variance")
        out = io.BytesIO()
        pq.write_table(pyarrow.table({name: getattr(block, name) for name in names}), out)
        _replace(dest / f"truth_{number:05}.parquet", out.getvalue())
    return figures(block)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
