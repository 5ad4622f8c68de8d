"""The Python client: typed objects in and out, digests always verified, downloads that resume, errors as classes.

client = Client()                                  # address and key from the environment or the configuration file
checkpoint = client.checkpoints.create("resnet20.pth")
dataset = client.datasets.create("builtin:digits")
job = client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id)
job = client.jobs.wait(job.id)
client.jobs.download(job.id, "averaged.safetensors")
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx
from pydantic import BaseModel

from wbar import __version__, config
from wbar.checkpoints import Checkpoint
from wbar.datasets import Dataset
from wbar.errors import REFUSED, REJECTED, Refused, Rejected, Unreachable
from wbar.jobs import Event, Job, MetricsPoint, Snapshot
from wbar.lists import Page
from wbar.states import TERMINAL
from wbar.transfers import Step, as_archive, chunks, download, upload_headers

Model = TypeVar("Model", bound=BaseModel)


class Client:
    """A connection to one service. Use as a context manager, or call `close`.

    url, api_key: default to WBAR_URL and WBAR_API_KEY, then to the configuration file. timeout: seconds for one answer.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None, timeout: float = 60.0) -> None:
        known = config.current()
        self.url = (url or known.url or config.DEFAULT_URL).rstrip("/")
        key = api_key or known.api_key
        headers = {"User-Agent": f"wbar/{__version__}"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # trust_env off: a proxy from the environment must not see keys and weights bound for a private address.
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)
        self.checkpoints = Checkpoints(self)
        self.datasets = Datasets(self)
        self.jobs = Jobs(self)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request. Raises Unreachable, or the class of wbar.errors that the problem's code names."""
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        raise_for_problem(response)
        return response

    @contextmanager
    def stream(self, path: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """A GET whose body is read as it comes; the same errors as `request`, also while it is read."""
        try:
            with self._http.stream("GET", path, headers=headers) as response:
                raise_for_problem(response)
                yield response
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"no answer from {self.url} ({error}): is `wbar up` running, or WBAR_URL set?")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def raise_for_problem(response: httpx.Response) -> None:
    """Raise the class that the problem's code names, with its detail."""
    if response.status_code < 400:
        return
    response.read()
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    detail = problem.get("detail") or f"HTTP {response.status_code} from {response.url}"
    kind = REFUSED.get(problem.get("code", ""), Refused)
    raise kind(detail, problem.get("errors"))


class _Resource:
    def __init__(self, client: Client) -> None:
        self._client = client

    def _get(self, path: str, model: type[Model], **params: Any) -> Model:
        given = {name: value for name, value in params.items() if value is not None}
        return model.model_validate(self._client.request("GET", path, params=given).json())

    def _wait_ready(self, get: Callable[[], Any], timeout: float, poll: float) -> Any:
        deadline = time.monotonic() + timeout
        while True:
            found = get()
            if found.status == "ready":
                return found
            if found.status == "rejected":
                raise REJECTED.get(found.error.code, Rejected)(found.error.message)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{found.id} is still {found.status} after {timeout:g} s")
            time.sleep(poll)


class Checkpoints(_Resource):
    def create(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        architecture: str | None = None,
        num_classes: int | None = None,
        wait: bool = True,
        timeout: float = 600.0,
        step: Step | None = None,
        idempotency_key: str | None = None,
    ) -> Checkpoint:
        """Upload a safetensors or PyTorch file and, unless `wait` is false, wait until it is ready.

        The file's sha-256 is sent along and checked there. Raises the class of wbar.errors.Rejected that says why.
        """
        path = Path(path)
        params = {"name": name or path.name, "architecture": architecture, "num_classes": num_classes}
        response = self._client.request(
            "POST",
            "/v1/checkpoints",
            params={key: value for key, value in params.items() if value is not None},
            content=chunks(path, step),
            headers=upload_headers(path, idempotency_key),
        )
        created = Checkpoint.model_validate(response.json())
        if not wait:
            return created
        ready: Checkpoint = self._wait_ready(lambda: self.get(created.id), timeout, 0.1)
        return ready

    def get(self, checkpoint_id: str) -> Checkpoint:
        return self._get(f"/v1/checkpoints/{checkpoint_id}", Checkpoint)

    def list(self, limit: int = 20, after: str | None = None, order: str | None = None) -> Page[Checkpoint]:
        return self._get("/v1/checkpoints", Page[Checkpoint], limit=limit, after=after, order=order)

    def delete(self, checkpoint_id: str) -> None:
        self._client.request("DELETE", f"/v1/checkpoints/{checkpoint_id}")

    def download(self, checkpoint_id: str, path: str | os.PathLike[str], step: Step | None = None) -> Path:
        """The bytes as uploaded; see Jobs.download."""
        return download(self._client, f"/v1/checkpoints/{checkpoint_id}/content", Path(path), step)


