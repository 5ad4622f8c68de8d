"""Studies: created with all of their jobs in one transaction; cancelled, paused, resumed and deleted with them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, exists, insert, literal, select, update

from wbar.checkpoints import Fault
from wbar.errors import InvalidTransition
from wbar.jobs import Progress
from wbar.states import TERMINAL
from wbar.studies import ChildStatus, Study, StudyChild, StudyRequest, StudySettings, status_of
from wbar.webhooks import StudySummary
from wbar_store import outbox
from wbar_store.database import Database, Tenant, now, rfc3339
from wbar_store.holding import HELD
from wbar_store.ids import new_id
from wbar_store.job_records import JobRecord
from wbar_store.jobs import Jobs
from wbar_store.repository import PageRequest, Record, RecordPage, Repository
from wbar_store.tables import jobs, studies, study_children

_SHOWN = ("status", "progress", "error", "result_accuracy", "result_loss")


class StudyRecord(Record):
    """A row of `studies`. at_once: jobs that may run at a time. paused: none of its jobs begins.

    ended_at: when it was noticed that the last of its jobs had ended.
    """

    tenant: str
    name: str | None
    request: dict[str, Any]
    checkpoint: str
    dataset: str
    at_once: int
    paused: bool
    created_at: float
    ended_at: float | None

    def to_study(self, counts: Mapping[ChildStatus, int], children: Sequence[StudyChild] | None = None) -> Study:
        """Return the study as the API sends it. counts: its jobs by their status."""
        found = dict(sorted(counts.items()))
        return Study(
            id=self.id,
            name=self.name,
            status=status_of(found, self.paused),
            checkpoint=self.checkpoint,
            dataset=self.dataset,
            at_once=self.at_once,
            jobs=sum(found.values()),
            counts=found,
            requested=self.request,
            children=None if children is None else list(children),
            created_at=rfc3339(self.created_at),
            ended_at=rfc3339(self.ended_at),
        )

    def to_summary(self, counts: Mapping[ChildStatus, int]) -> StudySummary:
        """Return the study as an event tells of it, once it has ended. counts: its jobs by their status."""
        study = self.to_study(counts)
        assert study.ended_at is not None
        return StudySummary.model_validate(study.model_dump(include=set(StudySummary.model_fields)))


class Studies(Repository[StudyRecord]):
    """The studies of all tenants."""

    table, kind, noun, record = studies, "study", "study", StudyRecord

    def __init__(self, database: Database, jobs_: Jobs) -> None:
        super().__init__(database)
        self._jobs = jobs_

    def create(self, tenant: Tenant, request: StudyRequest) -> StudyRecord:
        """Insert a study without jobs, in the block that adds them."""
        values = {
            "id": new_id("study"),
            "tenant": tenant.name,
            "name": request.name,
            "request": request.model_dump(mode="json", exclude_unset=True, exclude={"dry_run"}),
            "checkpoint": request.job.checkpoint,
            "dataset": request.job.dataset,
            "at_once": request.at_once,
            "paused": False,
            "created_at": now(),
        }
        with self.database.write() as connection:
            row = connection.execute(insert(studies).values(**values).returning(*studies.c)).one()
        return self.record.of(row)

    def add(self, study_id: str, children: Iterable[tuple[str, StudySettings]]) -> None:
        """Add jobs to a new study, in order, by their ids. They are held from now on while it has no slot."""
        rows = [
            {"study": study_id, "n": n, "job": job, "settings": settings.model_dump(mode="json")}
            for n, (job, settings) in enumerate(children, start=1)
        ]
        with self.database.write() as connection:
            connection.execute(insert(study_children), rows)

    def shown(self, tenant: Tenant, study_id: str) -> Study:
        """Return a study with its jobs as they are now. Raises NotFound."""
        with self.database.read() as connection:
            record = self.get(tenant, study_id)
            children = [_child(row) for row in connection.execute(_with_jobs(study_id))]
        return record.to_study(Counter(child.status for child in children), children)

    def listed(self, tenant: Tenant, request: PageRequest) -> RecordPage[Study]:
        """Return a page of the tenant's studies, without their jobs."""
        with self.database.read() as connection:
            page = self.page(tenant, request)
            counts = self._counts(connection, [record.id for record in page.records])
        found = [record.to_study(counts[record.id]) for record in page.records]
        return RecordPage(found, page.has_more, page.last_id)

    @staticmethod
    def _counts(connection: Connection, found: Sequence[str]) -> dict[str, Counter[ChildStatus]]:
        """Return how many jobs of each study have which status; nothing else of them is read."""
        counts: dict[str, Counter[ChildStatus]] = {study: Counter() for study in found}
        status = select(study_children.c.study, jobs.c.status).outerjoin(jobs, jobs.c.id == study_children.c.job)
        for row in connection.execute(status.where(study_children.c.study.in_(found))):
            counts[row.study][row.status or "deleted"] += 1
        return counts

    def children(self, tenant: Tenant, study_id: str) -> list[tuple[StudyChild, JobRecord | None]]:
        """Return a study's jobs with their whole rows; None for one that was deleted. Raises NotFound."""
        with self.database.read() as connection:
            self.get(tenant, study_id)
            of_study = select(study_children.c.job).where(study_children.c.study == study_id)
            rows = connection.execute(tenant.select(jobs).where(jobs.c.id.in_(of_study)))
            records = {row.id: JobRecord.of(row) for row in rows}
            return [(_child(row), records.get(row.job)) for row in connection.execute(_with_jobs(study_id))]

    def to_begin(self, study_id: str) -> list[str]:
        """Return the jobs of a study that may begin now and of which no worker was notified, as many as may run at a time."""
        of_study = select(study_children.c.job).where(study_children.c.study == study_id)
        ready = (jobs.c.status == "queued") & jobs.c.notified_at.is_(None) & ~HELD
        query = select(jobs.c.id).where(jobs.c.id.in_(of_study), ready).order_by(jobs.c.priority.desc(), jobs.c.id)
        at_once = select(studies.c.at_once).where(studies.c.id == study_id)
        with self.database.read() as connection:
            most = connection.execute(at_once).scalar() or 0
            return list(connection.execute(query.limit(most)).scalars())

    # Its end. No job knows that it is its study's last: two that end together do not see each other's end. So whoever ended
    # one looks afterwards, in a transaction of its own, and the sweeper looks for what was missed.

    def overdue(self) -> list[str]:
        """Return the studies whose jobs have all ended, and of which that was not noticed yet."""
        query = select(studies.c.id).where(studies.c.ended_at.is_(None), ~exists(_open()))
        with self.database.read() as connection:
            return list(connection.execute(query).scalars())

    def has_ended(self, study_id: str) -> bool:
        """Return whether all jobs of a study have ended, or it is gone."""
        query = select(studies.c.id).where(studies.c.id == study_id, studies.c.ended_at.is_(None))
        with self.database.read() as connection:
            return connection.execute(query).first() is None

    def of_job(self, job_id: str) -> str | None:
        """Return the study that a job is of; None for a job without one."""
        query = select(study_children.c.study).where(study_children.c.job == job_id)
        with self.database.read() as connection:
            study: str | None = connection.execute(query).scalar()
        return study

    def settle(self, study_id: str) -> bool:
        """Note that all jobs of a study have ended, and tell webhooks of it; False where one has not, or it is noted."""
        ended = update(studies).where(studies.c.id == study_id, studies.c.ended_at.is_(None), ~exists(_open()))
        with self.database.write() as connection:
            row = connection.execute(ended.values(ended_at=now()).returning(*studies.c)).first()
            if row is None:
                return False
            record = self.record.of(row)
            counts = self._counts(connection, [study_id])[study_id]
            outbox.study_ended(connection, record.tenant, record.to_summary(counts))
        return True

    # For all of its jobs at once. The study's row is locked first, as by a worker that claims one of them.

    def cancel(self, tenant: Tenant, study_id: str) -> Study:
        """End all jobs that have not ended. Raises NotFound, InvalidTransition where all have ended otherwise."""
        with self.database.write() as connection:
            self.get(tenant, study_id, lock=True)
            found = _statuses(connection, study_id)
            open_ = [job for job, status in found if status not in TERMINAL]
            if not open_ and not any(status == "cancelled" for _, status in found):
                raise InvalidTransition(f"{study_id} has ended: all of its jobs have")
            for job in open_:
                self._jobs.move(job, "cancelled")
            self.settle(study_id)
            return self.shown(tenant, study_id)

    def pause(self, tenant: Tenant, study_id: str) -> Study:
        """Let no further job begin, and ask those that run to stop at their next step. Raises InvalidTransition at its end."""
        with self.database.write() as connection:
            self.get(tenant, study_id, lock=True)
            found = _statuses(connection, study_id)
            if all(status in TERMINAL for _, status in found):
                raise InvalidTransition(f"{study_id} has ended: all of its jobs have")
            connection.execute(update(studies).where(studies.c.id == study_id).values(paused=True))
            running = jobs.c.id.in_([job for job, _ in found]) & (jobs.c.status == "running") & jobs.c.stop.is_(None)
            connection.execute(update(jobs).where(running).values(stop="pause"))
            return self.shown(tenant, study_id)

    def resume(self, tenant: Tenant, study_id: str) -> Study:
        """Let its jobs begin again, and queue those that are paused. Raises InvalidTransition where nothing was paused."""
        with self.database.write() as connection:
            record = self.get(tenant, study_id, lock=True)
            paused = [job for job, status in _statuses(connection, study_id) if status == "paused"]
            if not record.paused and not paused:
                raise InvalidTransition(f"{study_id} is not paused, and none of its jobs is")
            connection.execute(update(studies).where(studies.c.id == study_id).values(paused=False))
            for job in paused:
                self._jobs.move(job, "queued", notified_at=None)
            return self.shown(tenant, study_id)

    def remove(self, tenant: Tenant, study_id: str) -> list[str]:
        """Delete a study whose jobs have all ended, and its jobs; returns the blobs to collect.

        Raises NotFound, InvalidTransition before its end, InUse where one of its jobs is the teacher of another job.
        """
        with self.database.write() as connection:
            self.get(tenant, study_id, lock=True)
            found = _statuses(connection, study_id)
            left = next((job for job, status in found if status not in TERMINAL), None)
            if left is not None:
                raise InvalidTransition(f"{study_id} has not ended, {left} among its jobs: cancel it first, or wait")
            blobs = [blob for job, _ in found for blob in self._jobs.remove(tenant, job)]
            connection.execute(delete(studies).where(studies.c.id == study_id))
        return blobs


