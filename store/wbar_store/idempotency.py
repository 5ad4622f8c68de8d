"""Idempotency keys: the same key and body within 24 hours get the first answer again; another body is refused."""

import json
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from wbar.errors import IdempotencyKeyInProgress, IdempotencyKeyReused
from wbar_store.database import Database, Tenant, now
from wbar_store.tables import idempotency

KEPT = 24 * 3600.0
AT_WORK = 300.0  # a first request that has not answered after this died on the way


class Idempotency:
    def __init__(self, database: Database) -> None:
        self.database = database

    def begin(self, tenant: Tenant, key: str, fingerprint: str) -> tuple[int, Any] | None:
        """The first answer (status, body) if there was one; None if this request is the first and must `finish`.

        Raises IdempotencyKeyReused for another body, IdempotencyKeyInProgress while the first is still at work.
        """
        mine = (idempotency.c.tenant == tenant.name) & (idempotency.c.key == key)
        with self.database.write() as connection:
            connection.execute(
                delete(idempotency).where(
                    mine,
                    (idempotency.c.created_at < now() - KEPT)
                    | (idempotency.c.status.is_(None) & (idempotency.c.created_at < now() - AT_WORK)),
                )
            )
            statement = {"sqlite": sqlite, "postgresql": postgresql}[connection.dialect.name].insert(idempotency)
            first = connection.execute(
                statement.values(tenant=tenant.name, key=key, fingerprint=fingerprint, created_at=now())
                .on_conflict_do_nothing()
                .returning(idempotency.c.key)
            ).first()
            if first is not None:
                return None
            row = connection.execute(select(idempotency).where(mine)).one()
        if row.fingerprint != fingerprint:
            raise IdempotencyKeyReused(f"the Idempotency-Key {key!r} was used with another request body")
        if row.status is None:
            raise IdempotencyKeyInProgress(f"the first request with the Idempotency-Key {key!r} is still at work")
        return row.status, json.loads(row.body)

    def finish(self, tenant: Tenant, key: str, status: int, body: Any) -> None:
        mine = (idempotency.c.tenant == tenant.name) & (idempotency.c.key == key)
        with self.database.write() as connection:
            connection.execute(update(idempotency).where(mine).values(status=status, body=json.dumps(body)))

    def forget(self, tenant: Tenant, key: str) -> None:
        """The first request failed: the key is free again."""
        mine = (idempotency.c.tenant == tenant.name) & (idempotency.c.key == key)
        with self.database.write() as connection:
            connection.execute(delete(idempotency).where(mine, idempotency.c.status.is_(None)))

    def sweep(self) -> None:
        with self.database.write() as connection:
            connection.execute(delete(idempotency).where(idempotency.c.created_at < now() - KEPT))
