"""Runs in a tracking store, without waiting for it.

Everything goes to a spool beside the run first (headrace.train.spool). A thread of the driver sends it on; what the
store could not take in time is sent later by `headrace sync-runs` (or with the next run of the lake). The store
being down, locked or slow costs training nothing.

The default store is LAKE/mlflow/mlflow.db (SQLite) with LAKE/mlflow/artifacts; `tracking.uri` names a server instead.
"""

from __future__ import annotations

import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata as package
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.catalog.pinned import PinnedTable
from headrace.errors import UserError
from headrace.train.spool import ENTRIES, Spool

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_TAG = "headrace.run_id"
_LONGEST_PARAM = 500
_EVERY_S, _LONGEST_WAIT_S = 5.0, 60.0


@dataclass(kw_only=True)
class TrackingConfig:
    """Where the run is recorded besides its own directory.

    Args:
        enabled: false records in the run's directory only.
        uri: MLflow tracking URI, or secret:scope/key where it holds a password; default: a SQLite file in the lake.
        experiment: name of the experiment.
        run_name: name of the run; default: its id.
        registered_model: register the model under this name as well.
        flush_s: how long the end of a run may wait for the store, in seconds.
    """

    enabled: bool = True
    uri: str = ""
    experiment: str = "headrace-ctr"
    run_name: str = ""
    registered_model: str = ""
    flush_s: float = 60.0


class Tracker:
    """One run's way to MLflow; made on the driver.

    Args:
        cfg: see TrackingConfig.
        lake: holds the default store.
        directory: of the run, named after its id; the spool lies there.
        warn: told once if the spool itself cannot be written.
    """

    def __init__(self, cfg: TrackingConfig, lake: str | Path, directory: Path, warn: Callable[[str], None]) -> None:
        self.cfg, self.directory, self._warn = cfg, directory.absolute(), warn
        self.uri = store_uri(cfg, lake)
        self._artifacts = None if cfg.uri else (Path(lake).absolute() / "mlflow" / "artifacts").as_uri()
        self._spool = Spool(self.directory)
        self._sender = _Sender(self._spool) if cfg.enabled else None
        self._failed = False

    def start(
        self,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        tables: Mapping[str, PinnedTable],
        run_name: str = "",
    ) -> str:
        """Begin the run, or go on with it after a resume.

        Args:
            params: the resolved configuration, nested or flat.
            tags: versions and whatever runs are to be found by.
            tables: pinned tables by their part in the run ("train", "validation", "test").
            run_name: default: the run's id.

        Returns:
            The run's id: the name of its directory.
        """
        own = {f"table.{part}": str(table) for part, table in tables.items()}
        self._keep(
            op="start",
            uri=self.uri,
            artifacts=self._artifacts,
            experiment=self.cfg.experiment,
            run_name=run_name or self.cfg.run_name or self.directory.name,
            params=flat(params),
            tags={**versions(), **own, **tags, RUN_TAG: self.directory.name},
            tables={part: {"path": t.path, "version": t.version, "name": t.spec.name} for part, t in tables.items()},
        )
        if self._sender is not None:
            self._sender.start()
        return self.directory.name

    def event(self, event: Mapping[str, Any]) -> None:
        """Keep the numbers of an event of training as metrics of its step."""
        values = metrics_of(event)
        if values:
            self._keep(op="metrics", step=int(event.get("step", event.get("epoch", 0))), values=values)

    def figure(self, name: str, figure: Figure) -> Path:
        """Save a picture as figures/NAME.png beside the run, and send it."""
        path = self.directory / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=120)
        self.artifact(path, "figures")
        return path

    def artifact(self, path: Path, folder: str = "") -> None:
        """Send a file of the run; it must stay where it is until it was sent."""
        self._keep(op="artifact", path=str(path.absolute()), folder=folder)

    def model(self, folder: Path) -> None:
        """Send the model in `folder` (named model, see train.export) as a pyfunc: raw row in, probability out."""
        self._keep(op="model", path=str(folder.absolute()), registered=self.cfg.registered_model)

    def finish(self, status: str = "FINISHED") -> dict[str, Any]:
        """End the run: FINISHED, FAILED or KILLED. Waits `flush_s` for the store, not longer.

        Returns:
            {"run_id", "mlflow_run_id" (None where the store does not know the run yet), "pending" (entries not sent),
            "error" (why), "ui" (what to type to look at the run), "later" (what to type to send the rest)}.
        """
        self._keep(op="finish", status=status)
        error = self._sender.stop(self.cfg.flush_s) if self._sender is not None else "tracking is switched off"
        pending = sum(1 for _ in self._spool.pending())
        lake = self.directory.parent.parent
        return {
            "run_id": self.directory.name,
            "mlflow_run_id": self._spool.mark()["run"],
            "pending": pending,
            "error": error if pending else "",
            "ui": ui_line(self.uri),
            "later": f"headrace sync-runs --lake {shlex.quote(str(lake))}" if pending and self.cfg.enabled else "",
        }

    def _keep(self, **entry: Any) -> None:
        try:
            self._spool.append({**entry, "time": int(time.time() * 1000)})
        except OSError as error:
            if not self._failed:
                self._warn(f"the run is no longer recorded in {self.directory / ENTRIES}: {error}")
            self._failed = True


