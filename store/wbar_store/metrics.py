"""The training series of a job: one point for each step that was recorded."""

from collections.abc import Sequence

from sqlalchemy import select

from wbar.jobs import MetricsPoint
from wbar_store.claims import Claim, holds
from wbar_store.database import Tenant, upsert
from wbar_store.documents import readable
from wbar_store.parts import PartRepository
from wbar_store.tables import metrics


class Metrics(PartRepository):
    """The training series of all jobs."""

    def all(self, tenant: Tenant, job_id: str, after: int | None = None) -> list[MetricsPoint]:
        """Return a job's points, in the order of the steps. after: those of later steps only. Raises NotFound."""
        query = select(metrics.c.point).where(metrics.c.job == job_id).order_by(metrics.c.step)
        if after is not None:
            query = query.where(metrics.c.step > after)
        with self.database.read() as connection:
            self._check(connection, tenant, job_id)
            return readable(connection.execute(query).scalars(), MetricsPoint.model_validate)

    def add(self, claim: Claim, points: Sequence[MetricsPoint]) -> bool:
        """Add points; a step that was reported before keeps its first report (they are equal). False if the fence is stale."""
        rows = [{"job": claim.id, "step": point.step, "point": point.model_dump()} for point in points]
        with self.database.write(durable=False) as connection:
            if not holds(connection, claim):
                return False
            connection.execute(upsert(connection, metrics).on_conflict_do_nothing(), rows)
            return True
