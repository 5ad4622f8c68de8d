"""Claims, fences, leases and transitions, on every database."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from tests.store.rows import PROGRESS, SCORE, insert_inputs, point, result, spec, stored
from wbar.checkpoints import Fault
from wbar.errors import InUse, InvalidTransition, NotFound, ValidationFailed
from wbar.method import Soup
from wbar.recipe import Distillation, Recipe
from wbar.results import CurvePoint
from wbar.states import TERMINAL, TRANSITIONS
from wbar_store.attempts import MAX_CRASHES, MAX_KILLED, ResultBlobs
from wbar_store.blobs import Blobs, Received
from wbar_store.claims import Claim
from wbar_store.database import Database, Tenant, now
from wbar_store.ids import new_id
from wbar_store.job_lists import Filters
from wbar_store.job_records import FileName
from wbar_store.notifier import Notifier
from wbar_store.repository import PageRequest
from wbar_store.store import Store
from wbar_store.tables import checkpoints, events, job_files, job_inputs, job_metadata, jobs, metrics, snapshots

MINE, OTHER = Tenant("default"), Tenant("other")
FILES = ResultBlobs("w" * 64, "p" * 64, None, averaged="a" * 64, averaged_pytorch="b" * 64)


@pytest.fixture
def store(database: Database, tmp_path: Any) -> Iterator[Store]:
    insert_inputs(database)
    opened = Store(database, Blobs(f"file://{tmp_path / 'blobs'}", database), Notifier("memory://"))
    yield opened
    opened.notifier.close()


def submit(
    store: Store,
    tenant: Tenant = MINE,
    metadata: dict[str, str] | None = None,
    max_seconds: float | None = None,
    **changes: Any,
) -> str:
    return store.jobs.create(tenant, spec(**changes), None, metadata or {}, max_seconds).id


def status(store: Store, job_id: str) -> str:
    return store.jobs.get(MINE, job_id).status


def log_of(store: Store, job_id: str) -> list[tuple[str, Any]]:
    return [(event.type, event.data.get("status")) for event in store.events.after(MINE, job_id, 0, 1000)]


def snapshot(digest: str) -> Received:
    return Received("tmp/x", digest * 64, 10)


def test_only_one_of_many_claims_wins(store: Store) -> None:
    job = submit(store)
    won: list[Any] = []
    barrier = threading.Barrier(8)

    def claim() -> None:
        barrier.wait()
        won.append(store.attempts.claim(job, 60))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(row is not None for row in won) == 1
    assert status(store, job) == "running"


def test_a_job_comes_back_as_it_was_asked_for(store: Store) -> None:
    recipe = Recipe(distillation=Distillation(teacher="job_2"), mixup=0.2)
    asked = spec(recipe=recipe, teachers=(stored("snap_1"),), classes=tuple("0123456789"), swag=3)
    made = store.jobs.create(MINE, asked, "a name", {"team": "vision"})
    assert made == store.jobs.get(MINE, made.id)
    assert made.spec == asked
    assert store.jobs.spec(made.id) == asked
    sent = made.to_api()
    assert (sent.checkpoint, sent.dataset, sent.swag, sent.classes) == ("ckpt_1", "ds_1", 3, list("0123456789"))
    assert (sent.status, sent.attempts, sent.metadata) == ("queued", 0, {"team": "vision"})


def test_a_stale_fence_changes_nothing(store: Store) -> None:
    job = submit(store)
    store.attempts.claim(job, -1)
    first, second = Claim(job, 1), Claim(job, 2)
    assert store.attempts.expired() == [(MINE, first)]
    assert store.attempts.lose(first, "gone") == "queued"
    claimed = store.attempts.claim(job, 60)
    assert claimed is not None
    assert claimed.claim == second
    assert store.attempts.heartbeat(first, 60, PROGRESS) == "gone"
    assert store.attempts.heartbeat(second, 60, PROGRESS) is None
    assert not store.attempts.fail(first, Fault(code="x", message="y"))
    assert store.attempts.lose(first, "late") is None
    assert not store.attempts.log(first, "info", "late")
    assert not store.attempts.averaged(first, 1, SCORE)
    assert not store.metrics.add(first, [point(1)])
    assert not store.snapshots.add(first, 1, 10, SCORE, snapshot("1"))
    assert store.attempts.save_state(first, "s" * 64, 1) is None
    assert not store.attempts.yield_back(first, "queued")
    assert not store.attempts.succeed(first, result(), FILES, None)
    assert status(store, job) == "running"
    assert store.jobs.get(MINE, job).state is None
    assert store.attempts.succeed(second, result(), FILES, PROGRESS)
    ended = store.jobs.get(MINE, job)
    assert (ended.status, ended.result, ended.progress) == ("succeeded", result(), PROGRESS)
    assert ended.blobs == [FILES.weights, FILES.pytorch, FILES.averaged, FILES.averaged_pytorch]


@pytest.mark.parametrize(("crashed", "most"), [(True, MAX_CRASHES), (False, MAX_KILLED)])
def test_a_poison_job_fails_after_so_many_lost_attempts_in_a_row(store: Store, crashed: bool, most: int) -> None:
    job = submit(store)
    for attempt in range(1, most + 1):
        assert store.attempts.claim(job, 60) is not None
        # As far as before, or hardly further: that is no reason to go on for ever.
        progress = PROGRESS.model_copy(update={"step": attempt % 9, "total_steps": 900})
        store.attempts.heartbeat(Claim(job, attempt), 60, progress)
        moved = store.attempts.lose(Claim(job, attempt), "ended by SIGSEGV", crashed)
        assert moved == ("failed" if attempt == most else "queued")
    error = store.jobs.get(MINE, job).error
    assert error is not None
    assert error.code == "attempts_exhausted"
    assert "SIGSEGV" in error.message


def test_a_job_whose_every_attempt_comes_further_is_never_given_up(store: Store) -> None:
    job = submit(store)
    for attempt in range(1, 40):
        assert store.attempts.claim(job, 60) is not None
        progress = PROGRESS.model_copy(update={"step": 10 * attempt, "total_steps": 1000})
        store.attempts.heartbeat(Claim(job, attempt), 60, progress)
        assert store.attempts.lose(Claim(job, attempt), "killed", crashed=attempt % 2 == 0) == "queued"


def test_a_point_of_the_curve_is_told_once_whoever_tells_it(store: Store) -> None:
    job = submit(store)
    store.attempts.claim(job, 60)
    assert store.attempts.averaged(Claim(job, 1), 1, SCORE)
    store.attempts.lose(Claim(job, 1), "killed")
    store.attempts.claim(job, 60)
    for n in (1, 2, 2):
        assert store.attempts.averaged(Claim(job, 2), n, SCORE)
    told = [event.data["n"] for event in store.events.after(MINE, job, 0, 100) if event.type == "metrics"]
    assert told == [1, 2]


@pytest.mark.parametrize(("asked", "allowed"), [(10.0, None), (None, 10.0), (10.0, 100.0), (100.0, 10.0)])
def test_a_job_that_ran_for_too_long_fails_whatever_ended_its_attempts(
    store: Store, asked: float | None, allowed: float | None
) -> None:
    job = submit(store, max_seconds=asked)
    for attempt in (1, 2):
        store.attempts.claim(job, 60)
        claim = Claim(job, attempt)
        assert store.attempts.heartbeat(claim, 60, None, ran=4.0, limit=allowed) is None
        if attempt == 1:
            store.attempts.lose(claim, "killed")
    assert store.attempts.heartbeat(claim, 60, None, ran=2.5, limit=allowed) == "gone"
    ended = store.jobs.get(MINE, job)
    assert ended.error is not None
    assert (ended.status, ended.error.code, "10 s" in ended.error.message) == ("failed", "time_limit", True)


def test_states_that_are_no_further_forgive_nothing(store: Store) -> None:
    """Where a host's files do not survive it, each attempt begins at the same place, saves there, and crashes there."""
    job = submit(store)
    for attempt in range(1, 10):
        if store.attempts.claim(job, 60) is None:
            break
        store.attempts.got_further(Claim(job, attempt), 150)
        store.attempts.lose(Claim(job, attempt), "ended by SIGSEGV", crashed=True)
    assert status(store, job) == "failed"


