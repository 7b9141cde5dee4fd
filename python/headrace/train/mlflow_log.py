"""What a spool holds, sent to MLflow: the only import of mlflow.

Every entry may come twice (see headrace.train.spool): MLflow ignores an equal metric or parameter, a file is written
over, and the run is found by a tag that holds our id.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.config import secret
from headrace.train.spool import ENTRIES, Entry, Spool
from headrace.train.tracking import RUN_TAG, version_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_METRICS_A_REQUEST, _PARAMS_A_REQUEST = 1000, 100


def send(spool: Spool) -> int:
    """Send what a spool holds, in order; gives the number of entries sent. Raises what the store's client raises."""
    sent = 0
    with spool.sender() as mine:
        entries = list(spool.pending()) if mine else []
        if not entries:
            return 0
        store = _Store(spool.mark()["run"], _first(spool))
        for group in _grouped(entries):
            store.take([entry.value for entry in group])
            spool.set_mark(group[-1].end, store.run)
            sent += len(group)
    return sent


def _first(spool: Spool) -> dict[str, Any]:
    """The entry that began the run: it names the store, also when it was sent long ago."""
    with (spool.directory / ENTRIES).open("rb") as file:
        first: dict[str, Any] = json.loads(file.readline())
    return first


def _grouped(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Runs of metrics together, as many as a request takes; everything else alone."""
    groups: list[list[Entry]] = []
    room = 0
    for entry in entries:
        count = len(entry.value.get("values", ())) if entry.value["op"] == "metrics" else _METRICS_A_REQUEST + 1
        if count > room:
            groups.append([])
            room = _METRICS_A_REQUEST
        groups[-1].append(entry)
        room -= count
    return groups


class _Store:
    """MLflow itself, for one run."""

    def __init__(self, run: str | None, first: Mapping[str, Any]) -> None:
        for name, value in _LIMITS.items():
            os.environ.setdefault(name, value)
        _quiet()
        from mlflow import MlflowClient

        self.uri, self.run = secret(str(first["uri"])), run
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self._client: MlflowClient = MlflowClient(tracking_uri=self.uri)
        if run is None:
            self.run = self._begin(first)

    def take(self, entries: Sequence[dict[str, Any]]) -> None:
        """Send one group of entries of one kind."""
        entry, run = entries[0], str(self.run)
        if entry["op"] == "start":
            self._describe(entry, run)
        elif entry["op"] == "metrics":
            self._metrics(entries, run)
        elif entry["op"] == "artifact" and os.path.exists(entry["path"]):
            self._client.log_artifact(run, entry["path"], entry["folder"] or None)
        elif entry["op"] == "model" and os.path.isdir(entry["path"]):
            self._model(entry, run)
        elif entry["op"] == "finish":
            self._client.set_terminated(run, entry["status"], entry["time"])

    def _begin(self, entry: Mapping[str, Any]) -> str:
        """The run of this id: the one that is there (a resume, or a mark that was lost), or a new one."""
        name = entry["experiment"]
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name, entry["artifacts"])
        wanted = str(entry["tags"][RUN_TAG]).replace("'", "")
        found = self._client.search_runs([number], f"tags.`{RUN_TAG}` = '{wanted}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags = {RUN_TAG: wanted}
        made = self._client.create_run(number, entry["time"], tags, run_name=entry["run_name"])
        return str(made.info.run_id)

    def _describe(self, entry: Mapping[str, Any], run: str) -> None:
        from mlflow.entities import Param, RunTag

        tags = [RunTag(name, value) for name, value in entry["tags"].items()]
        known = self._client.get_run(run).data.params  # a resumed run keeps the parameters it began with
        params = [Param(name, value) for name, value in entry["params"].items() if name not in known]
        self._client.log_batch(run, tags=tags)
        for start in range(0, len(params), _PARAMS_A_REQUEST):
            self._client.log_batch(run, params=params[start : start + _PARAMS_A_REQUEST])
        self._client.log_inputs(run, [_dataset(part, table) for part, table in entry["tables"].items()])
        self._client.update_run(run, status="RUNNING")

    def _metrics(self, entries: Sequence[dict[str, Any]], run: str) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, entry["time"], entry["step"])
            for entry in entries
            for name, value in entry["values"].items()
        ]
        self._client.log_batch(run, metrics=metrics)

    def _model(self, entry: Mapping[str, Any], run: str) -> None:
        """log_model works on MLflow's own globals: they are set for this call and put back."""
        import mlflow
        import mlflow.pyfunc

        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(self.uri)
        try:
            with mlflow.start_run(run_id=run):
                log_pyfunc(Path(entry["path"]), entry["registered"] or None)
        finally:
            mlflow.set_tracking_uri(before)


def log_pyfunc(folder: Path, registered_model: str | None = None) -> None:
    """Log the model in `folder` to the active run. A loader module, not a pickle: loading it executes nothing."""
    import mlflow.pyfunc

    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    kept = ("vocabulary_version", "bronze_version", "table", "run_id", "headrace")
    mlflow.pyfunc.log_model(
        name="model",
        loader_module="headrace.train.pyfunc",
        data_path=str(folder),
        signature=signature(about),
        pip_requirements=[f"{name}=={version_of(name)}" for name in ("headrace", "torch", "numpy", "safetensors")],
        metadata={name: about.get(name) for name in kept},
        registered_model_name=registered_model,
    )


def signature(about: Mapping[str, Any]) -> Any:
    """Raw columns in (whole numbers or text, missing allowed), probability out."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    columns = [f"i{i}" for i in range(1, int(about["model"]["num_dense"]) + 1)] + list(about["model"]["cardinalities"])
    inputs = Schema([ColSpec(AnyType(), name, required=False) for name in columns])
    return ModelSignature(inputs=inputs, outputs=Schema([ColSpec("double", "probability")]))


def _dataset(part: str, table: Mapping[str, Any]) -> Any:
    """The Delta version a run read. (from_spark and load_delta lose version 0 and need a session; this does not.)

    The part is in the name: MLflow keeps one of two inputs that are equal in name and source.
    """
    from mlflow.data.delta_dataset_source import DeltaDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    source = DeltaDatasetSource(path=table["path"], delta_table_version=table["version"])
    made = MetaDataset(source, name=f"{table['name']}@{table['version']} {part}")  # type: ignore[abstract]
    return DatasetInput(dataset=made._to_mlflow_entity(), tags=[InputTag("mlflow.data.context", part)])


def _quiet() -> None:
    """MLflow tells of every migration of a new store, and warns of what is on purpose: none of it is for the user."""
    import logging
    import warnings

    import mlflow  # noqa: F401  (importing it sets the levels of its own loggers: ours must come after)

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"mlflow\b")
