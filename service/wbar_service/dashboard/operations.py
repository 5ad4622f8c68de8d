"""The pages of who works and who may: workers with the queue, and API keys."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from wbar.errors import NotFound
from wbar.keys import SCOPES, KeyRequest, Scope
from wbar_service.auth import KEY, StoreOf, TenantOf
from wbar_service.dashboard.pages import page
from wbar_service.dashboard.route import AdminPageRoute, PageRoute, is_fragment
from wbar_service.keys.routes import DAY
from wbar_store.job_lists import Filters
from wbar_store.keys import IssuedKey
from wbar_store.repository import PageRequest

router = APIRouter(include_in_schema=False, route_class=PageRoute)
admin = APIRouter(include_in_schema=False, route_class=AdminPageRoute)
ROWS = 100


@router.get("/workers")
def show_workers(request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Show who lives, what each does for this tenant, and what waits; as a fragment the tables alone."""
    running = store.jobs.summaries(tenant, PageRequest(ROWS), Filters(("running",))).records
    queued = store.jobs.summaries(tenant, PageRequest(ROWS, order="asc"), Filters(("queued",))).records
    places = store.queue.positions(tenant)
    template = "_workers.html" if is_fragment(request) else "workers.html"
    return page(
        request, template, workers=store.workers.live(), running=running, places=places,
        queued=sorted(queued, key=lambda job: places.get(job.id, 0)),
    )  # fmt: skip


@admin.get("/keys")
def show_keys(
    request: Request, store: StoreOf, tenant: TenantOf, after: Annotated[str | None, Query(max_length=64)] = None
) -> Response:
    """Show the tenant's API keys, newest first."""
    return _keys(request, store, tenant, after)


@admin.post("/keys")
def create_key(
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    name: Annotated[str, Form(max_length=300)] = "",
    scope: Annotated[list[Scope] | None, Form(max_length=3)] = None,
    expires_in_days: Annotated[str, Form(max_length=20)] = "",
) -> Response:
    """Create a key and show it, for the only time."""
    try:
        asked = KeyRequest.model_validate(
            {
                "name": name,
                "scopes": scope or [],
                "expires_in_days": float(expires_in_days) if expires_in_days else None,
            }
        )
    except (ValidationError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        fault = (
            f"{first['loc'][-1]}: {first['msg']}"
            if first
            else f"expires in days: {expires_in_days[:20]!r} is no number"
        )
        return _keys(request, store, tenant, fault=fault, status=422)
    lifetime = None if asked.expires_in_days is None else asked.expires_in_days * DAY
    return _keys(request, store, tenant, issued=store.keys.create(asked.name, tenant, tuple(asked.scopes), lifetime))


@admin.post("/keys/{key_id}/revoke")
def revoke_key(key_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Revoke a key, and with it its sessions; this session's own key is asked for by signing in again."""
    with suppress(NotFound):  # revoked meanwhile
        store.keys.revoke(tenant, key_id)
    return RedirectResponse("/sign-in" if request.scope[KEY].id == key_id else "/keys", 303)


def _keys(
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    after: str | None = None,
    issued: IssuedKey | None = None,
    fault: str | None = None,
    status: int = 200,
) -> Response:
    rows = store.keys.page(tenant, PageRequest(ROWS, after))
    return page(
        request, "keys.html", status, rows=rows, keys=[one.to_api() for one in rows.records], issued=issued, fault=fault,
        scopes=SCOPES, own=request.scope[KEY].id, after=after,
    )  # fmt: skip
