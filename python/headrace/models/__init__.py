"""Click models over the same batch: `create("deepfm", cardinalities, num_dense=13)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from headrace.config import nearest
from headrace.errors import UserError
from headrace.models.base import ClickModel, ModelOptions
from headrace.models.deepfm import DeepFM
from headrace.models.dlrm import DLRM
from headrace.models.embedding import FusedEmbedding
from headrace.models.fm import FactorizationMachine
from headrace.models.logistic import Logistic

MODELS: dict[str, type[ClickModel]] = {
    "logistic": Logistic,
    "fm": FactorizationMachine,
    "deepfm": DeepFM,
    "dlrm": DLRM,
}


def create(
    name: str,
    cardinalities: Mapping[str, int],
    num_dense: int,
    *,
    table: Callable[[Mapping[str, int], int], FusedEmbedding] = FusedEmbedding,
    **options: Any,
) -> ClickModel:
    """Make a model.

    Args:
        name: a key of MODELS.
        cardinalities: rows of each categorical column's table, in column order.
        num_dense: number of dense columns.
        table: makes the embedding table of cardinalities and floats a row.
        options: fields of ModelOptions.

    Raises:
        UserError: an unknown model or option, or an option out of range.
    """
    if name not in MODELS:
        raise UserError(f"there is no model {name!r}", nearest(name, list(MODELS)) or f"one of {', '.join(MODELS)}")
    known = [f.name for f in fields(ModelOptions) if f.name != "table"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        hint = nearest(unknown[0], known) or f"one of {', '.join(known)}"
        raise UserError(f"model {name} has no option {unknown[0]!r}", hint)
    settings = ModelOptions(**options, table=table)
    if settings.embedding_dim < 1 or any(width < 1 for width in (*settings.hidden, *settings.bottom)):
        raise UserError("model.embedding_dim and the widths of layers must be at least 1", "set them in model.*")
    constructor: Any = MODELS[name]
    model: ClickModel = constructor(dict(cardinalities), num_dense, settings)
    return model


__all__ = ["MODELS", "ClickModel", "ModelOptions", "create"]
