"""One fit of a baseline as a run like the deep models': LAKE/runs/RUN, a report, the same tracking experiment.

The directory holds baseline.yaml (settings; `config.yaml` is that of a training run, which can be resumed),
events.jsonl, model/ (of spark.ml), figures/, report.html, report.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace import __version__
from headrace.catalog.pinned import PinnedTable
from headrace.config import to_yaml
from headrace.free_options import merged
from headrace.pipelines.peak_memory import PeakMemory
from headrace.pipelines.run_ids import new_run_id
from headrace.pipelines.run_record import tell_where, warn_of, write_reports
from headrace.pipelines.spark_events import Shuffled
from headrace.train.events import Event, EventLog
from headrace.train.tracking import Tracker

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from headrace.report import Report

SETTINGS = "baseline.yaml"


class Costs:
    """Memory and bytes shuffled of everything inside a `with`, the checks of the rows included.

    Args:
        spark: the session.
    """

    def __init__(self, spark: SparkSession) -> None:
        self._memory, self._shuffled = PeakMemory(), Shuffled(spark)

    def __enter__(self) -> Costs:
        self._memory.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._memory.__exit__(*exc)

    def figures(self) -> dict[str, float | None]:
        """Until now; None where it is not known."""
        shuffled = self._shuffled.total()
        known = None if shuffled is None else round(shuffled / 1e6, 3)
        return {"peak_memory_mb": round(self._memory.megabytes, 1), "shuffled_mb": known}


class BaselineRun:
    """A context manager around all stages of a run.

    Args:
        cfg: the verb's settings, with `lake` and `tracking`.
        name: of the model, in the run's id.
        report: where lines go.
        costs: of the verb.
        cores: tasks that Spark runs at once.

    Attributes:
        directory: of the run; its name is the run's id.
    """

    def __init__(self, cfg: Any, name: str, report: Report, costs: Costs, cores: int) -> None:
        self.cfg, self.report, self._costs = cfg, report, costs
        self.directory = Path(cfg.lake).absolute() / "runs" / new_run_id(name)
        self.directory.mkdir(parents=True)
        (self.directory / SETTINGS).write_text(to_yaml(cfg), encoding="utf-8")
        self._log = EventLog(self.directory / "events.jsonl", report.warn)
        self._tracker = Tracker(cfg.tracking, cfg.lake, self.directory, report.warn)
        self._last: dict[str, dict[str, Any]] = {}
        self._ended = False
        report.results |= {"run_id": self.directory.name, "launcher": "spark", "cores": cores}
        report.paths["run"] = str(self.directory)

    def __enter__(self) -> BaselineRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if not self._ended:
            self._end("FAILED" if kind else "KILLED")

    def start(self, tags: Mapping[str, str], tables: Mapping[str, PinnedTable]) -> None:
        """Begin the run in the tracking store."""
        self._tracker.start(merged(self.cfg), tags, tables)

    def event(self, event: Event) -> None:
        """Keep an event, and its numbers as metrics; say what an evaluation showed."""
        self._log.write(event)
        self._tracker.event(event)
        if event.get("type") == "eval":
            self._last[event["split"]] = event["metrics"]
            shown = [f"{name} {value:,.4f}" for name, value in event["metrics"].items() if isinstance(value, float)]
            self.report.say(f"{event['split']}: {', '.join(shown)}")

    def save(self, model: Any) -> str:
        """Save a model of spark.ml as the run's; gives the place as Spark takes it."""
        folder = self.directory / "model"
        model.write().save(folder.as_uri())
        self.report.paths["model"] = str(folder)
        return folder.as_uri()

    def finish(self, about: Mapping[str, Any]) -> None:
        """After the model was saved: count what it cost, write the reports, send all of it.

        Args:
            about: facts for the report besides settings and results.
        """
        self._count_costs()
        warn_of(self._last, self.report)
        versions = dict(about) | {"headrace": __version__}
        write_reports(self.directory, self.cfg, SETTINGS, versions, self._tracker, self.report)
        self._tracker.artifact(self.directory / "model")
        self._ended = True
        self._end("FINISHED")

    def _count_costs(self) -> None:
        costs = self._costs.figures()
        seconds = {stage.name: round(stage.seconds, 3) for stage in self.report.stages}
        costs["train_seconds"] = seconds.get("train")
        self.report.results |= costs
        self.event({"type": "costs", **costs, **{f"seconds_{name}": value for name, value in seconds.items()}})

    def _end(self, status: str) -> None:
        tell_where(self._tracker.finish(status), self.cfg.tracking, self.report)

    def close(self) -> None:
        """The last thing: report.json, which says that the run ended."""
        (self.directory / "report.json").write_text(self.report.to_json(), encoding="utf-8")
