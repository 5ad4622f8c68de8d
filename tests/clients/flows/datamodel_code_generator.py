"""The flow with the models that datamodel-code-generator makes; it makes no client, so httpx carries them.

The models are sent as pydantic writes them: with null for everything that was left out.
"""

import json
import sys
import time
from pathlib import Path

import httpx
from wbar_models import (
    Checkpoint,
    CyclicSwa,
    Dataset,
    DatasetSource,
    Job,
    JobPage,
    JobRequest,
    LowPhase,
    Optimizer,
    Recipe,
)


def main(url: str, key: str, start: str, weights: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    json_body = {"Content-Type": "application/json"}
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:

        def get(path: str) -> bytes:
            return http.get(path).raise_for_status().content

        def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
            return http.post(path, content=body, headers=headers).raise_for_status().content

        checkpoint = Checkpoint.model_validate_json(post("/v1/checkpoints", Path(start).read_bytes(), {}))
        source = DatasetSource(source="builtin:digits", max_train_images=200)
        dataset = Dataset.model_validate_json(post("/v1/datasets", source.model_dump_json().encode(), json_body))
        while checkpoint.status == "processing":
            time.sleep(0.1)
            checkpoint = Checkpoint.model_validate_json(get(f"/v1/checkpoints/{checkpoint.id}"))
        while dataset.status == "processing":
            time.sleep(0.1)
            dataset = Dataset.model_validate_json(get(f"/v1/datasets/{dataset.id}"))
        assert (checkpoint.status, dataset.status) == ("ready", "ready")

        method = CyclicSwa(type="cyclic_swa", cycles=1, low=LowPhase(lr=0.001))
        recipe = Recipe(optimizer=Optimizer(betas=[0.8, 0.9]))
        request = JobRequest(checkpoint=checkpoint.id, dataset=dataset.id, method=method, recipe=recipe)
        body = request.model_dump_json()
        assert '"metadata":null' in body
        assert '"high":null' in body
        job = Job.model_validate_json(post("/v1/jobs", body.encode(), json_body))
        while job.status in ("queued", "running"):
            time.sleep(0.1)
            job = Job.model_validate_json(get(f"/v1/jobs/{job.id}"))
        assert isinstance(job.method, CyclicSwa)
        assert JobPage.model_validate_json(get("/v1/jobs?limit=1")).data[0].id == job.id
        Path(weights).write_bytes(get(f"/v1/jobs/{job.id}/weights"))
        print(json.dumps({"job": job.id}))


main(*sys.argv[1:])