def test_an_odd_progress_does_not_keep_an_attempt_from_being_lost(store: Store) -> None:
    job = submit(store)
    store.attempts.claim(job, 60)
    with store.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job).values(progress="odd"))
    assert store.attempts.lose(Claim(job, 1), "killed") == "queued"


def test_a_job_that_is_tried_with_smaller_parts_begins_anew_and_stays_paused(store: Store) -> None:
    job = submit(store, recipe=Recipe(batch_size=64))
    store.attempts.claim(job, 60)
    store.metrics.add(Claim(job, 1), [point(1)])
    store.jobs.pause(MINE, job)
    assert store.attempts.retry_in_smaller_parts(Claim(job, 1), "out of memory")
    assert status(store, job) == "paused"
    assert store.metrics.all(MINE, job) == []


def test_a_job_without_memory_is_tried_once_more_with_smaller_parts(store: Store) -> None:
    job = submit(store, recipe=Recipe(batch_size=64))
    claim = Claim(job, 1)
    store.attempts.claim(job, 60)
    store.attempts.save_state(claim, "s" * 64, 10)
    assert store.attempts.retry_in_smaller_parts(claim, "out of memory")
    waiting = store.jobs.get(MINE, job)
    assert (waiting.status, waiting.state) == ("queued", None)
    assert isinstance(waiting.spec.recipe.batch_size, int)
    assert (waiting.spec.recipe.accumulate, waiting.spec.recipe.batch_size) == (2, 64)
    said = [event.data["message"] for event in store.events.after(MINE, job, 0, 100) if event.type == "log"]
    assert "2 parts" in said[-1]
    store.attempts.claim(job, 60)
    assert not store.attempts.retry_in_smaller_parts(Claim(job, 2), "out of memory"), "only once"
    assert not store.attempts.retry_in_smaller_parts(claim, "out of memory"), "the fence is stale"