class Datasets(_Resource):
    def create(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        task: Literal["classification", "multilabel"] = "classification",
        max_train_images: int | None = None,
        wait: bool = True,
        timeout: float = 3600.0,
        step: Step | None = None,
        idempotency_key: str | None = None,
    ) -> Dataset:
        """A built-in set (`builtin:digits`), a location the operator allows (`file://…`, `s3://…`), or the path of an
        archive or of a folder with `train/<class>/` images; with task `multilabel`, of `train/` images and `labels.csv`."""
        if isinstance(source, str) and source.startswith(("builtin:", "file://", "s3://")):
            body = {"source": source} | ({"max_train_images": max_train_images} if max_train_images else {})
            headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
            params = {"task": task} | ({"name": name} if name else {})
            response = self._client.request("POST", "/v1/datasets", params=params, json=body, headers=headers)
        else:
            with as_archive(Path(source)) as path:
                response = self._client.request(
                    "POST",
                    "/v1/datasets",
                    params={"name": name or Path(source).name, "task": task},
                    content=chunks(path, step),
                    headers=upload_headers(path, idempotency_key),
                )
        created = Dataset.model_validate(response.json())
        if not wait:
            return created
        ready: Dataset = self._wait_ready(lambda: self.get(created.id), timeout, 0.1)
        return ready

    def get(self, dataset_id: str) -> Dataset:
        return self._get(f"/v1/datasets/{dataset_id}", Dataset)

    def list(self, limit: int = 20, after: str | None = None, order: str | None = None) -> Page[Dataset]:
        return self._get("/v1/datasets", Page[Dataset], limit=limit, after=after, order=order)

    def delete(self, dataset_id: str) -> None:
        self._client.request("DELETE", f"/v1/datasets/{dataset_id}")


class Jobs(_Resource):
    def create(self, *, checkpoint: str, dataset: str, idempotency_key: str | None = None, **fields: Any) -> Job:
        """Create a job; `fields` are those of wbar.jobs.JobRequest (name, method, recipe, seed, classes, dry_run …)."""
        body = {"checkpoint": checkpoint, "dataset": dataset, **fields}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return Job.model_validate(self._client.request("POST", "/v1/jobs", json=body, headers=headers).json())

    def get(self, job_id: str) -> Job:
        return self._get(f"/v1/jobs/{job_id}", Job)

    def list(
        self,
        limit: int = 20,
        after: str | None = None,
        order: str | None = None,
        status: str | None = None,
        checkpoint: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> Page[Job]:
        tags = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
        return self._get(
            "/v1/jobs", Page[Job], limit=limit, after=after, order=order, status=status, checkpoint=checkpoint, **tags
        )

    def cancel(self, job_id: str) -> Job:
        return self._act(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        return self._act(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        return self._act(job_id, "resume")

    def _act(self, job_id: str, action: str) -> Job:
        return Job.model_validate(self._client.request("POST", f"/v1/jobs/{job_id}/{action}").json())

    def delete(self, job_id: str) -> None:
        self._client.request("DELETE", f"/v1/jobs/{job_id}")

    def wait(self, job_id: str, timeout: float | None = None, poll: float = 0.5) -> Job:
        """Poll until the job has ended, however it did. Raises TimeoutError after `timeout` seconds, if given."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            job = self.get(job_id)
            if job.status in TERMINAL:
                return job
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{job_id} is still {job.status} after {timeout:g} s")
            time.sleep(poll)

    def events(self, job_id: str, after: str | None = None, patience: float = 60.0) -> Iterator[Event]:
        """Follow the job's log until its terminal status; a lost connection is taken up again without loss or repeats.

        patience: seconds to keep trying while the service does not answer, then Unreachable.
        """
        last, silent_since = after, time.monotonic()
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
            try:
                for event in self._stream(job_id, headers):
                    silent_since = time.monotonic()
                    if event is None:
                        continue  # connected, or a keep-alive
                    yield event
                    last = event.id
                    if event.type == "status" and event.data["status"] in TERMINAL:
                        return
                return
            except Unreachable:
                if time.monotonic() - silent_since > patience:
                    raise
                time.sleep(0.5)

    def _stream(self, job_id: str, headers: dict[str, str]) -> Iterator[Event | None]:
        with self._client.stream(f"/v1/jobs/{job_id}/events", headers) as response:
            yield None
            for line in response.iter_lines():
                # Every event is one `data:` line; comments are keep-alives.
                yield Event.model_validate(json.loads(line[5:])) if line.startswith("data:") else None

    def event_list(self, job_id: str, limit: int = 100, after: str | None = None, order: str = "asc") -> Page[Event]:
        return self._get(f"/v1/jobs/{job_id}/events", Page[Event], limit=limit, after=after, order=order)

    def metrics(self, job_id: str) -> Sequence[MetricsPoint]:
        found = self._client.request("GET", f"/v1/jobs/{job_id}/metrics").json()
        return [MetricsPoint.model_validate(point) for point in found["data"]]

    def snapshots(self, job_id: str) -> Sequence[Snapshot]:
        """All snapshots, in the order of n."""
        found = [*()]
        after: str | None = None
        while True:
            page = self._get(f"/v1/jobs/{job_id}/snapshots", Page[Snapshot], limit=100, after=after)
            found += page.data
            if not page.has_more:
                return found
            after = page.last_id

    def download(
        self,
        job_id: str,
        path: str | os.PathLike[str],
        format: Literal["safetensors", "pytorch"] = "safetensors",
        step: Step | None = None,
    ) -> Path:
        """w̄ to `path`. An interrupted download goes on where it stopped; the digest is verified before the file appears."""
        return download(self._client, f"/v1/jobs/{job_id}/weights?format={format}", Path(path), step)

    def download_snapshot(self, job_id: str, n: int, path: str | os.PathLike[str], step: Step | None = None) -> Path:
        """w_n to `path`; see download."""
        return download(self._client, f"/v1/jobs/{job_id}/snapshots/{n}/weights", Path(path), step)
