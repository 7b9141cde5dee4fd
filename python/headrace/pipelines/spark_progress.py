"""Progress on work that is one call to MLlib and many jobs of Spark: how many are done, what runs now."""

from __future__ import annotations

import threading
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from headrace.report import Report

_EVERY_S = 1.0
_GROUP, _DESCRIPTION = "spark.jobGroup.id", "spark.job.description"


class JobsShown:
    """Inside, jobs that this thread and its children start are counted and shown: `with JobsShown(...): fit()`.

    Args:
        spark: the session.
        report: where progress goes.
        title: what is being done.
    """

    def __init__(self, spark: SparkSession, report: Report, title: str) -> None:
        self._context, self._title, self._group = spark.sparkContext, title, f"headrace-{uuid.uuid4().hex}"
        self._bar = report.bar(None, title, "jobs")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="spark-progress", daemon=True)
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> JobsShown:
        self._before = {name: self._context.getLocalProperty(name) for name in (_GROUP, _DESCRIPTION)}
        self._context.setLocalProperty(_GROUP, self._group)
        self._context.setLocalProperty(_DESCRIPTION, self._title)
        self._bar.begin()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
        for name, value in self._before.items():
            self._context.setLocalProperty(name, value)  # type: ignore[arg-type]
        self._bar.__exit__(*exc)

    def _watch(self) -> None:
        tracker, done = self._context.statusTracker(), 0
        while not self._ended.wait(_EVERY_S):
            # Spark forgets the oldest of many jobs: what was counted once stays counted.
            now = max(done, len(tracker.getJobIdsForGroup(self._group)))
            stages = [info for stage in tracker.getActiveStageIds() if (info := tracker.getStageInfo(stage))]
            running = ", ".join(f"{s.numCompletedTasks} of {s.numTasks} tasks" for s in stages[:2])
            self._bar.update(now - done, running)
            done = now