def test_parts_of_one_image_are_not_tried(store: Store) -> None:
    for recipe in (Recipe(batch_size=3), Recipe(batch_size=4, accumulate=2)):
        job = submit(store, recipe=recipe)
        store.attempts.claim(job, 60)
        assert not store.attempts.retry_in_smaller_parts(Claim(job, 1), "out of memory")


def test_a_pause_survives_the_death_of_the_attempt(store: Store) -> None:
    job = submit(store)
    store.attempts.claim(job, 60)
    store.jobs.pause(MINE, job)
    assert store.attempts.lose(Claim(job, 1), "killed") == "paused"
    assert status(store, job) == "paused"


def test_a_pause_survives_a_drain(store: Store) -> None:
    job = submit(store)
    store.attempts.claim(job, 60)
    store.jobs.pause(MINE, job)
    assert store.attempts.yield_back(Claim(job, 1), "queued")
    assert status(store, job) == "paused"
    assert not store.attempts.yield_back(Claim(job, 1), "queued"), "it is this attempt's no more"


def snapshot_of(store: Store, job: str, n: int = 1) -> None:
    with store.database.write() as connection:
        values = {
            "job": job,
            "n": n,
            "step": n,
            "metrics": SCORE.model_dump(),
            "bytes": 1,
            "sha256": "a" * 64,
            "created_at": now(),
        }
        connection.execute(insert(snapshots).values(id=new_id("snap"), **values))


def test_a_finish_needs_a_running_job_with_something_to_average(store: Store) -> None:
    job = submit(store)
    with pytest.raises(InvalidTransition, match="queued"):
        store.jobs.finish(MINE, job)
    store.attempts.claim(job, 60)
    with pytest.raises(InvalidTransition, match="has no snapshot, so"):
        store.jobs.finish(MINE, job)
    snapshot_of(store, job)
    for _ in range(2):  # asking twice is asking once
        store.jobs.finish(MINE, job)
    assert store.attempts.heartbeat(Claim(job, 1), 60, None) == "finish"
    store.attempts.lose(Claim(job, 1), "killed")
    assert store.jobs.finish(MINE, job).status == "queued"  # asked again, after its worker was lost
    store.attempts.claim(job, 60)
    with pytest.raises(InvalidTransition, match="is finishing"):
        store.jobs.pause(MINE, job)
    with pytest.raises(NotFound):
        store.jobs.finish(Tenant("other"), job)


