"""What the driver makes of the ranks' events: progress, lines for people, events.jsonl, the tracking store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.free_options import merged
from headrace.pipelines.peak_memory import PeakMemory
from headrace.pipelines.run_record import tell_where, warn_of, write_reports
from headrace.pipelines.train_exchange import Decisions
from headrace.report import Report
from headrace.train.events import Event, EventLog
from headrace.train.tracking import Tracker

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

    Attributes:
        of_horovod: files that Horovod is to write, by setting.
    """

    def __init__(self, cfg: Config, job: TrainJob, directory: Path, report: Report) -> None:
        self.cfg, self.job, self.directory, self.report = cfg, job, directory, report
        self.log = EventLog(directory / "events.jsonl", report.warn)
        self.rows = job.tables["train"].rows
        self.bar = report.bar(self.rows * cfg.train.epochs, "training")
        self.last: dict[str, dict[str, Any]] = {}
        self.decisions = Decisions()
        self.tracker = Tracker(cfg.tracking, cfg.lake, directory, report.warn)
        self.of_horovod = cfg.horovod.files(directory)
        self._memory = PeakMemory()
        self._finished = False

    def __enter__(self) -> Monitor:
        tags = {"model": self.cfg.model.name, "launcher": self.cfg.launcher, "ranks": str(self.cfg.ranks)}
        tags |= {"vocabulary_version": str(self.job.about.get("vocabulary_version"))}
        self.tracker.start(merged(self.cfg), tags, self.job.tables)
        self._memory.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._memory.__exit__(kind, *exc)
        self.bar.__exit__(kind, *exc)
        if not self._finished:
            self._end("FAILED" if kind else "KILLED")

    def __call__(self, rank: int, event: Event) -> None:
        """Take one event of a rank."""
        self.log.write({"rank": rank, **event})
        self.tracker.event(event)
        handler = getattr(self, f"_on_{event.get('type', '')}", None)
        if handler is not None:
            handler(event)

    def finish(self) -> None:
        """After everything ended well: warnings about the result, pictures, report.html, the model to the store."""
        self._finished = True
        self.report.results["peak_memory_mb"] = round(self._memory.megabytes, 1)
        self.bar.__exit__(None)
        warn_of(self.last, self.report)
        write_reports(self.directory, self.cfg, "config.yaml", self.job.about, self.tracker, self.report)
        self._keep_of_horovod()
        self.tracker.model(self.directory / "model")
        self._end("FINISHED")

    def _end(self, status: str) -> None:
        tell_where(self.tracker.finish(status), self.cfg.tracking, self.report)

    def _keep_of_horovod(self) -> None:
        for name, path in self.of_horovod.items():
            if path.exists():
                self.tracker.artifact(path, "horovod")
                self.report.paths[f"horovod_{name}"] = str(path)
            else:
                self.report.warn(f"--horovod.{name}: rank 0 wrote no {path}; is {path.parent} on its machine?")

    def _on_start(self, event: Event) -> None:
        dense, sparse = event["dense_parameters"], event["sparse_parameters"]
        self.report.say(
            f"{event['model']} on {event['device']}: {dense:,} dense parameters, {sparse:,} in embedding tables "
            f"({4 * sparse / 1e6:,.1f} MB); {event['steps']:,} steps of {self.job.batch_size:,} rows an epoch"
        )
        self.report.say(event["layers"])
        self.bar.begin()

    def _on_resume(self, event: Event) -> None:
        self.report.say(f"resumed at epoch {event['epoch'] + 1}, step {event['step']:,}")
        self.bar.begin(event["step"] * self.job.batch_size)

    def _on_reset(self, event: Event) -> None:
        if why := event.get("why"):
            self.report.warn(f"{event['what']} {why}: started anew")
            return
        was = f"{event['was']} rank{'s' * (event['was'] != 1)}"
        self.report.warn(f"a checkpoint of {was} goes on with {self.cfg.ranks}; started anew: {event['what']}")

    def _on_damaged(self, event: Event) -> None:
        self.report.warn(f"passed over a damaged checkpoint, {event['path']}: {event['reason']}")

    def _on_batches(self, event: Event) -> None:
        self.report.say(f"global batch {event['step'] + 1}: fingerprint {event['fingerprint']}")

    def _on_step(self, event: Event) -> None:
        loss = f"loss {event['loss']:.4f}" if "loss" in event else "step left out"
        self.bar.update(event["rows"], f"{loss}, {event['rows_per_second']:,.0f} rows/s")

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
        self.bar.reach((event["epoch"] + 1) * self.rows)
        extra = [f"{event[n]:,} {n}" for n in ("dropped", "repeated") if event[n]]
        whole = ", ".join([f"{event['rows'] + event['dropped']:,} rows", *extra])
        self.report.say(f"epoch {event['epoch'] + 1}: every row once: proved ({whole})")

    def _on_nonfinite(self, event: Event) -> None:
        ranks = ", ".join(map(str, event["ranks"]))
        self.report.warn(f"step {event['step']}: loss or gradient not finite on rank {ranks}: {event['action']}")

    def _on_compression(self, event: Event) -> None:
        if line := self.decisions.take(event):
            self.report.say(line)

    def _on_bound(self, event: Event) -> None:
        self.report.say(
            f"step {event['step']:,}: bound {event['bound']} ({event['why']}): waited {event['waited']:.0%} of the"
            f" time; steps take {event['seconds']:.2f} times as long now, loss {event['loss']:.4f}"
        )

    def _on_overflow(self, event: Event) -> None:
        self.report.say(
            f"step {event['step']}: fp16 overflowed, left out; scale of the loss now {event['loss_scale']:g}"
        )
