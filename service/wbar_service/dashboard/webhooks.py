"""The pages of webhooks: where events are sent, the secret that signs them, shown once, and the log of what was sent."""

from contextlib import suppress
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from wbar.errors import Conflict, NotFound, Refused
from wbar.webhooks import DeliveryStatus, EventPattern, RotationRequest, WebhookRequest
from wbar_service.auth import StoreOf, TenantOf
from wbar_service.dashboard.pages import page
from wbar_service.dashboard.route import AdminPageRoute, PageRoute, is_fragment
from wbar_service.webhooks.routes import make
from wbar_store.deliveries import DeliveryRecord
from wbar_store.documents import readable
from wbar_store.repository import PageRequest
from wbar_store.store import Store
from wbar_store.webhooks import WebhookRecord

router = APIRouter(include_in_schema=False, route_class=PageRoute)
admin = APIRouter(include_in_schema=False, route_class=AdminPageRoute)
ROWS = 50
After = Annotated[str | None, Query(max_length=64)]


@router.get("/webhooks")
def show_webhooks(request: Request, store: StoreOf, tenant: TenantOf, after: After = None) -> Response:
    """Show the tenant's webhooks."""
    return _list(request, store, tenant, after)


@admin.post("/webhooks")
def create_webhook(
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    url: Annotated[str, Form(max_length=3000)] = "",
    name: Annotated[str, Form(max_length=300)] = "",
    event: Annotated[list[str] | None, Form(max_length=32)] = None,
) -> Response:
    """Create a webhook and show its secret, for the only time."""
    try:
        asked = WebhookRequest.model_validate({"url": url.strip(), "name": name or None, "events": event or []})
        with store.database.write():
            made = make(store, tenant, request.app.state.settings, asked)
    except ValidationError as error:
        first = error.errors()[0]
        fault, status = f"{first['loc'][0]}: {first['msg']}", 422
    except Refused as problem:  # an address that nothing is sent to, or one webhook too many
        fault, status = problem.detail, problem.status
    else:
        return _one(request, store, tenant, made, secret=made.secret)
    return _list(request, store, tenant, None, fault, status, url=url, name=name, chosen=event or [])


@router.get("/webhooks/{webhook_id}")
def show_webhook(
    webhook_id: str,
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    after: After = None,
    status: Annotated[str, Query(pattern="^(pending|delivered|failed)?$")] = "",
) -> Response:
    """Show a webhook and its deliveries; as a fragment the deliveries alone."""
    return _one(request, store, tenant, store.webhooks.get(tenant, webhook_id), after=after, status=status)


@admin.post("/webhooks/{webhook_id}/rotate")
def rotate(webhook_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Make a new secret and show it, for the only time; the one of before signs, too, for a day."""
    made = store.webhooks.rotate(tenant, webhook_id, RotationRequest(overlap_seconds=None).overlap)
    return _one(request, store, tenant, made, secret=made.secret)


@admin.post("/webhooks/{webhook_id}/ping")
def ping(webhook_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Send the event `webhook.ping`."""
    try:
        store.deliveries.ping(tenant, webhook_id)
    except Conflict as problem:  # it is disabled
        return _refused(request, store, tenant, webhook_id, problem)
    return RedirectResponse(f"/webhooks/{webhook_id}", 303)


@admin.post("/webhooks/{webhook_id}/enable")
def enable(webhook_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Have events sent again to a webhook that its receiver has disabled."""
    store.webhooks.enable(tenant, webhook_id)
    return RedirectResponse(f"/webhooks/{webhook_id}", 303)


@admin.post("/webhooks/{webhook_id}/delete")
def delete(webhook_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Delete a webhook with its deliveries."""
    with suppress(NotFound):  # deleted meanwhile
        store.webhooks.remove(tenant, webhook_id)
    return RedirectResponse("/webhooks", 303)


@admin.post("/webhooks/{webhook_id}/deliveries/{delivery_id}/replay")
def replay(webhook_id: str, delivery_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Send an event (again) now."""
    try:
        store.deliveries.replay(tenant, webhook_id, delivery_id)
    except Conflict as problem:
        return _refused(request, store, tenant, webhook_id, problem)
    return RedirectResponse(f"/webhooks/{webhook_id}", 303)


def _refused(request: Request, store: Store, tenant: TenantOf, webhook_id: str, problem: Conflict) -> Response:
    webhook = store.webhooks.get(tenant, webhook_id)
    return _one(request, store, tenant, webhook, fault=problem.detail, code=problem.status)


def _list(
    request: Request,
    store: Store,
    tenant: TenantOf,
    after: str | None,
    fault: str | None = None,
    status: int = 200,
    **form: Any,
) -> Response:
    rows = store.webhooks.page(tenant, PageRequest(ROWS, after))
    typed = {"url": "", "name": "", "chosen": ["job.succeeded", "job.failed"], **form}
    return page(
        request, "webhooks.html", status, rows=rows, shown=readable(rows.records, WebhookRecord.to_api), fault=fault,
        after=after, patterns=get_args(EventPattern), **typed,
    )  # fmt: skip


def _one(
    request: Request,
    store: Store,
    tenant: TenantOf,
    webhook: WebhookRecord,
    after: str | None = None,
    status: str = "",
    secret: str | None = None,
    fault: str | None = None,
    code: int = 200,
) -> Response:
    states: dict[str, DeliveryStatus] = {one: one for one in get_args(DeliveryStatus)}
    rows = store.deliveries.of_webhook(tenant, webhook.id, PageRequest(ROWS, after), states.get(status))
    template = "_deliveries.html" if is_fragment(request) else "webhook.html"
    return page(
        request, template, code, hook=webhook.to_api(), rows=rows, shown=readable(rows.records, DeliveryRecord.to_api),
        secret=secret, fault=fault, only=status, states=tuple(states), after=after,
    )  # fmt: skip
