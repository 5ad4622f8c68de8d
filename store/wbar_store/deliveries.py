"""Deliveries of events to webhooks: a log for their owner, and a queue for whoever sends them.

A pending delivery has the time of its next attempt. Claiming one is a compare-and-set that raises the attempt number and
puts that time off to the end of the sender's lease: a sender that is killed leaves nothing to be tidied up, its delivery is
due again by itself. What a sender records carries the attempt, and changes nothing once another one has claimed.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from sqlalchemy import Update, delete, func, select, update

from wbar.errors import NotFound
from wbar.webhooks import Delivery, DeliveryStatus, WebhookEvent
from wbar_store import outbox
from wbar_store.database import Database, Tenant, clock, now, rfc3339
from wbar_store.repository import PageRequest, Record, RecordPage, Repository
from wbar_store.tables import webhook_deliveries, webhooks
from wbar_store.webhooks import WebhookRecord, Webhooks

KEPT = 30 * 86400.0
MOST_KEPT = 10_000  # ended ones of each webhook
LONGEST_ERROR = 500
GONE = 410


class DeliveryRecord(Record):
    """A row of `webhook_deliveries`. payload: the body, a WebhookEvent as JSON."""

    tenant: str
    webhook: str
    type: str
    payload: str
    status: DeliveryStatus
    attempts: int
    next_attempt_at: float | None
    response_status: int | None
    error: str | None
    attempted_at: float | None
    delivered_at: float | None
    created_at: float

    def to_api(self) -> Delivery:
        """Return the delivery as the API sends it."""
        return Delivery(
            id=self.id,
            webhook=self.webhook,
            type=self.type,
            status=self.status,
            attempts=self.attempts,
            response_status=self.response_status,
            error=self.error,
            payload=WebhookEvent.model_validate_json(self.payload),
            created_at=rfc3339(self.created_at),
            attempted_at=rfc3339(self.attempted_at),
            next_attempt_at=rfc3339(self.next_attempt_at),
            delivered_at=rfc3339(self.delivered_at),
        )


@dataclass(frozen=True)
class Due:
    """A delivery whose time has come, as it was when a sender looked."""

    id: str
    attempts: int
    webhook: str
    tenant: str


@dataclass(frozen=True)
class Message:
    """A claimed delivery: what is sent, and where.

    attempt: the number that the claim raised.
    secrets: that sign it, the newest first.
    """

    id: str
    attempt: int
    webhook: str
    tenant: str
    url: str
    body: bytes
    secrets: tuple[str, ...] = field(repr=False)


class Deliveries(Repository[DeliveryRecord]):
    """The deliveries of all tenants."""

    table, kind, noun, record = webhook_deliveries, "msg", "delivery", DeliveryRecord

    def __init__(self, database: Database, webhooks_: Webhooks) -> None:
        super().__init__(database)
        self._webhooks = webhooks_

    # What the API does.

    def of_webhook(
        self, tenant: Tenant, webhook_id: str, request: PageRequest, status: DeliveryStatus | None = None
    ) -> RecordPage[DeliveryRecord]:
        """Return a page of a webhook's deliveries. Raises NotFound. status: those in this state only; None: all."""
        rows = tenant.select(webhook_deliveries).where(webhook_deliveries.c.webhook == webhook_id)
        if status is not None:
            rows = rows.where(webhook_deliveries.c.status == status)
        with self.database.read() as connection:
            self._webhooks.get(tenant, webhook_id)
            return self._page(connection, rows, request)

    def find(self, tenant: Tenant, webhook_id: str, delivery_id: str, lock: bool = False) -> DeliveryRecord:
        """Return a delivery of this webhook. Raises NotFound."""
        self._webhooks.get(tenant, webhook_id)
        found = self.get(tenant, delivery_id, lock)
        if found.webhook != webhook_id:
            raise NotFound(f"there is no delivery {delivery_id[:64]!r}")
        return found

    def ping(self, tenant: Tenant, webhook_id: str) -> DeliveryRecord:
        """Write an event that says nothing but that the webhook is there. Raises NotFound, InvalidTransition."""
        with self.database.write() as connection:
            webhook = self._webhooks.enabled(tenant, webhook_id)
            return self.get(tenant, outbox.ping(connection, tenant.name, webhook_id, webhook.name))

    def replay(self, tenant: Tenant, webhook_id: str, delivery_id: str) -> DeliveryRecord:
        """Have a delivery sent (again) now, under the same id, and tried for a day. Raises NotFound, InvalidTransition."""
        with self.database.write() as connection:
            self.find(tenant, webhook_id, delivery_id)
            self._webhooks.enabled(tenant, webhook_id)
            self.find(tenant, webhook_id, delivery_id, lock=True)
            again = {"status": "pending", "next_attempt_at": now(), "retry_until": now() + outbox.RETRY_SECONDS}
            connection.execute(update(webhook_deliveries).where(webhook_deliveries.c.id == delivery_id).values(**again))
            return self.get(tenant, delivery_id)

    # What a sender does.

    def due(self, limit: int, busy_webhooks: Collection[str] = (), busy_tenants: Collection[str] = ()) -> list[Due]:
        """Return deliveries whose time has come, those that wait for longest first, without those of the busy."""
        table = webhook_deliveries
        with self.database.read() as connection:
            # The time as a value: PostgreSQL would look at every row for a clock that ticks while it looks.
            waiting = select(table.c.id, table.c.attempts, table.c.webhook, table.c.tenant).where(
                table.c.next_attempt_at <= clock(connection)
            )
            if busy_webhooks:
                waiting = waiting.where(table.c.webhook.not_in(busy_webhooks))
            if busy_tenants:
                waiting = waiting.where(table.c.tenant.not_in(busy_tenants))
            rows = connection.execute(waiting.order_by(table.c.next_attempt_at).limit(limit))
            return [Due(row.id, row.attempts, row.webhook, row.tenant) for row in rows]

    def claim(self, due: Due, lease: float) -> Message | None:
        """Claim a delivery for `lease` seconds. None if another sender has, or nothing is to be sent any more."""
        table = webhook_deliveries
        mine = table.c.id == due.id, table.c.attempts == due.attempts, table.c.next_attempt_at <= now()
        values = {"attempts": table.c.attempts + 1, "next_attempt_at": now() + lease, "attempted_at": now()}
        # Undone by a power cut, it is sent again.
        with self.database.write(durable=False) as connection:
            owner = connection.execute(select(webhooks).where(webhooks.c.id == due.webhook)).first()
            if owner is None:
                return None  # deleted, and its deliveries with it
            webhook = WebhookRecord.of(owner)
            if webhook.status != "enabled":
                ended = {"status": "failed", "next_attempt_at": None, "error": "the webhook is disabled"}
                connection.execute(update(table).where(*mine).values(**ended))
                return None
            row = connection.execute(update(table).where(*mine).values(**values).returning(*table.c)).first()
            if row is None:
                return None
            secrets = webhook.secrets_at(row.attempted_at)
        return Message(row.id, row.attempts, row.webhook, row.tenant, webhook.url, row.payload.encode(), secrets)

    def delivered(self, message: Message, response_status: int) -> bool:
        """Record that a message has arrived. False if the claim is stale."""
        values = {"status": "delivered", "next_attempt_at": None, "delivered_at": now(), "error": None}
        with self.database.write() as connection:
            done = _of_attempt(message).values(response_status=response_status, **values)
            return connection.execute(done).rowcount == 1

    def missed(self, message: Message, response_status: int | None, error: str, delay: float) -> DeliveryStatus | None:
        """Record an attempt that failed; the next one is in `delay` seconds, unless the time for trying ends before.

        An answer of 410 is the receiver's wish to get no more: it disables the webhook. Returns the delivery's status; None
        if the claim is stale.
        """
        table = webhook_deliveries
        said = {"response_status": response_status, "error": error[:LONGEST_ERROR]}
        with self.database.write() as connection:
            if response_status == GONE:  # its row first, as whoever deletes it does
                self._webhooks.disable(message.webhook, "its receiver answered 410 (gone)")
            time = clock(connection)
            row = connection.execute(_of_attempt(message).values(**said).returning(table.c.retry_until)).first()
            if row is None:
                return None
            again = response_status != GONE and time + delay <= row.retry_until
            status: DeliveryStatus = "pending" if again else "failed"
            ends = {"status": status, "next_attempt_at": time + delay if again else None}
            connection.execute(update(table).where(table.c.id == message.id).values(**ends))
        return status

    # What the sweeper does.

    def sweep(self) -> None:
        """Delete ended deliveries that are older than 30 days, and the oldest ones of a webhook that has very many."""
        table = webhook_deliveries
        ended = table.c.next_attempt_at.is_(None)
        with self.database.write() as connection:
            connection.execute(delete(table).where(ended, table.c.created_at < now() - KEPT))
            many = select(table.c.webhook).group_by(table.c.webhook).having(func.count() > MOST_KEPT)
            for webhook in connection.execute(many).scalars().all():
                newest = select(table.c.id).where(table.c.webhook == webhook).order_by(table.c.id.desc())
                last = connection.execute(newest.offset(MOST_KEPT).limit(1)).scalar_one()
                connection.execute(delete(table).where(ended, table.c.webhook == webhook, table.c.id <= last))


def _of_attempt(message: Message) -> Update:
    table = webhook_deliveries
    return update(table).where(
        table.c.id == message.id, table.c.attempts == message.attempt, table.c.status == "pending"
    )
