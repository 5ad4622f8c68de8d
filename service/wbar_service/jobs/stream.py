"""Server-Sent Events: a job's log from any point on, without loss or repeats, until its terminal status.

One poller feeds all streams of this process: twice in a second or more it asks the database once for what is new in all the
jobs that somebody watches. A stream reads what lies before the poller's memory by itself, once, and waits from then on.
"""

import asyncio
import json
import logging
import re
from collections import deque
from collections.abc import AsyncIterator
from contextvars import Context
from dataclasses import dataclass, field

from anyio.to_thread import run_sync
from sqlalchemy.exc import DBAPIError
from sse_starlette.event import ServerSentEvent

from wbar.errors import NotFound
from wbar.states import TERMINAL
from wbar_store.database import UNAVAILABLE, Tenant
from wbar_store.documents import readable
from wbar_store.events import EventRecord, JobNews
from wbar_store.store import Store

log = logging.getLogger("wbar.service")

POLL_SECONDS = 0.25
BATCH = 500
REMEMBERED = 200  # events of each watched job


def wants_stream(accept: str) -> bool:
    """Return whether the header Accept names the stream, with a weight above 0 and not below that of JSON."""
    weights = {"text/event-stream": 0.0, "application/json": 0.0}
    for item in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        weight = next((value[2:] for value in parameters if value.startswith("q=")), "1")
        if kind in weights:
            weights[kind] = float(weight) if re.fullmatch(r"[01](\.[0-9]{0,3})?", weight) else 1.0
    return 0 < weights["text/event-stream"] >= weights["application/json"]


@dataclass(frozen=True)
class _Sent:
    """One event as every stream sends it: encoded once, whoever watches."""

    seq: int
    message: ServerSentEvent
    ends: bool

    @classmethod
    def of(cls, event: EventRecord) -> "_Sent":
        sent = event.to_api()
        # As ASCII: readers that split lines as Unicode does must find one line.
        data = json.dumps(sent.model_dump(mode="json"), separators=(",", ":"))
        ends = event.type == "status" and event.data.get("status") in TERMINAL
        return cls(event.seq, ServerSentEvent(id=sent.id, event=sent.type, data=data), ends)


@dataclass
class _Watched:
    """A job that streams wait for. seq: of its latest event that is known; over: whether none follows it; news: set when
    there is more.
    """

    streams: int = 0
    seq: int | None = None
    latest: deque[_Sent] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    over: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def after(self, seq: int) -> list[_Sent] | None:
        """Return the remembered events later than `seq`; None where some between are not remembered."""
        if self.seq is None or (self.latest and self.latest[0].seq > seq + 1) or (not self.latest and self.seq > seq):
            return None
        return [sent for sent in self.latest if sent.seq > seq]

    def tell(self) -> None:
        """Wake every stream that waits, and let the next wait anew."""
        self.news.set()
        self.news = asyncio.Event()


class EventStreams:
    """The streams of this process, and their poller, which runs while there are any. Only the event loop uses it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watched: dict[str, _Watched] = {}
        self._poller: asyncio.Task[None] | None = None

    async def events(self, tenant: Tenant, job_id: str, after: int) -> AsyncIterator[ServerSentEvent]:
        """Yield every event later than `after`; end once the terminal status was sent, or the job was deleted."""
        job = self._watched.setdefault(job_id, _Watched())
        job.streams += 1
        if self._poller is None or self._poller.done():
            # A context of its own: the poller reads for all tenants, not for the one whose request came first.
            self._poller = asyncio.create_task(self._poll(), context=Context())
        try:
            while True:
                news = job.news  # before the look, so that what comes between the two is not waited for
                batch = job.after(after)
                if batch is None:
                    batch = await run_sync(self._read, tenant, job_id, after)
                for sent in batch:
                    yield sent.message
                    after = sent.seq
                    if sent.ends:
                        return
                if not batch:
                    if job.over:
                        return
                    await news.wait()
        finally:
            job.streams -= 1
            if job.streams == 0 and self._watched.get(job_id) is job:
                del self._watched[job_id]

    def _read(self, tenant: Tenant, job_id: str, after: int) -> list[_Sent]:
        try:
            found = self._store.events.after(tenant, job_id, after, BATCH)
        except NotFound:
            return []  # deleted, which the poller finds too
        sent = readable(found, _Sent.of)
        # A batch of nothing but odd rows must not look like the end of the log.
        return sent if sent or len(found) < BATCH else self._read(tenant, job_id, found[-1].seq)

    async def _poll(self) -> None:
        while self._watched:
            positions = {job_id: job.seq for job_id, job in self._watched.items()}
            try:
                found = await run_sync(self._store.events.news, positions, BATCH)
            except (DBAPIError, *UNAVAILABLE) as error:
                log.error("the events of %d jobs cannot be read (%s)", len(positions), type(error).__name__)
            else:
                for job_id, position in positions.items():
                    job = self._watched.get(job_id)
                    if job is not None and job.seq == position:
                        self._take(job, found.get(job_id))
            await asyncio.sleep(POLL_SECONDS)

    @staticmethod
    def _take(job: _Watched, news: JobNews | None) -> None:
        changed = job.seq is None
        if news is None:
            job.over = changed = True
        elif changed or news.events:
            job.latest.extend(readable(news.events, _Sent.of))
            job.seq = news.events[-1].seq if news.events else news.latest
            changed = True
        if news is not None and news.ended and job.seq == news.latest and not job.over:
            job.over = changed = True
        if changed:
            job.tell()