def test_a_job_that_starts_over_keeps_nothing_of_the_run_before(store: Store) -> None:
    """Neither snapshots nor a request to finish, where it has to be done in smaller parts."""
    job = submit(store, recipe=Recipe(batch_size=64))
    store.attempts.claim(job, 60)
    snapshot_of(store, job)
    store.jobs.finish(MINE, job)
    assert store.attempts.retry_in_smaller_parts(Claim(job, 1), "out of memory")
    store.attempts.claim(job, 60)
    assert store.attempts.heartbeat(Claim(job, 2), 60, None) is None
    with pytest.raises(InvalidTransition, match="has no snapshot"):
        store.jobs.finish(MINE, job)


def test_snapshots_beyond_those_of_the_result_go_with_its_end(store: Store) -> None:
    job = submit(store)
    store.attempts.claim(job, 60)
    for n in (1, 2, 3):
        snapshot_of(store, job, n)
    curve = [CurvePoint(n=n, accuracy=0.5, loss=0.5) for n in (1, 2)]
    assert store.attempts.succeed(Claim(job, 1), result().model_copy(update={"curve": curve}), FILES, None)
    assert [one.n for one in store.snapshots.all(MINE, job)] == [1, 2]


def test_a_pause_that_was_asked_for_comes_before_a_finish(store: Store) -> None:
    job = submit(store)
    store.attempts.claim(job, 60)
    snapshot_of(store, job)
    store.jobs.pause(MINE, job)
    with pytest.raises(InvalidTransition, match="about to pause"):
        store.jobs.finish(MINE, job)
    store.attempts.yield_back(Claim(job, 1), "paused")
    with pytest.raises(InvalidTransition, match="paused: only a running job can be finished: resume it first"):
        store.jobs.finish(MINE, job)


@pytest.mark.parametrize("end", ["lose", "drain"])
def test_a_finish_outlives_the_attempt_that_did_not_answer_it(store: Store, end: str) -> None:
    job = submit(store)
    store.attempts.claim(job, 60)
    snapshot_of(store, job)
    store.jobs.finish(MINE, job)
    claim = Claim(job, 1)
    assert store.attempts.lose(claim, "killed") if end == "lose" else store.attempts.yield_back(claim, "queued")
    assert status(store, job) == "queued"
    store.attempts.claim(job, 60)
    assert store.attempts.heartbeat(Claim(job, 2), 60, None) == "finish"


def test_getting_further_forgives_lost_attempts(store: Store) -> None:
    job = submit(store)
    for attempt in range(1, 3 * MAX_KILLED):
        claim = Claim(job, attempt)
        assert store.attempts.claim(job, 60) is not None
        if attempt % 2:
            store.attempts.save_state(claim, "s" * 64, step=attempt)
        else:
            store.attempts.got_further(claim, attempt)
        assert store.attempts.lose(claim, "preempted") == "queued"


def test_a_state_replaces_the_one_before_and_is_dropped_at_the_end(store: Store) -> None:
    job = submit(store)
    claim = Claim(job, 1)
    store.attempts.claim(job, 60)
    assert store.attempts.save_state(claim, "s" * 64, 10) is None
    assert store.attempts.save_state(claim, "t" * 64, 20) == "s" * 64
    assert store.attempts.save_state(claim, "t" * 64, 20) is None
    assert store.jobs.drop_state(job) is None
    store.jobs.cancel(MINE, job)
    assert store.jobs.ended_with_state() == [job]
    assert store.jobs.drop_state(job) == "t" * 64
    assert store.jobs.ended_with_state() == []


