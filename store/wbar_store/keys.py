"""API keys: shown once, stored as their sha256, each the way into one tenant."""

import hashlib
import secrets

from sqlalchemy import Connection, insert, select

from wbar_store.database import Tenant, now
from wbar_store.ids import new_id
from wbar_store.tables import api_keys

DEFAULT_TENANT = "default"


def create(connection: Connection, name: str, tenant: str = DEFAULT_TENANT, key: str | None = None) -> str:
    """Register a key (a new random one unless given) and return it in plain text, for the only time."""
    key = key or f"wbar_{secrets.token_urlsafe(32)}"
    connection.execute(
        insert(api_keys).values(id=new_id("key"), tenant=tenant, name=name, sha256=_digest(key), created_at=now())
    )
    return key


def tenant_of(connection: Connection, key: str) -> Tenant | None:
    """Whose key it is; None for a key that was never given out."""
    found = connection.execute(select(api_keys.c.tenant).where(api_keys.c.sha256 == _digest(key))).scalar()
    return Tenant(found) if found is not None else None


def _digest(key: str) -> str:
    # A key has 256 random bits, so a plain digest cannot be searched; lookups by digest leak nothing by timing.
    return hashlib.sha256(key.encode()).hexdigest()
