"""Dataset rows: an archive that was uploaded or a source that is named; packed by a worker."""

from typing import Any

from sqlalchemy import Connection, Row, insert

from wbar.errors import InUse, NotFound
from wbar_store.blobs import Received
from wbar_store.checkpoints import in_use, retire
from wbar_store.database import Tenant, now, rfc3339
from wbar_store.ids import new_id
from wbar_store.lists import PageRequest, page
from wbar_store.tables import datasets, jobs


def create(
    connection: Connection,
    tenant: Tenant,
    name: str,
    task: str,
    received: Received | None,
    source: str | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    row = connection.execute(
        insert(datasets)
        .values(
            id=new_id("ds"),
            tenant=tenant.name,
            name=name,
            status="processing",
            task=task,
            source=source,
            options=options or {},
            bytes=received.bytes if received else None,
            sha256=received.sha256 if received else None,
            content=received.sha256 if received else None,
            attempts=0,
            created_at=now(),
        )
        .returning(*datasets.c)
    ).one()
    return sent(row)


def get(connection: Connection, tenant: Tenant, dataset_id: str, lock: bool = False) -> Row[Any]:
    """The row; locked until the transaction ends where that must not race. Raises NotFound, also for another tenant's."""
    row = tenant.row(connection, datasets, dataset_id, lock)
    if row is None:
        raise NotFound(f"there is no dataset {dataset_id[:64]!r}")
    return row


def listed(connection: Connection, tenant: Tenant, request: PageRequest) -> dict[str, Any]:
    return page(connection, datasets, tenant.select(datasets), request, sent)


def remove(connection: Connection, tenant: Tenant, dataset_id: str) -> list[str]:
    """Delete the row; returns the blobs to collect. Raises InUse while a job that has not ended needs it."""
    row = get(connection, tenant, dataset_id, lock=True)
    busy = in_use(connection, jobs.c.dataset, dataset_id)
    if busy is not None:
        raise InUse(f"{dataset_id} is needed by {busy}: cancel the job or wait for it")
    retire(connection, datasets, dataset_id, jobs.c.dataset)
    return [blob for blob in (row.content, row.packed) if blob]


def sent(row: Row[Any]) -> dict[str, Any]:
    summary = row.summary or {}
    return {
        "id": row.id,
        "object": "dataset",
        "name": row.name,
        "status": row.status,
        "task": row.task,
        "source": row.source,
        "classes": summary.get("classes"),
        "splits": summary.get("splits"),
        "image": summary.get("image"),
        "bytes": row.bytes,
        "sha256": row.sha256,
        "warnings": summary.get("warnings", []),
        "error": row.error,
        "created_at": rfc3339(row.created_at),
    }
