# Derived from wbar/client/_async/webhooks.py by `make client` (tools/derive_client.py): edit that one.
"""`client.webhooks`."""

from collections.abc import Iterator, Sequence

from wbar.client._sync.resource import Resource
from wbar.client.addresses import segment
from wbar.lists import Page
from wbar.webhooks import Delivery, DeliveryStatus, Webhook


class Webhooks(Resource):
    """Creates, changes and deletes webhooks, and shows what was sent. Changes need a key with the scope `admin`."""

    def create(
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
        return self._create("/v1/webhooks", Webhook, body, idempotency_key)

    def get(self, webhook_id: str) -> Webhook:
        """Return one webhook. Raises NotFound."""
        return self._get(f"/v1/webhooks/{segment(webhook_id)}", Webhook)

    def list(self, limit: int = 20, after: str | None = None, order: str | None = None) -> Page[Webhook]:
        """Return one page of webhooks, newest first unless `order` is `asc`."""
        return self._get("/v1/webhooks", Page[Webhook], limit=limit, after=after, order=order)

    def iterate(self, order: str | None = None) -> Iterator[Webhook]:
        """Return an iterator over all webhooks, loaded page by page, newest first unless `order` is `asc`."""
        return self._pages("/v1/webhooks", Page[Webhook], order=order)

    def delete(self, webhook_id: str) -> None:
        """Delete a webhook with its deliveries. Raises NotFound."""
        self._client.request("DELETE", f"/v1/webhooks/{segment(webhook_id)}")

    def rotate(self, webhook_id: str, *, overlap_seconds: int | None = None) -> Webhook:
        """Give a webhook a new secret, which is in this answer only. overlap_seconds: for which the old one signs, too."""
        body = {} if overlap_seconds is None else {"overlap_seconds": overlap_seconds}
        answer = self._client.request("POST", f"/v1/webhooks/{segment(webhook_id)}/rotate", json=body)
        return Webhook.model_validate(answer.json())

    def enable(self, webhook_id: str) -> Webhook:
        """Send to a webhook again that was disabled, because its receiver said that it is gone."""
        answer = self._client.request("POST", f"/v1/webhooks/{segment(webhook_id)}/enable")
        return Webhook.model_validate(answer.json())

    def ping(self, webhook_id: str) -> Delivery:
        """Send the event `webhook.ping`, to see that the receiver answers."""
        answer = self._client.request("POST", f"/v1/webhooks/{segment(webhook_id)}/ping")
        return Delivery.model_validate(answer.json())

    def deliveries(
        self,
        webhook_id: str,
        status: DeliveryStatus | None = None,
        limit: int = 20,
        after: str | None = None,
        order: str | None = None,
    ) -> Page[Delivery]:
        """Return one page of what was sent, or is to be, newest first unless `order` is `asc`."""
        path = f"/v1/webhooks/{segment(webhook_id)}/deliveries"
        return self._get(path, Page[Delivery], status=status, limit=limit, after=after, order=order)

    def delivery(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Return one delivery. Raises NotFound."""
        return self._get(f"/v1/webhooks/{segment(webhook_id)}/deliveries/{segment(delivery_id)}", Delivery)

    def replay(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send a delivery again, with the same id and content."""
        path = f"/v1/webhooks/{segment(webhook_id)}/deliveries/{segment(delivery_id)}/replay"
        answer = self._client.request("POST", path)
        return Delivery.model_validate(answer.json())
