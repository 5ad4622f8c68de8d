"""The append-only event log of a job: a sequence without gaps, drawn from the job's own row.

The row's counter is raised in the transaction that inserts, so a reader never sees number n + 1 before number n.
"""

from typing import Any

from sqlalchemy import Connection, insert, select, update

from wbar.jobs import EventType
from wbar_store.database import now, rfc3339
from wbar_store.tables import events, jobs


def append(connection: Connection, job_id: str, kind: EventType, data: dict[str, Any]) -> int:
    """Add one event in the caller's transaction; returns its sequence number."""
    seq = int(
        connection.execute(
            update(jobs)
            .where(jobs.c.id == job_id)
            .values(last_event=jobs.c.last_event + 1)
            .returning(jobs.c.last_event)
        ).scalar_one()
    )
    connection.execute(insert(events).values(job=job_id, seq=seq, type=kind, data=data, created_at=now()))
    return seq


def event_id(job_id: str, seq: int) -> str:
    """Sorts as the sequence does, and names the event beyond its job."""
    return f"evt_{job_id.removeprefix('job_')}{seq:08d}"


def sequence(job_id: str, event: str) -> int | None:
    """The sequence number inside an event id of this job; None if it is not one."""
    prefix = f"evt_{job_id.removeprefix('job_')}"
    digits = event.removeprefix(prefix)
    return (
        int(digits) if event.startswith(prefix) and digits.isascii() and digits.isdigit() and len(digits) == 8 else None
    )


def after(
    connection: Connection, job_id: str, seq: int, limit: int, types: list[str] | None = None
) -> list[dict[str, Any]]:
    """Up to `limit` events later than `seq`, oldest first, as they are sent."""
    found = select(events).where(events.c.job == job_id, events.c.seq > seq).order_by(events.c.seq).limit(limit)
    return _sent(connection, found.where(events.c.type.in_(types)) if types else found)


def before(
    connection: Connection, job_id: str, seq: int, limit: int, types: list[str] | None = None
) -> list[dict[str, Any]]:
    """Up to `limit` events earlier than `seq`, newest first."""
    found = select(events).where(events.c.job == job_id, events.c.seq < seq).order_by(events.c.seq.desc()).limit(limit)
    return _sent(connection, found.where(events.c.type.in_(types)) if types else found)


def _sent(connection: Connection, statement: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": event_id(row.job, row.seq),
            "object": "event",
            "type": row.type,
            "created_at": rfc3339(row.created_at),
            "data": row.data,
        }
        for row in connection.execute(statement)
    ]
