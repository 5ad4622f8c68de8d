"""Merges: created with what they are made of, claimed by a worker of the ingest queue, ended once.

A merge's inputs are kept alive by rows of its own, so that what it reads may be deleted meanwhile. It is claimed like an
upload: `attempts` is the fence, and one whose worker fell silent is begun again, to the same bits.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Update, and_, delete, false, func, insert, or_, select, update

from wbar.checkpoints import Fault
from wbar.errors import AttemptsExhausted, InvalidTransition, JobNotFinished, NotFound, NoWeights
from wbar.merges import ENDED, Merge, MergedFile, MergeResult, MergeSource, MergeSpec, MergeStatus
from wbar_store import outbox
from wbar_store.blobs import Received
from wbar_store.claims import Claim
from wbar_store.database import Tenant, now, rfc3339
from wbar_store.ids import new_id
from wbar_store.repository import Record, Repository
from wbar_store.tables import jobs, merge_inputs, merges, snapshots
from wbar_store.validated_uploads import LEASE, MAX_ATTEMPTS


class MergeRecord(Record):
    """A row of `merges`.

    bytes: of the result; until there is one, of the first input.
    weights: the result's blob.
    residuals: of LoRA adapters, what the rank left out, by module.
    """

    tenant: str
    name: str | None
    status: MergeStatus
    spec: MergeSpec
    fraction: float
    bytes: int
    weights: str | None
    residuals: dict[str, float] | None
    error: Fault | None
    attempts: int
    expires_at: float | None
    created_at: float
    started_at: float | None
    finished_at: float | None

    @property
    def claim(self) -> Claim:
        """The claim of the merge's latest attempt."""
        return Claim(self.id, self.attempts)

    def result(self) -> str:
        """Return the blob of the result. Raises JobNotFinished, NoWeights."""
        if self.weights is not None:
            return self.weights
        if self.status in ENDED:
            raise NoWeights(f"{self.id} has {self.status} and made no weights")
        raise JobNotFinished(f"{self.id} is {self.status}: its weights will be there once it has succeeded")

    def to_api(self) -> Merge:
        """Return the merge as the API sends it."""
        result = None
        if self.weights is not None:
            file = MergedFile(bytes=self.bytes, sha256=self.weights, format=self.spec.format)
            result = MergeResult(weights=file, residuals=self.residuals)
        return Merge(
            id=self.id,
            name=self.name,
            status=self.status,
            method=self.spec.method,
            dtype=self.spec.dtype,
            format=self.spec.format,
            max_shard_bytes=self.spec.max_shard_bytes,
            base=self.spec.base,
            sources=list(self.spec.sources),
            fraction=self.fraction,
            result=result,
            error=self.error,
            attempts=self.attempts,
            expires_at=rfc3339(self.expires_at),
            created_at=rfc3339(self.created_at),
            started_at=rfc3339(self.started_at),
            finished_at=rfc3339(self.finished_at),
        )


