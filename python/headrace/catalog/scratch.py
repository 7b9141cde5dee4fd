"""A folder of the lake for what a run puts down between its steps: LAKE/_work/NAME-ID, gone when the run ends.

Spark's own local checkpoints are lost with the executor that holds them, and its reliable ones need a folder that is
set for the whole application and is never emptied. Plain files in the lake, which every executor reads, have neither
fault.
What a killed run leaves behind is found by its place; `headrace maintain` removes what is older than a day.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.catalog.storage import local_path

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

FOLDER = "_work"


@contextlib.contextmanager
def scratch(lake: str | Path, name: str) -> Iterator[str]:
    """A new, empty place under the lake; removed at the end, however that comes about.

    Args:
        lake: where the tables are, a path or a URL that Spark and fsspec know.
        name: of the work, for whoever finds a killed run's folder.

    Yields:
        The place as Spark takes it.
    """
    place = f"{str(lake).rstrip('/')}/{FOLDER}/{name}-{uuid.uuid4().hex[:12]}"
    local = local_path(place)
    if local is not None:
        place = os.path.abspath(local)
        try:
            os.makedirs(place)
        except FileNotFoundError:  # another run took the empty folder above away in that moment
            os.makedirs(place)
    try:
        yield place
    finally:
        remove(place)


def kept(frame: DataFrame, place: str) -> DataFrame:
    """Put a frame down and read it again: computed once, whatever executor is lost later, and its plan ends here.

    Args:
        frame: what is used several times, or must not be computed twice.
        place: within a scratch folder; nothing may be there.
    """
    frame.write.parquet(place)
    return frame.sparkSession.read.schema(frame.schema).parquet(place)


def remove(place: str) -> None:
    """Remove a folder and all it holds; one that is gone already is no error."""
    local = local_path(place)
    if local is not None:
        shutil.rmtree(local, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are at work in it
            os.rmdir(os.path.dirname(local))
        return
    import fsspec

    system, path = fsspec.core.url_to_fs(place)
    with contextlib.suppress(FileNotFoundError):
        system.rm(path, recursive=True)


def left_behind(lake: str | Path, older_than_s: float) -> list[str]:
    """Places whose runs were killed: nothing in them has changed for so long. Local lakes only."""
    local = local_path(f"{str(lake).rstrip('/')}/{FOLDER}")
    if local is None or not os.path.isdir(local):
        return []
    before = time.time() - older_than_s
    return [entry.path for entry in os.scandir(local) if entry.is_dir() and _newest(entry.path) < before]


def _newest(folder: str) -> float:
    times = [os.stat(folder).st_mtime]
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                times.append(os.stat(os.path.join(parent, name)).st_mtime)
    return max(times)
