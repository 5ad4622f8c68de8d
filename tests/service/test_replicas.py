"""Jobs with replicas through the whole service: joined to the same bytes whoever trains them, in whatever order they end."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import Service
from tests.material import write_archive, write_start
from wbar.client import Client
from wbar.jobs import Job
from wbar.replicas import TAG, seed_of

METHOD = {"cycles": 1, "high": {"lr": 0.02}, "low": {"lr": 0.002}}
TWO = METHOD | {"replicas": 2}


@pytest.fixture(scope="module")
def inputs(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with service.client() as client:
        return uploaded(client, tmp_path_factory.mktemp("replicas"))


def uploaded(client: Client, folder: Path) -> dict[str, str]:
    checkpoint = client.checkpoints.create(write_start(folder))
    return {"checkpoint": checkpoint.id, "dataset": client.datasets.create(write_archive(folder)).id}


def replicas_of(client: Client, job: Job) -> list[Job]:
    found = client.jobs.get(job.id).replicas
    assert found is not None
    return [client.jobs.get(one.job) for one in found]


def sha256_of(job: Job) -> str:
    assert job.status == "succeeded", job.error
    assert job.result is not None
    return job.result.weights.sha256


def test_a_job_is_trained_twice_and_joined(service: Service, inputs: dict[str, str], tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        asked: dict[str, Any] = {**inputs, "method": TWO | {"control": True}, "seed": 5, "name": "twice"}
        dry = http.post("/v1/jobs", json=asked | {"dry_run": True}).json()
        alone = http.post("/v1/jobs", json=asked | {"dry_run": True, "method": METHOD}).json()
        assert dry["estimate"]["steps"] == 3 * alone["estimate"]["steps"], "two replicas and a control"
        made = client.jobs.create(**asked)
        done = client.jobs.wait(made.id, timeout=120)
        digest = sha256_of(done)
        whole = client.jobs.get(made.id)
        assert whole.replicas is not None
        assert [(one.n, one.seed, one.status) for one in whole.replicas] == [
            (1, 5, "succeeded"),
            (2, seed_of(5, 2), "succeeded"),
        ]
        replicas = replicas_of(client, made)
        assert [one.name for one in replicas] == ["twice: replica 1 of 2", "twice: replica 2 of 2"]
        assert {one.metadata[TAG] for one in replicas} == {made.id}
        assert [one.method.control for one in replicas] == [True, False]
        result = done.result
        assert result is not None
        assert result.replicas is not None
        assert [one.points for one in result.replicas] == [1, 1]
        metrics = result.metrics
        assert metrics.control == replicas[0].result.metrics.control
        assert metrics.replicas.accuracy == pytest.approx(sum(one.accuracy for one in result.replicas) / 2)
        assert metrics.best_replica.loss == min(one.loss for one in result.replicas)
        assert "best replica" in http.get(f"/v1/jobs/{made.id}/report").text
        client.jobs.download(made.id, tmp_path / "joint.safetensors")
        single = client.jobs.wait(client.jobs.create(**asked | {"method": METHOD | {"control": True}}).id, timeout=120)
        client.jobs.delete(str(replicas[0].id))  # which has trained the control
        for one in (made, single):
            client.jobs.download(str(one.id), tmp_path / f"{one.id}.safetensors", which="control")
        controls = [load_file(tmp_path / f"{one.id}.safetensors") for one in (made, single)]
        assert all(bool((tensor == controls[1][name]).all()) for name, tensor in controls[0].items())
        again = client.jobs.wait(client.jobs.create(**asked).id, timeout=120)
        assert sha256_of(again) == digest
        with service.client(service.other_key) as other:
            assert other.jobs.list().data == []
        with service.http(service.other_key) as stranger:
            for one in (made, *replicas):
                assert stranger.get(f"/v1/jobs/{one.id}").status_code == 404
                assert stranger.post(f"/v1/jobs/{one.id}/cancel").status_code == 404
        page = http.get(f"/jobs/{made.id}")
        assert page.status_code in (200, 303, 401)
        client.jobs.delete(made.id)
        assert http.get(f"/v1/jobs/{replicas[0].id}").status_code == 404
        client.jobs.delete(again.id)


def test_it_fails_by_name_where_a_replica_fails(service: Service, inputs: dict[str, str]) -> None:
    with service.client() as client:
        method = {"type": "none", "epochs": 1, "lr": 100, "back_off": False, "replicas": 2}
        done = client.jobs.wait(client.jobs.create(**inputs, method=method).id, timeout=120)
        assert done.status == "failed"
        assert done.error is not None
        assert done.error.code == "replica_failed"
        assert "replica 1 (job_" in done.error.message
        assert "diverged" in done.error.message
        assert "replica 2 (job_" in done.error.message, (
            "it waits for all, and names all: the order of their ends is none"
        )


def test_replicas_that_meet_are_jobs_that_name_each_other(service: Service, inputs: dict[str, str]) -> None:
    with service.client() as client, service.http() as http:
        asked = {**inputs, "method": TWO | {"cycles": 2, "join_every": 1, "join_keep": 0.5}, "seed": 4}
        dry = http.post("/v1/jobs", json=asked | {"dry_run": True}).json()
        assert (dry["method"]["join_every"], dry["method"]["join_keep"]) == (1, 0.5)
        made = client.jobs.create(**asked)
        replicas = replicas_of(client, made)
        assert [(one.method.join_every, one.requested.get("method", {}).get("join_every")) for one in replicas] == [
            (None, None)
        ] * 2, "a clone of one is an ordinary job"
        refused = http.post(f"/v1/jobs/{replicas[0].id}/finish")
        assert (refused.status_code, refused.json()["code"]) == (409, "invalid_transition")
        done = client.jobs.wait(made.id, timeout=120)
        sha256_of(done)
        assert [(one.round, one.rounds, one.waits) for one in client.jobs.get(made.id).replicas] == [(2, 2, False)] * 2
        found = done.result.meetings
        assert [one.n for one in found] == [1]
        assert 0 < found[0].spread < found[0].norm
        assert found == client.jobs.get(replicas[1].id).result.meetings, "each of them measured the same"
        assert done.result.metrics.best_replica is not None
        client.jobs.delete(made.id)
        assert http.get(f"/v1/jobs/{replicas[1].id}").status_code == 404


REFUSED = {
    "auto": ({"type": "auto"}, {}, "method auto chooses its mean"),
    "greedy": ({"average": "greedy"}, {}, "'greedy'"),
    "window": ({"average": "window"}, {}, "'window'"),
    "swad": ({"type": "swa", "average": "swad"}, {}, "'swad'"),
    "guard": ({"guard": True}, {}, "method.guard"),
    "line": ({"interpolate": {}}, {}, "method.interpolate"),
    "patience": ({}, {"recipe": {"early_stopping": 2}}, "early_stopping"),
    "head": ({}, {"recipe": {"head": "reset"}}, "another start"),
    "devices": ({}, {"recipe": {"devices": 2}}, "recipe.devices is 2"),
    "swag": ({"cycles": 2}, {"swag": 3}, "swag is 3"),
    "meets nowhere": ({"cycles": 3, "join_every": 3}, {}, "join_every is 3, and the method takes 3 snapshot(s)"),
    "keeps nothing": ({"join_keep": 0.5}, {}, "join_keep is 0.5, and the replicas meet nowhere"),
    "keeps all": ({"join_every": 1, "join_keep": 1.0}, {}, "less than 1"),
    "one alone": ({"replicas": 1, "join_every": 1}, {}, "join_every is 1, and method.replicas is 1"),
    "none": ({"replicas": 0}, {}, "greater than or equal to 1"),
    "many": ({"replicas": 17}, {}, "17, and a job may have 16"),
    "soup": ({"type": "soup", "checkpoints": ["ckpt_a", "ckpt_b"]}, {}, "not"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_joined_is_refused_and_nothing_is_made(
    service: Service, inputs: dict[str, str], case: str
) -> None:
    method, others, why = REFUSED[case]
    with service.http() as http:
        before = http.get("/v1/jobs").json()["data"]
        for dry in (True, False):
            answer = http.post(
                "/v1/jobs", json={**inputs, "method": {"replicas": 2, **method}, "dry_run": dry, **others}
            )
            assert answer.status_code == 422, answer.text
            assert why in answer.text
            assert "/method" in answer.json()["errors"][0]["pointer"]
        assert http.get("/v1/jobs").json()["data"] == before


def test_a_study_takes_no_job_with_replicas(service: Service, inputs: dict[str, str]) -> None:
    with service.http() as http:
        before = http.get("/v1/studies").json()["data"]
        answer = http.post("/v1/studies", json={"job": {**inputs, "method": TWO}, "seeds": [0, 1]})
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
        assert "slots" in answer.json()["detail"]
        varied = http.post("/v1/studies", json={"job": inputs, "vary": {"method.replicas": [1, 2]}})
        assert varied.status_code == 422
        assert http.get("/v1/studies").json()["data"] == before
