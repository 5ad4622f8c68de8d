"""Idempotency keys: the same key and body within 24 hours get the first answer again; another body is refused."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, select, update

from wbar.errors import IdempotencyKeyInProgress, IdempotencyKeyReused
from wbar_store.database import Database, Tenant, now, upsert
from wbar_store.tables import idempotency

KEPT = 24 * 3600.0
AT_WORK = 300.0  # seconds after which a first request without an answer counts as dead


@dataclass(frozen=True)
class StoredAnswer:
    """The answer to the first request. body: its JSON, as it was sent."""

    status: int
    body: str


class Idempotency:
    """The idempotency keys of all tenants, with the answers to their first requests."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def begin(self, tenant: Tenant, key: str, fingerprint: str) -> StoredAnswer | None:
        """Return the first answer if there was one; None if this request is the first and must `finish`.

        Raises IdempotencyKeyReused for another body, IdempotencyKeyInProgress while the first is still at work.
        """
        same_key = _of(tenant, key)
        outdated = (idempotency.c.created_at < now() - KEPT) | (
            idempotency.c.status.is_(None) & (idempotency.c.created_at < now() - AT_WORK)
        )
        with self.database.write() as connection:
            connection.execute(delete(idempotency).where(same_key, outdated))
            first = connection.execute(
                upsert(connection, idempotency)
                .values(tenant=tenant.name, key=key, fingerprint=fingerprint, created_at=now())
                .on_conflict_do_nothing()
                .returning(idempotency.c.key)
            ).first()
            if first is not None:
                return None
            row = connection.execute(select(idempotency).where(same_key)).first()
        if row is None:  # the first request failed just now, and freed the key
            raise IdempotencyKeyInProgress(
                f"the first request with the Idempotency-Key {key!r} has just failed: try again"
            )
        if row.fingerprint != fingerprint:
            raise IdempotencyKeyReused(f"the Idempotency-Key {key!r} was used with another request body")
        if row.status is None:
            raise IdempotencyKeyInProgress(f"the first request with the Idempotency-Key {key!r} is still at work")
        return StoredAnswer(row.status, row.body)

    def finish(self, tenant: Tenant, key: str, answer: StoredAnswer) -> None:
        """Store the answer to the first request."""
        with self.database.write() as connection:
            values = {"status": answer.status, "body": answer.body}
            connection.execute(update(idempotency).where(_of(tenant, key)).values(**values))

    def forget(self, tenant: Tenant, key: str) -> None:
        """Free the key again, after the first request failed."""
        with self.database.write() as connection:
            connection.execute(delete(idempotency).where(_of(tenant, key), idempotency.c.status.is_(None)))

    def sweep(self) -> None:
        """Delete the keys that are older than a day."""
        with self.database.write() as connection:
            connection.execute(delete(idempotency).where(idempotency.c.created_at < now() - KEPT))


def _of(tenant: Tenant, key: str) -> ColumnElement[bool]:
    return (idempotency.c.tenant == tenant.name) & (idempotency.c.key == key)
