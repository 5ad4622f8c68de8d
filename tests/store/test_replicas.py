"""Jobs with replicas: held in rows until all have ended; paused, cancelled, deleted with them, and no tenant's but theirs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.rows import SCORE, insert_inputs, spec
from wbar.checkpoints import Fault
from wbar.errors import InUse, InvalidTransition, NotFound
from wbar.method import CyclicSwa
from wbar.recipe import Recipe
from wbar.spec import Meetings
from wbar_store.blobs import Blobs, Received
from wbar_store.claims import Claim
from wbar_store.database import Database, Tenant
from wbar_store.ids import new_id
from wbar_store.job_records import JobRecord
from wbar_store.notifier import Notifier
from wbar_store.store import Store

MINE, OTHER = Tenant("default"), Tenant("other")


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Iterator[Store]:
    insert_inputs(database)
    made = Store(database, Blobs(f"file://{tmp_path}", database), Notifier("redis://127.0.0.1:1"))
    yield made
    made.notifier.close()


def job_of(store: Store, count: int) -> tuple[JobRecord, list[str]]:
    """A job with so many replicas, and their ids."""
    with store.database.write():
        replicas = [store.jobs.create(MINE, spec(seed=n, keeps_mean=True), None, {}).id for n in range(count)]
        whole = spec(method=CyclicSwa(replicas=count), replicas=tuple(replicas))
        return store.jobs.create(MINE, whole, None, {}), replicas


def end(store: Store, job: str) -> None:
    claimed = store.attempts.claim(job, 60)
    assert claimed is not None
    assert store.attempts.fail(claimed.claim, Fault(code="diverged", message="as the test asks"))


def test_it_is_held_until_the_last_replica_has_ended_whichever_that_is(store: Store) -> None:
    job, replicas = job_of(store, 3)
    assert store.queue.to_begin(job.id) == replicas, "workers are notified of the replicas in its place"
    assert sorted(store.queue.positions(MINE)) == replicas
    assert store.attempts.claim(job.id, 60) is None
    for replica in (replicas[2], replicas[0]):
        end(store, replica)
        assert store.queue.next_of_replicas(replica) is None
        assert store.queue.first_beside(job.id) == (replicas[0] if replica == replicas[2] else replicas[1])
    with pytest.raises(InUse, match="a replica of"):
        store.jobs.remove(MINE, replicas[0])
    assert job.id not in store.jobs.overdue(broker_is_empty=False)
    end(store, replicas[1])
    assert store.queue.next_of_replicas(replicas[1]) == job.id
    assert store.jobs.overdue(broker_is_empty=False) == [job.id], (
        "the sweeper finds it where the worker was killed here"
    )
    assert store.queue.to_begin(job.id) == [job.id]
    joining = store.attempts.claim(job.id, 60)
    assert joining is not None
    assert store.attempts.lose(joining.claim, "its worker was killed") == "queued"
    assert store.attempts.claim(job.id, 60) is not None


def test_it_is_paused_and_resumed_with_its_replicas(store: Store) -> None:
    job, replicas = job_of(store, 2)
    running = store.attempts.claim(replicas[0], 60)
    assert running is not None
    assert store.jobs.pause(MINE, job.id).status == "queued"
    assert store.attempts.claim(replicas[1], 60) is None, "a replica that waits is held"
    assert store.queue.first_beside(job.id) is None
    assert store.attempts.heartbeat(running.claim, 60, None) == "pause"
    assert store.attempts.yield_back(running.claim, "paused")
    shown = store.jobs.replicas(MINE, store.jobs.get(MINE, job.id))
    assert shown is not None
    assert [(one.n, one.job, one.status) for one in shown] == [(1, replicas[0], "paused"), (2, replicas[1], "queued")]
    assert store.jobs.resume(MINE, job.id).status == "queued"
    assert store.queue.to_begin(job.id) == replicas
    assert store.attempts.claim(replicas[1], 60) is not None
    with pytest.raises(InvalidTransition, match="not paused"):
        store.jobs.resume(MINE, job.id)


def test_it_is_paused_when_its_replicas_have_ended(store: Store) -> None:
    job, replicas = job_of(store, 2)
    for replica in replicas:
        end(store, replica)
    store.jobs.pause(MINE, job.id)
    assert store.attempts.claim(job.id, 60) is None
    assert store.jobs.overdue(broker_is_empty=True) == []
    store.jobs.resume(MINE, job.id)
    assert store.attempts.claim(job.id, 60) is not None


def test_it_is_cancelled_and_deleted_with_its_replicas(store: Store) -> None:
    job, replicas = job_of(store, 2)
    running = store.attempts.claim(replicas[0], 60)
    assert running is not None
    for act in (store.jobs.cancel, store.jobs.pause, store.jobs.resume, store.jobs.remove):
        with pytest.raises(NotFound):
            act(OTHER, job.id)
        with pytest.raises(NotFound):
            act(OTHER, replicas[0])
    assert store.jobs.cancel(MINE, job.id).status == "cancelled"
    assert [store.jobs.get(MINE, one).status for one in replicas] == ["cancelled"] * 2
    assert store.attempts.heartbeat(Claim(replicas[0], 1), 60, None) == "gone"
    store.jobs.remove(MINE, replicas[1])
    shown = store.jobs.replicas(MINE, store.jobs.get(MINE, job.id))
    assert shown is not None
    assert [one.status for one in shown] == ["cancelled", "deleted"]
    assert store.jobs.remove(MINE, job.id) == []
    assert not store.jobs.exists(MINE, replicas[0])


def test_an_ordinary_job_is_stored_as_before(store: Store) -> None:
    document = spec().document()
    assert "replicas" not in document
    assert "keeps_mean" not in document
    assert "replicas" not in document["method"]
    stored = store.jobs.stored(MINE, store.jobs.create(MINE, spec(), None, {}).id)
    assert not store.jobs.may_have_replicas(stored)
    assert store.jobs.may_have_replicas(store.jobs.stored(MINE, job_of(store, 2)[0].id))


def meeting_jobs(store: Store, count: int, every: int = 1, last: int = 2) -> tuple[JobRecord, list[str]]:
    """A job whose replicas meet after every `every` snapshots, and their ids."""
    job, *ids = (new_id("job") for _ in range(count + 1))
    with store.database.write():
        for n, one in enumerate(ids, start=1):
            meetings = Meetings(replicas=tuple(ids), number=n, every=every, last=last)
            store.jobs.create(MINE, spec(seed=n, keeps_mean=True, meetings=meetings), None, {}, job_id=one)
        whole = spec(method=CyclicSwa(replicas=count, join_every=every), replicas=tuple(ids))
        return store.jobs.create(MINE, whole, None, {}, job_id=job), ids


def take_snapshots(store: Store, job: str, upto: int, ends: bool = True) -> Claim:
    """Run an attempt that takes snapshots up to n = `upto`, and ends at a meeting or goes on."""
    claimed = store.attempts.claim(job, 60)
    assert claimed is not None
    for n in range(1, upto + 1):
        received = Received("", f"{n}" * 64, 1)
        store.snapshots.add(claimed.claim, n, 10 * n, SCORE, received)
    if ends:
        assert store.attempts.yield_back(claimed.claim, "queued")
    return claimed.claim


def states(store: Store, job: JobRecord) -> list[tuple[str, int | None, bool]]:
    shown = store.jobs.replicas(MINE, job)
    assert shown is not None
    return [(one.status, one.round, one.waits) for one in shown]


def test_replicas_wait_at_a_meeting_until_the_last_one_has_come(store: Store) -> None:
    job, replicas = meeting_jobs(store, 3)
    assert states(store, job) == [("queued", 1, False)] * 3
    take_snapshots(store, replicas[1], 1)
    assert store.attempts.claim(replicas[1], 60) is None, "it is held"
    assert store.queue.next_at_meeting(replicas[1]) == [replicas[0], replicas[2]], "they have not begun"
    running = take_snapshots(store, replicas[0], 0, ends=False)
    take_snapshots(store, replicas[2], 1)
    assert states(store, job) == [("running", 1, False), ("queued", 1, True), ("queued", 1, True)]
    assert store.queue.first_beside(job.id) is None
    assert store.queue.next_at_meeting(replicas[2]) == []
    store.snapshots.add(running, 1, 10, SCORE, Received("", "1" * 64, 1))
    assert store.attempts.lose(running, "its worker was killed just then") == "queued"
    assert store.queue.next_at_meeting(replicas[0]) == replicas
    assert store.jobs.overdue(broker_is_empty=False) == replicas, (
        "the sweeper finds them where the worker was killed here"
    )
    assert states(store, job) == [("queued", 2, False)] * 3
    # One goes on to the next meeting, is lost on its way, and is not held by what it has passed.
    going = take_snapshots(store, replicas[2], 1, ends=False)
    assert store.attempts.lose(going, "its worker was killed") == "queued"
    take_snapshots(store, replicas[2], 2)
    assert store.attempts.claim(replicas[2], 60) is None
    assert states(store, job)[2] == ("queued", 2, True)
    for one in replicas[:2]:
        take_snapshots(store, one, 2)
    assert states(store, job) == [("queued", 3, False)] * 3
    # After the last snapshot, which is no meeting, none waits.
    last = take_snapshots(store, replicas[0], 3, ends=False)
    assert store.attempts.lose(last, "its worker was killed") == "queued"
    assert store.attempts.claim(replicas[0], 60) is not None


def test_nothing_is_waited_for_between_the_meetings(store: Store) -> None:
    job, replicas = meeting_jobs(store, 2, every=2, last=4)
    take_snapshots(store, replicas[0], 1)
    assert states(store, job)[0] == ("queued", 1, False)
    take_snapshots(store, replicas[0], 2)
    assert states(store, job)[0] == ("queued", 1, True)
    assert store.attempts.claim(replicas[0], 60) is None


def test_who_waits_at_a_meeting_goes_on_where_another_has_ended(store: Store) -> None:
    job, replicas = meeting_jobs(store, 2)
    take_snapshots(store, replicas[0], 1)
    assert store.attempts.claim(replicas[0], 60) is None
    end(store, replicas[1])
    assert store.queue.next_at_meeting(replicas[1]) == [replicas[0]]
    assert store.attempts.claim(replicas[0], 60) is not None, "its attempt finds out what became of the other"
    assert store.attempts.claim(job.id, 60) is None


def test_who_waits_at_a_meeting_is_paused_and_cancelled_with_the_others(store: Store) -> None:
    job, replicas = meeting_jobs(store, 2)
    for one in replicas:
        take_snapshots(store, one, 1)
    store.jobs.pause(MINE, job.id)
    assert store.attempts.claim(replicas[0], 60) is None
    store.jobs.resume(MINE, job.id)
    assert store.queue.next_at_meeting(replicas[0]) == replicas
    running = take_snapshots(store, replicas[0], 1, ends=False)
    store.jobs.pause(MINE, job.id)
    assert store.attempts.yield_back(running, "queued")
    assert store.jobs.get(MINE, replicas[0]).status == "paused", "a pause is kept where it comes to a meeting"
    store.jobs.resume(MINE, job.id)
    assert store.attempts.claim(replicas[1], 60) is not None
    with pytest.raises(InvalidTransition, match="meets others"):
        store.jobs.finish(MINE, replicas[1])
    store.jobs.cancel(MINE, job.id)
    assert [store.jobs.get(MINE, one).status for one in replicas] == ["cancelled"] * 2


def test_a_replica_that_others_met_is_not_made_another_one(store: Store) -> None:
    _, replicas = meeting_jobs(store, 2)
    running = take_snapshots(store, replicas[0], 1, ends=False)
    assert not store.attempts.retry_in_smaller_parts(running, "no memory")
    with store.database.write():
        ordinary = store.jobs.create(MINE, spec(recipe=Recipe(batch_size=16)), None, {})
    claim = take_snapshots(store, ordinary.id, 1, ends=False)
    assert store.attempts.retry_in_smaller_parts(claim, "no memory")
