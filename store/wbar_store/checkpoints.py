"""Checkpoint rows: created when the bytes are durable, judged by a worker, deleted when no job needs them."""

from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from wbar.errors import InUse, NotFound
from wbar.states import TERMINAL
from wbar_store.blobs import Received
from wbar_store.database import Tenant, now, rfc3339
from wbar_store.ids import new_id
from wbar_store.lists import PageRequest, page
from wbar_store.tables import checkpoints, job_checkpoints, jobs


def create(
    connection: Connection, tenant: Tenant, received: Received, name: str, given: dict[str, Any]
) -> dict[str, Any]:
    row = connection.execute(
        insert(checkpoints)
        .values(
            id=new_id("ckpt"),
            tenant=tenant.name,
            name=name,
            status="processing",
            bytes=received.bytes,
            sha256=received.sha256,
            content=received.sha256,
            given=given,
            attempts=0,
            created_at=now(),
        )
        .returning(*checkpoints.c)
    ).one()
    return sent(row)


def get(connection: Connection, tenant: Tenant, checkpoint_id: str, lock: bool = False) -> Row[Any]:
    """The row; locked until the transaction ends where that must not race. Raises NotFound, also for another tenant's."""
    row = tenant.row(connection, checkpoints, checkpoint_id, lock)
    if row is None:
        raise NotFound(f"there is no checkpoint {checkpoint_id[:64]!r}")
    return row


def listed(connection: Connection, tenant: Tenant, request: PageRequest) -> dict[str, Any]:
    return page(connection, checkpoints, tenant.select(checkpoints), request, sent)


def remove(connection: Connection, tenant: Tenant, checkpoint_id: str) -> list[str]:
    """Delete the row; returns the blobs to collect. Raises InUse while a job that has not ended needs it.

    Ended jobs keep their results: the row stays as a tombstone where one names it (status `deleted` is never sent).
    """
    row = get(connection, tenant, checkpoint_id, lock=True)
    busy = in_use(connection, jobs.c.checkpoint, checkpoint_id) or _in_a_soup(connection, checkpoint_id)
    if busy is not None:
        raise InUse(f"{checkpoint_id} is needed by {busy}: cancel the job or wait for it")
    retire(connection, checkpoints, checkpoint_id, jobs.c.checkpoint)
    return [blob for blob in (row.content, row.weights) if blob]


def in_use(connection: Connection, column: Any, object_id: str) -> str | None:
    """A job that still needs the object, if there is one."""
    found = select(jobs.c.id).where(column == object_id, jobs.c.status.not_in(TERMINAL)).limit(1)
    return connection.execute(found).scalar()


def _in_a_soup(connection: Connection, checkpoint_id: str) -> str | None:
    found = select(jobs.c.id).join(job_checkpoints, job_checkpoints.c.job == jobs.c.id)
    found = found.where(job_checkpoints.c.checkpoint == checkpoint_id, jobs.c.status.not_in(TERMINAL)).limit(1)
    return connection.execute(found).scalar()


def retire(connection: Connection, table: Any, object_id: str, column: Any) -> None:
    """Delete a row, or hide it from its tenant where an ended job still names it."""
    named = connection.execute(select(jobs.c.id).where(column == object_id).limit(1)).scalar()
    if named is None:
        connection.execute(delete(table).where(table.c.id == object_id))
        return
    hidden: dict[str, Any] = {"tenant": "", "status": "deleted", "content": None}
    hidden["weights" if table is checkpoints else "packed"] = None
    connection.execute(table.update().where(table.c.id == object_id).values(**hidden))


def sent(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "checkpoint",
        "name": row.name,
        "status": row.status,
        "format": row.format,
        "bytes": row.bytes,
        "sha256": row.sha256,
        "parameters": row.parameters,
        "tensors": row.tensors,
        "architecture": row.architecture,
        "error": row.error,
        "created_at": rfc3339(row.created_at),
    }
