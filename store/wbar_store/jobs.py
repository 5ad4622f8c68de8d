"""The only writer of job state. A claim is a compare-and-set that raises the attempt number, the fence; every later
write carries the fence and changes nothing once another attempt, a cancel or the sweeper has moved the row on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import delete, false, func, insert, or_, select, update

from wbar.checkpoints import Fault
from wbar.errors import AttemptsExhausted, InUse, InvalidTransition, NotFound
from wbar.jobs import Job, Progress
from wbar.results import JobResult, Score
from wbar.spec import JobSpec
from wbar.states import TERMINAL, JobStatus, sources
from wbar_store.claims import Claim, holds, of_running
from wbar_store.database import Database, Tenant, now, rfc3339
from wbar_store.events import Events
from wbar_store.ids import new_id
from wbar_store.repository import PageRequest, Record, RecordPage, Repository
from wbar_store.tables import checkpoints, datasets, job_inputs, job_metadata, jobs, snapshots

MAX_LOST = 3  # attempts in a row that died without having saved a state
NOTIFY_AGAIN = 5.0  # a queued row that a worker was notified of so long ago, with nothing left in the broker


@dataclass(frozen=True)
class Filters:
    """The conditions on a list of jobs. metadata: pairs that a job must all have."""

    status: JobStatus | None = None
    checkpoint: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ResultBlobs:
    """The files of an ended job: the weights in both formats, and the report where it could be drawn."""

    weights: str
    pytorch: str
    report: str | None


class JobRecord(Record):
    """A row of `jobs`.

    weights, weights_pytorch, report: blobs, once it has succeeded.
    state: the blob of the latest resumable state.
    """

    tenant: str
    name: str | None
    status: JobStatus
    spec: JobSpec
    metadata: dict[str, str]
    progress: Progress | None
    result: JobResult | None
    weights: str | None
    weights_pytorch: str | None
    report: str | None
    error: Fault | None
    attempts: int
    state: str | None
    state_step: int | None
    created_at: float
    started_at: float | None
    finished_at: float | None

    @property
    def claim(self) -> Claim:
        """The claim of the job's latest attempt."""
        return Claim(self.id, self.attempts)

    @property
    def owner(self) -> Tenant:
        """The tenant that the job belongs to."""
        return Tenant(self.tenant)

    @property
    def blobs(self) -> list[str]:
        """The blobs that the row keeps alive."""
        return [blob for blob in (self.weights, self.weights_pytorch, self.report, self.state) if blob]

    def to_api(self) -> Job:
        """Return the job as the API sends it."""
        return Job.of(
            self.spec,
            id=self.id,
            name=self.name,
            status=self.status,
            metadata=self.metadata,
            progress=self.progress,
            result=self.result,
            error=self.error,
            attempts=self.attempts,
            created_at=rfc3339(self.created_at),
            started_at=rfc3339(self.started_at),
            finished_at=rfc3339(self.finished_at),
        )