def test_cancel_is_idempotent_and_final(store: Store) -> None:
    job = submit(store)
    store.attempts.claim(job, 60)
    assert store.jobs.cancel(MINE, job).status == "cancelled"
    assert store.jobs.cancel(MINE, job).status == "cancelled"
    assert store.attempts.heartbeat(Claim(job, 1), 60, None) == "gone"
    assert log_of(store, job) == [("status", "queued"), ("status", "running"), ("status", "cancelled")]
    with pytest.raises(InvalidTransition):
        store.jobs.resume(MINE, job)


def test_pause_and_resume(store: Store) -> None:
    job = submit(store)
    with pytest.raises(InvalidTransition, match="queued"):
        store.jobs.pause(MINE, job)
    store.attempts.claim(job, 60)
    store.jobs.pause(MINE, job)
    assert store.attempts.heartbeat(Claim(job, 1), 60, None) == "pause"
    assert store.attempts.yield_back(Claim(job, 1), "paused")
    assert status(store, job) == "paused"
    assert store.jobs.resume(MINE, job).status == "queued"
    assert store.jobs.overdue(broker_is_empty=False) == [job]


@pytest.mark.parametrize("source", TRANSITIONS)
@pytest.mark.parametrize("target", TRANSITIONS)
def test_every_transition_outside_the_table_is_refused(store: Store, source: Any, target: Any) -> None:
    job = submit(store)
    with store.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job).values(status=source))
    assert store.jobs.move(job, target) == (target in TRANSITIONS[source])
    assert status(store, job) == (target if target in TRANSITIONS[source] else source)


def test_another_tenants_job_and_its_parts_do_not_exist(store: Store) -> None:
    job = submit(store)
    store.attempts.claim(job, 60)
    store.snapshots.add(Claim(job, 1), 1, 10, SCORE, snapshot("1"))
    assert store.jobs.page(OTHER, PageRequest()).records == []
    for ask in (store.jobs.get, store.jobs.stored, store.jobs.cancel, store.jobs.pause, store.jobs.resume, store.jobs.remove,
                store.snapshots.all, store.metrics.all):  # fmt: skip
        with pytest.raises(NotFound):
            ask(OTHER, job)
    with pytest.raises(NotFound):
        store.events.after(OTHER, job, 0, 10)
    with pytest.raises(NotFound):
        store.events.page(OTHER, job, PageRequest())
    with pytest.raises(NotFound):
        store.snapshots.page(OTHER, job, PageRequest())
    with pytest.raises(NotFound):
        store.snapshots.get(OTHER, job, 1)


def test_what_a_row_holds_is_the_record_and_changes_with_it(store: Store) -> None:
    job = submit(store, metadata={"team": "vision"})
    queued = store.jobs.stored(MINE, job)
    assert queued == store.jobs.stored(MINE, job)
    assert hash(queued) == hash(store.jobs.stored(MINE, job)), "JSON is text, on every database"
    assert store.jobs.of_stored(queued) == store.jobs.get(MINE, job)
    store.attempts.claim(job, 60)
    running = store.jobs.stored(MINE, job)
    assert running != queued
    store.attempts.heartbeat(Claim(job, 1), 60, PROGRESS)
    assert store.jobs.stored(MINE, job) not in (queued, running)
    assert store.jobs.of_stored(store.jobs.stored(MINE, job)) == store.jobs.get(MINE, job)


def test_lists_page_by_key_and_filter(store: Store) -> None:
    made = [submit(store, metadata={"team": "a" if n % 2 else "b"}) for n in range(7)]
    store.jobs.cancel(MINE, made[0])

    def ids(request: PageRequest, **filters: Any) -> tuple[list[str], bool]:
        page = store.jobs.filtered(MINE, request, Filters(**filters))
        return [job.id for job in page.records], page.has_more

    assert ids(PageRequest(limit=3, order="asc")) == (made[:3], True)
    assert ids(PageRequest(limit=10, order="asc", after=made[2])) == (made[3:], False)
    assert ids(PageRequest(limit=2), metadata=(("team", "a"),)) == ([made[5], made[3]], True)
    assert ids(PageRequest(), statuses=("cancelled",)) == (made[:1], False)
    assert ids(PageRequest(), checkpoint="ckpt_other") == ([], False)


