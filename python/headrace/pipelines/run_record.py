"""What stays of a run of any model: report.html with its figures, and where the tracking store has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.free_options import merged
from headrace.report import Report
from headrace.train.events import read_events
from headrace.train.report_html import figures, warnings_of, write_report
from headrace.train.tracking import Tracker, TrackingConfig


def warn_of(evaluations: Mapping[str, Mapping[str, Any]], report: Report) -> None:
    """Say what is strange about the last evaluation of the test rows, or, without any, of the validation rows."""
    for text in warnings_of(dict(evaluations.get("test") or evaluations.get("validation") or {})):
        report.warn(text)


def write_reports(
    directory: Path, cfg: Any, settings: str, versions: Mapping[str, Any], tracker: Tracker, report: Report
) -> None:
    """Write report.html, and send it with its figures, the settings and the events to the store.

    Args:
        directory: of the run.
        cfg: the verb's settings.
        settings: the file in the directory that has them.
        versions: facts besides settings and results.
        tracker: of the run.
        report: its results are told, and it is given the place.
    """
    events = read_events(directory / "events.jsonl")
    facts = {"results": report.results, "settings": merged(cfg), "versions": dict(versions)}
    page = directory / "report.html"
    write_report(page, directory.name, facts, events, report.warnings)
    for name, figure in figures(events).items():
        tracker.figure(name, figure)
    for name in (page.name, settings, "events.jsonl"):
        tracker.artifact(directory / name)
    report.paths["report"] = str(page)


def tell_where(outcome: Mapping[str, Any], tracking: TrackingConfig, report: Report) -> None:
    """Say where the run is recorded, and what to type where the store did not take all of it."""
    if not tracking.enabled:
        return
    report.results |= {"mlflow_run_id": outcome["mlflow_run_id"], "mlflow_ui": outcome["ui"]}
    report.say(outcome["ui"])
    if outcome["later"]:
        report.warn(f"{outcome['pending']} records wait for the store ({outcome['error']}): {outcome['later']}")
