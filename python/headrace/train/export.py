"""The trained model as files: model/model.safetensors and model/model.json, written whole or not at all.

model.json says how to make the model again (`models.create`) and how rows were featurized; the driver puts the
vocabulary beside it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from headrace import models
from headrace.catalog.pinned import PinnedTable
from headrace.comm import Collective, LocalGroup
from headrace.errors import UserError
from headrace.train.whole_model import write_whole

FORMAT = 1
_TENSORS = "model.safetensors"


def save_model(
    model: nn.Module, directory: Path, settings: dict[str, Any], about: dict[str, Any],
    collective: Collective | None = None,
) -> Path:  # fmt: skip
    """Write DIRECTORY/model; an older one is replaced.

    Args:
        model: what is written.
        directory: of the run.
        settings: arguments of `models.create`.
        about: further JSON.
        collective: of ranks that all call this: rank 0 writes, and gathers what others hold a block at a time; None:
            the model is whole here.
    """
    draft, target = directory / ".draft-model", directory / "model"
    collective = collective or LocalGroup(1).collective(0)
    if collective.rank != 0:
        write_whole(draft / _TENSORS, model, collective)
        return target
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    write_whole(draft / _TENSORS, model, collective)
    described = {"format": FORMAT, "model": settings, **about}
    (draft / "model.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    return target


def load_model(directory: Path) -> tuple[models.ClickModel, dict[str, Any]]:
    """Read DIRECTORY/model: the model, ready to score, and model.json. Nothing is executed.

    Raises:
        UserError: there is none, or it is not one of this format.
    """
    try:
        about = json.loads((directory / "model" / "model.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r}, this version reads {FORMAT}")
        options = dict(about["model"])
        model = models.create(options.pop("name"), options.pop("cardinalities"), options.pop("num_dense"), **options)
        model.load_state_dict(load_file(directory / "model" / _TENSORS))
    except FileNotFoundError as error:
        raise UserError(
            f"no model in {directory}: {error.filename} is missing", "train one: headrace train-ctr"
        ) from error
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(f"{directory}/model is no model of ours: {str(error)[:500]}", "train again") from error
    return model.eval(), about


def copy_vocabulary(table: PinnedTable, directory: Path) -> Path:
    """Write DIRECTORY/model/vocabulary.parquet from a pinned version, row group by row group."""
    import pyarrow.parquet as pq

    target = directory / "model" / "vocabulary.parquet"
    writer = None
    for file in table.files:
        source = pq.ParquetFile(file.path)
        for group in range(source.num_row_groups):
            rows = source.read_row_group(group).replace_schema_metadata(None)
            writer = writer or pq.ParquetWriter(target, rows.schema, compression="zstd")
            writer.write_table(rows.cast(writer.schema))
    if writer is not None:
        writer.close()
    return target
