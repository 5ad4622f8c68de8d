"""What fails on the worker's side settles the attempt at once; an outage costs an upload nothing."""

import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from tests.conftest import wait_until
from tests.store.rows import insert_inputs, spec
from tests.worker.entries import ANSWER_NONSENSE, DIE_WHEN_ASKED_TO_STOP
from wbar.recipe import Recipe
from wbar_store.checkpoints import GivenNetwork
from wbar_store.database import Tenant, now
from wbar_store.ids import new_id
from wbar_store.migrate import upgrade
from wbar_store.store import Store
from wbar_store.tables import snapshots
from wbar_store.validated_uploads import MAX_ATTEMPTS
from wbar_training.messages import Crashed
from wbar_worker import run_job
from wbar_worker.ingest import Ingester
from wbar_worker.run_job import Runner
from wbar_worker.settings import WorkerSettings

MINE = Tenant("default")


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    return WorkerSettings(
        database_url=f"sqlite:///{tmp_path / 'wbar.db'}", broker_url="memory://", blobs_url=f"file://{tmp_path / 'blobs'}",
        scratch=tmp_path / "scratch",
    )  # fmt: skip


@pytest.fixture
def store(settings: WorkerSettings) -> Iterator[Store]:
    opened = Store.open(settings)
    upgrade(opened.database)
    insert_inputs(opened.database)
    yield opened
    opened.close()


def why_it_was_lost(store: Store, job_id: str) -> str:
    assert store.jobs.get(MINE, job_id).status == "queued"
    [message] = [event.data["message"] for event in store.events.after(MINE, job_id, 0, 100) if event.type == "log"]
    return str(message)


def test_a_message_that_does_not_validate_ends_the_attempt(
    store: Store, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_job, "RUN_ATTEMPT", ANSWER_NONSENSE)
    for blob in spec().blobs():
        path = Path(str(store.blobs.root)) / store.blobs.path(blob)
        path.parent.mkdir(parents=True)
        path.touch()
    job = store.jobs.create(MINE, spec(), None, {}).id
    Runner(store, settings, threading.Event()).run(job, [], 1)
    assert why_it_was_lost(store, job).startswith("attempt 1 was lost: ValidationError: ")
    assert multiprocessing.active_children() == []


def test_an_attempt_that_crashes_after_a_finish_is_settled_at_once(
    store: Store, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_job, "RUN_ATTEMPT", DIE_WHEN_ASKED_TO_STOP)
    for blob in spec().blobs():
        path = Path(str(store.blobs.root)) / store.blobs.path(blob)
        path.parent.mkdir(parents=True)
        path.touch()
    job = store.jobs.create(MINE, spec(), None, {}).id
    with store.database.write() as connection:
        values = {"job": job, "n": 1, "step": 1, "metrics": {}, "bytes": 1, "sha256": "a" * 64, "created_at": now()}
        connection.execute(insert(snapshots).values(id=new_id("snap"), **values))
    running = threading.Thread(target=Runner(store, settings, threading.Event()).run, args=(job, [], 1))
    running.start()
    wait_until(lambda: store.jobs.get(MINE, job).status == "running", 30, "the claim")
    store.jobs.finish(MINE, job)
    running.join(60)
    assert why_it_was_lost(store, job) == "attempt 1 was lost: its process was ended by SIGSEGV"
    assert store.jobs.get(MINE, job).stop == "finish"


def test_a_job_without_memory_that_cannot_be_made_smaller_says_so_at_once(
    store: Store, settings: WorkerSettings
) -> None:
    job = store.jobs.create(MINE, spec(recipe=Recipe(batch_size=3)), None, {})
    claimed = store.attempts.claim(job.id, 60)
    assert claimed is not None
    Runner(store, settings, threading.Event())._lose(
        claimed, Crashed(why="the system was out of memory", cause="memory")
    )
    ended = store.jobs.get(MINE, job.id)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == ("failed", "out_of_memory")


def test_a_blob_that_is_missing_ends_the_attempt(store: Store, settings: WorkerSettings) -> None:
    job = store.jobs.create(MINE, spec(), None, {}).id
    Runner(store, settings, threading.Event()).run(job, [], 1)
    assert why_it_was_lost(store, job).startswith("attempt 1 was lost: FileNotFoundError: ")


def test_an_outage_costs_an_upload_no_attempt(store: Store, settings: WorkerSettings, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"no checkpoint")
    received = store.blobs.put_file(tmp_path / "upload")
    with store.blobs.keep(received):
        upload = store.checkpoints.create(MINE, "n", received, GivenNetwork()).id
    settings.scratch.write_bytes(b"nothing can be written below a file")
    for _ in range(MAX_ATTEMPTS + 1):
        Ingester(store, settings).run(upload)
    waiting = store.checkpoints.get(MINE, upload)
    assert (waiting.status, waiting.attempts) == ("processing", 0)
    settings.scratch.unlink()
    Ingester(store, settings).run(upload)
    error = store.checkpoints.get(MINE, upload).error
    assert error is not None
    assert error.code == "corrupt_file", "its bytes were there to be read"
