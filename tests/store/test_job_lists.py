"""Lists of jobs are filtered and sorted by what came of them; a queue is by priority within a tenant."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.rows import insert_inputs, result, spec
from wbar.errors import ValidationFailed
from wbar.results import JobResult
from wbar.scores import Score
from wbar_store.attempts import ResultBlobs
from wbar_store.blobs import Blobs
from wbar_store.claims import Claim
from wbar_store.database import Database, Tenant
from wbar_store.job_lists import Filters, OrderBy
from wbar_store.notifier import Notifier
from wbar_store.repository import PageRequest
from wbar_store.store import Store

MINE, OTHER = Tenant("default"), Tenant("other")


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Iterator[Store]:
    insert_inputs(database)
    opened = Store(database, Blobs(f"file://{tmp_path / 'blobs'}", database), Notifier("memory://"))
    yield opened
    opened.notifier.close()


def scored(accuracy: float, loss: float) -> JobResult:
    made = result()
    averaged = Score(accuracy=accuracy, loss=loss, ece=0.1)
    return made.model_copy(update={"metrics": made.metrics.model_copy(update={"averaged": averaged})})


def ended(store: Store, accuracy: float, loss: float = 0.5, name: str | None = None) -> str:
    job = store.jobs.create(MINE, spec(), name, {}).id
    store.attempts.claim(job, 60, "train-1@host")
    assert store.attempts.succeed(Claim(job, 1), scored(accuracy, loss), ResultBlobs("w" * 64, "p" * 64, None), None)
    return job


def pages(store: Store, order_by: OrderBy, order: str, limit: int = 2) -> list[str]:
    found: list[str] = []
    after: str | None = None
    while True:
        page = store.jobs.filtered(MINE, PageRequest(limit, after, order), Filters(), order_by)  # type: ignore[arg-type]
        found += [job.id for job in page.records]
        if not page.has_more:
            return found
        after = page.last_id


def test_pages_go_by_a_number_of_the_result_and_those_without_come_last(store: Store) -> None:
    waiting = store.jobs.create(MINE, spec(), None, {}).id
    low, twin, high = ended(store, 0.2), ended(store, 0.2), ended(store, 0.9)
    later = store.jobs.create(MINE, spec(), None, {}).id
    assert pages(store, "result.accuracy", "desc") == [high, twin, low, later, waiting]
    assert pages(store, "result.accuracy", "asc") == [low, twin, high, waiting, later]
    assert pages(store, "result.accuracy", "desc", limit=1) == [high, twin, low, later, waiting]
    assert pages(store, "result.accuracy", "desc", limit=3) == [high, twin, low, later, waiting]


def test_gains_are_over_the_start_and_positive_where_the_mean_won(store: Store) -> None:
    better, worse = ended(store, 0.6, 0.5), ended(store, 0.4, 0.9)  # the start has 0.5 and 0.7
    assert pages(store, "result.accuracy_gain", "desc") == [better, worse]
    assert pages(store, "result.loss_gain", "desc") == [better, worse]
    assert pages(store, "result.loss", "asc") == [better, worse]
    assert pages(store, "finished_at", "asc") == [better, worse]


def test_a_page_cannot_begin_after_a_job_that_is_not_there(store: Store) -> None:
    with pytest.raises(ValidationFailed, match="`after`: there is no job"):
        store.jobs.filtered(MINE, PageRequest(after="job_0mk3q8v1zr5d2a7x9c4t"), Filters(), "result.loss")
    with pytest.raises(ValidationFailed, match="`after`: there is no job"):
        store.jobs.filtered(OTHER, PageRequest(after=ended(store, 0.3)), Filters(), "result.loss")


def test_conditions_are_met_together(store: Store) -> None:
    one, other = ended(store, 0.6, name="ResNet 100%_a"), ended(store, 0.6, name="resnet 100x_b")

    def kept(**conditions: object) -> set[str]:
        return {job.id for job in store.jobs.filtered(MINE, PageRequest(), Filters(**conditions)).records}  # type: ignore[arg-type]

    assert kept(name="RESNET") == {one, other}
    assert kept(name="100%_") == {one}, "signs of patterns are letters like others"
    assert kept(verdict="same", dataset="ds_1", statuses=("succeeded", "failed")) == {one, other}
    assert kept(verdict="better") == kept(dataset="ds_2") == kept(statuses=("queued",)) == set()


def test_a_tenants_own_jobs_are_taken_by_priority_and_its_places_stay(store: Store) -> None:
    def queued(tenant: Tenant, priority: int = 0) -> str:
        return store.jobs.create(tenant, spec(), None, {}, priority=priority).id

    low, theirs, plain, urgent = queued(MINE, -1), queued(OTHER, 100), queued(MINE), queued(MINE, 5)
    assert store.queue.positions(MINE) == {urgent: 1, plain: 3, low: 4}
    assert store.queue.positions(OTHER) == {theirs: 2}
    assert store.queue.first_beside(low) == store.queue.first_beside(urgent) == urgent
    assert store.queue.first_beside(theirs) == theirs
    claimed = store.attempts.claim(urgent, 60, "train-1@host")
    assert claimed is not None
    assert claimed.worker == "train-1@host"
    assert store.queue.first_beside(urgent) == plain, "its message's place is the tenant's, whatever became of the job"
    assert store.queue.first_beside("job_0mk3q8v1zr5d2a7x9c4t") is None
    assert store.queue.positions(Tenant("third")) == {}


def test_no_place_is_lost_with_a_deleted_job_nor_kept_by_a_cancelled_one(store: Store) -> None:
    def queued(tenant: Tenant, priority: int = 0) -> str:
        return store.jobs.create(tenant, spec(), None, {}, priority=priority).id

    low, urgent = queued(MINE), queued(MINE, 5)
    for job in (low, urgent):
        store.jobs.notified(job)
    assert store.queue.first_beside(low) == urgent
    assert store.attempts.claim(urgent, 60) is not None
    store.jobs.cancel(MINE, urgent)
    store.jobs.remove(MINE, urgent)
    assert store.queue.first_beside(urgent) is None, "its message finds nothing any more"
    assert store.jobs.overdue(False) == [low], "so another one is sent"
    waits, gone = queued(MINE), queued(MINE)
    store.jobs.cancel(MINE, gone)
    assert store.queue.first_beside(gone) is None
    assert store.queue.first_beside(waits) == low
    assert store.queue.first_beside(waits, without={low}) == waits
