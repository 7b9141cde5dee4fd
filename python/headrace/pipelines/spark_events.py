"""What Spark itself counted while a verb ran: bytes written for shuffles, by stage of Spark, from its event log.

Python has no other public way to these figures: the status tracker counts tasks only, the REST API needs the UI, which
is off. A verb that is `MEASURED` and starts its own JVM gets an event log in a folder that goes when the verb ends.
Under spark-submit the settings are the user's: `--conf spark.eventLog.enabled=true --conf spark.eventLog.dir=file:...`
with `spark.eventLog.compress` and `spark.eventLog.rolling.enabled` false lets the verb read it; else the figure is
unknown, and is said to be.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.catalog.storage import local_path

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_WRITTEN = "internal.metrics.shuffle.write.bytesWritten"
_PATIENCE_S = 10.0


@contextlib.contextmanager
def event_log(wanted: bool) -> Iterator[dict[str, str]]:
    """Settings that Spark must be started with for an event log that this process can read; none under spark-submit."""
    if not wanted or "PYSPARK_GATEWAY_PORT" in os.environ:
        yield {}
        return
    folder = tempfile.mkdtemp(prefix="headrace-events-")
    try:
        yield {
            "spark.eventLog.enabled": "true",
            "spark.eventLog.dir": Path(folder).as_uri(),
            "spark.eventLog.compress": "false",
            "spark.eventLog.rolling.enabled": "false",
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Shuffled:
    """Bytes that Spark's stages have written for shuffles since this was made.

    Args:
        spark: the running session.
    """

    def __init__(self, spark: SparkSession) -> None:
        self._spark, self._file = spark, _log_file(spark)
        self._start = self._file.stat().st_size if self._file else 0

    def total(self) -> int | None:
        """So many; None where there is no event log to read."""
        if self._file is None or not self._settled():
            return None
        with self._file.open("rb") as log:
            log.seek(self._start)
            return sum(written(line) for line in log)

    def _settled(self) -> bool:
        """Spark writes events in order, some time later: a job with a mark is run, and its event waited for."""
        mark = f"headrace-{uuid.uuid4().hex}"
        context = self._spark.sparkContext
        before = context.getLocalProperty("spark.jobGroup.id")
        context.setLocalProperty("spark.jobGroup.id", mark)
        try:
            context.parallelize([0], 1).count()
        finally:
            context.setLocalProperty("spark.jobGroup.id", before)  # type: ignore[arg-type]
        deadline = time.monotonic() + _PATIENCE_S
        while not self._holds(mark.encode()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def _holds(self, mark: bytes) -> bool:
        assert self._file is not None
        with self._file.open("rb") as log:
            log.seek(self._start)
            return any(mark in line for line in log)


def written(line: bytes) -> int:
    """Bytes that a stage, whose end this line of the log tells, has written for a shuffle; 0 of any other line."""
    if b"SparkListenerStageCompleted" not in line[:100] or not line.endswith(b"\n"):
        return 0
    found: list[dict[str, Any]] = json.loads(line)["Stage Info"].get("Accumulables", [])
    return sum(int(each["Value"]) for each in found if each.get("Name") == _WRITTEN)


def _log_file(spark: SparkSession) -> Path | None:
    """The log of the running application, if this process can read it."""
    conf = spark.sparkContext.getConf()
    plain = conf.get("spark.eventLog.rolling.enabled") == conf.get("spark.eventLog.compress") == "false"
    if conf.get("spark.eventLog.enabled") != "true" or not plain:
        return None
    folder = local_path(str(conf.get("spark.eventLog.dir")))
    path = Path(folder or "") / f"{spark.sparkContext.applicationId}.inprogress"
    return path if folder and path.is_file() else None