def _open() -> Select[Any]:
    """Select the jobs of the study at hand that have not ended."""
    there = study_children.join(jobs, jobs.c.id == study_children.c.job)
    condition = study_children.c.study == studies.c.id, jobs.c.status.not_in(TERMINAL)
    return select(literal(1)).select_from(there).where(*condition).correlate(studies)


def _statuses(connection: Connection, study_id: str) -> list[tuple[str, ChildStatus]]:
    """Return the jobs of a study that are there, with their statuses."""
    query = select(jobs.c.id, jobs.c.status).join(study_children, study_children.c.job == jobs.c.id)
    rows = connection.execute(query.where(study_children.c.study == study_id).order_by(study_children.c.n))
    return [(row.id, row.status) for row in rows]


def _with_jobs(study_id: str) -> Any:
    columns = [study_children.c[name] for name in ("n", "job", "settings")] + [jobs.c[name] for name in _SHOWN]
    query = select(*columns).outerjoin(jobs, jobs.c.id == study_children.c.job)
    return query.where(study_children.c.study == study_id).order_by(study_children.c.n)


def _child(row: Row[Any]) -> StudyChild:
    progress = Progress.model_validate(row.progress) if row.progress else None
    return StudyChild(
        n=row.n,
        job=row.job,
        settings=StudySettings.model_validate(row.settings),
        status=row.status or "deleted",
        fraction=1.0 if row.status == "succeeded" else (progress.fraction if progress else 0.0),
        error=Fault.model_validate(row.error).code if row.error else None,
        accuracy=row.result_accuracy,
        loss=row.result_loss,
    )
