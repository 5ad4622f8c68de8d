"""Many streams, one poller: nothing is lost, nothing comes twice, and each ends where its job does."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import event, update

from tests.store.rows import PROGRESS, insert_inputs, result, spec
from wbar.errors import NotFound
from wbar_service.jobs.stream import POLL_SECONDS, REMEMBERED, EventStreams
from wbar_store import row_security
from wbar_store.attempts import ResultBlobs
from wbar_store.claims import Claim
from wbar_store.database import Database, Tenant
from wbar_store.events import event_id
from wbar_store.repository import PageRequest
from wbar_store.store import Store
from wbar_store.tables import events

MINE = Tenant("default")


@pytest.fixture
def store(database: Database) -> Store:
    insert_inputs(database)
    return Store(database, None, None)  # type: ignore[arg-type]  # nothing is uploaded or notified here


def start(store: Store) -> str:
    job = store.jobs.create(MINE, spec(), None, {}).id
    store.attempts.claim(job, 60)
    return job


def beat(store: Store, job: str, times: int = 1) -> None:
    for _ in range(times):
        store.attempts.heartbeat(Claim(job, 1), 60, PROGRESS, event=True)


def end(store: Store, job: str) -> None:
    store.attempts.succeed(Claim(job, 1), result(), ResultBlobs("w" * 64, "p" * 64, None), PROGRESS)


async def follow(streams: EventStreams, job: str, after: int = 0, seen: list[int] | None = None) -> list[int]:
    """The numbers of every event that a stream sends until it ends; `seen` has them as they come."""
    seen = [] if seen is None else seen
    async for message in streams.events(MINE, job, after):
        assert message.id is not None
        seen.append(int(message.id[-8:]))
    return seen


def test_every_stream_gets_every_event_once(store: Store) -> None:
    jobs = [start(store) for _ in range(3)]

    async def run() -> list[list[int]]:
        streams = EventStreams(store)
        watching = [asyncio.create_task(follow(streams, job, after)) for job in jobs for after in (0, 1, 2, 5)]
        for _ in range(4):
            await asyncio.to_thread(beat, store, jobs[0], 3)
            await asyncio.to_thread(beat, store, jobs[1], 1)
            await asyncio.sleep(0.1)
        late = asyncio.create_task(follow(streams, jobs[0], 7))
        for job in jobs:
            await asyncio.to_thread(end, store, job)
        return [await watcher for watcher in [*watching, late]]

    lengths = [2 + 12 + 1, 2 + 4 + 1, 2 + 1]
    expected = [list(range(after + 1, length + 1)) for length in lengths for after in (0, 1, 2, 5)]
    assert asyncio.run(run()) == [*expected, list(range(8, lengths[0] + 1))]


def test_one_poller_feeds_the_streams_of_all_tenants(store: Store) -> None:
    """On PostgreSQL each request's transactions are its tenant's; the poller, which a request starts, is nobody's."""
    job = start(store)

    async def run() -> list[int]:
        streams = EventStreams(store)
        row_security.act_for("another")
        first = asyncio.create_task(follow(streams, "job_of_another"))
        await asyncio.sleep(0)  # it has started the poller
        row_security.act_for(MINE.name)
        mine = asyncio.create_task(follow(streams, job))
        await asyncio.sleep(3 * POLL_SECONDS)  # the poller has asked for this job, too
        await asyncio.to_thread(beat, store, job)
        await asyncio.to_thread(end, store, job)
        await first
        return await mine

    assert asyncio.run(asyncio.wait_for(run(), 20)) == [1, 2, 3, 4]


def test_a_stream_that_was_away_for_long_misses_nothing(store: Store) -> None:
    job = start(store)

    async def run() -> list[int]:
        streams = EventStreams(store)
        # Somebody keeps the poller's memory going, which is shorter than what the slow one has to read.
        other = asyncio.create_task(follow(streams, job))
        slow, seen = streams.events(MINE, job, 0), []
        seen.append(await anext(slow))
        await asyncio.to_thread(beat, store, job, REMEMBERED + 50)
        await asyncio.sleep(0.6)
        await asyncio.to_thread(end, store, job)
        seen += [message async for message in slow]
        await other
        return [int(str(message.id)[-8:]) for message in seen]

    assert asyncio.run(run()) == list(range(1, REMEMBERED + 54))


def test_an_odd_event_ends_no_stream(store: Store, database: Database) -> None:
    odd, plain = start(store), start(store)

    async def run() -> tuple[list[int], list[int]]:
        streams = EventStreams(store)
        watching = [asyncio.create_task(follow(streams, job)) for job in (odd, plain)]
        await asyncio.sleep(0.6)
        await asyncio.to_thread(beat, store, odd)
        await asyncio.to_thread(spoil, database, odd, 3)
        await asyncio.sleep(0.6)
        for job in (odd, plain):
            await asyncio.to_thread(end, store, job)
        first, second = await asyncio.gather(*watching)
        return first, second

    first, second = asyncio.run(run())
    assert second == [1, 2, 3]
    assert first in ([1, 2, 4], [1, 2, 3, 4])  # it may have been sent before it was spoiled
    page = store.events.page(MINE, odd, PageRequest(limit=1, order="asc", after=event_id(odd, 2)))
    assert page.last_id == event_id(odd, 3)


def spoil(database: Database, job: str, seq: int) -> None:
    with database.write() as connection:
        connection.execute(update(events).where(events.c.job == job, events.c.seq == seq).values(data="odd"))


def test_a_stream_of_an_ended_or_deleted_job_ends(store: Store) -> None:
    ended, deleted = start(store), start(store)
    end(store, ended)

    async def run() -> tuple[list[int], list[int], list[int]]:
        streams = EventStreams(store)
        waiting = asyncio.create_task(follow(streams, deleted))
        whole, rest = await follow(streams, ended), await follow(streams, ended, 3)
        await asyncio.to_thread(store.jobs.cancel, MINE, deleted)
        return whole, rest, await waiting

    assert asyncio.run(run()) == ([1, 2, 3], [], [1, 2, 3])
    store.jobs.remove(MINE, deleted)
    with pytest.raises(NotFound):
        store.jobs.status(MINE, deleted)

    async def removed() -> list[int]:
        return await follow(EventStreams(store), deleted, 1)

    assert asyncio.run(removed()) == []


def test_a_hundred_streams_cost_as_many_questions_as_one(store: Store, database: Database) -> None:
    jobs = [start(store) for _ in range(100)]
    seen: list[list[int]] = [[] for _ in jobs]
    statements: list[str] = []

    def note(*given: Any) -> None:
        statements.append(given[2])

    async def run() -> int:
        streams = EventStreams(store)
        watching = [asyncio.create_task(follow(streams, job, 0, one)) for job, one in zip(jobs, seen, strict=True)]
        while not all(len(one) == 2 for one in seen) or any(job.seq is None for job in streams._watched.values()):
            await asyncio.sleep(0.02)
        await asyncio.sleep(2 * POLL_SECONDS)  # every stream has read what there was, looked once more, and waits
        event.listen(database.engine, "before_cursor_execute", note)
        await asyncio.sleep(1.0)
        event.remove(database.engine, "before_cursor_execute", note)
        asked = len(statements)
        for job in jobs:
            await asyncio.to_thread(end, store, job)
        assert {tuple(await watcher) for watcher in watching} == {(1, 2, 3)}
        assert streams._watched == {}
        return asked

    assert asyncio.run(run()) <= 8
