"""The trained model as MLflow's pyfunc: raw rows in, click probabilities out, by the same transform as training.

MLflow finds `_load_pyfunc` by this module's name; the model is safetensors, JSON and Parquet: nothing is unpickled.
mlflow is not imported here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headrace.features.row_transform import RowTransform

if TYPE_CHECKING:
    import pandas as pd

_ROWS = 8192


class ClickScorer:
    """A model with its transform.

    Args:
        folder: holds model.safetensors, model.json and vocabulary.parquet, and is named `model`.
    """

    def __init__(self, folder: str | Path) -> None:
        from headrace.train.export import load_model

        self.model, self.about = load_model(Path(folder).parent)
        self.transform = RowTransform.from_directory(folder)

    def probabilities(self, dense: npt.NDArray[np.float32], sparse: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Click probabilities float64 [N] of model inputs dense [N, 13] and sparse [N, 26]."""
        import torch

        from headrace.train.metrics import sigmoid

        parts = [np.empty(0)]
        with torch.no_grad():
            for start in range(0, len(dense), _ROWS):
                block = slice(start, start + _ROWS)
                logits = self.model(torch.from_numpy(dense[block]), torch.from_numpy(sparse[block]))
                parts.append(sigmoid(logits.float().numpy()))
        return np.concatenate(parts)

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> npt.NDArray[np.float64]:
        """Click probabilities of raw rows, a block at a time; see RowTransform for what a cell may be."""
        parts = [np.empty(0)]
        for start in range(0, len(model_input), _ROWS):
            parts.append(self.probabilities(*self.transform(model_input.iloc[start : start + _ROWS])))
        return np.concatenate(parts)


def _load_pyfunc(path: str) -> ClickScorer:
    """What MLflow calls with the place of the model's folder."""
    return ClickScorer(path)
