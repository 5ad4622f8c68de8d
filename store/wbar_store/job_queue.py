"""The order in which queued jobs are taken: tenants in the order in which they asked, a tenant's own jobs by priority.

A message of the broker stands for a place in the queue rather than for a job: whoever takes it runs the first job of the
same tenant. So a priority delays no other tenant's jobs, and a place that was waited for is never lost.
"""

from sqlalchemy import func, select

from wbar_store.database import Database, Tenant
from wbar_store.row_security import lifted
from wbar_store.tables import jobs

QUEUED = jobs.c.status == "queued"
FIRST = (jobs.c.priority.desc(), jobs.c.id)  # ids sort by creation


class JobQueue:
    """The queued jobs of all tenants."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def first_beside(self, job_id: str) -> str | None:
        """Return the job to run for a message that names `job_id`: its tenant's first; None if there is none."""
        tenant = select(jobs.c.tenant).where(jobs.c.id == job_id).scalar_subquery()
        query = select(jobs.c.id).where(jobs.c.tenant == tenant, QUEUED).order_by(*FIRST).limit(1)
        with self.database.read() as connection:
            first: str | None = connection.execute(query).scalar()
        return first

    def positions(self, tenant: Tenant) -> dict[str, int]:
        """Return the place of each of the tenant's queued jobs among those of all tenants; 1 is taken next.

        The tenant's places are those of its jobs by creation; its first job has the first of them.
        """
        mine = tenant.select(jobs).where(QUEUED).with_only_columns(jobs.c.id).order_by(*FIRST)
        with self.database.read() as connection:
            order = list(connection.execute(mine).scalars())
            if not order:
                return {}
            with lifted(connection):  # the others' jobs are counted, and nothing of them is told
                places = select(jobs.c.id, func.row_number().over(order_by=jobs.c.id).label("place")).where(QUEUED)
                place = {row.id: row.place for row in connection.execute(places)}
        return dict(zip(order, sorted(place.get(one, len(place)) for one in order), strict=True))
