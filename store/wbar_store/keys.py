"""API keys: shown once, stored as their sha256, each for one tenant and for some scopes, until it is revoked or expires.

A key is `wbar_`, 32 random characters of base 62 (190 bits) and the CRC-32 of what stands before in 6 more, so that a scanner
tells a leaked key from other text, and a mistyped one is refused without a look at the database.
"""

import hashlib
import secrets
import zlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, or_, select, update

from wbar.errors import NotFound
from wbar.keys import SCOPES, ApiKey, Scope
from wbar_store.database import Tenant, now, rfc3339
from wbar_store.ids import new_id
from wbar_store.repository import Record, Repository
from wbar_store.tables import api_keys

DEFAULT_TENANT = Tenant("default")
PREFIX, RANDOM, CHECKED, HINT = "wbar_", 32, 6, 8
LONGEST = 128  # characters of a key that is looked up
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class KeyRecord(Record):
    """A row of `api_keys`. hint: how the key begins."""

    tenant: str
    name: str
    scopes: tuple[Scope, ...]
    hint: str
    expires_at: float | None
    last_used_at: float | None
    created_at: float

    @property
    def owner(self) -> Tenant:
        """The tenant that the key belongs to."""
        return Tenant(self.tenant)

    def to_api(self) -> ApiKey:
        """Return the key's description as the API sends it, without the key itself, which is kept nowhere."""
        return ApiKey(
            id=self.id,
            name=self.name,
            scopes=list(self.scopes),
            hint=self.hint,
            expires_at=rfc3339(self.expires_at),
            last_used_at=rfc3339(self.last_used_at),
            created_at=rfc3339(self.created_at),
        )


@dataclass(frozen=True)
class IssuedKey:
    """A key that was just made: its row, and its text, which is in no row."""

    record: KeyRecord
    key: str


class Keys(Repository[KeyRecord]):
    """The API keys of all tenants."""

    table, kind, noun, record = api_keys, "key", "API key", KeyRecord

    def create(
        self,
        name: str,
        tenant: Tenant = DEFAULT_TENANT,
        scopes: tuple[Scope, ...] = SCOPES,
        lifetime: float | None = None,
        key: str | None = None,
    ) -> IssuedKey:
        """Register a key (a new random one unless given) and return it with its text, for the only time.

        lifetime: seconds until it expires; None: it does not.
        """
        key = key or _new()
        values: dict[str, Any] = {
            "id": new_id("key"),
            "tenant": tenant.name,
            "name": name,
            "scopes": list(dict.fromkeys(scopes)),
            "hint": f"{key[:HINT]}…",
            "sha256": _digest(key),
            "expires_at": None if lifetime is None else now() + lifetime,
            "created_at": now(),
        }
        with self.database.write() as connection:
            row = connection.execute(insert(api_keys).values(**values).returning(*api_keys.c)).one()
        return IssuedKey(self.record.of(row), key)

    def valid(self, key: str) -> KeyRecord | None:
        """Return what a key allows; None for one that is unknown, mistyped, revoked or expired."""
        if not is_plausible(key):
            return None
        query = select(api_keys).where(
            api_keys.c.sha256 == _digest(key), or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now())
        )
        with self.database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else self.record.of(row)

    def is_empty(self) -> bool:
        """Return whether there is no key at all, of any tenant."""
        with self.database.read() as connection:
            return connection.execute(select(api_keys.c.id).limit(1)).first() is None

    def used(self, key_id: str) -> None:
        """Record that a key was used."""
        with self.database.write(durable=False) as connection:
            connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=now()))

    def revoke(self, tenant: Tenant, key_id: str) -> None:
        """Delete a key: it opens nothing from the next second on. Raises NotFound."""
        mine = delete(api_keys).where(api_keys.c.tenant == tenant.name, api_keys.c.id == key_id)
        with self.database.write() as connection:
            if connection.execute(mine).rowcount == 0:
                raise NotFound(f"there is no API key {key_id[:64]!r}")


def _new() -> str:
    body = PREFIX + "".join(secrets.choice(_BASE62) for _ in range(RANDOM))
    return body + _check(body)


def _check(body: str) -> str:
    value, digits = zlib.crc32(body.encode()), []
    for _ in range(CHECKED):
        value, digit = divmod(value, len(_BASE62))
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))


def is_plausible(key: str) -> bool:
    """Return whether a key is worth looking up: one of our form must have our checksum.

    Keys of version 0.5 and before, and those that an operator chose, have another length.
    """
    if not key.isascii() or len(key) > LONGEST:
        return False
    if not key.startswith(PREFIX) or len(key) != len(PREFIX) + RANDOM + CHECKED:
        return True
    return _check(key[:-CHECKED]) == key[-CHECKED:]


def _digest(key: str) -> str:
    # A key has 190 random bits, so a plain digest cannot be searched. It is compared by the database's index: how long that
    # takes depends on digests, from which nothing about a key can be learned.
    return hashlib.sha256(key.encode()).hexdigest()
