# Derived from wbar/client/_async/jobs.py by `make client` (tools/derive_client.py): edit that one.
"""`client.jobs`."""

import base64
import json
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Literal

from wbar.client._sync.resource import Resource, given
from wbar.client._sync.transfers import download
from wbar.client.addresses import segment
from wbar.client.job_bar import job_bar
from wbar.errors import Unreachable
from wbar.jobs import Event, EventType, Job, MetricsPoint, Snapshot
from wbar.lists import Page
from wbar.predictions import PREDICTIONS, Predictions
from wbar.results import ImageLosses, Verdict, WeightsFormat
from wbar.states import TERMINAL
from wbar.transfers import Step


class Jobs(Resource):
    """Creates, follows, controls and deletes jobs, and downloads their weights."""

    def create(self, *, checkpoint: str, dataset: str, idempotency_key: str | None = None, **fields: Any) -> Job:
        """Create a job; `fields` are those of wbar.job_request.JobRequest (name, method, recipe, seed, classes, dry_run …).

        idempotency_key: default: one of its own for each call.
        """
        body = {"checkpoint": checkpoint, "dataset": dataset, **fields}
        return self._create("/v1/jobs", Job, body, idempotency_key)

    def get(self, job_id: str) -> Job:
        """Return one job. Raises NotFound."""
        return self._get(f"/v1/jobs/{segment(job_id)}", Job)

    def list(
        self,
        limit: int = 20,
        after: str | None = None,
        order: str | None = None,
        status: str | None = None,
        checkpoint: str | None = None,
        metadata: dict[str, str] | None = None,
        dataset: str | None = None,
        name: str | None = None,
        verdict: Verdict | None = None,
        order_by: str | None = None,
    ) -> Page[Job]:
        """Return one page of jobs, newest first unless `order` is `asc`.

        status, checkpoint, metadata, dataset, verdict: keep only these. name: a part of it.
        order_by: what `order` goes by: `created_at`, `finished_at`, `result.accuracy`, `result.loss_gain` and the like.
        """
        filters = _filters(order, status, checkpoint, metadata, dataset, name, verdict, order_by)
        return self._get("/v1/jobs", Page[Job], limit=limit, after=after, **filters)

    def iterate(
        self,
        order: str | None = None,
        status: str | None = None,
        checkpoint: str | None = None,
        metadata: dict[str, str] | None = None,
        dataset: str | None = None,
        name: str | None = None,
        verdict: Verdict | None = None,
        order_by: str | None = None,
    ) -> Iterator[Job]:
        """Return an iterator over all jobs, loaded page by page; filters and order as of `list`."""
        return self._pages(
            "/v1/jobs", Page[Job], **_filters(order, status, checkpoint, metadata, dataset, name, verdict, order_by)
        )

    def cancel(self, job_id: str) -> Job:
        """End a job now; its snapshots stay. Raises InvalidTransition once it has ended otherwise."""
        return self._act(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        """Ask a running job to stop at its next step, exactly resumable. Raises InvalidTransition for another job."""
        return self._act(job_id, "pause")

    def clone(self, job_id: str, *, idempotency_key: str | None = None, **changes: Any) -> Job:
        """Create a job like another one. changes: what differs, as in `create`; inner objects are merged, None removes."""
        return self._create(f"/v1/jobs/{segment(job_id)}/clone", Job, changes, idempotency_key)

    def finish(self, job_id: str) -> Job:
        """Ask a running job to end its training at its next step, and to deliver the average of what it visited so far.

        Raises InvalidTransition for a job that does not run or has no snapshot yet.
        """
        return self._act(job_id, "finish")

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again. Raises InvalidTransition for another job."""
        return self._act(job_id, "resume")

    def _act(self, job_id: str, action: str) -> Job:
        answer = self._client.request("POST", f"/v1/jobs/{segment(job_id)}/{action}")
        return Job.model_validate(answer.json())

    def delete(self, job_id: str) -> None:
        """Delete an ended job. Raises InvalidTransition while it has not ended, InUse while it is a teacher."""
        self._client.request("DELETE", f"/v1/jobs/{segment(job_id)}")

    def wait(self, job_id: str, timeout: float | None = None, poll: float = 0.5, progress: bool | None = None) -> Job:
        """Poll until the job has ended in any status. Raises TimeoutError after `timeout` seconds, if given.

        progress: show a bar on stderr, or in the notebook's cell. Default: in a notebook only.
        """
        deadline = None if timeout is None else monotonic() + timeout
        with job_bar(progress) as show:
            while True:
                job = self.get(job_id)
                show(job)
                if job.status in TERMINAL:
                    return job
                if deadline is not None and monotonic() > deadline:
                    raise TimeoutError(f"{job_id} is still {job.status} after {timeout:g} s")
                sleep(poll)

    def events(self, job_id: str, after: str | None = None, patience: float = 60.0) -> Iterator[Event]:
        """Follow the job's log until its terminal status; a lost connection is taken up again without loss or repeats.

        patience: seconds to keep trying while the service does not answer, then Unreachable.
        """
        last, silent_since = after, monotonic()
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
            try:
                with closing(self._stream(job_id, headers)) as stream:
                    for event in stream:
                        silent_since = monotonic()
                        if event is None:
                            continue  # connected, or a keep-alive
                        yield event
                        last = event.id
                        if event.type == "status" and event.data["status"] in TERMINAL:
                            return
                return
            except Unreachable:
                if monotonic() - silent_since > patience:
                    raise
                sleep(0.5)

    def _stream(self, job_id: str, headers: dict[str, str]) -> Generator[Event | None, None]:
        with self._client.stream(f"/v1/jobs/{segment(job_id)}/events", headers) as response:
            yield None
            for line in response.iter_lines():
                # Every event is one `data:` line; comments are keep-alives.
                yield Event.model_validate(json.loads(line[5:])) if line.startswith("data:") else None

    def event_list(
        self,
        job_id: str,
        limit: int = 100,
        after: str | None = None,
        order: str = "asc",
        types: Sequence[EventType] = (),
    ) -> Page[Event]:
        """Return one page of the job's log, oldest first unless `order` is `desc`. types: keep only these; none: all."""
        path = f"/v1/jobs/{segment(job_id)}/events"
        return self._get(path, Page[Event], limit=limit, after=after, order=order, type=[*types] or None)

    def iterate_events(self, job_id: str, types: Sequence[EventType] = ()) -> Iterator[Event]:
        """Return an iterator over the job's log so far, oldest first, loaded page by page; types: as of `event_list`."""
        return self._pages(f"/v1/jobs/{segment(job_id)}/events", Page[Event], order="asc", type=[*types] or None)

    def metrics(self, job_id: str, after: int | None = None) -> Sequence[MetricsPoint]:
        """Return the points of the training series, in the order of the steps. after: those of later steps only."""
        answer = self._client.request("GET", f"/v1/jobs/{segment(job_id)}/metrics", params=given({"after": after}))
        return [MetricsPoint.model_validate(point) for point in answer.json()["data"]]

    def snapshots(self, job_id: str) -> Sequence[Snapshot]:
        """Return all snapshots, in the order of n."""
        return list(self._pages(f"/v1/jobs/{segment(job_id)}/snapshots", Page[Snapshot]))

    def download(
        self,
        job_id: str,
        path: str | os.PathLike[str],
        format: WeightsFormat = "safetensors",
        step: Step | None = None,
        which: Literal["delivered", "averaged", "swag", "control"] = "delivered",
    ) -> Path:
        """Download w̄ to `path`. An interrupted download goes on; the digest is verified before the file appears.

        which: `delivered` is the start where the job's guard chose it, `averaged` is w̄ whatever it chose; `swag` is the
            Gaussian of the snapshots, where the job has `swag`; `control`, where the method has it, is the cosine
            fine-tune of equal length.

        Raises NoWeights, saying why, where there is no file of that format.
        """
        # An older service has one choice, and does not know the parameter.
        chosen = "" if which == "delivered" else f"&which={which}"
        return download(self._client, f"/v1/jobs/{segment(job_id)}/weights?format={format}{chosen}", Path(path), step)

    def download_report(self, job_id: str, path: str | os.PathLike[str], step: Step | None = None) -> Path:
        """Download the report, one HTML page, to `path`; see download."""
        return download(self._client, f"/v1/jobs/{segment(job_id)}/report", Path(path), step)

    def download_probe(self, job_id: str, path: str | os.PathLike[str], step: Step | None = None) -> Path:
        """Download the outputs on the job's probe images, an npz, to `path`; see download. Raises NoWeights without any."""
        return download(self._client, f"/v1/jobs/{segment(job_id)}/probe", Path(path), step)

    def predict(
        self,
        job_id: str,
        images: Sequence[str | os.PathLike[str] | bytes],
        network: str = "averaged",
        top: int | None = None,
        score: float | None = None,
    ) -> Predictions:
        """Ask one of the job's networks about up to 64 images, given as files' paths or contents.

        By the answer's `task` it is ClassPredictions, AttributePredictions, NumberPredictions, PixelPredictions or
        BoxPredictions.

        network: `averaged`, `start`, `snapshot_n`, `control` of a method with it, or `swag` of a job with it: mean and
            spread over drawn networks.
        top: how many of the most probable classes (of attributes: categories of each) or of the surest boxes are named;
            None: 5 classes, 100 boxes.
        score: of detection, the least score of a box.

        Raises ValidationFailed naming an image that is broken, NoWeights, Busy, PredictionFailed.
        """
        files = [one if isinstance(one, bytes) else Path(one).read_bytes() for one in images]
        body = {"images": [base64.b64encode(one).decode() for one in files]}
        asked = {"network": network, "top": top, "score": score}
        params = {name: value for name, value in asked.items() if value is not None}
        answer = self._client.request("POST", f"/v1/jobs/{segment(job_id)}/predict", params=params, json=body)
        return PREDICTIONS.validate_python(answer.json())

    def card(self, job_id: str) -> str:
        """Return the model card of the averaged weights, as Markdown; it says what the job found, also where averaging lost."""
        return (self._client.request("GET", f"/v1/jobs/{segment(job_id)}/card")).text

    def download_signature(self, job_id: str, path: str | os.PathLike[str]) -> Path:
        """Download the signature of the job's files to `path`, for `wbar verify`. Raises NoWeights where it is not signed."""
        return download(self._client, f"/v1/jobs/{segment(job_id)}/signature", Path(path), None)

    def losses(self, job_id: str) -> ImageLosses:
        """Return the loss of w̄ and of the start on each held-out image, to compare jobs image by image."""
        return self._get(f"/v1/jobs/{segment(job_id)}/losses", ImageLosses)

    def download_snapshot(self, job_id: str, n: int, path: str | os.PathLike[str], step: Step | None = None) -> Path:
        """Download w_n to `path`; see download."""
        return download(self._client, f"/v1/jobs/{segment(job_id)}/snapshots/{n}/weights", Path(path), step)


def _filters(
    order: str | None,
    status: str | None,
    checkpoint: str | None,
    metadata: dict[str, str] | None,
    dataset: str | None,
    name: str | None,
    verdict: Verdict | None,
    order_by: str | None,
) -> dict[str, Any]:
    """Return the parameters of a list of jobs."""
    tags = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
    common = {"order": order, "status": status, "checkpoint": checkpoint, "dataset": dataset, "name": name}
    return {**common, "verdict": verdict, "order_by": order_by, **tags}
