"""The order in which queued jobs are taken: tenants in the order in which they asked, a tenant's own jobs by priority.

A message of the broker stands for a place in the queue rather than for a job: whoever takes it runs the first job of the
same tenant. So a priority delays no other tenant's jobs, and a place that was waited for is never lost. A job of a study whose
others have all of its slots has no place until one is free.
"""

import time
from collections.abc import Collection, Mapping

from sqlalchemy import Connection, or_, select, update

from wbar_store import replica_slots, study_slots
from wbar_store.database import Database, Tenant
from wbar_store.holding import HELD
from wbar_store.row_security import lifted
from wbar_store.tables import job_inputs, jobs

QUEUED = jobs.c.status == "queued"
READY = QUEUED & ~HELD  # may be claimed
REMEMBERED_SECONDS = 1.0  # for which the places are not looked up again, however many ask
FIRST = (jobs.c.priority.desc(), jobs.c.id)  # ids sort by creation


class JobQueue:
    """The queued jobs of all tenants."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._seen: tuple[float, Mapping[str, int]] = (-REMEMBERED_SECONDS, {})

    def first_beside(self, job_id: str, without: Collection[str] = ()) -> str | None:
        """Return the job to run for a message that names `job_id`: its tenant's first; None if there is none.

        A job that was cancelled before it ran gives its place up: no place can be kept by asking and cancelling.
        without: jobs that are passed over.
        """
        named = select(jobs.c.tenant).where(jobs.c.id == job_id, or_(jobs.c.status != "cancelled", jobs.c.attempts > 0))
        query = select(jobs.c.id).where(jobs.c.tenant == named.scalar_subquery(), READY).order_by(*FIRST).limit(1)
        if without:
            query = query.where(jobs.c.id.not_in(without))
        with self.database.read() as connection:
            first: str | None = connection.execute(query).scalar()
        return first

    def give_up_place(self, job_id: str) -> None:
        """Have one of the tenant's held jobs be told of again, for a message naming `job_id` that found only held ones."""
        tenant = select(jobs.c.tenant).where(jobs.c.id == job_id).scalar_subquery()
        held = select(jobs.c.id).where(jobs.c.tenant == tenant, QUEUED, HELD, jobs.c.notified_at.is_not(None))
        with self.database.read() as connection:
            last = connection.execute(held.order_by(jobs.c.priority, jobs.c.id.desc()).limit(1)).scalar()
        if last is not None:
            with self.database.write() as connection:
                connection.execute(update(jobs).where(jobs.c.id == last, QUEUED).values(notified_at=None))

    def next_of_study(self, job_id: str) -> str | None:
        """Return a queued job that may begin now that `job_id` does not run, of the same study, and that has no place yet."""
        waiting = select(jobs.c.id).where(
            jobs.c.id.in_(study_slots.beside(job_id)), READY, jobs.c.notified_at.is_(None)
        )
        with self.database.read() as connection:
            found: str | None = connection.execute(waiting.order_by(*FIRST).limit(1)).scalar()
        return found

    def next_of_replicas(self, job_id: str) -> str | None:
        """Return a queued job without a place whose replicas, `job_id` among them, have all ended."""
        waiting = select(job_inputs.c.job).where(job_inputs.c.input == job_id)
        query = select(jobs.c.id).where(jobs.c.id.in_(waiting), READY, jobs.c.notified_at.is_(None))
        with self.database.read() as connection:
            found: str | None = connection.execute(query.limit(1)).scalar()
        return found

    def next_at_meeting(self, job_id: str) -> list[str]:
        """Return the replicas without a place that are of one job with `job_id`, and may go on: all have come to a meeting."""
        query = select(jobs.c.id).where(
            jobs.c.id.in_(replica_slots.beside(job_id)), READY, jobs.c.notified_at.is_(None)
        )
        with self.database.read() as connection:
            return list(connection.execute(query.order_by(*FIRST)).scalars())

    def to_begin(self, job_id: str) -> list[str]:
        """Return the jobs that a worker is to be notified of for a job: itself, or its replicas while it waits for them."""
        with self.database.read() as connection:
            replicas = replica_slots.unfinished(connection, job_id)
            if not replicas:
                return [job_id]
            ready = select(jobs.c.id).where(jobs.c.id.in_(replicas), READY, jobs.c.notified_at.is_(None))
            return list(connection.execute(ready.order_by(jobs.c.id)).scalars())

    def positions(self, tenant: Tenant) -> dict[str, int]:
        """Return the place of each of the tenant's queued jobs among those of all tenants; 1 is taken next.

        The tenant's places are those of its jobs by creation; its first job has the first of them. Those that a study holds
        have none.
        """
        mine = tenant.select(jobs).where(READY).with_only_columns(jobs.c.id).order_by(*FIRST)
        with self.database.read() as connection:
            order = list(connection.execute(mine).scalars())
            if not order:
                return {}
            place = self._places(connection)
        return dict(zip(order, sorted(place.get(one, len(place) + 1) for one in order), strict=True))

    def _places(self, connection: Connection) -> Mapping[str, int]:
        """Return the place of every queued job, by creation."""
        seen_at, places = self._seen
        if time.monotonic() - seen_at >= REMEMBERED_SECONDS:
            with lifted(connection):  # the others' jobs are counted, and nothing of them is told
                ids = connection.execute(select(jobs.c.id).where(READY).order_by(jobs.c.id)).scalars()
                places = {job: place for place, job in enumerate(ids, start=1)}
            self._seen = (time.monotonic(), places)
        return places
