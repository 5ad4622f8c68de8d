"""Who is asking: a bearer key names a tenant, and every route gets the store and that tenant, nothing else."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from wbar.errors import Unauthorized
from wbar_store import keys
from wbar_store.database import Tenant
from wbar_store.store import Store

_bearer = HTTPBearer(auto_error=False, description="The API key; `wbar up` writes it to the client's configuration.")


def store_of(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def tenant_of(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Tenant:
    """The tenant whose key this is. Raises Unauthorized (401)."""
    if credentials is None:
        raise Unauthorized("send the API key as `Authorization: Bearer <key>`")
    with store_of(request).database.read() as connection:
        tenant = keys.tenant_of(connection, credentials.credentials)
    if tenant is None:
        raise Unauthorized("this API key is not known here: check WBAR_API_KEY or the client's configuration file")
    return tenant


StoreOf = Annotated[Store, Depends(store_of)]
TenantOf = Annotated[Tenant, Depends(tenant_of)]
