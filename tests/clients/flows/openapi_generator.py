"""The flow with what openapi-generator's `python` generator makes (pydantic and urllib3)."""

import json
import sys
import time
from pathlib import Path

import pytest
from wbar_openapi import (
    ApiClient,
    CheckpointsApi,
    Configuration,
    CyclicSwa,
    DatasetsApi,
    DatasetSource,
    JobRequest,
    JobsApi,
    LowPhase,
    Lr,
    Method,
    Optimizer,
    Recipe,
)
from wbar_openapi.exceptions import NotFoundException


def main(url: str, key: str, start: str, weights: str) -> None:
    with ApiClient(Configuration(host=url, access_token=key)) as client:
        checkpoints, datasets, jobs = CheckpointsApi(client), DatasetsApi(client), JobsApi(client)
        checkpoint = checkpoints.create_checkpoint(Path(start).read_bytes(), name="generated")
        dataset = datasets.create_dataset(DatasetSource(source="builtin:digits", max_train_images=200))
        while checkpoint.status == "processing":
            time.sleep(0.1)
            checkpoint = checkpoints.get_checkpoint(checkpoint.id)
        while dataset.status == "processing":
            time.sleep(0.1)
            dataset = datasets.get_dataset(dataset.id)
        assert (checkpoint.status, dataset.status) == ("ready", "ready")

        with pytest.raises(NotFoundException) as refused:
            jobs.create_job(JobRequest(checkpoint="ckpt_none", dataset=dataset.id))
        assert json.loads(refused.value.body)["code"] == "not_found"
        method = Method(CyclicSwa(type="cyclic_swa", cycles=1, low=LowPhase(lr=Lr(0.001))))
        recipe = Recipe(optimizer=Optimizer(betas=[0.8, 0.9]))
        job = jobs.create_job(JobRequest(checkpoint=checkpoint.id, dataset=dataset.id, method=method, recipe=recipe))
        while job.status in ("queued", "running"):
            time.sleep(0.1)
            job = jobs.get_job(job.id)
        assert isinstance(job.method.actual_instance, CyclicSwa)
        assert jobs.list_jobs(limit=1).data[0].id == job.id
        Path(weights).write_bytes(jobs.get_job_weights(job.id))
        print(json.dumps({"job": job.id}))


main(*sys.argv[1:])
