"""What a replica meets the others by is fetched when all have come to it, and stays what the first of them went on from."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.rows import SCORE, insert_inputs, spec
from tests.store.test_replicas import MINE, end, meeting_jobs
from wbar.errors import ReplicaFailed
from wbar.spec import Network
from wbar_store.blobs import Blobs
from wbar_store.database import Database
from wbar_store.job_records import JobRecord
from wbar_store.notifier import Notifier
from wbar_store.store import Store
from wbar_training.workspace import Workspace
from wbar_worker.heartbeat import Heartbeat
from wbar_worker.inputs import fetch_inputs
from wbar_worker.meetings import fetch_meeting
from wbar_worker.publish import Publisher
from wbar_worker.settings import WorkerSettings


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Iterator[Store]:
    insert_inputs(database)
    made = Store(database, Blobs(f"file://{tmp_path / 'blobs'}", database), Notifier("redis://127.0.0.1:1"))
    yield made
    made.notifier.close()


def publish(store: Store, job: JobRecord, n: int, path: Path, content: str) -> None:
    """Announce snapshot n of a running job, as its attempt does."""
    path.write_text(content)
    settings = WorkerSettings(database_url="sqlite://", broker_url="memory://", blobs_url=f"file://{path.parent}")
    Publisher(store, job, Heartbeat(store, settings, job.claim, threading.Event())).snapshot(
        n, 10 * n, str(path), SCORE
    )


def claimed(store: Store, job_id: str) -> JobRecord:
    job = store.attempts.claim(job_id, 60)
    assert job is not None
    return job


def test_the_snapshots_of_the_next_meeting_are_fetched_once_all_are_there(store: Store, tmp_path: Path) -> None:
    _, ids = meeting_jobs(store, 2)
    first, second = (claimed(store, one) for one in ids)
    workspace = Workspace(tmp_path)
    publish(store, first, 1, tmp_path / "w", "first's 1")
    fetch_meeting(store, first, workspace, 0)
    assert workspace.all_met() == [], "the other one is at work"
    publish(store, second, 1, tmp_path / "w", "second's 1")
    publish(store, second, 1, tmp_path / "w", "second's 1, taken again on another machine")
    for step in (0, 10):
        fetch_meeting(store, first, workspace, step)
        assert [path.read_text() for path in workspace.all_met()] == ["first's 1", "second's 1"]
    fetch_meeting(store, first, workspace, 11)
    assert workspace.all_met() == [], "it has passed the meeting"
    for job in (first, second):
        publish(store, job, 2, tmp_path / "w", f"{job.id}'s 2")
        publish(store, job, 3, tmp_path / "w", f"{job.id}'s 3")
    fetch_meeting(store, first, workspace, 11)
    assert [path.read_text() for path in workspace.all_met()] == [f"{one}'s 2" for one in ids]
    fetch_meeting(store, first, workspace, 21)
    assert workspace.all_met() == [], "after the last snapshot there is no meeting"


def test_a_snapshot_that_was_taken_again_after_another_step_is_met_by_all_the_same(
    store: Store, tmp_path: Path
) -> None:
    _, ids = meeting_jobs(store, 2)
    first, second = (claimed(store, one) for one in ids)
    for job in (first, second):
        publish(store, job, 1, tmp_path / "w", f"{job.id}'s 1")
    settings = WorkerSettings(database_url="sqlite://", broker_url="memory://", blobs_url=f"file://{tmp_path}")
    beating = Heartbeat(store, settings, first.claim, threading.Event())
    (tmp_path / "w").write_text("over again, more slowly")
    Publisher(store, first, beating).snapshot(1, 15, str(tmp_path / "w"), SCORE)
    fetch_meeting(store, first, Workspace(tmp_path), 15)
    assert [path.read_text() for path in Workspace(tmp_path).all_met()] == [f"{one}'s 1" for one in ids]


def test_a_replica_that_has_failed_or_was_cancelled_is_named(store: Store, tmp_path: Path) -> None:
    _, ids = meeting_jobs(store, 3)
    publish(store, claimed(store, ids[0]), 1, tmp_path / "w", "1")
    end(store, ids[1])
    store.jobs.cancel(MINE, ids[2])
    with pytest.raises(ReplicaFailed) as refused:
        fetch_meeting(store, store.jobs.get(MINE, ids[0]), Workspace(tmp_path), 0)
    assert f"replica 2 ({ids[1]}) failed; replica 3 ({ids[2]}) was cancelled: after snapshot 1" in refused.value.detail


def test_an_ordinary_job_meets_no_others(store: Store, tmp_path: Path) -> None:
    job = store.jobs.create(MINE, spec(), None, {})
    fetch_meeting(store, job, Workspace(tmp_path), 0)
    assert Workspace(tmp_path).all_met() == []


@pytest.mark.parametrize(("network", "fetched"), [("fcn_resnet50", True), ("resnet20", False)])
def test_a_job_that_goes_on_elsewhere_has_the_snapshots_that_its_end_reads(
    store: Store, tmp_path: Path, network: str, fetched: bool
) -> None:
    job = claimed(store, store.jobs.create(MINE, spec(network=Network(network, 3)), None, {}).id)
    publish(store, job, 1, tmp_path / "w", "of another host")
    workspace = Workspace(tmp_path / "here")
    for blob in job.spec.blobs():
        workspace.input(blob).parent.mkdir(parents=True, exist_ok=True)
        workspace.input(blob).touch()
    fetch_inputs(store, job, workspace)
    assert workspace.snapshot(1).exists() is fetched
