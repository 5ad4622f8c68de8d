"""The slots of a study: counted in rows, whoever claims at the same time, and no place in the queue without one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import update

from tests.store.rows import insert_inputs, spec
from wbar.checkpoints import Fault
from wbar.errors import InvalidTransition, NotFound
from wbar.job_request import JobRequest
from wbar.studies import StudyRequest, StudySettings
from wbar.webhooks import StudySummary
from wbar_store.blobs import Blobs
from wbar_store.claims import Claim
from wbar_store.database import Database, Tenant
from wbar_store.notifier import Notifier
from wbar_store.repository import PageRequest
from wbar_store.store import Store
from wbar_store.tables import study_children

MINE, OTHER = Tenant("default"), Tenant("other")


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Iterator[Store]:
    insert_inputs(database)
    made = Store(database, Blobs(f"file://{tmp_path}", database), Notifier("redis://127.0.0.1:1"))
    yield made
    made.notifier.close()


def study(store: Store, jobs: int, at_once: int) -> tuple[str, list[str]]:
    """A study of so many jobs, and their ids."""
    seeds = list(range(jobs))
    asked = StudyRequest(job=JobRequest(checkpoint="ckpt_1", dataset="ds_1"), seeds=seeds, at_once=at_once)
    with store.database.write():
        made = store.studies.create(MINE, asked)
        ids = [store.jobs.create(MINE, spec(seed=seed), None, {}).id for seed in seeds]
        store.studies.add(made.id, [(job, StudySettings(seed=seed)) for job, seed in zip(ids, seeds, strict=True)])
    return made.id, ids


def test_workers_that_claim_at_the_same_time_take_no_more_than_its_slots(store: Store) -> None:
    _, jobs = study(store, 8, at_once=3)
    with ThreadPoolExecutor(8) as pool:
        claimed = [one for one in pool.map(lambda job: store.attempts.claim(job, 60), jobs) if one is not None]
    assert len(claimed) == 3
    assert store.queue.first_beside(jobs[0]) is None, "the others are held"
    beside = store.jobs.create(MINE, spec(), None, {}).id
    assert store.queue.first_beside(jobs[0]) == beside, "a job without a study is not"
    assert store.queue.positions(MINE) == {beside: 1}
    for one in claimed:
        assert store.attempts.lose(one.claim, "its worker was killed") == "queued"
    assert store.queue.first_beside(jobs[0]) == jobs[0]


def test_a_held_job_has_no_place_until_a_slot_is_free(store: Store) -> None:
    made, jobs = study(store, 3, at_once=1)
    assert store.studies.to_begin(made) == jobs[:1]
    for job in jobs:
        store.jobs.notified(job)
    assert store.attempts.claim(jobs[0], 60) is not None
    assert store.queue.first_beside(jobs[1]) is None
    store.queue.give_up_place(jobs[1])
    assert store.jobs.overdue(broker_is_empty=True) == [], "held ones are not told of again and again"
    assert store.queue.next_of_study(jobs[0]) is None
    store.jobs.move(jobs[0], "cancelled", Claim(jobs[0], 1))
    assert store.queue.next_of_study(jobs[0]) == jobs[2], (
        "the one that gave its place up; the other one has its message"
    )
    assert store.jobs.overdue(broker_is_empty=False) == [jobs[2]]


def test_a_paused_study_begins_nothing(store: Store) -> None:
    made, jobs = study(store, 3, at_once=2)
    assert store.attempts.claim(jobs[0], 60) is not None
    assert store.studies.pause(MINE, made).status == "running", "until its jobs have stopped"
    assert store.attempts.claim(jobs[1], 60) is None
    assert store.attempts.heartbeat(Claim(jobs[0], 1), 60, None) == "pause"
    assert store.attempts.yield_back(Claim(jobs[0], 1), "paused")
    assert store.studies.shown(MINE, made).status == "paused"
    store.jobs.resume(MINE, jobs[0])
    assert store.attempts.claim(jobs[0], 60) is None, "a job that is resumed by itself waits for its study"
    resumed = store.studies.resume(MINE, made)
    assert (resumed.status, resumed.counts) == ("queued", {"queued": 3})
    assert store.attempts.claim(jobs[0], 60) is not None


def test_a_study_is_cancelled_and_deleted_with_its_jobs(store: Store) -> None:
    made, jobs = study(store, 2, at_once=1)
    for act in (
        store.studies.cancel,
        store.studies.pause,
        store.studies.resume,
        store.studies.remove,
        store.studies.shown,
    ):
        with pytest.raises(NotFound):
            act(OTHER, made)
    with pytest.raises(InvalidTransition, match="has not ended"):
        store.studies.remove(MINE, made)
    assert store.studies.cancel(MINE, made).counts == {"cancelled": 2}
    with pytest.raises(InvalidTransition, match="has ended"):
        store.studies.pause(MINE, made)
    store.jobs.remove(MINE, jobs[0])
    assert store.studies.shown(MINE, made).counts == {"cancelled": 1, "deleted": 1}
    assert store.studies.remove(MINE, made) == []
    assert not store.jobs.exists(MINE, jobs[1])
    assert not store.studies.exists(MINE, made)


def test_its_end_is_noticed_once_and_told_of_with_what_became_of_its_jobs(store: Store) -> None:
    made, jobs = study(store, 3, at_once=3)
    hook = store.webhooks.create(MINE, "https://example.com/hook", ("study.*",)).id
    store.webhooks.create(OTHER, "https://example.com/hook", ("*",))
    for job in jobs:
        assert store.attempts.claim(job, 60) is not None
    for job in jobs[:2]:
        assert store.attempts.fail(Claim(job, 1), Fault(code="diverged", message="it diverged"))
        assert not store.studies.settle(made), "one of its jobs runs"
    assert (store.studies.overdue(), store.studies.of_job(jobs[0])) == ([], made)
    store.jobs.move(jobs[2], "cancelled")
    assert store.studies.overdue() == [made]
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(lambda _: store.studies.settle(made), range(4))) == [False, False, False, True]
    assert store.studies.overdue() == []
    (told,) = [one.to_api().payload for one in store.deliveries.of_webhook(MINE, hook, PageRequest(10)).records]
    assert told.type == "study.ended"
    assert isinstance(told.data, StudySummary)
    assert (told.data.id, told.data.status, told.data.jobs) == (made, "ended", 3)
    assert told.data.counts == {"cancelled": 1, "failed": 2}
    assert store.studies.shown(MINE, made).ended_at == told.data.ended_at


def test_settings_that_this_version_does_not_know_keep_no_study_from_its_end(store: Store) -> None:
    made, jobs = study(store, 1, at_once=1)
    with store.database.write() as connection:
        connection.execute(update(study_children).values(settings={"of": "a version to come"}))
    store.jobs.move(jobs[0], "cancelled")
    assert store.studies.overdue() == [made]
    assert store.studies.settle(made)


def test_a_cancelled_study_has_ended_at_once_and_one_whose_jobs_were_deleted_too(store: Store) -> None:
    made, _ = study(store, 2, at_once=1)
    assert store.studies.cancel(MINE, made).ended_at is not None
    other, jobs = study(store, 1, at_once=1)
    store.jobs.move(jobs[0], "cancelled")
    store.jobs.remove(MINE, jobs[0])
    assert store.studies.overdue() == [other]
    assert store.studies.settle(other)
