"""Sessions of the dashboard, and the one-time links that begin one: each stands for an API key and ends with it.

The token is in the browser's cookie, or in the link, and its sha256 is here: what the database holds opens nothing.
"""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import delete, insert, or_, select

from wbar_store.database import Database, now
from wbar_store.keys import KeyRecord
from wbar_store.tables import api_keys, sessions

Kind = Literal["session", "link"]
LIFETIMES: dict[Kind, float] = {"session": 14 * 24 * 3600.0, "link": 15 * 60.0}  # seconds


@dataclass(frozen=True)
class Session:
    """A session that was just begun: its token, which is kept nowhere, and the key that it stands for."""

    token: str
    key: KeyRecord


class Sessions:
    """The sessions and links of all tenants."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def begin(self, key: KeyRecord, kind: Kind = "session") -> Session:
        """Begin a session, or make a link, for a key that is valid. Those that are over are deleted."""
        token = secrets.token_urlsafe(32)
        values = {"sha256": _digest(token), "tenant": key.tenant, "key": key.id, "kind": kind, "created_at": now()}
        with self.database.write() as connection:
            connection.execute(delete(sessions).where(sessions.c.expires_at < now()))
            connection.execute(insert(sessions).values(**values, expires_at=now() + LIFETIMES[kind]))
        return Session(token, key)

    def valid(self, token: str, kind: Kind = "session") -> KeyRecord | None:
        """Return the key that a session stands for; None for one that is over, or whose key was revoked or has expired."""
        query = (
            select(api_keys)
            .join(sessions, sessions.c.key == api_keys.c.id)
            .where(
                sessions.c.sha256 == _digest(token),
                sessions.c.kind == kind,
                sessions.c.expires_at > now(),
                or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now()),
            )
        )
        with self.database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else KeyRecord.of(row)

    def follow(self, link: str) -> Session | None:
        """Begin the session of a link, which is used up by it; None for one that is over or was followed before."""
        with self.database.write() as connection:
            key = self.valid(link, "link")
            gone = connection.execute(delete(sessions).where(sessions.c.sha256 == _digest(link))).rowcount
            return self.begin(key) if key is not None and gone else None

    def end(self, token: str) -> None:
        """End a session."""
        with self.database.write() as connection:
            connection.execute(delete(sessions).where(sessions.c.sha256 == _digest(token)))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
