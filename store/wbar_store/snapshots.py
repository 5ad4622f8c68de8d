"""The snapshots of a job: w_n of every cycle that has ended, by n from 1."""

from sqlalchemy import func, select, update

from wbar.errors import NotFound
from wbar.jobs import Snapshot
from wbar.scores import Score
from wbar_store.blobs import Received
from wbar_store.claims import Claim, holds
from wbar_store.database import Database, Tenant, now, rfc3339, upsert
from wbar_store.documents import readable
from wbar_store.events import Events
from wbar_store.ids import is_id, new_id
from wbar_store.parts import PartRepository
from wbar_store.repository import PageRequest, Record, RecordPage, wrong_after
from wbar_store.tables import snapshots


class SnapshotRecord(Record):
    """A row of `snapshots`. sha256: of the weights' file, which is also its blob."""

    job: str
    n: int
    step: int
    metrics: Score
    bytes: int
    sha256: str
    created_at: float

    def to_api(self) -> Snapshot:
        """Return the snapshot as the API sends it."""
        return Snapshot(
            id=self.id,
            job=self.job,
            n=self.n,
            step=self.step,
            metrics=self.metrics,
            bytes=self.bytes,
            sha256=self.sha256,
            created_at=rfc3339(self.created_at),
        )


class Snapshots(PartRepository):
    """The snapshots of all jobs."""

    def __init__(self, database: Database, events: Events) -> None:
        super().__init__(database)
        self._events = events

    def all(self, tenant: Tenant, job_id: str) -> list[SnapshotRecord]:
        """Return a job's snapshots, in the order of n. Raises NotFound."""
        return list(self._page(tenant, job_id, 0, None).records)

    def get(self, tenant: Tenant, job_id: str, n: int) -> SnapshotRecord:
        """Return snapshot n of a job. Raises NotFound."""
        by_n = {one.n: one for one in self.all(tenant, job_id)}
        if n not in by_n:
            raise NotFound(f"{job_id} has no snapshot {n}; it has {sorted(by_n) or 'none'}")
        return by_n[n]

    def page(self, tenant: Tenant, job_id: str, request: PageRequest) -> RecordPage[SnapshotRecord]:
        """Return a page in the order of n, whatever `order` is. Raises NotFound, ValidationFailed."""
        if request.after is not None and not is_id("snap", request.after):
            raise wrong_after(f"{request.after!r} is no id of a snapshot: give a page's `last_id`")
        last_shown = select(snapshots.c.n).where(snapshots.c.job == job_id, snapshots.c.id == request.after)
        with self.database.read() as connection:
            begin = connection.execute(select(func.coalesce(last_shown.scalar_subquery(), 0))).scalar_one()
            return self._page(tenant, job_id, begin, request.limit)

    def _page(self, tenant: Tenant, job_id: str, begin: int, limit: int | None) -> RecordPage[SnapshotRecord]:
        rows = select(snapshots).where(snapshots.c.job == job_id, snapshots.c.n > begin).order_by(snapshots.c.n)
        with self.database.read() as connection:
            self._check(connection, tenant, job_id)
            selected = connection.execute(rows if limit is None else rows.limit(limit + 1)).all()
        shown = selected[:limit]
        records = readable(shown, SnapshotRecord.of)
        return RecordPage(records, limit is not None and len(selected) > limit, shown[-1].id if shown else None)

    def recorded(self, claim: Claim) -> dict[int, str]:
        """Return the digests that earlier attempts recorded, by n."""
        rows = select(snapshots.c.n, snapshots.c.sha256).where(snapshots.c.job == claim.id)
        with self.database.read() as connection:
            return {row.n: row.sha256 for row in connection.execute(rows)}

    def add(self, claim: Claim, n: int, step: int, score: Score, received: Received) -> bool:
        """Record w_n, with its event; the caller holds the blob meanwhile.

        A job that had to start over (its state was another version's) replaces the snapshots that it recorded before.
        False if the same was recorded before or the fence is stale.
        """
        values = {
            "n": n,
            "step": step,
            "metrics": score.model_dump(),
            "bytes": received.bytes,
            "sha256": received.sha256,
        }
        with self.database.write() as connection:
            if not holds(connection, claim):
                return False
            row = connection.execute(
                upsert(connection, snapshots)
                .values(id=new_id("snap"), job=claim.id, created_at=now(), **values)
                .on_conflict_do_update(
                    index_elements=[snapshots.c.job, snapshots.c.n],
                    set_=values,
                    where=snapshots.c.sha256 != received.sha256,
                )
                .returning(*snapshots.c)
            ).first()
            if row is None:
                return False
            self._events.append(claim.id, "snapshot", SnapshotRecord.of(row).to_api().model_dump(mode="json"))
        return True

    def taken_again(self, claim: Claim, n: int, step: int) -> None:
        """Note that an attempt took w_n after another step, and that the one recorded before stands for it."""
        own = update(snapshots).where(snapshots.c.job == claim.id, snapshots.c.n == n, snapshots.c.step != step)
        with self.database.write() as connection:
            if holds(connection, claim):
                connection.execute(own.values(step=step))
