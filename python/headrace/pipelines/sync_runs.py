"""Send to the tracking store what it missed while it was down."""

from __future__ import annotations

import os
from dataclasses import dataclass

from headrace.errors import UserError
from headrace.report import Report


@dataclass(kw_only=True)
class Config:
    """Send to the tracking store what it missed while it was down.

    Args:
        lake: the lake whose runs are looked through.
    """

    lake: str


def run(spark: None, cfg: Config, report: Report) -> Report:
    """Go through LAKE/runs; each run's store is the one it was made for.

    Raises:
        UserError: there is no such lake.
    """
    from headrace.train.tracking import sync

    if not os.path.isdir(cfg.lake):
        raise UserError(f"--lake {cfg.lake} is not a folder", "name the lake that was trained from")
    with report.stage("sync runs") as stage:
        runs, sent, failures = sync(cfg.lake)
        stage.note = f"{runs} runs had something to send, {sent} entries sent"
    for run_id, reason in failures.items():
        report.warn(f"{run_id} was not sent: {reason}")
    report.results |= {"runs": runs, "sent": sent, "failed": len(failures)}
    return report
