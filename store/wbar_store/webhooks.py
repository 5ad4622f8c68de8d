"""Webhooks: where a tenant's events are sent, and the secrets that sign them. A secret is sent once, to whoever made it."""

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete, insert, update

from wbar.errors import InvalidTransition
from wbar.webhooks import Webhook, WebhookStatus, new_secret
from wbar_store.database import Tenant, clock, now, rfc3339
from wbar_store.ids import new_id
from wbar_store.repository import Record, Repository
from wbar_store.tables import webhooks

MOST_FORMER = 4  # secrets that sign beside the newest: one whose answer was lost is not the end of the one before


class FormerSecret(BaseModel):
    """A secret that was rotated, and the time until which it signs, in seconds since 1970."""

    model_config = ConfigDict(frozen=True)

    secret: str = Field(repr=False)
    until: float


class WebhookRecord(Record):
    """A row of `webhooks`. events: patterns."""

    tenant: str
    name: str | None
    url: str
    events: tuple[str, ...]
    status: WebhookStatus
    disabled_reason: str | None
    secret: str = Field(repr=False)
    former_secrets: tuple[FormerSecret, ...] = Field(repr=False)
    created_at: float

    def secrets_at(self, time: float) -> tuple[str, ...]:
        """Return the secrets that sign at a time, the newest first."""
        return (self.secret, *(former.secret for former in self.former_secrets if former.until > time))

    def to_api(self) -> Webhook:
        """Return the webhook as the API sends it, without its secret."""
        return Webhook(
            id=self.id,
            name=self.name,
            url=self.url,
            events=list(self.events),
            status=self.status,
            disabled_reason=self.disabled_reason,
            created_at=rfc3339(self.created_at),
        )


class Webhooks(Repository[WebhookRecord]):
    """The webhooks of all tenants."""

    table, kind, noun, record = webhooks, "hook", "webhook", WebhookRecord

    def create(self, tenant: Tenant, url: str, events: tuple[str, ...], name: str | None = None) -> WebhookRecord:
        """Insert a webhook with a new secret. events: patterns."""
        values = {
            "id": new_id("hook"),
            "tenant": tenant.name,
            "name": name,
            "url": url,
            "events": list(dict.fromkeys(events)),
            "status": "enabled",
            "secret": new_secret(),
            "former_secrets": [],
            "created_at": now(),
        }
        with self.database.write() as connection:
            return self.record.of(connection.execute(insert(webhooks).values(**values).returning(*webhooks.c)).one())

    def rotate(self, tenant: Tenant, webhook_id: str, overlap: float) -> WebhookRecord:
        """Replace the secret by a new one; the one of before signs beside it for `overlap` seconds. Raises NotFound."""
        with self.database.write() as connection:
            webhook = self.get(tenant, webhook_id, lock=True)
            time = clock(connection)
            former = [FormerSecret(secret=webhook.secret, until=time + overlap), *webhook.former_secrets]
            kept = [one.model_dump() for one in former if one.until > time][:MOST_FORMER]
            self._change(webhook_id, secret=new_secret(), former_secrets=kept)
            return self.get(tenant, webhook_id)

    def enable(self, tenant: Tenant, webhook_id: str) -> WebhookRecord:
        """Have events sent again to a webhook that was disabled. Raises NotFound."""
        with self.database.write():
            self.get(tenant, webhook_id, lock=True)
            self._change(webhook_id, status="enabled", disabled_reason=None)
            return self.get(tenant, webhook_id)

    def disable(self, webhook_id: str, reason: str) -> None:
        """Have nothing sent any more to a webhook, whose receiver has said so."""
        self._change(webhook_id, status="disabled", disabled_reason=reason)

    def enabled(self, tenant: Tenant, webhook_id: str) -> WebhookRecord:
        """Return a webhook and keep it from being changed until the block of `write()` ends.

        Raises NotFound, InvalidTransition for one that is disabled.
        """
        webhook = self.get(tenant, webhook_id, lock=True)
        if webhook.status != "enabled":
            raise InvalidTransition(f"{webhook_id} is disabled ({webhook.disabled_reason}): enable it first")
        return webhook

    def remove(self, tenant: Tenant, webhook_id: str) -> None:
        """Delete a webhook and its deliveries. Raises NotFound."""
        with self.database.write() as connection:
            self.get(tenant, webhook_id, lock=True)
            connection.execute(delete(webhooks).where(webhooks.c.id == webhook_id))

    def _change(self, webhook_id: str, **values: object) -> None:
        with self.database.write() as connection:
            connection.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(**values))
