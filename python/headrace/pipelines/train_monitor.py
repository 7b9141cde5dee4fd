"""What the driver makes of the ranks' events: progress, lines for people, events.jsonl, the tracking store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.report import Report
from headrace.train.events import Event, EventLog

if TYPE_CHECKING:
    from headrace.pipelines.train_ctr import Config
    from headrace.train.job import TrainJob


class Monitor:
    """Called as `monitor(rank, event)`; a context manager around the launch.

    Args:
        cfg: the run's settings.
        job: what the ranks do.
        directory: of the run.
        report: where lines go.
    """

    def __init__(self, cfg: Config, job: TrainJob, directory: Path, report: Report) -> None:
        self.cfg, self.job, self.directory, self.report = cfg, job, directory, report
        self.log = EventLog(directory / "events.jsonl", report.warn)
        self.rows = job.tables["train"].rows
        self.bar = report.bar(self.rows * cfg.train.epochs, "training")
        self.last: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.__exit__(*exc)

    def __call__(self, rank: int, event: Event) -> None:
        """Take one event of a rank."""
        self.log.write({"rank": rank, **event})
        handler = getattr(self, f"_on_{event.get('type', '')}", None)
        if handler is not None:
            handler(event)

    def finish(self) -> None:
        """Warnings about the result, after everything ended well."""
        test = self.last.get("test") or self.last.get("validation") or {}
        auc, entropy = test.get("auc"), test.get("normalized_entropy")
        if auc is not None and abs(auc - 0.5) < 0.005:
            self.report.warn(f"AUC {auc:.4f}: the model ranks no better than chance")
        if entropy is not None and entropy >= 1.0:
            self.report.warn(f"logloss is not under the click rate's entropy (normalized entropy {entropy:.4f})")

    def _on_start(self, event: Event) -> None:
        dense, sparse = event["dense_parameters"], event["sparse_parameters"]
        self.report.say(
            f"{event['model']} on {event['device']}: {dense:,} dense parameters, {sparse:,} in embedding tables "
            f"({4 * sparse / 1e6:,.1f} MB); {event['steps']:,} steps of {self.job.batch_size:,} rows an epoch"
        )
        self.report.say(event["layers"])

    def _on_resume(self, event: Event) -> None:
        self.report.say(f"resumed at epoch {event['epoch'] + 1}, step {event['step']:,}")
        self.bar.update(event["step"] * self.job.batch_size)

    def _on_reset(self, event: Event) -> None:
        self.report.warn(f"{event['what']} of {event['was']} ranks do not fit {self.cfg.ranks}: started anew")

    def _on_damaged(self, event: Event) -> None:
        self.report.warn(f"passed over a damaged checkpoint, {event['path']}: {event['reason']}")

    def _on_batches(self, event: Event) -> None:
        self.report.say(f"global batch {event['step'] + 1}: fingerprint {event['fingerprint']}")

    def _on_step(self, event: Event) -> None:
        self.bar.update(event["rows"], f"loss {event['loss']:.4f}, {event['rows_per_second']:,.0f} rows/s")

    def _on_eval(self, event: Event) -> None:
        figures = event["metrics"]
        self.last[event["split"]] = figures
        shown = [
            f"{name} {figures[key]:.4f}" if figures[key] is not None else f"{name} -"
            for name, key in (
                ("AUC", "auc"), ("logloss", "logloss"), ("NE", "normalized_entropy"), ("calibration", "calibration"),
            )
        ]  # fmt: skip
        self.report.say(f"{event['split']} after step {event['step']:,}: {', '.join(shown)} ({figures['rows']:,} rows)")

    def _on_epoch(self, event: Event) -> None:
        extra = [f"{event[n]:,} {n}" for n in ("dropped", "repeated") if event[n]]
        whole = ", ".join([f"{event['rows'] + event['dropped']:,} rows", *extra])
        self.report.say(f"epoch {event['epoch'] + 1}: every row once: proved ({whole})")

    def _on_nonfinite(self, event: Event) -> None:
        ranks = ", ".join(map(str, event["ranks"]))
        self.report.warn(f"step {event['step']}: loss or gradient not finite on rank {ranks}: {event['action']}")
