"""The routes of /v1/keys, for keys with the scope `admin`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from wbar.jobs import Deleted
from wbar.keys import ApiKey, KeyRequest
from wbar.lists import Page
from wbar_service.answers import answer
from wbar_service.auth import AdminRoute, StoreOf, TenantOf
from wbar_service.idempotency import IdempotencyKey, fingerprint, once
from wbar_service.paging import page_of, paged_by
from wbar_service.problems import responses
from wbar_store.keys import IssuedKey, KeyRecord
from wbar_store.repository import PageRequest

DAY = 24 * 3600.0

router = APIRouter(prefix="/v1/keys", tags=["keys"], route_class=AdminRoute, responses=responses(401, 403, 429, 503))


@router.post("", status_code=201, response_model=ApiKey, responses=responses(400, 409, 413, 422, 507))
def create_key(body: KeyRequest, store: StoreOf, tenant: TenantOf, idempotency_key: IdempotencyKey = None) -> Response:
    """Create an API key for the same tenant. `key` is in this answer only: a repeated request gets it without."""
    issued: list[IssuedKey] = []

    def create() -> KeyRecord:
        lifetime = None if body.expires_in_days is None else body.expires_in_days * DAY
        issued.append(store.keys.create(body.name, tenant, tuple(body.scopes), lifetime))
        return issued[0].record

    first = once(store, tenant, idempotency_key, fingerprint("key", body.model_dump(mode="json")), create)
    if not issued:
        return first
    return answer(issued[0].record.to_api().model_copy(update={"key": issued[0].key}), 201)


@router.get("", response_model=Page[ApiKey], responses=responses(422))
def list_keys(store: StoreOf, tenant: TenantOf, page: Annotated[PageRequest, Depends(paged_by("key"))]) -> Response:
    """List the tenant's API keys, newest first. The keys themselves are kept nowhere."""
    return answer(page_of(store.keys.page(tenant, page), KeyRecord.to_api))


@router.get("/{key_id}", response_model=ApiKey, responses=responses(404))
def get_key(key_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Return what is known about an API key."""
    return answer(store.keys.get(tenant, key_id).to_api())


@router.delete("/{key_id}", response_model=Deleted, responses=responses(404))
def delete_key(key_id: str, store: StoreOf, tenant: TenantOf) -> Deleted:
    """Revoke an API key: every process refuses it a second later at most."""
    store.keys.revoke(tenant, key_id)
    return Deleted(id=key_id, object="key")
