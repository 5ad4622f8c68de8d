"""Idempotency keys: the same key and body within 24 hours get the first answer again; another body is refused.

A key is written in the transaction that creates its object: there is never one without the other, whenever a process is
killed. Two requests at once cannot both create: the second one's insert waits until the first one's transaction has ended.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, select, update

from wbar.errors import IdempotencyKeyReused, Unavailable
from wbar_store.database import Database, Tenant, now, upsert
from wbar_store.tables import idempotency

KEPT = 24 * 3600.0
SPARED = 3600.0  # the sweeper must not take a row that a request has just found


@dataclass(frozen=True)
class FirstAnswer:
    """The answer to the first request.

    object: the id of the object that it created.
    body: its JSON, as it was sent (but for secrets, which are sent once).
    """

    object: str
    body: str


class Idempotency:
    """The idempotency keys of all tenants, with the answers to their first requests."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def once(
        self, tenant: Tenant, key: str, fingerprint: str, create: Callable[[], FirstAnswer]
    ) -> tuple[FirstAnswer, bool]:
        """Return what `create` answers, and False; for a key that was used before the first answer, and True.

        create: writes the object, in the transaction that writes the key.

        Raises IdempotencyKeyReused for another body, and what `create` raises: then neither is written. Unavailable where
        version 0.5 is still at work on the first request.
        """
        same_key = _of(tenant, key)
        with self.database.write() as connection:
            connection.execute(delete(idempotency).where(same_key, idempotency.c.created_at < now() - KEPT))
            inserted = (
                upsert(connection, idempotency)
                .values(
                    tenant=tenant.name,
                    key=key,
                    fingerprint=fingerprint,
                    object="",
                    body="",
                    status=201,
                    created_at=now(),
                )
                .on_conflict_do_nothing()
                .returning(idempotency.c.key)
            )
            if connection.execute(inserted).first() is not None:
                answer = create()
                written = {"object": answer.object, "body": answer.body}
                connection.execute(update(idempotency).where(same_key).values(**written))
                return answer, False
            row = connection.execute(select(idempotency).where(same_key)).one()
        if row.fingerprint != fingerprint:
            raise IdempotencyKeyReused(f"the Idempotency-Key {key!r} was used with another request body")
        if row.body is None:
            raise Unavailable("an API of the version before is at work on the first request with this key: try again")
        return FirstAnswer(row.object or json.loads(row.body)["id"], row.body), True

    def sweep(self) -> None:
        """Delete the keys that are older than a day."""
        with self.database.write() as connection:
            connection.execute(delete(idempotency).where(idempotency.c.created_at < now() - KEPT - SPARED))


def _of(tenant: Tenant, key: str) -> ColumnElement[bool]:
    return (idempotency.c.tenant == tenant.name) & (idempotency.c.key == key)
