"""The heartbeat passes reasons to stop on, most urgent first, and ends a child that does not answer."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.rows import PROGRESS, insert_inputs, spec
from tests.worker.entries import WAIT_FOR_STOP
from wbar_store.database import Tenant
from wbar_store.job_records import JobRecord
from wbar_store.migrate import upgrade
from wbar_store.store import Store
from wbar_training.messages import FromAttempt, Stopped
from wbar_worker import processes
from wbar_worker.heartbeat import Heartbeat
from wbar_worker.processes import Child
from wbar_worker.settings import WorkerSettings

MINE = Tenant("default")


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    return WorkerSettings(
        database_url=f"sqlite:///{tmp_path / 'wbar.db'}", broker_url="memory://",
        blobs_url=f"file://{tmp_path / 'blobs'}", stall_seconds=60, drain_seconds=30,
    )  # fmt: skip


@pytest.fixture
def store(settings: WorkerSettings) -> Iterator[Store]:
    opened = Store.open(settings)
    upgrade(opened.database)
    insert_inputs(opened.database)
    yield opened
    opened.close()


@pytest.fixture
def job(store: Store) -> JobRecord:
    claimed = store.attempts.claim(store.jobs.create(MINE, spec(), None, {}).id, 60)
    assert claimed is not None
    return claimed


@pytest.fixture
def child() -> Iterator[Child]:
    started = processes.start(WAIT_FOR_STOP, None)
    started.receive(FromAttempt)
    yield started
    started.end()


def heartbeat(store: Store, settings: WorkerSettings, job: JobRecord, clock: Clock) -> Heartbeat:
    return Heartbeat(store, settings, job.claim, threading.Event(), clock)


def test_a_child_that_was_started_after_a_long_fetch_is_not_ended(
    store: Store, settings: WorkerSettings, job: JobRecord, child: Child
) -> None:
    clock = Clock()
    beat = heartbeat(store, settings, job, clock)
    clock.now += 3600  # the fetch, far longer than stall_seconds
    beat.check(None)
    beat.watch(child)
    beat.check(None)
    clock.now += settings.stall_seconds - 1
    beat.check("pause")
    assert child.receive(FromAttempt) == Stopped(reason="pause"), "it lives, and answers"


def test_a_child_that_falls_silent_is_ended(
    store: Store, settings: WorkerSettings, job: JobRecord, child: Child
) -> None:
    clock = Clock()
    beat = heartbeat(store, settings, job, clock)
    beat.watch(child)
    clock.now += settings.stall_seconds + 1
    beat.check(None)
    assert child.crashed().why == "its process was ended by SIGKILL (the system was out of memory?)"


def test_a_word_from_the_child_counts_anew(
    store: Store, settings: WorkerSettings, job: JobRecord, child: Child
) -> None:
    clock = Clock()
    beat = heartbeat(store, settings, job, clock)
    beat.watch(child)
    for _ in range(3):
        clock.now += settings.stall_seconds - 1
        beat.heard()
        beat.check(None)
    beat.check("pause")
    assert child.receive(FromAttempt) == Stopped(reason="pause")


def test_only_a_more_urgent_reason_replaces_another(
    store: Store, settings: WorkerSettings, job: JobRecord, child: Child
) -> None:
    beat = heartbeat(store, settings, job, Clock())
    beat.check("pause")
    assert beat.asked is None, "there is no child yet to be asked"
    beat.watch(child)
    beat.check("drain")
    beat.check("pause")
    assert beat.asked == "drain"
    assert child.receive(FromAttempt) == Stopped(reason="drain")
    beat.check("cancel")
    assert beat.asked == "cancel"


def test_a_child_that_does_not_drain_in_time_is_ended(
    store: Store, settings: WorkerSettings, job: JobRecord, child: Child
) -> None:
    clock = Clock()
    beat = heartbeat(store, settings, job, clock)
    beat.watch(child)
    beat.check("drain")
    beat.unwatch()
    clock.now += settings.drain_seconds + 1
    beat.check("drain")  # its end was seen meanwhile: there is no process to end
    beat.watch(child)
    beat.check("drain")
    child.process.join(30)
    assert not child.process.is_alive()


def test_progress_goes_out_and_a_pause_comes_in(
    store: Store, settings: WorkerSettings, job: JobRecord, child: Child
) -> None:
    beat = Heartbeat(store, settings, job.claim, threading.Event())
    store.jobs.pause(MINE, job.id)
    beat.watch(child)
    beat.took(PROGRESS)
    beat.start()
    try:
        assert child.receive(FromAttempt) == Stopped(reason="pause")
    finally:
        beat.stop()
    assert beat.asked == "pause"
    assert store.jobs.get(MINE, job.id).progress == PROGRESS


def test_a_drain_is_not_hidden_by_a_pause(store: Store, settings: WorkerSettings, job: JobRecord, child: Child) -> None:
    store.jobs.pause(MINE, job.id)
    draining = threading.Event()
    draining.set()
    beat = Heartbeat(store, settings, job.claim, draining)
    beat.watch(child)
    beat.start()
    try:
        assert child.receive(FromAttempt) == Stopped(reason="drain")
    finally:
        beat.stop()


def test_a_stale_fence_is_a_cancel(store: Store, settings: WorkerSettings, job: JobRecord, child: Child) -> None:
    store.jobs.cancel(MINE, job.id)
    beat = Heartbeat(store, settings, job.claim, threading.Event())
    beat.watch(child)
    beat.start()
    try:
        assert child.receive(FromAttempt) == Stopped(reason="cancel")
    finally:
        beat.stop()
