"""The flow with what openapi-python-client generates (attrs and httpx)."""

import json
import sys
import time
from pathlib import Path

from wbar_generated import AuthenticatedClient
from wbar_generated.api.checkpoints import create_checkpoint, get_checkpoint
from wbar_generated.api.datasets import create_dataset, get_dataset
from wbar_generated.api.jobs import create_job, get_job, get_job_weights, list_jobs
from wbar_generated.models import (
    Checkpoint,
    CyclicSwa,
    CyclicSwaType,
    Dataset,
    DatasetSource,
    Job,
    JobPage,
    JobRequest,
    JobStatus,
    LowPhase,
    Optimizer,
    Problem,
    Recipe,
)
from wbar_generated.types import File


def main(url: str, key: str, start: str, weights: str) -> None:
    client = AuthenticatedClient(base_url=url, token=key, raise_on_unexpected_status=True, timeout=60)
    with open(start, "rb") as file:
        checkpoint = create_checkpoint.sync(client=client, body=File(payload=file), name="generated")
    assert isinstance(checkpoint, Checkpoint)
    source = DatasetSource(source="builtin:digits", max_train_images=200)
    dataset = create_dataset.sync(client=client, body=source)
    assert isinstance(dataset, Dataset)
    while isinstance(checkpoint, Checkpoint) and checkpoint.status == "processing":
        time.sleep(0.1)
        checkpoint = get_checkpoint.sync(checkpoint.id, client=client)
    while isinstance(dataset, Dataset) and dataset.status == "processing":
        time.sleep(0.1)
        dataset = get_dataset.sync(dataset.id, client=client)
    assert isinstance(checkpoint, Checkpoint)
    assert isinstance(dataset, Dataset)
    assert (checkpoint.status, dataset.status) == ("ready", "ready")

    missing = create_job.sync(client=client, body=JobRequest(checkpoint="ckpt_none", dataset=dataset.id))
    assert isinstance(missing, Problem)
    assert missing.code == "not_found"
    method = CyclicSwa(type_=CyclicSwaType.CYCLIC_SWA, cycles=1, low=LowPhase(lr=0.001))
    recipe = Recipe(optimizer=Optimizer(betas=[0.8, 0.9]))
    request = JobRequest(checkpoint=checkpoint.id, dataset=dataset.id, method=method, recipe=recipe)
    job = create_job.sync(client=client, body=request)
    assert isinstance(job, Job)
    while isinstance(job, Job) and job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
        time.sleep(0.1)
        job = get_job.sync(job.id, client=client)
    assert isinstance(job, Job)
    assert isinstance(job.method, CyclicSwa)
    page = list_jobs.sync(client=client, limit=1)
    assert isinstance(page, JobPage)
    assert page.data[0].id == job.id
    downloaded = get_job_weights.sync(job.id, client=client)
    assert isinstance(downloaded, File)
    Path(weights).write_bytes(downloaded.payload.read())
    print(json.dumps({"job": job.id}))


main(*sys.argv[1:])
