"""A job as an MLflow run: what was asked for as parameters, its series as metrics, its files as artifacts and a model.

A job has one run, found again by the tag `wbar.job`: whatever the run has already is not written twice. Only this process
talks to MLflow; the service and the job know nothing of it.
"""

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from wbar.client import Client
from wbar.errors import FilesExpired, NotFound
from wbar.exports.series import Place, Sample, seconds_of
from wbar.jobs import Job
from wbar.states import JobStatus

METRICS, PARAMETERS = 1000, 100  # of one request, as MLflow limits them
LONGEST = 6000  # characters of a parameter
MODEL, WEIGHTS = "model", "averaged.safetensors"
LOADER = "wbar_training.mlflow_model"  # where the model is loaded, of `wbar[worker]`
STATES: Mapping[JobStatus, str] = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


class RunOfJob:
    """The run of one job on an MLflow server. Raises mlflow.exceptions.MlflowException where the server refuses."""

    def __init__(self, job: Job, tracking_uri: str | None, experiment: str) -> None:
        assert job.id is not None
        self._mlflow, self._job_id = MlflowClient(tracking_uri=tracking_uri), job.id
        self._experiment = self._experiment_id(experiment)
        run = self._found() or self._created(job)
        self.id: str = run.info.run_id
        self._params = set(run.data.params)
        self._metrics = set(self._history(run))

    def _experiment_id(self, name: str) -> str:
        found = self._mlflow.get_experiment_by_name(name)
        return found.experiment_id if found is not None else self._mlflow.create_experiment(name)

    def _found(self) -> Run | None:
        runs = self._mlflow.search_runs([self._experiment], f"tags.`wbar.job` = '{self._job_id}'", max_results=1)
        return runs[0] if runs else None

    def _created(self, job: Job) -> Run:
        began = job.started_at or job.created_at
        tags = {"wbar.job": self._job_id, **{f"wbar.metadata.{key}": value for key, value in job.metadata.items()}}
        return self._mlflow.create_run(
            self._experiment,
            start_time=_milliseconds(seconds_of(began)) if began else None,
            tags=tags,
            run_name=job.name or self._job_id,
        )

    def _history(self, run: Run) -> Iterator[Place]:
        for key in run.data.metrics:
            yield from ((key, metric.step) for metric in self._mlflow.get_metric_history(run.info.run_id, key))

    def write(self, job: Job, samples: Iterable[Sample]) -> int:
        """Write the parameters and samples that the run lacks, and return the number of samples.

        MLflow keeps what it was told: where a job has started over, the first value of a step stays.
        """
        asked = {key: value for key, value in parameters(job).items() if key not in self._params}
        for part in _parts([Param(key, value) for key, value in asked.items()], PARAMETERS):
            self._mlflow.log_batch(self.id, params=part)
        missing = [one for one in samples if one.place not in self._metrics]
        metrics = [Metric(one.tag, one.value, _milliseconds(one.at), one.step) for one in missing]
        for part in _parts(metrics, METRICS):
            self._mlflow.log_batch(self.id, metrics=part)
        self._params |= set(asked)
        self._metrics |= {one.place for one in missing}
        return len(missing)

    def end(self, client: Client, job: Job) -> bool:
        """Write the files and the model of an ended job, and end the run as the job ended; return whether it has a model."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "job.json").write_text(job.model_dump_json(indent=2))
            if job.result is not None:
                self._fetch(client, folder)
            self._mlflow.log_artifacts(self.id, str(folder))
            has_model = (folder / MODEL / "MLmodel").exists()
        self._mlflow.set_tag(self.id, "wbar.verdict", job.result.verdict if job.result else job.status)
        ended = seconds_of(job.finished_at) if job.finished_at else time.time()
        self._mlflow.set_terminated(self.id, STATES[job.status], _milliseconds(ended))
        return has_model

    def _fetch(self, client: Client, folder: Path) -> None:
        model = folder / MODEL
        try:
            client.jobs.download(self._job_id, model / WEIGHTS)
            client.jobs.download_report(self._job_id, folder / "report.html")
        except (FilesExpired, NotFound):
            if not (model / WEIGHTS).exists():  # deleted, as the job was told to; a report may be missing by itself
                return
        made = Model(artifact_path=MODEL, run_id=self.id)
        made.add_flavor("python_function", loader_module=LOADER, data=WEIGHTS)
        made.add_flavor(
            "wbar", weights=WEIGHTS
        )  # whose header says the rest: architecture, classes, size, normalization
        made.save(str(model / "MLmodel"))
        (model / "requirements.txt").write_text("mlflow\nwbar[worker]\n")

    def register(self, name: str) -> str:
        """Register the run's model as a new version of `name`, unless it is one already; return the version."""
        try:
            self._mlflow.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for known in self._mlflow.search_model_versions(f"run_id = '{self.id}'"):
            if known.name == name:
                return str(known.version)
        source = f"runs:/{self.id}/{MODEL}"
        return str(self._mlflow.create_model_version(name, source, self.id).version)


def parameters(job: Job) -> dict[str, str]:
    """Return what was asked for, and what it was resolved to, as parameters with dotted names.

    The normalization of a job that was to find it is a parameter once it has been found.
    """
    fields = job.model_dump(mode="json", include={"checkpoint", "dataset", "seed", "method", "recipe"})
    if job.result is None:
        fields["recipe"].pop("normalize", None)
    return {key: str(value)[:LONGEST] for key, value in _flat("", fields)}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, inner)
    elif value is not None:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
