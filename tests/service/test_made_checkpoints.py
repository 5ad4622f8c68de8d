"""Weights that a job or a merge has made, as a checkpoint without download and upload; the line between two jobs' results."""

from pathlib import Path

import pytest

from tests.conftest import Service, wait_until
from tests.material import write_start
from wbar.errors import JobNotFinished, NotFound, NoWeights

SHORT = {"cycles": 1, "high": {"epochs": 1, "lr": 0.02}, "low": {"epochs": 1, "lr": 0.002}}


@pytest.fixture(scope="module")
def jobs(service: Service, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Two jobs of one start and other seeds, both succeeded, and their dataset."""
    folder = tmp_path_factory.mktemp("start")
    with service.client() as client:
        start = client.checkpoints.create(write_start(folder)).id
        data = client.datasets.create("builtin:digits", max_train_images=200).id
        made = [
            client.jobs.create(checkpoint=start, dataset=data, method=SHORT, seed=seed, name=f"seed {seed}")
            for seed in (1, 2)
        ]
        ends = [client.jobs.wait(str(one.id)) for one in made]
        assert [one.status for one in ends] == ["succeeded"] * 2
        return str(made[0].id), str(made[1].id), data


def test_a_result_is_a_start_with_the_same_bytes(service: Service, jobs: tuple[str, str, str], tmp_path: Path) -> None:
    with service.client() as client:
        job = client.jobs.get(jobs[0])
        assert job.result is not None
        checkpoint = client.checkpoints.create_from(jobs[0])
        assert (checkpoint.name, checkpoint.sha256) == ("seed 1.safetensors", job.result.weights.sha256)
        assert checkpoint.architecture is not None
        assert checkpoint.architecture.name == "resnet20"
        client.jobs.download(jobs[0], tmp_path / "job.safetensors")
        client.checkpoints.download(checkpoint.id, tmp_path / "checkpoint.safetensors")
        assert (tmp_path / "job.safetensors").read_bytes() == (tmp_path / "checkpoint.safetensors").read_bytes()
        client.checkpoints.delete(checkpoint.id)
        client.jobs.download(jobs[0], tmp_path / "still.safetensors")  # the bytes are the job's as well


def test_a_merge_is_a_start(service: Service, jobs: tuple[str, str, str]) -> None:
    with service.client() as client:
        merge = client.merges.wait(client.merges.create(jobs[:2]).id, timeout=60)
        assert merge.result is not None
        assert client.checkpoints.create_from(merge.id).sha256 == merge.result.weights.sha256


@pytest.mark.long
def test_the_line_between_two_results(service: Service, jobs: tuple[str, str, str]) -> None:
    with service.client() as client:
        first, second = (client.checkpoints.create_from(one).id for one in jobs[:2])
        job = client.jobs.create(
            checkpoint=first, dataset=jobs[2], method={"type": "soup", "checkpoints": [second]}, flatness=True
        )
        done = client.jobs.wait(str(job.id))
        assert done.result is not None, done.error
        assert done.result.flatness is not None
        line = done.result.flatness.interpolation
        assert (line.alphas[0], line.alphas[-1]) == (-1.0, 2.0)
        losses = dict(zip(line.alphas, line.val_loss, strict=True))
        metrics = done.result.metrics
        assert losses[0.0] == pytest.approx(metrics.start_recomputed.loss, rel=0.02)  # of fewer images for BatchNorm
        assert losses[1.0] == pytest.approx(metrics.averaged.loss, rel=0.02)
        assert line.train_accuracy is not None
        assert max(filter(None, line.train_accuracy)) <= 1


def test_what_is_not_there_is_said_and_nothing_is_kept(service: Service, jobs: tuple[str, str, str]) -> None:
    with service.client() as client, service.http() as http:
        before = len(client.checkpoints.list(limit=100).data)
        with pytest.raises(NotFound):
            client.checkpoints.create_from("job_0mk3q8v6zr5d2a7x9c4t")
        bad = http.post("/v1/checkpoints", json={"source": "ds_0mk3q8v6zr5d2a7x9c4t"})
        assert (bad.status_code, bad.json()["errors"][0]["pointer"]) == (422, "/source")
        both = http.post("/v1/checkpoints", json={"source": jobs[0], "upload": "upload_1"})
        assert (both.status_code, both.json()["errors"][0]["pointer"]) == (422, "/upload")
        long = client.jobs.create(
            checkpoint=client.checkpoints.create_from(jobs[0]).id, dataset=jobs[2], method={"cycles": 50}
        )
        with pytest.raises(JobNotFinished):
            client.checkpoints.create_from(str(long.id))
        client.jobs.cancel(str(long.id))
        wait_until(lambda: client.jobs.get(str(long.id)).status == "cancelled", 60, "the job to end")
        with pytest.raises(NoWeights):
            client.checkpoints.create_from(str(long.id))
        assert len(client.checkpoints.list(limit=100).data) == before + 1


def test_a_request_that_comes_twice_makes_one(service: Service, jobs: tuple[str, str, str]) -> None:
    with service.client() as client:
        first, again = (client.checkpoints.create_from(jobs[1], idempotency_key="twice").id for _ in range(2))
        assert first == again