class Jobs(Repository[JobRecord]):
    """The jobs of all tenants."""

    table, kind, noun, record = jobs, "job", "job", JobRecord

    def __init__(self, database: Database, events: Events) -> None:
        super().__init__(database)
        self._events = events

    # What the API does.

    def create(self, tenant: Tenant, spec: JobSpec, name: str | None, metadata: Mapping[str, str]) -> JobRecord:
        """Insert a queued job; the caller notifies once it is committed."""
        job_id = new_id("job")
        values = {
            "id": job_id,
            "tenant": tenant.name,
            "name": name,
            "status": "queued",
            "checkpoint": spec.start.id,
            "dataset": spec.dataset.id,
            "spec": spec.model_dump(mode="json"),
            "metadata": dict(metadata),
            "attempts": 0,
            "lost_attempts": 0,
            "last_event": 0,
            "created_at": now(),
        }
        with self.database.write() as connection:
            row = connection.execute(insert(jobs).values(**values).returning(*jobs.c)).one()
            connection.execute(insert(job_inputs), [{"job": job_id, "input": one} for one in spec.needs()])
            if metadata:
                pairs = [{"job": job_id, "key": key, "value": value} for key, value in metadata.items()]
                connection.execute(insert(job_metadata), pairs)
            self._events.append(job_id, "status", {"status": "queued"})
        return self.record.of(row)

    def status(self, tenant: Tenant, job_id: str) -> JobStatus:
        """Return the status of a job. Raises NotFound."""
        query = tenant.select(jobs).where(jobs.c.id == job_id).with_only_columns(jobs.c.status)
        with self.database.read() as connection:
            status: JobStatus | None = connection.execute(query).scalar()
        if status is None:
            raise NotFound(f"there is no job {job_id[:64]!r}")
        return status

    def filtered(self, tenant: Tenant, request: PageRequest, filters: Filters) -> RecordPage[JobRecord]:
        """Return a page of the tenant's jobs that meet the conditions."""
        rows = tenant.select(jobs)
        if filters.status is not None:
            rows = rows.where(jobs.c.status == filters.status)
        if filters.checkpoint is not None:
            rows = rows.where(jobs.c.checkpoint == filters.checkpoint)
        for key, value in filters.metadata:
            tagged = select(job_metadata.c.job).where(job_metadata.c.key == key, job_metadata.c.value == value)
            rows = rows.where(jobs.c.id.in_(tagged))
        with self.database.read() as connection:
            return self._page(connection, rows, request)

    def cancel(self, tenant: Tenant, job_id: str) -> JobRecord:
        """End the job now; its attempt learns it with the next heartbeat. Raises InvalidTransition once it ended otherwise."""
        with self.database.write():
            job = self.get(tenant, job_id, lock=True)
            if job.status != "cancelled" and not self._move(job_id, "cancelled"):
                raise InvalidTransition(f"{job_id} is {job.status} and cannot be cancelled")
            return self.get(tenant, job_id)

    def pause(self, tenant: Tenant, job_id: str) -> JobRecord:
        """Ask a running job to stop at the next step with its exact position saved; it becomes `paused` when it has.

        Raises InvalidTransition for a job that neither runs nor is paused.
        """
        with self.database.write() as connection:
            job = self.get(tenant, job_id, lock=True)
            if job.status not in ("running", "paused"):
                raise InvalidTransition(f"{job_id} is {job.status}: only a running job can be paused")
            if job.status == "running":
                connection.execute(update(jobs).where(jobs.c.id == job_id).values(stop="pause"))
        return job

    def resume(self, tenant: Tenant, job_id: str) -> JobRecord:
        """Queue a paused job again; it goes on from where it stopped, to the same bits. Raises InvalidTransition."""
        with self.database.write():
            job = self.get(tenant, job_id, lock=True)
            if job.status != "paused":
                raise InvalidTransition(f"{job_id} is {job.status}: only a paused job can be resumed")
            self._move(job_id, "queued", notified_at=None)
            return self.get(tenant, job_id)

    def remove(self, tenant: Tenant, job_id: str) -> list[str]:
        """Delete an ended job with its events, metrics and snapshots; returns the blobs to collect.

        Raises InvalidTransition for a job that has not ended, InUse for the teacher of one.
        """
        with self.database.write() as connection:
            job = self.get(tenant, job_id, lock=True)
            if job.status not in TERMINAL:
                raise InvalidTransition(f"{job_id} is {job.status}: only an ended job can be deleted; cancel it first")
            students = select(jobs.c.id).join(job_inputs, job_inputs.c.job == jobs.c.id)
            students = students.where(job_inputs.c.input == job_id, jobs.c.status.not_in(TERMINAL)).limit(1)
            student = connection.execute(students).scalar()
            if student is not None:
                raise InUse(f"{job_id} is the teacher of {student}: cancel that job or wait for it")
            held = list(connection.execute(select(snapshots.c.sha256).where(snapshots.c.job == job_id)).scalars())
            connection.execute(delete(jobs).where(jobs.c.id == job_id))
            for table, column in ((checkpoints, jobs.c.checkpoint), (datasets, jobs.c.dataset)):
                # A deleted checkpoint or dataset was kept, hidden, only for the jobs that name it.
                named = select(column)
                connection.execute(delete(table).where(table.c.status == "deleted", table.c.id.not_in(named)))
        return [*job.blobs, *held]

    def images_per_second(self, tenant: Tenant, checkpoint: str) -> float | None:
        """Return how fast the last job on this checkpoint trained; None if none has."""
        last = tenant.select(jobs).where(jobs.c.checkpoint == checkpoint, jobs.c.status == "succeeded")
        last = last.with_only_columns(jobs.c.progress).order_by(jobs.c.id.desc()).limit(10)
        with self.database.read() as connection:
            ended = [Progress.model_validate(progress) for progress in connection.execute(last).scalars() if progress]
        return next((one.images_per_second for one in ended if one.images_per_second), None)  # a soup trains nothing

    # What a worker does. Every write but the claim carries the claim.

    def spec(self, job_id: str) -> JobSpec | None:
        """Return a job's spec, which a notified worker reads before it claims; None if the job was deleted."""
        with self.database.read() as connection:
            spec = connection.execute(select(jobs.c.spec).where(jobs.c.id == job_id)).scalar()
        return None if spec is None else JobSpec.model_validate(spec)

    def claim(self, job_id: str, lease_seconds: float) -> JobRecord | None:
        """Claim a queued job: it runs, its attempt number is raised, its lease is set. None if it is not queued."""
        with self.database.write() as connection:
            row = connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.status.in_(sources("running")))
                .values(
                    status="running",
                    attempts=jobs.c.attempts + 1,
                    lease_until=now() + lease_seconds,
                    started_at=func.coalesce(jobs.c.started_at, now()),
                    stop=None,
                )
                .returning(*jobs.c)
            ).first()
            if row is None:
                return None
            claimed = self.record.of(row)
            self._events.append(job_id, "status", {"status": "running", "attempt": claimed.attempts})
        return claimed

    def heartbeat(
        self, claim: Claim, lease_seconds: float, progress: Progress | None, event: bool = False
    ) -> Literal["pause", "gone"] | None:
        """Write the progress, renew the lease, and return `pause`, `gone` (the fence is stale), or None to keep going.

        event: whether the progress is an event too.
        """
        values: dict[str, object] = {"lease_until": now() + lease_seconds}
        if progress is not None:
            values["progress"] = progress.model_dump()
        with self.database.write(durable=False) as connection:
            row = connection.execute(of_running(claim).values(**values).returning(jobs.c.stop)).first()
            if row is None:
                return "gone"
            if event and progress is not None:
                self._events.append(claim.id, "progress", progress.model_dump())
        return "pause" if row.stop else None

    def log(self, claim: Claim, level: str, message: str) -> bool:
        """Append a `log` event. False if the fence is stale."""
        return self._tell(claim, "log", {"level": level, "message": message})

    def averaged(self, claim: Claim, n: int, score: Score) -> bool:
        """Append a point of the curve, as a `metrics` event. False if the fence is stale."""
        return self._tell(claim, "metrics", {"n": n, **score.model_dump()})

    def _tell(self, claim: Claim, kind: Literal["log", "metrics"], data: Mapping[str, object]) -> bool:
        with self.database.write() as connection:
            if not holds(connection, claim):
                return False
            self._events.append(claim.id, kind, data)
        return True

    def got_further(self, claim: Claim) -> None:
        """Reset the count of lost attempts: the attempt saved a state on its host."""
        with self.database.write(durable=False) as connection:
            connection.execute(of_running(claim).values(lost_attempts=0))

    def save_state(self, claim: Claim, sha256: str, step: int) -> str | None:
        """Point to the latest resumable state, whose blob the caller holds meanwhile; returns the blob it replaces.

        The count of lost attempts is reset.
        """
        with self.database.write() as connection:
            old = connection.execute(select(jobs.c.state).where(jobs.c.id == claim.id)).scalar()
            # No comparison of steps: the fence keeps late writers out, and a job that started over counts from zero again.
            values = {"state": sha256, "state_step": step, "lost_attempts": 0}
            moved = connection.execute(of_running(claim).values(**values)).rowcount
        return old if moved and old != sha256 else None

    def succeed(self, claim: Claim, result: JobResult, blobs: ResultBlobs, progress: Progress | None) -> bool:
        """End the job with its result, whose blobs the caller holds meanwhile. False if the fence is stale."""
        values: dict[str, object] = {
            "weights": blobs.weights,
            "weights_pytorch": blobs.pytorch,
            "report": blobs.report,
            "result": result.model_dump(mode="json"),
        }
        if progress is not None:
            values["progress"] = progress.model_dump()
        return self._move(claim.id, "succeeded", claim, **values)

    def fail(self, claim: Claim, fault: Fault) -> bool:
        """End the job with a fault. False if the fence is stale."""
        return self._move(claim.id, "failed", claim, error=fault.model_dump(mode="json"))

    def yield_back(self, claim: Claim, target: Literal["paused", "queued"]) -> bool:
        """Give a stopped job back with its state saved: `paused` as asked, or `queued` when draining.

        A pause that was asked for meanwhile is kept: the job is then `paused` in both cases. False if the fence is stale.
        """
        with self.database.write() as connection:
            row = connection.execute(of_running(claim).values(attempts=claim.attempt).returning(jobs.c.stop)).first()
            if row is None:
                return False
            return self._move(claim.id, "paused" if row.stop == "pause" else target, claim, notified_at=None)

    def lose(self, claim: Claim, why: str) -> JobStatus | None:
        """Queue the job again after its attempt died, or fail it after MAX_LOST in a row.

        Returns the new status; None if the fence is stale.
        """
        with self.database.write() as connection:
            row = connection.execute(of_running(claim).values(attempts=claim.attempt).returning(*jobs.c)).first()
            if row is None:
                return None
            lost = row.lost_attempts + 1
            if lost < MAX_LOST:
                message = f"attempt {claim.attempt} was lost: {why}"
                self._events.append(claim.id, "log", {"level": "warning", "message": message})
                target: JobStatus = "paused" if row.stop == "pause" else "queued"
                self._move(claim.id, target, claim, lost_attempts=lost, notified_at=None)
                return target
            fault = Fault(
                code=AttemptsExhausted.code,
                message=f"{lost} attempts in a row were lost without getting further; the last one: {why}",
            )
            self._move(claim.id, "failed", claim, lost_attempts=lost, error=fault.model_dump(mode="json"))
        return "failed"

    def drop_state(self, job_id: str) -> str | None:
        """Drop an ended job's resumable state; returns the blob to collect."""
        ended = select(jobs.c.state).where(jobs.c.id == job_id, jobs.c.status.in_(TERMINAL))
        with self.database.write() as connection:
            state = connection.execute(ended).scalar()
            if state is not None:
                connection.execute(update(jobs).where(jobs.c.id == job_id).values(state=None))
        return state

    def has_ended(self, job_id: str) -> bool:
        """Return whether the job is in a terminal state, or deleted."""
        with self.database.read() as connection:
            status = connection.execute(select(jobs.c.status).where(jobs.c.id == job_id)).scalar()
        return status is None or status in TERMINAL

    # What the sweeper and `wbar up` do.

    def expired(self) -> list[Claim]:
        """Return the claims of running jobs whose lease has run out."""
        query = select(jobs.c.id, jobs.c.attempts).where(jobs.c.status == "running", jobs.c.lease_until < now())
        with self.database.read() as connection:
            return [Claim(row.id, row.attempts) for row in connection.execute(query)]

    def expire_leases(self) -> None:
        """End every lease: the workers of all running jobs are known to be gone."""
        with self.database.write() as connection:
            connection.execute(update(jobs).where(jobs.c.status == "running").values(lease_until=0.0))

    def unfinished(self) -> int:
        """Return how many jobs are queued or running."""
        query = select(func.count()).where(jobs.c.status.in_(("queued", "running")))
        with self.database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def overdue(self, broker_is_empty: bool) -> list[str]:
        """Return the queued jobs of which no worker was notified, or whose message is gone."""
        lost = (jobs.c.notified_at < now() - NOTIFY_AGAIN) if broker_is_empty else false()
        query = select(jobs.c.id).where(jobs.c.status == "queued", or_(jobs.c.notified_at.is_(None), lost))
        with self.database.read() as connection:
            return list(connection.execute(query.order_by(jobs.c.id).limit(1000)).scalars())

    def notified(self, job_id: str) -> None:
        """Record that a worker was notified of the job."""
        with self.database.write() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(notified_at=now()))

    def ended_with_state(self) -> list[str]:
        """Return the ended jobs that still have a resumable state: they ended while no worker was there to drop it."""
        query = select(jobs.c.id).where(jobs.c.status.in_(TERMINAL), jobs.c.state.is_not(None))
        with self.database.read() as connection:
            return list(connection.execute(query).scalars())

    # The one place where a status changes.

    def _move(self, job_id: str, target: JobStatus, claim: Claim | None = None, **values: object) -> bool:
        """Change the status along the table of wbar.states, with its event. False if the row has moved on."""
        statement = update(jobs).where(jobs.c.id == job_id, jobs.c.status.in_(sources(target)))
        if claim is not None:
            statement = statement.where(jobs.c.attempts == claim.attempt)
        if target in TERMINAL:
            values["finished_at"] = now()
        moved = statement.values(status=target, stop=None, lease_until=None, **values).returning(jobs.c.id)
        with self.database.write() as connection:
            if connection.execute(moved).first() is None:
                return False
            said: dict[str, object] = {name: values[name] for name in ("error", "result") if name in values}
            self._events.append(job_id, "status", {"status": target, **said})
        return True
