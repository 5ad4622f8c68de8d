"""What a tenant may keep and have at work, counted in the transaction that adds to it."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from wbar.errors import QuotaExceeded
from wbar.states import TERMINAL
from wbar_store.database import Database, Tenant
from wbar_store.tables import checkpoints, datasets, jobs, merges, resumable_uploads, webhooks

HOLD = "3600"  # seconds: room comes back when something is deleted or has ended, which no clock tells


@dataclass(frozen=True)
class Quota:
    """The most that each tenant may have.

    bytes: of checkpoints, datasets and uploads as they were sent, and of what was merged. jobs: that have not ended, merges
    among them.
    """

    bytes: int | None
    jobs: int | None
    webhooks: int | None = None


class Quotas:
    """The quotas of all tenants."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def check_bytes(self, tenant: Tenant, limits: Quota, more: int) -> None:
        """Raise QuotaExceeded where `more` bytes do not fit. Call it in the block that inserts them.

        What a named source will take is not known yet: it needs some room that is left.
        """
        if limits.bytes is None:
            return
        with self.database.write() as connection:
            _one_at_a_time(connection, tenant)
            # What has arrived of an upload counts until a checkpoint or dataset is made of it, which counts then.
            counted = [
                select(func.sum(table.c.bytes)).where(table.c.tenant == tenant.name, table.c.status != "rejected")
                for table in (checkpoints, datasets)
            ]
            made = select(func.sum(merges.c.bytes)).where(merges.c.tenant == tenant.name)
            counted.append(made.where(merges.c.status.not_in(("failed", "cancelled"))))
            arrived = select(func.sum(resumable_uploads.c.received))
            counted.append(
                arrived.where(resumable_uploads.c.tenant == tenant.name, resumable_uploads.c.used_at.is_(None))
            )
            kept = sum(int(connection.execute(query).scalar() or 0) for query in counted)
        if kept + max(1, more) > limits.bytes:
            raise QuotaExceeded(
                f"{more} bytes more than the {kept} that are kept would be over the tenant's {limits.bytes}: delete "
                "uploads that are not finished, merges, and checkpoints or datasets that no job needs",
                headers={"Retry-After": HOLD},
            )

    def check_jobs(self, tenant: Tenant, limits: Quota) -> None:
        """Raise QuotaExceeded where one job or merge more would be too many. Call it in the block that inserts it."""
        if limits.jobs is None:
            return
        still_open = [
            select(func.count()).where(table.c.tenant == tenant.name, table.c.status.not_in(TERMINAL))
            for table in (jobs, merges)
        ]
        with self.database.write() as connection:
            _one_at_a_time(connection, tenant)
            waiting = sum(int(connection.execute(query).scalar_one()) for query in still_open)
        if waiting >= limits.jobs:
            raise QuotaExceeded(
                f"{waiting} jobs and merges of this tenant have not ended, and {limits.jobs} is the most: wait, or cancel some",
                headers={"Retry-After": "60"},
            )

    def check_webhooks(self, tenant: Tenant, limits: Quota) -> None:
        """Raise QuotaExceeded where one webhook more would be too many. Call it in the block that inserts it."""
        if limits.webhooks is None:
            return
        with self.database.write() as connection:
            _one_at_a_time(connection, tenant)
            mine = select(func.count()).where(webhooks.c.tenant == tenant.name)
            kept = int(connection.execute(mine).scalar_one())
        if kept >= limits.webhooks:
            raise QuotaExceeded(
                f"this tenant has {kept} webhooks, and {limits.webhooks} is the most: delete one",
                headers={"Retry-After": HOLD},
            )


def _one_at_a_time(connection: Connection, tenant: Tenant) -> None:
    """Make others that add to the same tenant wait until this transaction ends; on SQLite every writer does."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"wbar quotas of {tenant.name}"))))