class Merges(Repository[MergeRecord]):
    """The merges of all tenants."""

    table, kind, noun, record = merges, "merge", "merge", MergeRecord

    def create(
        self, tenant: Tenant, spec: MergeSpec, name: str | None, size: int, expires_after: float | None
    ) -> MergeRecord:
        """Insert a merge, in the block in which its sources are locked.

        size: bytes of the first input, about what the result will have. expires_after: seconds from its end until it is
        deleted.
        """
        values = {
            "id": new_id("merge"),
            "tenant": tenant.name,
            "name": name,
            "status": "queued",
            "spec": spec.document(),
            "fraction": 0.0,
            "bytes": size,
            "attempts": 0,
            "expires_after": expires_after,
            "created_at": now(),
        }
        with self.database.write() as connection:
            row = connection.execute(insert(merges).values(**values).returning(*merges.c)).one()
            connection.execute(insert(merge_inputs), [{"merge": row.id, "sha256": blob} for blob in spec.blobs])
        return self.record.of(row)

    def snapshot(self, tenant: Tenant, snapshot_id: str) -> tuple[MergeSource, int]:
        """Return a snapshot as a source, and its bytes; its job stays locked until the block ends. Raises NotFound."""
        of_tenant = select(jobs.c.id).join(snapshots, snapshots.c.job == jobs.c.id)
        of_tenant = of_tenant.where(snapshots.c.id == snapshot_id, jobs.c.tenant == tenant.name)
        with self.database.write() as connection:
            job = connection.execute(of_tenant.with_for_update()).scalar()
            row = connection.execute(select(snapshots).where(snapshots.c.id == snapshot_id)).first() if job else None
        if row is None:
            raise NotFound(f"there is no snapshot {snapshot_id[:64]!r}")
        return MergeSource(id=snapshot_id, sha256=row.sha256), row.bytes

    def cancel(self, tenant: Tenant, merge_id: str) -> tuple[MergeRecord, Sequence[str]]:
        """End a merge now; returns it, and the blobs to collect. Raises NotFound, InvalidTransition once it ended otherwise."""
        with self.database.write() as connection:
            record = self.get(tenant, merge_id, lock=True)
            if record.status == "cancelled":
                return record, []
            if record.status in ENDED:
                raise InvalidTransition(f"{merge_id} has {record.status}: it cannot be cancelled any more")
            self._end(connection, update(merges).where(merges.c.id == merge_id), merge_id, "cancelled")
            return self.get(tenant, merge_id), record.spec.blobs

    def remove(self, tenant: Tenant, merge_id: str) -> list[str]:
        """Delete an ended merge; returns the blobs to collect. Raises NotFound, InvalidTransition before its end."""
        with self.database.write() as connection:
            record = self.get(tenant, merge_id, lock=True)
            if record.status not in ENDED:
                raise InvalidTransition(f"{merge_id} is {record.status}: cancel it first, or wait for its end")
            connection.execute(delete(merges).where(merges.c.id == merge_id))
        return [record.weights] if record.weights else []

    # What a worker does.

    def claim(self, merge_id: str) -> MergeRecord | None:
        """Claim a merge: its attempt is raised and leased. None if it has ended, or another worker has the lease."""
        with self.database.write() as connection:
            row = connection.execute(
                update(merges)
                .where(merges.c.id == merge_id, _open(), merges.c.attempts < MAX_ATTEMPTS, _silent())
                .values(
                    status="running",
                    attempts=merges.c.attempts + 1,
                    fraction=0.0,
                    lease_until=now() + LEASE,
                    started_at=func.coalesce(merges.c.started_at, now()),
                )
                .returning(*merges.c)
            ).first()
        return None if row is None else self.record.of(row)

    def renew(self, claim: Claim, fraction: float | None = None) -> bool:
        """Renew the lease, and say how far the merge is; False when it was cancelled or another attempt has it."""
        values: dict[str, Any] = {"lease_until": now() + LEASE}
        return self._write(claim, **(values if fraction is None else values | {"fraction": fraction}))

    def release(self, claim: Claim) -> None:
        """Queue a merge again whose attempt failed, so that the next one need not wait for the lease."""
        self._write(claim, lease_until=None, status="queued")

    def hand_back(self, claim: Claim) -> None:
        """Queue a merge again that an outage interrupted: the attempt does not count, as of `UploadRepository.hand_back`."""
        self._write(claim, lease_until=None, status="queued", attempts=claim.attempt - 1, notified_at=now())

    def succeed(self, claim: Claim, received: Received, residuals: dict[str, float] | None = None) -> bool:
        """End a merge with its result, whose blob the caller holds. False if the claim is stale."""
        with self.database.write() as connection:
            values = {"weights": received.sha256, "bytes": received.bytes, "fraction": 1.0, "residuals": residuals}
            return self._end(connection, _of_claim(claim), claim.id, "succeeded", **values)

    def fail(self, claim: Claim, fault: Fault) -> bool:
        """End a merge that cannot be done. False if the claim is stale."""
        with self.database.write() as connection:
            return self._end(connection, _of_claim(claim), claim.id, "failed", error=fault.model_dump(mode="json"))

    def give_up(self, merge_id: str, attempt: int | None = None) -> bool:
        """Fail a merge that ended the process of every attempt. False if attempts are left.

        attempt: of the last attempt, which gives up itself; None: give up once the lease has run out.
        """
        fault = Fault(
            code=AttemptsExhausted.code, message=f"merging ended the worker's process {MAX_ATTEMPTS} times: see its log"
        )
        mine = _silent() if attempt is None else merges.c.attempts == attempt
        statement = update(merges).where(merges.c.id == merge_id, _open(), merges.c.attempts >= MAX_ATTEMPTS, mine)
        with self.database.write() as connection:
            return self._end(connection, statement, merge_id, "failed", error=fault.model_dump(mode="json"))

    # What the sweeper does.

    def overdue(self, broker_is_empty: bool) -> list[str]:
        """Return the merges that no worker seems to have: never notified, or silent with their message gone."""
        lost = and_(merges.c.notified_at < now() - LEASE, _silent()) if broker_is_empty else false()
        query = select(merges.c.id).where(_open(), or_(merges.c.notified_at.is_(None), lost))
        with self.database.read() as connection:
            return list(connection.execute(query).scalars())

    def expired(self) -> list[tuple[Tenant, str]]:
        """Return the merges whose time is over, with their owners."""
        query = select(merges.c.tenant, merges.c.id).where(merges.c.expires_at < now())
        with self.database.read() as connection:
            return [(Tenant(row.tenant), row.id) for row in connection.execute(query)]

    def notified(self, merge_id: str) -> None:
        """Record that a worker was notified of the merge."""
        with self.database.write() as connection:
            connection.execute(update(merges).where(merges.c.id == merge_id).values(notified_at=now()))

    def _write(self, claim: Claim, **values: object) -> bool:
        with self.database.write() as connection:
            return connection.execute(_of_claim(claim).values(**values)).rowcount == 1

    def _end(
        self, connection: Connection, statement: Update, merge_id: str, status: MergeStatus, **values: object
    ) -> bool:
        """End a merge: its inputs need it no more. False if the statement finds no row."""
        expiry = now() + merges.c.expires_after  # null where it stays
        ended = {"status": status, "lease_until": None, "finished_at": now(), "expires_at": expiry, **values}
        if connection.execute(statement.values(**ended)).rowcount != 1:
            return False
        connection.execute(delete(merge_inputs).where(merge_inputs.c.merge == merge_id))
        outbox.merge_ended(connection, merge_id, status)
        return True


def _open() -> ColumnElement[bool]:
    return merges.c.status.in_(("queued", "running"))


def _silent() -> ColumnElement[bool]:
    return or_(merges.c.lease_until.is_(None), merges.c.lease_until < now())


def _of_claim(claim: Claim) -> Update:
    return update(merges).where(
        merges.c.id == claim.id, merges.c.status == "running", merges.c.attempts == claim.attempt
    )
