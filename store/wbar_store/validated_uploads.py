"""What checkpoints and datasets share: rows that arrive `processing`, are validated by a worker, and are `ready` or `rejected`.

A validation is claimed like a job: `attempts` is the fence, and a late verdict of a dead attempt changes nothing.
"""

from collections.abc import Collection
from typing import Any, ClassVar, Literal, TypeVar

from sqlalchemy import Column, ColumnElement, Update, and_, delete, false, or_, select, update

from wbar.checkpoints import Fault
from wbar.errors import IngestFailed, InUse
from wbar.states import TERMINAL, UploadStatus
from wbar_store import outbox
from wbar_store.claims import Claim
from wbar_store.database import Tenant, now
from wbar_store.repository import Record, Repository
from wbar_store.row_security import lifted
from wbar_store.tables import job_inputs, jobs

MAX_ATTEMPTS = 3
LEASE = 15.0  # seconds after which a validation that was not renewed belongs to a worker that died


class UploadRecord(Record):
    """A row of `checkpoints` or `datasets`. content: the uploaded bytes, as long as they are kept."""

    tenant: str
    name: str
    status: UploadStatus
    content: str | None
    error: Fault | None
    attempts: int
    expires_at: float | None
    created_at: float

    @property
    def claim(self) -> Claim:
        """The claim of the upload's latest attempt."""
        return Claim(self.id, self.attempts)

    @property
    def blobs(self) -> list[str]:
        """The blobs that the row keeps alive."""
        return [self.content] if self.content else []


def expiry(seconds: float | None) -> ColumnElement[float] | None:
    """Return the time so many seconds from now, by the database's clock."""
    return None if seconds is None else now() + seconds


AnyUpload = TypeVar("AnyUpload", bound=UploadRecord)


