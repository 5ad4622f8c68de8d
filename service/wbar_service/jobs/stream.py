"""Server-Sent Events: a job's log from any point on, without loss or repeats, until its terminal status."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
from anyio.to_thread import run_sync

from wbar.states import TERMINAL
from wbar_store import events
from wbar_store.store import Store

POLL_SECONDS = 0.25
BATCH = 500


async def job_events(store: Store, job_id: str, after: int) -> AsyncIterator[dict[str, Any]]:
    """Every event later than `after`, as sse-starlette takes them; ends once the terminal status was sent."""

    def fetch(seq: int) -> tuple[list[dict[str, Any]], bool]:
        # The status is read first: events that come between the two reads are then found by the second.
        ended = store.jobs.has_ended(job_id)
        with store.database.read() as connection:
            return events.after(connection, job_id, seq, BATCH), ended

    while True:
        found, ended = await run_sync(fetch, after)
        for event in found:
            yield {"id": event["id"], "event": event["type"], "data": json.dumps(event, separators=(",", ":"))}
            after = int(event["id"][-8:])
            if event["type"] == "status" and event["data"]["status"] in TERMINAL:
                return
        if ended and len(found) < BATCH:
            return
        if not found:
            await anyio.sleep(POLL_SECONDS)
