"""What checkpoints and datasets share: rows that arrive `processing`, are judged by a worker, and are `ready` or `rejected`.

A judgement is claimed like a job: `attempts` is the fence, and a late verdict of a dead attempt changes nothing.
"""

from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Row, Table, and_, false, or_, select, update
from sqlalchemy.exc import DBAPIError

from wbar_store.database import Database, now
from wbar_store.notifier import INGEST, Notifier
from wbar_store.tables import checkpoints, datasets

MAX_ATTEMPTS = 3
LEASE = 15.0  # a judgement that was not renewed for so many seconds belongs to a worker that died


def table_of(object_id: str) -> Table:
    return checkpoints if object_id.startswith("ckpt_") else datasets


class Uploads:
    def __init__(self, database: Database, notifier: Notifier) -> None:
        self.database, self.notifier = database, notifier

    def notify(self, object_id: str) -> None:
        table = table_of(object_id)
        # The row is committed already: whatever fails here, the sweeper notifies again.
        with suppress(DBAPIError):
            if self.notifier.notify(INGEST, object_id):
                with self.database.write() as connection:
                    connection.execute(update(table).where(table.c.id == object_id).values(notified_at=now()))

    def release(self, object_id: str, attempt: int) -> None:
        """Let go of a judgement that failed, so that the next attempt need not wait for the lease."""
        table = table_of(object_id)
        with self.database.write() as connection:
            connection.execute(_mine(table, object_id, attempt).values(lease_until=None))

    def claim(self, object_id: str) -> Row[Any] | None:
        """The row with its attempt raised and leased, or None where there is nothing to judge or somebody does."""
        table = table_of(object_id)
        with self.database.write() as connection:
            return connection.execute(
                update(table)
                .where(
                    table.c.id == object_id,
                    table.c.status == "processing",
                    table.c.attempts < MAX_ATTEMPTS,
                    or_(table.c.lease_until.is_(None), table.c.lease_until < now()),
                )
                .values(attempts=table.c.attempts + 1, lease_until=now() + LEASE)
                .returning(*table.c)
            ).first()

    def renew(self, object_id: str, attempt: int) -> bool:
        """Keep the sweeper patient; False when the object was deleted or judged by another attempt."""
        table = table_of(object_id)
        with self.database.write() as connection:
            return connection.execute(_mine(table, object_id, attempt).values(lease_until=now() + LEASE)).rowcount == 1

    def settle(self, connection: Connection, object_id: str, attempt: int, values: dict[str, Any]) -> bool:
        """Write the verdict in the caller's transaction, if this attempt is still the one that may."""
        table = table_of(object_id)
        return connection.execute(_mine(table, object_id, attempt).values(**values)).rowcount == 1

    def overdue(self, broker_is_empty: bool) -> list[str]:
        """Objects that nobody seems to be judging: never notified, or silent for too long with their message gone."""
        with self.database.read() as connection:
            return [
                found
                for table in (checkpoints, datasets)
                for found in connection.execute(
                    select(table.c.id).where(
                        table.c.status == "processing",
                        or_(
                            table.c.notified_at.is_(None),
                            and_(
                                table.c.notified_at < now() - LEASE,
                                or_(table.c.lease_until.is_(None), table.c.lease_until < now()),
                            )
                            if broker_is_empty
                            else false(),
                        ),
                    )
                ).scalars()
            ]

    def give_up(self, object_id: str, attempt: int | None = None) -> bool:
        """Reject what killed every attempt to read it; `attempt`: by the last of them itself, else once it is silent."""
        table = table_of(object_id)
        silent = or_(table.c.lease_until.is_(None), table.c.lease_until < now())
        error = {
            "code": "ingest_failed",
            "message": f"reading it ended the worker's process {MAX_ATTEMPTS} times (out of memory, or a damaged file): "
            "check the file and upload it again",
        }
        with self.database.write() as connection:
            return (
                connection.execute(
                    update(table)
                    .where(
                        table.c.id == object_id,
                        table.c.status == "processing",
                        table.c.attempts >= MAX_ATTEMPTS,
                        silent if attempt is None else table.c.attempts == attempt,
                    )
                    .values(status="rejected", error=error, content=None)
                ).rowcount
                == 1
            )


def _mine(table: Table, object_id: str, attempt: int) -> Any:
    return update(table).where(table.c.id == object_id, table.c.status == "processing", table.c.attempts == attempt)