class UploadRepository(Repository[AnyUpload]):
    """The uploads of all tenants. Subclasses also name the columns of blobs, and the column of a job that names the object."""

    noun: ClassVar[Literal["checkpoint", "dataset"]]
    blob_columns: ClassVar[tuple[Column[Any], ...]]
    job_column: ClassVar[Column[Any]]

    def names(self, tenant: Tenant, ids: Collection[str]) -> dict[str, str]:
        """Return the names of those of the ids that are the tenant's, by id."""
        table = self.table
        wanted = tenant.select(table).where(table.c.id.in_(ids)).with_only_columns(table.c.id, table.c.name)
        with self.database.read() as connection:
            return {row.id: row.name for row in connection.execute(wanted)}

    def remove(self, tenant: Tenant, object_id: str) -> list[str]:
        """Delete the row; returns the blobs to collect.

        Ended jobs keep their results: where one names the object, the row stays, hidden from its tenant (the status
        `deleted` is never sent). Raises InUse while a job that has not ended needs it.
        """
        table = self.table
        with self.database.write() as connection:
            record = self.get(tenant, object_id, lock=True)
            needing = select(jobs.c.id).join(job_inputs, job_inputs.c.job == jobs.c.id)
            needing = needing.where(job_inputs.c.input == object_id, jobs.c.status.not_in(TERMINAL)).limit(1)
            busy = connection.execute(needing).scalar()
            if busy is not None:
                raise InUse(f"{object_id} is needed by {busy}: cancel the job or wait for it")
            named = select(jobs.c.id).where(self.job_column == object_id).limit(1)
            if connection.execute(named).scalar() is None:
                connection.execute(delete(table).where(table.c.id == object_id))
            else:
                hidden = {column.name: None for column in self.blob_columns} | {"tenant": "", "status": "deleted"}
                with lifted(connection):  # a hidden row is no tenant's
                    connection.execute(update(table).where(table.c.id == object_id).values(**hidden))
        return record.blobs

    # What a worker does.

    def claim(self, object_id: str) -> AnyUpload | None:
        """Claim an upload: its attempt is raised and leased. None if it is validated, or another worker has the lease."""
        table = self.table
        with self.database.write() as connection:
            row = connection.execute(
                update(table)
                .where(
                    table.c.id == object_id,
                    table.c.status == "processing",
                    table.c.attempts < MAX_ATTEMPTS,
                    self._silent(),
                )
                .values(attempts=table.c.attempts + 1, lease_until=now() + LEASE)
                .returning(*table.c)
            ).first()
        return None if row is None else self.record.of(row)

    def renew(self, claim: Claim) -> bool:
        """Renew the lease; False when the object was deleted or validated by another attempt."""
        return self._write(claim, lease_until=now() + LEASE)

    def release(self, claim: Claim) -> None:
        """End the lease of a validation that failed, so that the next attempt need not wait for it."""
        self._write(claim, lease_until=None)

    def hand_back(self, claim: Claim) -> None:
        """End the lease of a validation that an outage interrupted: the attempt does not count.

        The sweeper notifies again once the lease would have run out. Only the claim's owner may call this, and writes
        nothing more with the claim: the next attempt gets the same number.
        """
        self._write(claim, lease_until=None, attempts=claim.attempt - 1, notified_at=now())

    def reject(self, claim: Claim, fault: Fault) -> bool:
        """Make the upload `rejected`. False if the claim is stale."""
        values = {"error": fault.model_dump(mode="json"), "content": None}
        return self._settle(claim.id, self._of_claim(claim), "rejected", **values)

    def give_up(self, object_id: str, attempt: int | None = None) -> bool:
        """Reject an upload that ended the process of every attempt to read it. False if attempts are left.

        attempt: of the last attempt, which gives up itself; None: give up once the lease has run out.
        """
        table = self.table
        fault = Fault(
            code=IngestFailed.code,
            message=f"reading it ended the worker's process {MAX_ATTEMPTS} times (out of memory, or a damaged file): "
            "check the file and upload it again",
        )
        statement = update(table).where(
            table.c.id == object_id,
            table.c.status == "processing",
            table.c.attempts >= MAX_ATTEMPTS,
            self._silent() if attempt is None else table.c.attempts == attempt,
        )
        values = {"error": fault.model_dump(mode="json"), "content": None}
        return self._settle(object_id, statement, "rejected", **values)

    # What the sweeper does.

    def overdue(self, broker_is_empty: bool) -> list[str]:
        """Return the objects that no worker seems to validate: never notified, or silent with their message gone."""
        table = self.table
        lost = and_(table.c.notified_at < now() - LEASE, self._silent()) if broker_is_empty else false()
        query = select(table.c.id).where(table.c.status == "processing", or_(table.c.notified_at.is_(None), lost))
        with self.database.read() as connection:
            return list(connection.execute(query).scalars())

    def expired(self) -> list[tuple[Tenant, str]]:
        """Return the objects whose time is over, with their owners."""
        table = self.table
        query = select(table.c.tenant, table.c.id).where(table.c.expires_at < now(), table.c.status != "deleted")
        with self.database.read() as connection:
            return [(Tenant(row.tenant), row.id) for row in connection.execute(query)]

    def notified(self, object_id: str) -> None:
        """Record that a worker was notified of the object."""
        with self.database.write() as connection:
            connection.execute(update(self.table).where(self.table.c.id == object_id).values(notified_at=now()))

    def _silent(self) -> ColumnElement[bool]:
        return or_(self.table.c.lease_until.is_(None), self.table.c.lease_until < now())

    def _write(self, claim: Claim, **values: object) -> bool:
        with self.database.write() as connection:
            return connection.execute(self._of_claim(claim).values(**values)).rowcount == 1

    def _settle(
        self, object_id: str, statement: Update, status: Literal["ready", "rejected"], **values: object
    ) -> bool:
        """End the validation, with the deliveries of webhooks that tell of it. False if the statement finds no row."""
        with self.database.write() as connection:
            if connection.execute(statement.values(status=status, **values)).rowcount != 1:
                return False
            outbox.upload_settled(connection, self.table, self.noun, object_id, status)
        return True

    def _of_claim(self, claim: Claim) -> Update:
        table = self.table
        return update(table).where(
            table.c.id == claim.id, table.c.status == "processing", table.c.attempts == claim.attempt
        )