class _Sender:
    """The thread that empties a spool. A daemon: a store that hangs cannot keep the process from ending."""

    def __init__(self, spool: Spool) -> None:
        self._spool, self._ending = spool, threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow-sender", daemon=True)
        self._error = ""

    def start(self) -> None:
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self, seconds: float) -> str:
        """Send what is left, for so long at most; gives the last error."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return self._error or ("the store did not answer in time" if self._thread.is_alive() else "")

    def _run(self) -> None:
        wait = _EVERY_S
        while True:
            last = self._ending.is_set()
            try:
                from headrace.train.mlflow_log import send

                send(self._spool)
                self._error, wait = "", _EVERY_S
            except Exception as error:  # whatever the store's client raises: training goes on, the spool keeps
                self._error, wait = f"{type(error).__name__}: {str(error)[:300]}", min(2 * wait, _LONGEST_WAIT_S)
            if last:
                return
            self._ending.wait(wait)


def sync(lake: str | Path) -> tuple[int, int, dict[str, str]]:
    """Send what the runs of a lake have kept back.

    Returns:
        Runs that had something, entries sent, and by run id why sending failed.
    """
    from headrace.train.mlflow_log import send

    runs, sent, failures = 0, 0, {}
    for path in sorted(Path(lake).glob(f"runs/*/{ENTRIES}")):
        spool = Spool(path.parent.absolute())
        if not any(True for _ in spool.pending()):
            continue
        runs += 1
        try:
            sent += send(spool)
        except Exception as error:  # one store of several may be down
            failures[path.parent.name] = f"{type(error).__name__}: {str(error)[:300]}"
    return runs, sent, failures


def store_uri(cfg: TrackingConfig, lake: str | Path) -> str:
    """The tracking URI: the setting, or the SQLite file of the lake."""
    if cfg.uri:
        return cfg.uri
    if "://" in str(lake):
        raise UserError(f"a SQLite store cannot lie in {lake}", "set tracking.uri, or tracking.enabled=false")
    return f"sqlite:///{Path(lake).absolute() / 'mlflow' / 'mlflow.db'}"


def ui_line(uri: str) -> str:
    """What to type to look at the runs."""
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}" if uri.startswith("sqlite") else f"open {uri}"


def versions() -> dict[str, str]:
    """Versions of what ran, and the commit where the package lies in a git checkout."""
    names = ("torch", "pyspark", "horovod", "petastorm", "numpy", "pyarrow")
    found = {"headrace.version": version_of("headrace")} | {f"version.{name}": version_of(name) for name in names}
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return found
    return found | ({"mlflow.source.git.commit": answer.stdout.strip()} if answer.returncode == 0 else {})


def flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b.c` -> text, cut to what MLflow takes."""
    found: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = str(value)[:_LONGEST_PARAM]
    return found


def metrics_of(event: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an event by metric name: `validation/auc`, `train/loss`, `epoch/dropped`."""
    kind = event.get("type")
    if kind == "eval":
        return _numbers(event["metrics"], str(event["split"]))
    if kind == "step":
        return _numbers(event, "train")
    if kind in ("epoch", "bound", "exchange", "tune", "costs"):
        return _numbers(event, kind)
    return {}


def _numbers(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    skipped = {"step", "time", "rank", "epoch"}
    return {
        f"{prefix}/{name}": float(value)
        for name, value in values.items()
        if name not in skipped and isinstance(value, int | float) and not isinstance(value, bool)
    }


def version_of(name: str) -> str:
    try:
        return package.version(name)
    except package.PackageNotFoundError:
        return "not installed"
