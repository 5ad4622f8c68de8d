"""A job like another one: what was asked for then, with a merge patch, resolved anew."""

from typing import Any

import pytest

from tests.conftest import Service
from tests.material import write_archive, write_start
from wbar.jobs import Job
from wbar_store.tables import jobs


@pytest.fixture(scope="module")
def original(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("original")
    with service.client() as client:
        checkpoint, dataset = (
            client.checkpoints.create(write_start(folder)),
            client.datasets.create(write_archive(folder)),
        )
        job = client.jobs.create(
            checkpoint=checkpoint.id, dataset=dataset.id, name="first", metadata={"team": "a", "run": "1"},
            method={"cycles": 1, "high": {"lr": 0.03}}, recipe={"batch_size": 32}, seed=4,
        )  # fmt: skip
        assert job.id is not None
        return client.jobs.wait(job.id, timeout=120)


def test_a_clone_asks_for_the_same_and_is_another_job(service: Service, original: Job) -> None:
    assert original.id is not None
    assert original.requested == {
        "checkpoint": original.checkpoint, "dataset": original.dataset, "name": "first", "seed": 4,
        "metadata": {"team": "a", "run": "1"}, "method": {"cycles": 1, "high": {"lr": 0.03}}, "recipe": {"batch_size": 32},
    }  # fmt: skip
    with service.client() as client:
        made = client.jobs.clone(original.id)
        assert made.id is not None
        assert made.id != original.id
        assert made.requested == original.requested
        assert (made.method, made.recipe, made.seed, made.metadata) == (
            original.method, original.recipe.model_copy(update={"normalize": made.recipe.normalize}), 4, original.metadata,
        )  # fmt: skip
        again = client.jobs.wait(made.id, timeout=120)
        assert again.result is not None
        assert original.result is not None
        assert again.result.weights.sha256 == original.result.weights.sha256


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": 5, "name": None}, {"seed": 5, "name": None}),
        ({"metadata": {"run": "2", "team": None}}, {"metadata": {"run": "2"}}),
        ({"method": {"cycles": 3}}, {"method.cycles": 3, "method.high.lr": 0.03}),
        ({"method": {"type": "cyclic_swa", "cycles": 3}}, {"method.cycles": 3, "method.high.lr": 0.03}),
        ({"method": {"type": "ema", "epochs": 2}}, {"method.type": "ema", "method.epochs": 2}),
        ({"recipe": {"batch_size": None}}, {"recipe.batch_size": 8}),
        ({"recipe": {"label_smoothing": 0.1}}, {"recipe.batch_size": 32, "recipe.label_smoothing": 0.1}),
    ],
)
def test_what_differs_is_merged(
    service: Service, original: Job, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    with service.http() as http:
        answer = http.post(f"/v1/jobs/{original.id}/clone", json=changes | {"dry_run": True})
    assert answer.status_code == 200, answer.text
    for path, value in expected.items():
        found = answer.json()
        for name in path.split("."):
            found = found[name]
        assert found == value, path


def test_a_change_that_cannot_be_is_named_in_the_whole_request(service: Service, original: Job) -> None:
    with service.http() as http:
        for changes, pointer in (
            ({"method": {"cycles": 0}}, "/method/cycles"),
            ({"nonsense": 1}, "/nonsense"),
            ({"checkpoint": None}, "/checkpoint"),
        ):
            answer = http.post(f"/v1/jobs/{original.id}/clone", json=changes)
            assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed"), answer.text
            assert pointer in [one["pointer"] for one in answer.json()["errors"]], answer.text
        assert http.post(f"/v1/jobs/{original.id}/clone", json=[1]).status_code == 422
        assert http.post("/v1/jobs/job_none/clone", json={}).status_code == 404
        missing = http.post(f"/v1/jobs/{original.id}/clone", json={"checkpoint": "ckpt_none"})
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    with service.http(service.other_key) as http:
        assert http.post(f"/v1/jobs/{original.id}/clone", json={}).status_code == 404


def test_a_clone_is_made_once_for_a_key(service: Service, original: Job) -> None:
    with service.http() as http:
        sent = [
            http.post(f"/v1/jobs/{original.id}/clone", json={"seed": 9}, headers={"Idempotency-Key": "clone"})
            for _ in range(2)
        ]
    assert sent[0].json() == sent[1].json()
    assert sent[1].headers["idempotent-replayed"] == "true"


def test_a_clone_that_comes_again_is_answered_though_its_origin_is_gone(service: Service, original: Job) -> None:
    with service.client() as client, service.http() as http:
        assert original.id is not None
        origin = client.jobs.wait(client.jobs.clone(original.id, seed=7).id, timeout=120)  # type: ignore[arg-type]
        send = {"json": {"seed": 8}, "headers": {"Idempotency-Key": "clone of what goes"}}
        first = http.post(f"/v1/jobs/{origin.id}/clone", **send)  # type: ignore[arg-type]
        client.jobs.delete(origin.id)  # type: ignore[arg-type]
        again = http.post(f"/v1/jobs/{origin.id}/clone", **send)  # type: ignore[arg-type]
        assert (again.status_code, again.json()) == (201, first.json())
        other = http.post(f"/v1/jobs/{original.id}/clone", **send)  # type: ignore[arg-type]
        assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")


def test_a_job_of_the_version_before_gives_what_it_resolved_to(service: Service, original: Job) -> None:
    with service.client() as client:
        assert original.id is not None
        old = client.jobs.clone(original.id, seed=6)
        with service.database.write() as connection:
            connection.execute(jobs.update().where(jobs.c.id == old.id).values(request=None))
        assert old.id is not None
        made = client.jobs.clone(old.id, dry_run=True)
        assert (made.method, made.recipe, made.seed) == (old.method, old.recipe, 6)
