"""Means and standard deviations of the dense columns, from a sample of the training rows.

The first row group of up to 16 files (training rows lie in the order of a hash of their key, so these are a random
sample of some 10^5 rows), summed in float64 in file order by the driver alone: the same at any number of ranks, and
kept in the model.
"""

from __future__ import annotations

import numpy as np

from headrace.catalog.pinned import PinnedTable

_FILES = 16


def dense_statistics(table: PinnedTable) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every column of the tensor "dense"."""
    import pyarrow.parquet as pq

    columns = list(next(tensor.columns for tensor in table.spec.tensors if tensor.name == "dense"))
    count, total, squares = 0, np.zeros(len(columns)), np.zeros(len(columns))
    for file in [file for file in table.files if file.rows][:_FILES]:
        rows = pq.ParquetFile(file.path).read_row_group(0, columns=columns)
        values = np.stack([rows.column(name).to_numpy().astype(np.float64) for name in columns])
        count += values.shape[1]
        total += values.sum(1)
        squares += (values * values).sum(1)
    mean = total / max(1, count)
    deviation = np.sqrt(np.maximum(0.0, squares / max(1, count) - mean * mean))
    return mean.tolist(), deviation.tolist()
