"""API keys: shown once, stored as their sha256, each for one tenant."""

import hashlib
import secrets

from sqlalchemy import insert, select

from wbar_store.database import Database, Tenant, now
from wbar_store.ids import new_id
from wbar_store.tables import api_keys

DEFAULT_TENANT = Tenant("default")


class Keys:
    """The API keys of all tenants."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def create(self, name: str, tenant: Tenant = DEFAULT_TENANT, key: str | None = None) -> str:
        """Register a key (a new random one unless given) and return it in plain text, for the only time."""
        key = key or f"wbar_{secrets.token_urlsafe(32)}"
        values = {"id": new_id("key"), "tenant": tenant.name, "name": name, "sha256": _digest(key)}
        with self.database.write() as connection:
            connection.execute(insert(api_keys).values(created_at=now(), **values))
        return key

    def tenant_of(self, key: str) -> Tenant | None:
        """Return the tenant that a key belongs to; None for an unknown key."""
        with self.database.read() as connection:
            name = connection.execute(select(api_keys.c.tenant).where(api_keys.c.sha256 == _digest(key))).scalar()
        return Tenant(name) if name is not None else None


def _digest(key: str) -> str:
    # A key has 256 random bits, so a plain digest cannot be searched; lookups by digest leak nothing by timing.
    return hashlib.sha256(key.encode()).hexdigest()
