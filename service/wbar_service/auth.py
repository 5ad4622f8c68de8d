"""Authentication: a bearer key names a tenant, and every route gets the store and that tenant, nothing else."""

import hashlib
import time
from typing import Annotated

from fastapi import Depends, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from wbar.errors import Unauthorized
from wbar_service.reading import read
from wbar_store.database import Tenant
from wbar_store.store import Store

REMEMBERED_SECONDS = 1.0
MOST_REMEMBERED = 4096


class RememberedKeys:
    """The tenants of the API keys that were used within the last second.

    A client that polls then costs one transaction a request instead of two; a revoked key is refused at most a second later.
    Only the event loop's thread uses it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._remembered: dict[bytes, tuple[Tenant, float]] = {}  # by digest: no key stays in memory as it is

    async def tenant_of(self, key: str) -> Tenant | None:
        """Return the tenant that a key belongs to; None for an unknown key, which is looked up each time."""
        digest = hashlib.sha256(key.encode()).digest()
        tenant, until = self._remembered.get(digest, (None, 0.0))
        if time.monotonic() < until:
            return tenant
        tenant = await read(self._store.database, lambda: self._store.keys.tenant_of(key))
        if tenant is None:
            self._remembered.pop(digest, None)
        else:
            if len(self._remembered) >= MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[digest] = (tenant, time.monotonic() + REMEMBERED_SECONDS)
        return tenant


def store_of(request: Request) -> Store:
    """Return the store of this process."""
    store: Store = request.app.state.store
    return store


async def _store(request: Request) -> Store:
    # A dependency that is a plain function costs a change of thread.
    return store_of(request)


class BearerKey(SecurityBase):
    """The dependency that finds the tenant of a request, and the security scheme that the OpenAPI schema shows for it."""

    def __init__(self) -> None:
        self.model = HTTPBearer(description="The API key; `wbar up` writes it to the client's configuration.")
        self.scheme_name = "HTTPBearer"

    async def __call__(self, request: Request) -> Tenant:
        """Return the tenant whose key the request carries. Raises Unauthorized (401)."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("send the API key as `Authorization: Bearer <key>`")
        issued: RememberedKeys = request.app.state.keys
        tenant = await issued.tenant_of(key.strip())
        if tenant is None:
            raise Unauthorized("this API key is not known here: check WBAR_API_KEY or the client's configuration file")
        return tenant


StoreOf = Annotated[Store, Depends(_store)]
TenantOf = Annotated[Tenant, Depends(BearerKey())]