def test_events_page_by_sequence_and_type(store: Store) -> None:
    job, other = submit(store), submit(store)
    store.attempts.claim(job, 60)
    store.attempts.log(Claim(job, 1), "info", "hello")
    page = store.events.page(MINE, job, PageRequest(limit=2, order="asc"))
    assert ([event.seq for event in page.records], page.has_more) == ([1, 2], True)
    last = page.records[-1].to_api().id
    assert [event.seq for event in store.events.page(MINE, job, PageRequest(after=last, order="asc")).records] == [3]
    assert [event.seq for event in store.events.page(MINE, job, PageRequest(after=last)).records] == [1]
    assert [event.seq for event in store.events.page(MINE, job, PageRequest(), ["log"]).records] == [3]
    with pytest.raises(ValidationFailed, match="is not an event of"):
        store.events.page(MINE, other, PageRequest(after=last))


def test_a_jobs_events_have_no_gaps_under_concurrent_writers(store: Store) -> None:
    job = submit(store)
    store.attempts.claim(job, 60)

    def write() -> None:
        for n in range(10):
            store.attempts.log(Claim(job, 1), "info", str(n))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.seq for event in store.events.after(MINE, job, 0, 1000)] == list(range(1, 43))


def test_snapshots_are_listed_by_n_and_replaced_only_by_other_weights(store: Store) -> None:
    job = submit(store)
    claim = Claim(job, 1)
    store.attempts.claim(job, 60)
    for n in (2, 1, 3):
        assert store.snapshots.add(claim, n, 10 * n, SCORE, snapshot(str(n)))
    assert not store.snapshots.add(claim, 2, 20, SCORE, snapshot("2")), "the same again"
    assert store.snapshots.add(claim, 2, 25, SCORE, snapshot("9"))
    assert [(one.n, one.step, one.sha256[0]) for one in store.snapshots.all(MINE, job)] == [
        (1, 10, "1"), (2, 25, "9"), (3, 30, "3"),
    ]  # fmt: skip
    page = store.snapshots.page(MINE, job, PageRequest(limit=2))
    assert ([one.n for one in page.records], page.has_more) == ([1, 2], True)
    rest = store.snapshots.page(MINE, job, PageRequest(after=page.records[-1].id))
    assert ([one.n for one in rest.records], rest.has_more) == ([3], False)
    with pytest.raises(NotFound, match=r"has no snapshot 4; it has \[1, 2, 3\]"):
        store.snapshots.get(MINE, job, 4)


def test_a_step_keeps_its_first_report(store: Store) -> None:
    job = submit(store)
    store.attempts.claim(job, 60)
    store.metrics.add(Claim(job, 1), [point(2), point(1)])
    store.metrics.add(Claim(job, 1), [point(2, loss=9.0), point(3)])
    assert [(one.step, one.loss) for one in store.metrics.all(MINE, job)] == [(1, 0.5), (2, 0.5), (3, 0.5)]


def test_a_queued_job_whose_message_was_lost_is_notified_of_again(store: Store) -> None:
    job = submit(store)
    assert store.jobs.overdue(broker_is_empty=False) == [job]
    store.notify(job)
    assert store.jobs.overdue(broker_is_empty=True) == []
    with store.database.write() as connection:
        connection.execute(update(jobs).values(notified_at=now() - 60))
    assert store.jobs.overdue(broker_is_empty=False) == []
    assert store.jobs.overdue(broker_is_empty=True) == [job]


def test_only_ended_jobs_can_be_deleted_and_take_everything_along(store: Store) -> None:
    job = submit(store, metadata={"a": "b"})
    with pytest.raises(InvalidTransition, match="only an ended job"):
        store.jobs.remove(MINE, job)
    store.attempts.claim(job, 60)
    store.metrics.add(Claim(job, 1), [point(1), point(2)])
    store.snapshots.add(Claim(job, 1), 1, 2, SCORE, snapshot("1"))
    store.attempts.save_state(Claim(job, 1), "s" * 64, 2)
    store.jobs.cancel(MINE, job)
    assert store.jobs.remove(MINE, job) == ["s" * 64, "1" * 64]
    with store.database.read() as connection:
        assert connection.execute(select(jobs)).first() is None
        for table in (events, metrics, snapshots, job_inputs, job_metadata):
            assert connection.execute(select(table)).first() is None


