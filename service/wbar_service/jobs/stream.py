"""Server-Sent Events: a job's log from any point on, without loss or repeats, until its terminal status."""

import json
from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
from anyio.to_thread import run_sync
from sse_starlette.event import ServerSentEvent

from wbar.errors import NotFound
from wbar.states import TERMINAL
from wbar_store.database import Tenant
from wbar_store.events import EventRecord
from wbar_store.store import Store

POLL_SECONDS = 0.25
BATCH = 500


async def job_events(store: Store, tenant: Tenant, job_id: str, after: int) -> AsyncIterator[ServerSentEvent]:
    """Yield every event later than `after`; end once the terminal status was sent, or the job was deleted."""

    def fetch(seq: int) -> tuple[list[EventRecord], bool]:
        with suppress(NotFound):
            # The status is read first: events that come between the two reads are then found by the second.
            ended = store.jobs.status(tenant, job_id) in TERMINAL
            return store.events.after(tenant, job_id, seq, BATCH), ended
        return [], True

    while True:
        batch, ended = await run_sync(fetch, after)
        for event in batch:
            sent = event.to_api()
            # As ASCII: readers that split lines as Unicode does must find one line.
            data = json.dumps(sent.model_dump(mode="json"), separators=(",", ":"))
            yield ServerSentEvent(id=sent.id, event=sent.type, data=data)
            after = event.seq
            if event.type == "status" and event.data["status"] in TERMINAL:
                return
        if ended and len(batch) < BATCH:
            return
        if not batch:
            await anyio.sleep(POLL_SECONDS)
