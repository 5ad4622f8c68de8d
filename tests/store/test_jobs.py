"""Claims, fences, leases and transitions, on every database."""

import threading
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from wbar.errors import InvalidTransition, NotFound
from wbar.states import STATUSES, TERMINAL, TRANSITIONS
from wbar_store import events
from wbar_store.database import Database, Tenant, now
from wbar_store.jobs import MAX_LOSSES, Filters, Jobs
from wbar_store.lists import PageRequest
from wbar_store.notifier import Notifier
from wbar_store.tables import checkpoints, datasets, jobs

MINE, OTHER = Tenant("default"), Tenant("other")


@pytest.fixture
def store(database: Database) -> Jobs:
    with database.write() as connection:
        for table, row in ((checkpoints, "ckpt_1"), (datasets, "ds_1")):
            values: dict[str, Any] = {
                "id": row,
                "tenant": "default",
                "name": "x",
                "status": "ready",
                "attempts": 0,
                "created_at": now(),
            }
            values |= (
                {"bytes": 1, "sha256": "a" * 64, "given": {}}
                if table is checkpoints
                else {"task": "classification", "options": {}}
            )
            connection.execute(insert(table).values(**values))
    return Jobs(database, Notifier("memory://"))


def submit(store: Jobs, tenant: Tenant = MINE, **changes: Any) -> str:
    values = {
        "name": None, "checkpoint": "ckpt_1", "dataset": "ds_1", "method": {}, "recipe": {}, "classes": None, "seed": 0,
        "metadata": {}, **changes,
    }  # fmt: skip
    with store.database.write() as connection:
        return str(store.submit(connection, tenant, values)["id"])


def status(store: Jobs, job_id: str) -> str:
    with store.database.read() as connection:
        return str(store.get(connection, MINE, job_id).status)


def log_of(store: Jobs, job_id: str) -> list[tuple[str, Any]]:
    with store.database.read() as connection:
        return [(e["type"], e["data"].get("status")) for e in events.after(connection, job_id, 0, 1000)]


def test_only_one_of_many_claims_wins(store: Jobs) -> None:
    job = submit(store)
    won: list[Any] = []
    barrier = threading.Barrier(8)

    def claim() -> None:
        barrier.wait()
        won.append(store.claim(job, 60))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(row is not None for row in won) == 1
    assert status(store, job) == "running"


def test_a_stale_fence_changes_nothing(store: Jobs) -> None:
    job = submit(store)
    store.claim(job, -1)
    assert store.expired() == [(job, 1)]
    assert store.lose(job, 1, "gone") == "queued"
    second = store.claim(job, 60)
    assert second is not None
    assert second.attempts == 2
    assert store.heartbeat(job, 1, 60, {"step": 1}) == "gone"
    assert store.heartbeat(job, 2, 60, {"step": 2}) is None
    assert not store.fail(job, 1, {"code": "x", "message": "y"})
    assert store.lose(job, 1, "late") is None
    assert not store.log(job, 1, "info", "late")
    with store.database.write() as connection:
        assert not store.succeed(connection, job, 1, "w", "p", None, {}, None)
    assert status(store, job) == "running"
    with store.database.write() as connection:
        assert store.succeed(connection, job, 2, "w", "p", None, {"verdict": "same"}, None)
    assert status(store, job) == "succeeded"


def test_a_poison_job_fails_after_its_losses_in_a_row(store: Jobs) -> None:
    job = submit(store)
    for attempt in range(1, MAX_LOSSES + 1):
        assert store.claim(job, 60) is not None
        moved = store.lose(job, attempt, "killed by SIGKILL")
    assert moved == "failed"
    with store.database.read() as connection:
        error = store.get(connection, MINE, job).error
    assert error["code"] == "attempts_exhausted"
    assert "SIGKILL" in error["message"]


def test_a_pause_survives_the_death_of_the_attempt(store: Jobs) -> None:
    job = submit(store)
    store.claim(job, 60)
    store.pause(MINE, job)
    assert store.lose(job, 1, "killed") == "paused"
    assert status(store, job) == "paused"


def test_getting_further_forgives_losses(store: Jobs) -> None:
    job = submit(store)
    for attempt in range(1, 3 * MAX_LOSSES):
        assert store.claim(job, 60) is not None
        with store.database.write() as connection:
            store.save_state(connection, job, attempt, "s" * 64, step=attempt)
        assert store.lose(job, attempt, "preempted") == "queued"


