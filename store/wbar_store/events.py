"""The append-only event log of a job: a sequence without gaps, drawn from the job's own row.

The row's counter is raised in the transaction that inserts, so a reader never sees number n + 1 before number n.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Select, and_, insert, or_, select, update

from wbar.jobs import Event, EventType
from wbar.states import TERMINAL
from wbar_store.database import Tenant, now, rfc3339
from wbar_store.parts import PartRepository
from wbar_store.repository import PageRequest, RecordPage, wrong_after
from wbar_store.tables import events, jobs

LAST = 2**31 - 1
PARAMETERS = 500  # of one statement


@dataclass(frozen=True)
class EventRecord:
    """One event of a job. data: its content as JSON, by the type of the event."""

    job: str
    seq: int
    type: EventType
    data: Mapping[str, Any]
    created_at: float

    def to_api(self) -> Event:
        """Return the event as the API sends it."""
        return Event(
            id=event_id(self.job, self.seq),
            type=self.type,
            created_at=rfc3339(self.created_at),
            data=dict(self.data),
        )


@dataclass(frozen=True)
class JobNews:
    """A job's log from some position on.

    latest: the number of its latest event.
    ended: whether no event follows it.
    events: those later than the position, oldest first, as many as were asked for.
    """

    latest: int
    ended: bool
    events: list[EventRecord] = field(default_factory=list)


class Events(PartRepository):
    """The events of all jobs."""

    def append(self, job_id: str, kind: EventType, data: Mapping[str, object]) -> int:
        """Add one event; returns its number. Other repositories call it in the transaction of the change that it reports."""
        raised = update(jobs).where(jobs.c.id == job_id).values(last_event=jobs.c.last_event + 1)
        with self.database.write() as connection:
            seq = int(connection.execute(raised.returning(jobs.c.last_event)).scalar_one())
            connection.execute(insert(events).values(job=job_id, seq=seq, type=kind, data=data, created_at=now()))
        return seq

    def after(self, tenant: Tenant, job_id: str, seq: int, limit: int) -> list[EventRecord]:
        """Return up to `limit` events later than `seq`, oldest first. Raises NotFound."""
        rows = _of(job_id, ()).where(events.c.seq > seq).order_by(events.c.seq).limit(limit)
        with self.database.read() as connection:
            self._check(connection, tenant, job_id)
            return _records(connection, rows)

    def news(self, positions: Mapping[str, int | None], limit: int) -> dict[str, JobNews]:
        """Return what is new in each job.

        positions: by job; None where only the number is asked for. A job that is not there has no entry.
        limit: of the events of all jobs together; what is left out comes with the next call.
        """
        found: dict[str, JobNews] = {}
        ids = list(positions)
        with self.database.read() as connection:
            for begin in range(0, len(ids), PARAMETERS):
                numbers = select(jobs.c.id, jobs.c.last_event, jobs.c.status)
                named = connection.execute(numbers.where(jobs.c.id.in_(ids[begin : begin + PARAMETERS])))
                found |= {row.id: JobNews(row.last_event, row.status in TERMINAL) for row in named}
            behind = [
                and_(events.c.job == job, events.c.seq > seq)
                for job, seq in positions.items()
                if seq is not None and job in found and found[job].latest > seq
            ]
            for begin in range(0, len(behind), PARAMETERS // 2):
                later = select(events).where(or_(*behind[begin : begin + PARAMETERS // 2]))
                for record in _records(connection, later.order_by(events.c.job, events.c.seq).limit(limit)):
                    found[record.job].events.append(record)
        return found

    def page(
        self, tenant: Tenant, job_id: str, request: PageRequest, types: Sequence[EventType] = ()
    ) -> RecordPage[EventRecord]:
        """Return a page by sequence. Raises NotFound, and ValidationFailed for an `after` of another job.

        types: keep events of these types only; all if empty.
        """
        ascending, rows = request.order == "asc", _of(job_id, types)
        with self.database.read() as connection:
            self._check(connection, tenant, job_id)
            seq = sequence(job_id, request.after) if request.after else 0 if ascending else LAST
            rows = rows.where(events.c.seq > seq if ascending else events.c.seq < seq)
            rows = rows.order_by(events.c.seq if ascending else events.c.seq.desc()).limit(request.limit + 1)
            records = _records(connection, rows)
        shown = records[: request.limit]
        return RecordPage(shown, len(records) > request.limit, event_id(job_id, shown[-1].seq) if shown else None)


def _records(connection: Connection, rows: Select[Any]) -> list[EventRecord]:
    return [EventRecord(row.job, row.seq, row.type, row.data, row.created_at) for row in connection.execute(rows)]


def _of(job_id: str, types: Sequence[EventType]) -> Select[Any]:
    rows = select(events).where(events.c.job == job_id)
    return rows.where(events.c.type.in_(types)) if types else rows


def event_id(job_id: str, seq: int) -> str:
    """Return the id of an event, which sorts as the sequence does and is unique among all jobs."""
    return f"evt_{job_id.removeprefix('job_')}{seq:08d}"


def sequence(job_id: str, event: str, parameter: str = "after") -> int:
    """Return the sequence number inside an event id of this job.

    Raises ValidationFailed if it is not one, which names the parameter or header that gave it.
    """
    prefix = f"evt_{job_id.removeprefix('job_')}"
    digits = event.removeprefix(prefix)
    if not (event.startswith(prefix) and digits.isascii() and digits.isdigit() and len(digits) == 8):
        raise wrong_after(f"{event[:64]!r} is not an event of {job_id}", parameter)
    return int(digits)