def test_what_a_job_needs_is_kept_until_it_has_ended(store: Store) -> None:
    teacher = submit(store)
    taught = submit(store, recipe=Recipe(distillation=Distillation(teacher=teacher)))
    soup = submit(
        store, method=Soup(type="soup", checkpoints=["ckpt_1", "ckpt_2"]), ingredients=(stored(), stored("ckpt_2"))
    )
    store.jobs.cancel(MINE, teacher)
    with pytest.raises(InUse, match=f"is the teacher of {taught}"):
        store.jobs.remove(MINE, teacher)
    for repository, needed in ((store.checkpoints, "ckpt_1"), (store.datasets, "ds_1")):
        with pytest.raises(InUse):
            repository.remove(MINE, needed)
    for job in (taught, soup):
        store.jobs.cancel(MINE, job)
    assert store.checkpoints.remove(MINE, "ckpt_1") == []
    with pytest.raises(NotFound):
        store.checkpoints.get(MINE, "ckpt_1")
    for job in (teacher, taught, soup):
        assert store.jobs.get(MINE, job).to_api().checkpoint == "ckpt_1"
        store.jobs.remove(MINE, job)
    with store.database.read() as connection:
        assert connection.execute(select(checkpoints)).first() is None, "hidden for the jobs, and gone with the last"


def test_terminal_states_are_those_without_a_way_out() -> None:
    assert {"succeeded", "failed", "cancelled"} == TERMINAL


def test_losses_that_a_sweeper_of_0_6_left_are_forgotten_too(store: Store) -> None:
    job = store.jobs.create(MINE, spec(), None, {}, expires_after=60).id
    assert store.jobs.expired() == []
    by_0_6 = {"status": "succeeded", "finished_at": 1.0, "expired_at": 100.0, "losses": "1" * 64}
    with store.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job).values(**by_0_6))
    assert store.jobs.expired() == [job]
    assert store.jobs.drop_files(job) == ["1" * 64]
    assert store.jobs.expired() == store.jobs.drop_files(job) == []
    assert store.jobs.get(MINE, job).expired_at == 100.0


def test_further_files_go_with_their_job_and_with_their_time(store: Store) -> None:
    files: dict[FileName, str] = {"onnx": "2" * 64, "card": "3" * 64}
    ended = []
    for expires_after in (None, 60):
        job = store.jobs.create(MINE, spec(), None, {}, expires_after=expires_after).id
        claimed = store.attempts.claim(job, 60)
        assert claimed is not None
        assert store.attempts.succeed(
            claimed.claim, result(), ResultBlobs("0" * 64, "1" * 64, None, None, files=files), None
        )
        ended.append(store.jobs.get(MINE, job))
    for job_ in ended:
        assert [store.jobs.file(job_, name) for name in ("onnx", "card", "signature")] == ["2" * 64, "3" * 64, None]
    kept, expiring = ended
    assert sorted(store.jobs.remove(MINE, kept.id)) == ["0" * 64, "1" * 64, "2" * 64, "3" * 64]
    with store.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == expiring.id).values(finished_at=1.0))
    assert store.jobs.expired() == [expiring.id]
    assert sorted(store.jobs.drop_files(expiring.id)) == ["0" * 64, "1" * 64, "2" * 64, "3" * 64]
    assert store.jobs.expired() == store.jobs.drop_files(expiring.id) == []
    assert store.jobs.file(expiring, "onnx") is None


def test_further_files_that_a_sweeper_of_0_7_left_are_forgotten_too(store: Store) -> None:
    job = store.jobs.create(MINE, spec(), None, {}, expires_after=60).id
    by_0_7 = {"status": "succeeded", "finished_at": 1.0, "expired_at": 100.0}
    with store.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job).values(**by_0_7))
        connection.execute(insert(job_files).values(job=job, name="onnx", sha256="2" * 64))
    assert store.jobs.expired() == [job]
    assert store.jobs.drop_files(job) == ["2" * 64]
    assert store.jobs.expired() == []
