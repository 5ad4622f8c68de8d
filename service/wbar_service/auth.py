"""Authentication: a bearer key names a tenant and its scopes, and every route gets the store and that tenant, nothing else.

The key is checked before a byte of the body is read: a stranger's request costs one look-up, whatever it carries.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, ClassVar

from anyio.to_thread import run_sync
from fastapi import Depends, Request, Response
from fastapi.openapi.models import HTTPBearer
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase
from sqlalchemy.exc import DBAPIError

from wbar.errors import Forbidden, NotFound, Unauthorized
from wbar.keys import Scope
from wbar_service import sessions
from wbar_service.bodies import with_json_body
from wbar_service.headers import OF_THE_KEY
from wbar_service.query_parameters import check_names, names_of
from wbar_service.rate_limits import RateLimits
from wbar_service.reading import read
from wbar_store import logs, row_security
from wbar_store.database import UNAVAILABLE, Tenant
from wbar_store.keys import KeyRecord
from wbar_store.store import Store

REMEMBERED_SECONDS = 1.0
USED_SECONDS = 60.0  # as exact as `last_used_at` is
MOST_REMEMBERED = 4096
TENANT, KEY = "wbar.tenant", "wbar.key"  # where the request's scope has them


class RememberedKeys:
    """The API keys that were used within the last second.

    A client that polls then costs one transaction a request instead of two; a revoked key is refused at most a second later.
    Only the event loop's thread uses it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._remembered: dict[bytes, tuple[KeyRecord, float]] = {}  # by digest: no key stays in memory as it is
        self._used: dict[str, float] = {}
        self._writing = set[asyncio.Task[None]]()  # a task without a reference may be collected before it has run

    async def valid(self, key: str) -> KeyRecord | None:
        """Return what a key allows; None for an unknown key, which is looked up each time."""
        return await self._valid(f"key {key}", lambda: self._store.keys.valid(key))

    async def of_session(self, token: str) -> KeyRecord | None:
        """Return what the key of a session in the dashboard allows; None where it is over."""
        return await self._valid(f"session {token}", lambda: self._store.sessions.valid(token))

    def forget_session(self, token: str) -> None:
        """Have the next request of a session look it up again."""
        self._remembered.pop(_digest(f"session {token}"), None)

    async def _valid(self, secret: str, look_up: Callable[[], KeyRecord | None]) -> KeyRecord | None:
        digest = _digest(secret)
        record, until = self._remembered.get(digest, (None, 0.0))
        if record is not None and time.monotonic() < until:
            return record
        record = await read(self._store.database, look_up)
        if record is None:
            self._remembered.pop(digest, None)
            return None
        if len(self._remembered) >= MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[digest] = (record, time.monotonic() + REMEMBERED_SECONDS)
        self._note_use(record.id)
        return record

    def _note_use(self, key_id: str) -> None:
        """Write `last_used_at` beside the request, once a minute for each key."""
        if time.monotonic() - self._used.get(key_id, -USED_SECONDS) < USED_SECONDS:
            return
        if len(self._used) >= MOST_REMEMBERED:
            self._used.clear()
        self._used[key_id] = time.monotonic()

        async def write() -> None:
            try:
                await run_sync(self._store.keys.used, key_id)
            except (DBAPIError, *UNAVAILABLE):
                self._used.pop(key_id, None)  # the next request tries again

        task = asyncio.create_task(write())
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


async def authenticate(request: Request, scope: Scope) -> KeyRecord:
    """Return the key that the request carries, or that its session in the dashboard stands for.

    Raises Unauthorized (401), Forbidden (403) without the scope.
    """
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme and not (scheme.lower() == "bearer" and key.strip()):
        raise Unauthorized("send the API key as `Authorization: Bearer <key>`")
    issued: RememberedKeys = request.app.state.keys
    record = await (issued.valid(key.strip()) if scheme else _of_session(request))
    if record is None:
        raise Unauthorized(
            "this API key is not known here, or no longer: check WBAR_API_KEY or the client's configuration file"
            if scheme
            else "send the API key as `Authorization: Bearer <key>`"
        )
    check_scope(record, scope)
    return record


