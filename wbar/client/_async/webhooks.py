"""`client.webhooks`."""

from collections.abc import AsyncIterator, Sequence

from wbar.client._async.resource import AsyncResource
from wbar.client.addresses import segment
from wbar.lists import Page
from wbar.webhooks import Delivery, DeliveryStatus, Webhook


class AsyncWebhooks(AsyncResource):
    """Creates, changes and deletes webhooks, and shows what was sent. Changes need a key with the scope `admin`."""

    async def create(
        self,
        url: str,
        *,
        events: Sequence[str] | None = None,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> Webhook:
        """Create a webhook. Its `secret` is in the first answer only: where that was lost, `rotate` makes a new one.

        events: patterns such as `job.*`; default: all of them.
        """
        body = {"url": url} | ({"events": [*events]} if events else {}) | ({"name": name} if name else {})
        return await self._create("/v1/webhooks", Webhook, body, idempotency_key)

    async def get(self, webhook_id: str) -> Webhook:
        """Return one webhook. Raises NotFound."""
        return await self._get(f"/v1/webhooks/{segment(webhook_id)}", Webhook)

    async def list(self, limit: int = 20, after: str | None = None, order: str | None = None) -> Page[Webhook]:
        """Return one page of webhooks, newest first unless `order` is `asc`."""
        return await self._get("/v1/webhooks", Page[Webhook], limit=limit, after=after, order=order)

    def iterate(self, order: str | None = None) -> AsyncIterator[Webhook]:
        """Return an iterator over all webhooks, loaded page by page, newest first unless `order` is `asc`."""
        return self._pages("/v1/webhooks", Page[Webhook], order=order)

    async def delete(self, webhook_id: str) -> None:
        """Delete a webhook with its deliveries. Raises NotFound."""
        await self._client.request("DELETE", f"/v1/webhooks/{segment(webhook_id)}")

    async def rotate(self, webhook_id: str, *, overlap_seconds: int | None = None) -> Webhook:
        """Give a webhook a new secret, which is in this answer only. overlap_seconds: for which the old one signs, too."""
        body = {} if overlap_seconds is None else {"overlap_seconds": overlap_seconds}
        answer = await self._client.request("POST", f"/v1/webhooks/{segment(webhook_id)}/rotate", json=body)
        return Webhook.model_validate(answer.json())

    async def enable(self, webhook_id: str) -> Webhook:
        """Send to a webhook again that was disabled, because its receiver said that it is gone."""
        answer = await self._client.request("POST", f"/v1/webhooks/{segment(webhook_id)}/enable")
        return Webhook.model_validate(answer.json())

    async def ping(self, webhook_id: str) -> Delivery:
        """Send the event `webhook.ping`, to see that the receiver answers."""
        answer = await self._client.request("POST", f"/v1/webhooks/{segment(webhook_id)}/ping")
        return Delivery.model_validate(answer.json())

    async def deliveries(
        self,
        webhook_id: str,
        status: DeliveryStatus | None = None,
        limit: int = 20,
        after: str | None = None,
        order: str | None = None,
    ) -> Page[Delivery]:
        """Return one page of what was sent, or is to be, newest first unless `order` is `asc`."""
        path = f"/v1/webhooks/{segment(webhook_id)}/deliveries"
        return await self._get(path, Page[Delivery], status=status, limit=limit, after=after, order=order)

    async def delivery(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Return one delivery. Raises NotFound."""
        return await self._get(f"/v1/webhooks/{segment(webhook_id)}/deliveries/{segment(delivery_id)}", Delivery)

    async def replay(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send a delivery again, with the same id and content."""
        path = f"/v1/webhooks/{segment(webhook_id)}/deliveries/{segment(delivery_id)}/replay"
        answer = await self._client.request("POST", path)
        return Delivery.model_validate(answer.json())
