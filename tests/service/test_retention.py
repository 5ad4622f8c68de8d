"""What was given an end is gone after it, with its bytes; what a job needs waits for it, and the job's record stays."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from tests.conftest import Service
from tests.material import start_state, write_archive, write_start
from tests.store.rows import insert_inputs, result, spec
from wbar.checkpoints import Fault
from wbar.errors import FilesExpired, NotFound, NoWeights, ValidationFailed
from wbar.jobs import Job
from wbar_averaging import write_safetensors
from wbar_service.jobs.files import no_result
from wbar_store.attempts import ResultBlobs
from wbar_store.blobs import Blobs
from wbar_store.claims import Claim
from wbar_store.database import Database, Tenant, now
from wbar_store.store import Store
from wbar_store.tables import blobs, checkpoints, datasets, job_inputs, jobs

MINE = Tenant("default")


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Store:
    insert_inputs(database)
    return Store(database, Blobs(f"file://{tmp_path / 'blobs'}", database), None)  # type: ignore[arg-type]  # no notifier


def let_time_pass(database: Database, *ids: str) -> None:
    """Move what is asked of these objects an hour into the past."""
    with database.write() as connection:
        for table in (checkpoints, datasets):
            connection.execute(update(table).where(table.c.id.in_(ids)).values(expires_at=table.c.expires_at - 3600))
        connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values(finished_at=jobs.c.finished_at - 3600))


def test_a_failed_job_never_had_the_files_that_expired(store: Store) -> None:
    job = store.jobs.create(MINE, spec(), None, {}, expires_after=60).id
    store.attempts.claim(job, 60)
    store.attempts.fail(Claim(job, 1), Fault(code="diverged", message="m"))
    let_time_pass(store.database, job)
    store.expire()
    record = store.jobs.get(MINE, job)
    assert record.expired_at is not None
    with pytest.raises(NoWeights):
        no_result(record, "averaged weights")


def ended(store: Store, expires_after: float | None = 60.0) -> str:
    job = store.jobs.create(MINE, spec(), None, {}, expires_after=expires_after).id
    store.attempts.claim(job, 60)
    files = ResultBlobs("a" * 64, "b" * 64, "c" * 64, averaged="d" * 64, averaged_pytorch="e" * 64)
    store.attempts.succeed(Claim(job, 1), result(), files, None)
    return job


def test_what_a_job_needs_waits_for_its_end(store: Store) -> None:
    with store.database.write() as connection:
        connection.execute(update(checkpoints).values(expires_at=now() - 1))
    job = store.jobs.create(MINE, spec(), None, {}).id
    store.expire()
    assert store.checkpoints.get(MINE, "ckpt_1").status == "ready"
    store.jobs.cancel(MINE, job)
    store.expire()
    with pytest.raises(NotFound):
        store.checkpoints.get(MINE, "ckpt_1")
    assert store.datasets.get(MINE, "ds_1").status == "ready"  # it was given no end
    store.expire()  # a row that is hidden for its job is not taken for a new one


def test_what_cannot_be_deleted_keeps_nothing_else(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with store.database.write() as connection:
        odd = {"facts": {"odd": True}, "expires_at": now() - 1}
        connection.execute(update(checkpoints).values(**odd))
        connection.execute(update(datasets).values(expires_at=now() - 1))
    store.expire()
    assert "ckpt_1 has expired and could not be deleted" in caplog.text
    with pytest.raises(NotFound):
        store.datasets.get(MINE, "ds_1")


def test_the_files_of_a_teacher_wait_for_its_student(store: Store) -> None:
    teacher = ended(store)
    student = store.jobs.create(MINE, spec(), None, {}).id
    with store.database.write() as connection:
        connection.execute(job_inputs.insert().values(job=student, input=teacher))
    let_time_pass(store.database, teacher)
    store.expire()
    assert store.jobs.get(MINE, teacher).weights is not None
    store.jobs.cancel(MINE, student)
    store.expire()
    assert store.jobs.get(MINE, teacher).weights is None


def test_only_ended_jobs_whose_time_is_over_lose_their_files(store: Store) -> None:
    young, kept, old = ended(store), ended(store, None), ended(store)
    running = store.jobs.create(MINE, spec(), None, {}, expires_after=60).id
    let_time_pass(store.database, old, kept, running)
    store.expire()
    gone = [job for job in (young, kept, old, running) if store.jobs.get(MINE, job).expired_at is not None]
    assert gone == [old]
    assert store.jobs.get(MINE, old).result is not None
    assert store.jobs.get(MINE, old).blobs == []
    assert store.jobs.expired() == []
    # A sweeper of 0.6 forgets the files that it knows: the others go with the next look of today's.
    with store.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == old).values(averaged="d" * 64))
    assert store.jobs.expired() == [old]
    assert store.jobs.drop_files(old) == ["d" * 64]
    assert store.jobs.expired() == []


@pytest.fixture(scope="module")
def done(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Job, str, str]]:
    """A job that has ended, with its inputs: all three with a minute to live."""
    folder = tmp_path_factory.mktemp("retention")
    start = folder / "start.safetensors"
    write_safetensors(start, start_state(), {"of": "retention"})
    with service.client() as client:
        checkpoint = client.checkpoints.create(start, expires_after=60)
        dataset = client.datasets.create("builtin:digits", max_train_images=100, expires_after=60)
        assert checkpoint.expires_at is not None
        assert dataset.expires_at is not None
        job = client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, method={"cycles": 1}, expires_after=60)
        assert (job.expires_after, job.expires_at) == (60, None)
        assert job.id is not None
        yield client.jobs.wait(job.id, timeout=120), checkpoint.id, dataset.id


def test_after_its_time_a_job_keeps_its_record_and_loses_its_files(
    service: Service, done: tuple[Job, str, str], tmp_path: Path
) -> None:
    job, checkpoint, dataset = done
    assert job.id is not None
    assert job.result is not None
    assert job.expires_at is not None
    assert job.expires_at > job.finished_at  # type: ignore[operator]
    digest = job.result.weights.sha256
    url = service.environment["WBAR_BLOBS_URL"]
    store = Store(service.database, Blobs(url, service.database), None)  # type: ignore[arg-type]
    store.expire()  # nothing is due yet
    with service.client() as client, service.http() as http:
        client.jobs.download(job.id, tmp_path / "weights")
        let_time_pass(service.database, job.id, checkpoint, dataset)
        store.expire()
        for path in ("weights", "weights?format=pytorch", "report", "snapshots/1/weights"):
            answer = http.get(f"/v1/jobs/{job.id}/{path}")
            assert (answer.status_code, answer.json()["code"]) == (410, "files_expired"), path
            assert "expires_after" in answer.json()["detail"]
        assert http.get(f"/v1/jobs/{job.id}/snapshots/9/weights").status_code == 410
        with pytest.raises(FilesExpired):
            client.jobs.download(job.id, tmp_path / "again")
        after = client.jobs.get(job.id)
        assert after.result == job.result
        assert http.get(f"/v1/jobs/{job.id}/metrics").json()["data"]
        assert http.get(f"/v1/jobs/{job.id}/snapshots").json()["data"] == []
        assert http.get(f"/v1/checkpoints/{checkpoint}").status_code == 404
        assert http.get(f"/v1/datasets/{dataset}").status_code == 404
    with service.database.read() as connection:
        assert connection.execute(select(blobs.c.sha256).where(blobs.c.sha256 == digest)).first() is None


@pytest.mark.parametrize("seconds", ["59", "1e3", "-60", "3153600001", "soon"])
def test_an_end_that_makes_no_sense_is_refused(service: Service, tmp_path: Path, seconds: str) -> None:
    with service.http() as http:
        for path, content in (("checkpoints", write_start(tmp_path)), ("datasets", write_archive(tmp_path))):
            answer = http.post(f"/v1/{path}?expires_after={seconds}", content=content.read_bytes())
            assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed"), path
        body: dict[str, Any] = {"checkpoint": "ckpt_1", "dataset": "ds_1", "expires_after": seconds}
        assert http.post("/v1/jobs", json=body).status_code == 422
    with service.client() as client, pytest.raises(ValidationFailed):
        client.jobs.create(checkpoint="ckpt_1", dataset="ds_1", expires_after=59)


def test_another_end_is_another_request(service: Service, tmp_path: Path) -> None:
    content = write_start(tmp_path).read_bytes()
    with service.http() as http:
        made = [
            http.post(f"/v1/checkpoints{query}", content=content, headers={"Idempotency-Key": "an end"})
            for query in ("?expires_after=60", "?expires_after=60", "?expires_after=61", "")
        ]
    assert [answer.status_code for answer in made] == [201, 201, 409, 409]
