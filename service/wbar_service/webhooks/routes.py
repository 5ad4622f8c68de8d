"""The routes of /v1/webhooks. What is made here sends what a key may read to somewhere else, and outlives the key: changes need
the scope `admin`.
"""

import ipaddress
from typing import Annotated, cast
from urllib.parse import urlsplit

from fastapi import APIRouter, Body, Depends, Request, Response

from wbar.errors import ValidationFailed
from wbar.jobs import Deleted
from wbar.lists import Page
from wbar.webhooks import Delivery, DeliveryStatus, RotationRequest, Webhook, WebhookRequest
from wbar_service.answers import answer
from wbar_service.auth import ManagedRoute, StoreOf, TenantOf
from wbar_service.idempotency import IdempotencyKey, fingerprint, once
from wbar_service.paging import page_of, paged_by
from wbar_service.problems import responses
from wbar_service.settings import ServiceSettings
from wbar_store.addresses import Reach
from wbar_store.database import Tenant
from wbar_store.deliveries import DeliveryRecord
from wbar_store.repository import PageRequest
from wbar_store.store import Store
from wbar_store.webhooks import WebhookRecord

router = APIRouter(
    prefix="/v1/webhooks", tags=["webhooks"], route_class=ManagedRoute, responses=responses(401, 403, 429, 503)
)


@router.post("", status_code=201, response_model=Webhook, responses=responses(400, 409, 413, 422, 507))
def create_webhook(
    request: Request, body: WebhookRequest, store: StoreOf, tenant: TenantOf, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a webhook: events are sent to its URL, signed as Standard Webhooks says.

    `secret` is in this answer only: a repeated request gets it without.
    """
    settings: ServiceSettings = request.app.state.settings
    made: list[WebhookRecord] = []

    def create() -> WebhookRecord:
        made.append(make(store, tenant, settings, body))
        return made[0]

    first = once(store, tenant, idempotency_key, fingerprint("webhook", body.model_dump(mode="json")), create)
    return _with_secret(made[0], 201) if made else first


@router.get("", response_model=Page[Webhook], responses=responses(422))
def list_webhooks(
    store: StoreOf, tenant: TenantOf, page: Annotated[PageRequest, Depends(paged_by("hook"))]
) -> Response:
    """List the tenant's webhooks, newest first, without their secrets."""
    return answer(page_of(store.webhooks.page(tenant, page), WebhookRecord.to_api))


@router.get("/{webhook_id}", response_model=Webhook, responses=responses(404))
def get_webhook(webhook_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Return a webhook, without its secret."""
    return answer(store.webhooks.get(tenant, webhook_id).to_api())


@router.delete("/{webhook_id}", response_model=Deleted, responses=responses(404))
def delete_webhook(webhook_id: str, store: StoreOf, tenant: TenantOf) -> Deleted:
    """Delete a webhook with its deliveries; what waits is not sent any more."""
    store.webhooks.remove(tenant, webhook_id)
    return Deleted(id=webhook_id, object="webhook")


@router.post("/{webhook_id}/rotate", response_model=Webhook, responses=responses(400, 404, 413, 422))
def rotate_webhook_secret(
    webhook_id: str,
    store: StoreOf,
    tenant: TenantOf,
    body: Annotated[RotationRequest, Body(default_factory=RotationRequest)],
) -> Response:
    """Make a new secret, which is in this answer only. Messages are signed with both until the overlap is over."""
    return _with_secret(store.webhooks.rotate(tenant, webhook_id, body.overlap))


@router.post("/{webhook_id}/enable", response_model=Webhook, responses=responses(404))
def enable_webhook(webhook_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Have events sent again to a webhook that an answer of 410 has disabled."""
    return answer(store.webhooks.enable(tenant, webhook_id).to_api())


@router.post(
    "/{webhook_id}/ping", status_code=201, response_model=Delivery, responses=responses(400, 404, 409, 422, 507)
)
def ping_webhook(webhook_id: str, store: StoreOf, tenant: TenantOf, idempotency_key: IdempotencyKey = None) -> Response:
    """Send the event `webhook.ping` to this webhook, whatever events it wants."""
    print_ = fingerprint("webhook ping", webhook_id)
    return once(store, tenant, idempotency_key, print_, lambda: store.deliveries.ping(tenant, webhook_id))


@router.get("/{webhook_id}/deliveries", response_model=Page[Delivery], responses=responses(404, 422))
def list_webhook_deliveries(
    webhook_id: str,
    store: StoreOf,
    tenant: TenantOf,
    page: Annotated[PageRequest, Depends(paged_by("msg"))],
    status: DeliveryStatus | None = None,
) -> Response:
    """List what was sent to a webhook and what waits to be, newest first. Ended deliveries are kept for 30 days."""
    found = store.deliveries.of_webhook(tenant, webhook_id, page, status)
    return answer(page_of(found, DeliveryRecord.to_api))


@router.get("/{webhook_id}/deliveries/{delivery_id}", response_model=Delivery, responses=responses(404))
def get_webhook_delivery(webhook_id: str, delivery_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Return one delivery: what was sent, how it was answered, and when it is tried next."""
    return answer(store.deliveries.find(tenant, webhook_id, delivery_id).to_api())


@router.post("/{webhook_id}/deliveries/{delivery_id}/replay", response_model=Delivery, responses=responses(404, 409))
def replay_webhook_delivery(webhook_id: str, delivery_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Send an event now, whether or not it has arrived before: the same body under the same `webhook-id`."""
    return answer(store.deliveries.replay(tenant, webhook_id, delivery_id).to_api())


def make(store: Store, tenant: Tenant, settings: ServiceSettings, body: WebhookRequest) -> WebhookRecord:
    """Insert a webhook, in a block of `write()`. Raises ValidationFailed, QuotaExceeded."""
    _check_url(body.url, Reach(settings.webhooks_allow))
    store.quotas.check_webhooks(tenant, settings.quotas)
    return store.webhooks.create(tenant, body.url, tuple(body.events), body.name)


def _with_secret(webhook: WebhookRecord, status: int = 200) -> Response:
    return answer(webhook.to_api().model_copy(update={"secret": webhook.secret}), status)


def _check_url(url: str, reach: Reach) -> None:
    """Raise ValidationFailed for a URL of which it can be seen that nothing will ever be sent to it.

    That is all it is for: what a name stands for is known when the connection is made, and checked there.
    """
    parts = urlsplit(url)
    host = cast(str, parts.hostname)
    fault = None
    try:
        fault = reach.refusal(str(ipaddress.ip_address(host)))
    except ValueError:  # a name
        if (host == "localhost" or host.endswith(".localhost")) and not reach.is_wider:
            fault = "this is not in the public network, and WBAR_WEBHOOKS_ALLOW does not name it"
    if fault is None and parts.scheme != "https" and not reach.is_wider:
        fault = "http is for networks that WBAR_WEBHOOKS_ALLOW names, and it names none: use https"
    if fault is not None:
        raise ValidationFailed(f"/url: {fault}", [{"pointer": "/url", "detail": fault}])