def test_cancel_is_idempotent_and_final(store: Jobs) -> None:
    job = submit(store)
    store.claim(job, 60)
    assert store.cancel(MINE, job)["status"] == "cancelled"
    assert store.cancel(MINE, job)["status"] == "cancelled"
    assert store.heartbeat(job, 1, 60, None) == "gone"
    assert log_of(store, job) == [("status", "queued"), ("status", "running"), ("status", "cancelled")]
    with pytest.raises(InvalidTransition):
        store.resume(MINE, job)


def test_pause_and_resume(store: Jobs) -> None:
    job = submit(store)
    with pytest.raises(InvalidTransition, match="queued"):
        store.pause(MINE, job)
    store.claim(job, 60)
    store.pause(MINE, job)
    assert store.heartbeat(job, 1, 60, None) == "pause"
    assert store.yield_back(job, 1, "paused")
    assert status(store, job) == "paused"
    assert store.resume(MINE, job)["status"] == "queued"
    assert store.unrung(broker_is_empty=False) == [job]


@pytest.mark.parametrize("source", STATUSES)
@pytest.mark.parametrize("target", STATUSES)
def test_every_transition_outside_the_table_is_refused(store: Jobs, source: Any, target: Any) -> None:
    job = submit(store)
    with store.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job).values(status=source))
    with store.database.write() as connection:
        assert store._move(connection, job, target) == (target in TRANSITIONS[source])
    assert status(store, job) == (target if target in TRANSITIONS[source] else source)


def test_another_tenants_job_does_not_exist(store: Jobs) -> None:
    job = submit(store)
    with store.database.read() as connection:
        with pytest.raises(NotFound):
            store.get(connection, OTHER, job)
        assert store.listed(connection, OTHER, PageRequest(), Filters())["data"] == []
    for action in (store.cancel, store.pause, store.resume, store.remove):
        with pytest.raises(NotFound):
            action(OTHER, job)


def test_lists_page_by_key_and_filter(store: Jobs) -> None:
    made = [submit(store, metadata={"team": "a" if n % 2 else "b"}) for n in range(7)]
    store.cancel(MINE, made[0])
    with store.database.read() as connection:
        first = store.listed(connection, MINE, PageRequest(limit=3, order="asc"), Filters())
        assert [job["id"] for job in first["data"]] == made[:3]
        assert first["has_more"]
        rest = store.listed(connection, MINE, PageRequest(limit=10, order="asc", after=first["last_id"]), Filters())
        assert [job["id"] for job in rest["data"]] == made[3:]
        assert not rest["has_more"]
        newest = store.listed(connection, MINE, PageRequest(limit=2), Filters(metadata=(("team", "a"),)))
        assert [job["id"] for job in newest["data"]] == [made[5], made[3]]
        assert [
            j["id"] for j in store.listed(connection, MINE, PageRequest(), Filters(status="cancelled"))["data"]
        ] == made[:1]


def test_a_jobs_events_have_no_gaps_under_concurrent_writers(store: Jobs) -> None:
    job = submit(store)
    store.claim(job, 60)

    def write() -> None:
        for n in range(10):
            store.log(job, 1, "info", str(n))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.database.read() as connection:
        found = [int(e["id"][-8:]) for e in events.after(connection, job, 0, 1000)]
    assert found == list(range(1, 43))


def test_a_queued_job_whose_message_was_lost_is_rung_again(store: Jobs) -> None:
    job = submit(store)
    assert store.unrung(broker_is_empty=False) == [job]
    with store.database.write() as connection:
        connection.execute(update(jobs).values(notified_at=now()))
    assert store.unrung(broker_is_empty=True) == []
    with store.database.write() as connection:
        connection.execute(update(jobs).values(notified_at=now() - 60))
    assert store.unrung(broker_is_empty=False) == []
    assert store.unrung(broker_is_empty=True) == [job]


def test_only_ended_jobs_can_be_deleted_and_take_everything_along(store: Jobs) -> None:
    job = submit(store, metadata={"a": "b"})
    with pytest.raises(InvalidTransition, match="only an ended job"):
        store.remove(MINE, job)
    store.claim(job, 60)
    store.add_metrics(job, 1, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}])
    store.cancel(MINE, job)
    store.remove(MINE, job)
    with store.database.read() as connection:
        assert connection.execute(select(jobs)).first() is None
        assert events.after(connection, job, 0, 10) == []


def test_terminal_states_are_those_without_a_way_out() -> None:
    assert {"succeeded", "failed", "cancelled"} == TERMINAL
