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
from wbar.keys import ApiKey, Scope
from wbar.lists import Page
from wbar.states import TERMINAL
from wbar.transfers import Step, as_archive, chunks, download, upload_headers

Model = TypeVar("Model", bound=BaseModel)


class Client:
    """A connection to one service. Use it as a context manager, or call `close`.

    url: default: WBAR_URL, then the configuration file.
    api_key: default: WBAR_API_KEY, then the configuration file.
    timeout: seconds to wait for one answer.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None, timeout: float = 60.0) -> None:
        configured = config.current()
        self.url = (url or configured.url or config.DEFAULT_URL).rstrip("/")
        key = api_key or configured.api_key
        headers = {"User-Agent": f"wbar/{__version__}"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # trust_env off: a proxy from the environment must not see keys and weights bound for a private address.
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)
        self.checkpoints = Checkpoints(self)
        self.datasets = Datasets(self)
        self.jobs = Jobs(self)
        self.keys = Keys(self)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request and return the response.

        Raises Unreachable, or the class of wbar.errors that the problem's code names.
        """
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        raise_for_problem(response)
        return response

    @contextmanager
    def stream(self, path: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """Send a GET and yield the response, whose body is read as it comes.

        Raises as `request`, also while the body is read.
        """
        try:
            with self._http.stream("GET", path, headers=headers) as response:
                raise_for_problem(response)
                if response.next_request is None:
                    yield response
                    return
            with self._elsewhere(response, headers) as moved:
                yield moved
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    @contextmanager
    def _elsewhere(self, redirect: httpx.Response, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """Yield the answer of the bucket that the service sends a download on to; its history holds the redirect.

        The bucket gets no key, and no `If-Range`, since its tags are others: a range is asked for where the service's tag says
        that the content is still the same.
        """
        assert redirect.next_request is not None
        same = "Range" in headers and headers.get("If-Range", redirect.headers["etag"]) == redirect.headers["etag"]
        wanted = {"Range": headers["Range"]} if same else {}
        url, timeout = redirect.next_request.url, self._http.timeout
        with httpx.stream("GET", url, headers=wanted, timeout=timeout, trust_env=False) as response:
            if response.status_code >= 400:
                raise Refused(
                    f"HTTP {response.status_code} from {url.host}, where the service sent this download on to"
                )
            response.history = [redirect]
            yield response

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"no answer from {self.url} ({error}): is `wbar up` running, or WBAR_URL set?")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def raise_for_problem(response: httpx.Response) -> None:
    """Raise the class that the code of a problem response names, with its detail; return on success."""
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
            uploaded = get()
            if uploaded.status == "ready":
                return uploaded
            if uploaded.status == "rejected":
                raise REJECTED.get(uploaded.error.code, Rejected)(uploaded.error.message)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{uploaded.id} is still {uploaded.status} after {timeout:g} s")
            time.sleep(poll)


class Checkpoints(_Resource):
    """Uploads, lists, downloads and deletes checkpoints."""

    def create(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        architecture: str | None = None,
        num_classes: int | None = None,
        expires_after: int | None = None,
        wait: bool = True,
        timeout: float = 600.0,
        step: Step | None = None,
        idempotency_key: str | None = None,
    ) -> Checkpoint:
        """Upload a safetensors or PyTorch file and, unless `wait` is false, wait until it is ready.

        expires_after: seconds until the service deletes it, or once no job needs it any more.

        The file's sha-256 is sent along and checked by the service. Raises the class of wbar.errors.Rejected that says
        why the file was rejected, and TimeoutError after `timeout` seconds.
        """
        path = Path(path)
        params = {
            "name": name or path.name,
            "architecture": architecture,
            "num_classes": num_classes,
            "expires_after": expires_after,
        }
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
        """Return one checkpoint. Raises NotFound."""
        return self._get(f"/v1/checkpoints/{checkpoint_id}", Checkpoint)

    def list(self, limit: int = 20, after: str | None = None, order: str | None = None) -> Page[Checkpoint]:
        """Return one page of checkpoints, newest first unless `order` is `asc`."""
        return self._get("/v1/checkpoints", Page[Checkpoint], limit=limit, after=after, order=order)

    def delete(self, checkpoint_id: str) -> None:
        """Delete a checkpoint. Raises InUse while a job that has not ended needs it."""
        self._client.request("DELETE", f"/v1/checkpoints/{checkpoint_id}")

    def download(self, checkpoint_id: str, path: str | os.PathLike[str], step: Step | None = None) -> Path:
        """Download the bytes as they were uploaded; see Jobs.download."""
        return download(self._client, f"/v1/checkpoints/{checkpoint_id}/content", Path(path), step)


class Datasets(_Resource):
    """Creates, lists and deletes datasets."""

    def create(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        task: Literal["classification", "multilabel"] = "classification",
        max_train_images: int | None = None,
        expires_after: int | None = None,
        wait: bool = True,
        timeout: float = 3600.0,
        step: Step | None = None,
        idempotency_key: str | None = None,
    ) -> Dataset:
        """Create a dataset and, unless `wait` is false, wait until it is ready.

        source: a built-in set (`builtin:digits`), a location that the operator allows (`file://…`, `s3://…`), or the
            path of an archive or of a folder with `train/<class>/` images; with task `multilabel`, with `train/` images
            and `labels.csv`.
        max_train_images: of a source by name: keep this many training images.
        expires_after: seconds until the service deletes it, or once no job needs it any more.

        Raises the class of wbar.errors.Rejected that says why the dataset was rejected, and TimeoutError after
        `timeout` seconds.
        """
        common = {"task": task} | ({"expires_after": str(expires_after)} if expires_after else {})
        if isinstance(source, str) and source.startswith(("builtin:", "file://", "s3://")):
            body = {"source": source} | ({"max_train_images": max_train_images} if max_train_images else {})
            headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
            params = {**common, "name": name} if name else common
            response = self._client.request("POST", "/v1/datasets", params=params, json=body, headers=headers)
        else:
            with as_archive(Path(source)) as path:
                response = self._client.request(
                    "POST",
                    "/v1/datasets",
                    params={"name": name or Path(source).name, **common},
                    content=chunks(path, step),
                    headers=upload_headers(path, idempotency_key),
                )
        created = Dataset.model_validate(response.json())
        if not wait:
            return created
        ready: Dataset = self._wait_ready(lambda: self.get(created.id), timeout, 0.1)
        return ready

    def get(self, dataset_id: str) -> Dataset:
        """Return one dataset. Raises NotFound."""
        return self._get(f"/v1/datasets/{dataset_id}", Dataset)

    def list(self, limit: int = 20, after: str | None = None, order: str | None = None) -> Page[Dataset]:
        """Return one page of datasets, newest first unless `order` is `asc`."""
        return self._get("/v1/datasets", Page[Dataset], limit=limit, after=after, order=order)

    def delete(self, dataset_id: str) -> None:
        """Delete a dataset. Raises InUse while a job that has not ended needs it."""
        self._client.request("DELETE", f"/v1/datasets/{dataset_id}")


class Jobs(_Resource):
    """Creates, follows, controls and deletes jobs, and downloads their weights."""

    def create(self, *, checkpoint: str, dataset: str, idempotency_key: str | None = None, **fields: Any) -> Job:
        """Create a job; `fields` are those of wbar.jobs.JobRequest (name, method, recipe, seed, classes, dry_run …)."""
        body = {"checkpoint": checkpoint, "dataset": dataset, **fields}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return Job.model_validate(self._client.request("POST", "/v1/jobs", json=body, headers=headers).json())

    def get(self, job_id: str) -> Job:
        """Return one job. Raises NotFound."""
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
        """Return one page of jobs, newest first unless `order` is `asc`; status, checkpoint, metadata: keep only these."""
        tags = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
        return self._get(
            "/v1/jobs", Page[Job], limit=limit, after=after, order=order, status=status, checkpoint=checkpoint, **tags
        )

    def cancel(self, job_id: str) -> Job:
        """End a job now; its snapshots stay. Raises InvalidTransition once it has ended otherwise."""
        return self._act(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        """Ask a running job to stop at its next step, exactly resumable. Raises InvalidTransition for another job."""
        return self._act(job_id, "pause")

    def clone(self, job_id: str, *, idempotency_key: str | None = None, **changes: Any) -> Job:
        """Create a job like another one. changes: what differs, as in `create`; inner objects are merged, None removes."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        response = self._client.request("POST", f"/v1/jobs/{job_id}/clone", json=changes, headers=headers)
        return Job.model_validate(response.json())

    def finish(self, job_id: str) -> Job:
        """Ask a running job to end its training at its next step, and to deliver the average of what it visited so far.

        Raises InvalidTransition for a job that does not run or has no snapshot yet.
        """
        return self._act(job_id, "finish")

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again. Raises InvalidTransition for another job."""
        return self._act(job_id, "resume")

    def _act(self, job_id: str, action: str) -> Job:
        return Job.model_validate(self._client.request("POST", f"/v1/jobs/{job_id}/{action}").json())

    def delete(self, job_id: str) -> None:
        """Delete an ended job. Raises InvalidTransition while it has not ended, InUse while it is a teacher."""
        self._client.request("DELETE", f"/v1/jobs/{job_id}")

    def wait(self, job_id: str, timeout: float | None = None, poll: float = 0.5) -> Job:
        """Poll until the job has ended in any status. Raises TimeoutError after `timeout` seconds, if given."""
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
        """Return one page of the job's log, oldest first unless `order` is `desc`."""
        return self._get(f"/v1/jobs/{job_id}/events", Page[Event], limit=limit, after=after, order=order)

    def metrics(self, job_id: str) -> Sequence[MetricsPoint]:
        """Return every point of the training series, in the order of the steps."""
        answer = self._client.request("GET", f"/v1/jobs/{job_id}/metrics").json()
        return [MetricsPoint.model_validate(point) for point in answer["data"]]

    def snapshots(self, job_id: str) -> Sequence[Snapshot]:
        """Return all snapshots, in the order of n."""
        snapshots = [*()]
        after: str | None = None
        while True:
            page = self._get(f"/v1/jobs/{job_id}/snapshots", Page[Snapshot], limit=100, after=after)
            snapshots += page.data
            if not page.has_more:
                return snapshots
            after = page.last_id

    def download(
        self,
        job_id: str,
        path: str | os.PathLike[str],
        format: Literal["safetensors", "pytorch"] = "safetensors",
        step: Step | None = None,
    ) -> Path:
        """Download w̄ to `path`. An interrupted download goes on; the digest is verified before the file appears."""
        return download(self._client, f"/v1/jobs/{job_id}/weights?format={format}", Path(path), step)

    def download_snapshot(self, job_id: str, n: int, path: str | os.PathLike[str], step: Step | None = None) -> Path:
        """Download w_n to `path`; see download."""
        return download(self._client, f"/v1/jobs/{job_id}/snapshots/{n}/weights", Path(path), step)


class Keys(_Resource):
    """Creates, lists and revokes API keys of the same tenant. Raises Forbidden for a key without the scope `admin`."""

    def create(
        self, name: str, *, scopes: Sequence[Scope] = ("read", "write"), expires_in_days: float | None = None
    ) -> ApiKey:
        """Create a key. Its `key` is in this answer only."""
        body = {"name": name, "scopes": [*scopes], "expires_in_days": expires_in_days}
        return ApiKey.model_validate(self._client.request("POST", "/v1/keys", json=body).json())

    def list(self, limit: int = 20, after: str | None = None, order: str | None = None) -> Page[ApiKey]:
        """Return one page of keys, newest first unless `order` is `asc`."""
        return self._get("/v1/keys", Page[ApiKey], limit=limit, after=after, order=order)

    def revoke(self, key_id: str) -> None:
        """Revoke a key: it is refused a second later at most. Raises NotFound."""
        self._client.request("DELETE", f"/v1/keys/{key_id}")
