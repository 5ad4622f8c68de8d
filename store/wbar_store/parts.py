"""Events, metrics and snapshots are parts of a job: read by tenant through their job, written under a claim."""

from sqlalchemy import Connection

from wbar.errors import NotFound
from wbar_store.database import Database, Tenant
from wbar_store.tables import jobs


class PartRepository:
    """The rows of one table that belong to jobs."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @staticmethod
    def _check(connection: Connection, tenant: Tenant, job_id: str) -> None:
        """Raise NotFound for a job that is not there, or another tenant's."""
        if (
            connection.execute(tenant.select(jobs).where(jobs.c.id == job_id).with_only_columns(jobs.c.id)).first()
            is None
        ):
            raise NotFound(f"there is no job {job_id[:64]!r}")