async def _of_session(request: Request) -> KeyRecord | None:
    """Return the key of the session in the cookie; for a change only where the page's own token comes with it."""
    token = sessions.token_of(request)
    if token is None:
        return None
    if request.method not in ("GET", "HEAD"):
        sessions.check(token, request.headers.get(sessions.CSRF_HEADER, ""))
    issued: RememberedKeys = request.app.state.keys
    return await issued.of_session(token)


def check_scope(record: KeyRecord, scope: Scope) -> None:
    """Raise Forbidden (403) where a key lacks the scope."""
    if scope not in record.scopes:
        raise Forbidden(
            f"this needs an API key with the scope {scope!r}; {record.name!r} has {', '.join(record.scopes)}",
            headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
        )


async def admit(request: Request, record: KeyRecord, changes: bool) -> None:
    """Have the rest of the request be its tenant's, and count it. Raises RateLimited (429)."""
    request.scope[TENANT], request.scope[KEY] = record.owner, record
    row_security.act_for(record.tenant)
    logs.note(tenant=record.tenant, key=record.id)
    limits: RateLimits = request.app.state.limits
    standing = await limits.count(record.id, changes)
    if standing is not None:
        request.scope[OF_THE_KEY] = standing.headers


class AuthenticatedRoute(APIRoute):
    """A route that checks the key before the framework reads the body, and refuses what it would not read.

    A router with `route_class=AuthenticatedRoute` has only such routes. scope: of the key; None: `read` for GET, HEAD and
    OPTIONS, and `changing` for the other methods.
    """

    scope: ClassVar[Scope | None] = None
    changing: ClassVar[Scope] = "write"

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler that checks the key, reads a declared body, and lets the framework do the rest."""
        handle = super().get_route_handler()
        scope = self.scope or ("read" if (self.methods or set()) <= {"GET", "HEAD", "OPTIONS"} else self.changing)
        # Routes without a declared body read it themselves, or not at all.
        reads_body = self.body_field is not None

        changes = scope != "read" and (self.methods or set()) != {"GET"}
        parameters, takes_tags = names_of(self.dependant), self.name == "list_jobs"

        async def checked(request: Request) -> Response:
            record = await authenticate(request, scope)
            if any("\0" in str(part) for part in request.path_params.values()):
                raise NotFound("no id holds a NUL")  # PostgreSQL would not even look
            await admit(request, record, changes)
            check_names(request.query_params, parameters, takes_tags)
            return await handle(await with_json_body(request) if reads_body else request)

        return checked


class ReadingRoute(AuthenticatedRoute):
    """A route that changes nothing of the tenant's, whatever its method is."""

    scope = "read"


class AdminRoute(AuthenticatedRoute):
    """A route for keys with the scope `admin`."""

    scope = "admin"


class ManagedRoute(AuthenticatedRoute):
    """A route of what keys with the scope `read` may look at, and those with `admin` may change."""

    changing = "admin"


def store_of(request: Request) -> Store:
    """Return the store of this process."""
    store: Store = request.app.state.store
    return store


async def _store(request: Request) -> Store:
    # A dependency that is a plain function costs a change of thread.
    return store_of(request)


class BearerKey(SecurityBase):
    """The dependency that passes a request's tenant on, and the security scheme that the OpenAPI schema shows for it."""

    def __init__(self) -> None:
        self.model = HTTPBearer(description="The API key; `wbar up` writes it to the client's configuration.")
        self.scheme_name = "HTTPBearer"

    async def __call__(self, request: Request) -> Tenant:
        """Return the tenant that the route found."""
        tenant: Tenant = request.scope[TENANT]
        return tenant


StoreOf = Annotated[Store, Depends(_store)]
TenantOf = Annotated[Tenant, Depends(BearerKey())]
