"""Jobs as their owners see them: created, listed, steered, deleted; and `move`, the one place where a status changes.

What happens to a job while it runs is in `wbar_store.attempts`.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, case, delete, false, func, insert, or_, select, update

from wbar.errors import InUse, InvalidTransition, NotFound
from wbar.jobs import Progress, Replica
from wbar.method import Soup
from wbar.spec import JobSpec
from wbar.states import TERMINAL, JobStatus, sources
from wbar_store import outbox, replica_lists, replica_slots
from wbar_store.claims import Claim
from wbar_store.counters import Counters
from wbar_store.database import Database, Tenant, now
from wbar_store.events import Events
from wbar_store.holding import HELD
from wbar_store.ids import new_id
from wbar_store.job_lists import Filters, JobSummary, OrderBy, kept, sorted_rows
from wbar_store.job_records import FILES, FileName, JobRecord
from wbar_store.repository import PageRequest, RecordPage, Repository, Stored
from wbar_store.row_security import lifted
from wbar_store.tables import checkpoints, datasets, job_files, job_inputs, job_metadata, jobs, snapshots

NOTIFY_AGAIN = 5.0  # a queued row that a worker was notified of so long ago, with nothing left in the broker


class Jobs(Repository[JobRecord]):
    """The jobs of all tenants."""

    table, kind, noun, record = jobs, "job", "job", JobRecord

    def __init__(self, database: Database, events: Events) -> None:
        super().__init__(database)
        self._events, self._counters = events, Counters(database)

    # What the API does.

    def create(
        self,
        tenant: Tenant,
        spec: JobSpec,
        name: str | None,
        metadata: Mapping[str, str],
        max_seconds: float | None = None,
        expires_after: float | None = None,
        request: Mapping[str, Any] | None = None,
        priority: int = 0,
        traceparent: str | None = None,
        job_id: str | None = None,
    ) -> JobRecord:
        """Insert a queued job; the caller notifies once it is committed.

        request: what was asked for, for `clone`.
        max_seconds: how long it may run, all attempts together; None: as long as it takes.
        expires_after: seconds from its end until its files are deleted; None: they stay.
        priority: among the tenant's queued jobs; the higher is taken first.
        traceparent: the W3C trace context of the request that creates it; it decides nothing of the result.
        job_id: a new id that others name already; None: one is made.
        """
        job_id = job_id or new_id("job")
        values = {
            "id": job_id,
            "tenant": tenant.name,
            "name": name,
            "status": "queued",
            "checkpoint": spec.start.id,
            "dataset": spec.dataset.id,
            "request": request and dict(request),
            "spec": spec.document(),
            "metadata": dict(metadata),
            "attempts": 0,
            "lost_attempts": 0,
            "crashes": 0,
            "furthest_step": 0,
            "memory_retries": 0,
            "ran_seconds": 0.0,
            "max_seconds": max_seconds,
            "priority": priority,
            "expires_after": expires_after,
            "last_event": 0,
            "traceparent": traceparent,
            "created_at": now(),
        }
        with self.database.write() as connection:
            row = connection.execute(insert(jobs).values(**values).returning(*jobs.c)).one()
            connection.execute(insert(job_inputs), [{"job": job_id, "input": one} for one in spec.needs()])
            if metadata:
                pairs = [{"job": job_id, "key": key, "value": value} for key, value in metadata.items()]
                connection.execute(insert(job_metadata), pairs)
            self._events.append(job_id, "status", {"status": "queued"})
            outbox.job_moved(connection, job_id)
        return self.record.of(row)

    def status(self, tenant: Tenant, job_id: str) -> JobStatus:
        """Return the status of a job. Raises NotFound."""
        query = tenant.select(jobs).where(jobs.c.id == job_id).with_only_columns(jobs.c.status)
        with self.database.read() as connection:
            status: JobStatus | None = connection.execute(query).scalar()
        if status is None:
            raise NotFound(f"there is no job {job_id[:64]!r}")
        return status

    def file(self, job: JobRecord, name: FileName) -> str | None:
        """Return the blob of a further file of a job; None where it has none of that name."""
        query = select(job_files.c.sha256).where(job_files.c.job == job.id, job_files.c.name == name)
        with self.database.read() as connection:
            sha256: str | None = connection.execute(query).scalar()
        return sha256

    def filtered(
        self, tenant: Tenant, request: PageRequest, filters: Filters, order_by: OrderBy = "created_at"
    ) -> RecordPage[JobRecord]:
        """Return a page of the tenant's jobs that meet the conditions. Raises ValidationFailed where `after` is no job."""
        rows = kept(tenant, filters)
        with self.database.read() as connection:
            if order_by == "created_at":
                return self._page(connection, rows, request)
            return self._page_of(sorted_rows(connection, tenant, rows, request, order_by), request)

    def summaries(
        self, tenant: Tenant, request: PageRequest, filters: Filters, order_by: OrderBy = "created_at"
    ) -> RecordPage[JobSummary]:
        """Return a page of the tenant's jobs as `filtered` does, without their specs and whole results."""
        rows = kept(tenant, filters).with_only_columns(*(jobs.c[name] for name in JobSummary.model_fields))
        with self.database.read() as connection:
            if order_by == "created_at":
                return self._page(connection, rows, request, JobSummary)
            return self._page_of(sorted_rows(connection, tenant, rows, request, order_by), request, JobSummary)

    def counts(self, tenant: Tenant) -> dict[str, int]:
        """Return how many jobs the tenant has in each status that any has."""
        query = tenant.select(jobs).with_only_columns(jobs.c.status, func.count().label("n")).group_by(jobs.c.status)
        with self.database.read() as connection:
            return {row.status: row.n for row in connection.execute(query)}

    def cancel(self, tenant: Tenant, job_id: str) -> JobRecord:
        """End the job now; its attempt learns it with the next heartbeat. Raises InvalidTransition once it ended otherwise.

        Its replicas end with it.
        """
        with self.database.write() as connection:
            job = self.get(tenant, job_id, lock=True)
            if job.status != "cancelled" and not self.move(job_id, "cancelled"):
                raise InvalidTransition(f"{job_id} is {job.status} and cannot be cancelled")
            for replica in replica_slots.unfinished(connection, job_id) if job.spec.replicas else ():
                self.move(replica, "cancelled")
            return self.get(tenant, job_id)

    def pause(self, tenant: Tenant, job_id: str) -> JobRecord:
        """Ask a running job to stop at the next step with its exact position saved; it becomes `paused` when it has.

        A job that waits for its replicas stays queued, and they are paused. Raises InvalidTransition for a job that neither
        runs nor is paused.
        """
        with self.database.write() as connection:
            job = self.get(tenant, job_id, lock=True)
            if job.status == "queued" and job.spec.replicas:
                connection.execute(update(jobs).where(jobs.c.id == job_id).values(stop="pause"))
                replicas = jobs.c.id.in_(replica_slots.unfinished(connection, job_id))
                running = replicas & (jobs.c.status == "running") & jobs.c.stop.is_(None)
                connection.execute(update(jobs).where(running).values(stop="pause"))
                return self.get(tenant, job_id)
            if job.status not in ("running", "paused"):
                raise InvalidTransition(f"{job_id} is {job.status}: only a running job can be paused")
            if job.stop == "finish":
                raise InvalidTransition(f"{job_id} is finishing, as it was asked to: wait for its end, or cancel it")
            if job.status == "running":
                connection.execute(update(jobs).where(jobs.c.id == job_id).values(stop="pause"))
        return job

    def finish(self, tenant: Tenant, job_id: str) -> JobRecord:
        """Ask a running job to end its training at the next step, and to deliver the average of what it visited so far.

        Raises InvalidTransition for a job that does not run, or has nothing to average yet.
        """
        with self.database.write() as connection:
            job = self.get(tenant, job_id, lock=True)
            if job.stop == "finish":
                return job  # as it was asked to, whatever has become of its worker since
            if job.status != "running":
                hint = ": resume it first" if job.status == "paused" else ""
                raise InvalidTransition(f"{job_id} is {job.status}: only a running job can be finished{hint}")
            if job.stop == "pause":
                raise InvalidTransition(
                    f"{job_id} is about to pause, as it was asked to: resume it then, and finish it"
                )
            if job.spec.meetings is not None:
                raise InvalidTransition(
                    f"{job_id} is a replica that meets others, who would wait for it: cancel the job that joins them, or wait"
                )
            if connection.execute(select(snapshots.c.id).where(snapshots.c.job == job_id).limit(1)).first() is None:
                hint = (
                    "a soup has no training to end" if isinstance(job.spec.method, Soup) else "wait for its first one"
                )
                raise InvalidTransition(
                    f"{job_id} has no snapshot, so there is nothing to average: {hint}, or cancel it"
                )
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(stop="finish"))
        return job

    def resume(self, tenant: Tenant, job_id: str) -> JobRecord:
        """Queue a paused job again; it goes on from where it stopped, to the same bits. Raises InvalidTransition.

        Replicas that are paused go on with the job that waits for them.
        """
        with self.database.write() as connection:
            job = self.get(tenant, job_id, lock=True)
            if job.status == "queued" and job.spec.replicas:
                self._resume_replicas(connection, job)
                return self.get(tenant, job_id)
            if job.status != "paused":
                raise InvalidTransition(f"{job_id} is {job.status}: only a paused job can be resumed")
            self.move(job_id, "queued", notified_at=None)
            return self.get(tenant, job_id)

    def _resume_replicas(self, connection: Connection, job: JobRecord) -> None:
        replicas = replica_slots.unfinished(connection, job.id)
        paused = select(jobs.c.id).where(jobs.c.id.in_(replicas), jobs.c.status == "paused").order_by(jobs.c.id)
        found = list(connection.execute(paused).scalars())
        if job.stop != "pause" and not found:
            raise InvalidTransition(f"{job.id} is not paused, and none of its replicas is")
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(stop=None, notified_at=None))
        for replica in found:
            self.move(replica, "queued", notified_at=None)

    def remove(self, tenant: Tenant, job_id: str) -> list[str]:
        """Delete an ended job with its events, metrics, snapshots and replicas; returns the blobs to collect.

        Raises InvalidTransition for a job that has not ended, InUse for the teacher or a replica of one.
        """
        with self.database.write() as connection:
            job = self.get(tenant, job_id, lock=True)
            if job.status not in TERMINAL:
                raise InvalidTransition(f"{job_id} is {job.status}: only an ended job can be deleted; cancel it first")
            student = _student(connection, job_id)
            if student is not None:
                kind = "a replica" if job.spec.keeps_mean else "the teacher"
                raise InUse(f"{job_id} is {kind} of {student}: cancel that job or wait for it")
            held = _blobs_of_parts(connection, job_id)
            connection.execute(delete(jobs).where(jobs.c.id == job_id))
            if job.attempts:
                # Its message may be another one's place in the queue, which is not found through a job that is gone.
                waiting = tenant.select(jobs).where(jobs.c.status == "queued").with_only_columns(jobs.c.id).limit(1)
                told = update(jobs).where(jobs.c.id == waiting.scalar_subquery()).values(notified_at=None)
                connection.execute(told)
            with lifted(connection):  # hidden rows are no tenant's
                for table, column in ((checkpoints, jobs.c.checkpoint), (datasets, jobs.c.dataset)):
                    # A deleted checkpoint or dataset was kept, hidden, only for the jobs that name it.
                    named = select(column)
                    connection.execute(delete(table).where(table.c.status == "deleted", table.c.id.not_in(named)))
            for replica in job.spec.replicas:
                if self.exists(tenant, replica):
                    held += self.remove(tenant, replica)
        return [*job.blobs, *held]

    def waits(self, stored: Stored) -> bool:
        """Return whether a job is queued, by what `stored` returned."""
        return bool(stored[self._status_index] == "queued")

    def may_have_replicas(self, stored: Stored) -> bool:
        """Return whether a job may have replicas, by what `stored` returned: a spec without them does not name them."""
        return '"replicas"' in stored[self._spec_index]

    def replicas(self, tenant: Tenant, job: JobRecord) -> list[Replica] | None:
        """Return the replicas of a job as they are now; None for a job without."""
        if not job.spec.replicas:
            return None
        with self.database.read() as connection:
            return replica_lists.replicas(connection, tenant, job.spec)

    @cached_property
    def _status_index(self) -> int:
        return [column.name for column in self._record_columns].index("status")

    @cached_property
    def _spec_index(self) -> int:
        return [column.name for column in self._record_columns].index("spec")

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

    def unfinished(self) -> int:
        """Return how many jobs are queued or running."""
        query = select(func.count()).where(jobs.c.status.in_(("queued", "running")))
        with self.database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def overdue(self, broker_is_empty: bool) -> list[str]:
        """Return the queued jobs of which no worker was notified, or whose message is gone; not those that a study holds."""
        lost = (jobs.c.notified_at < now() - NOTIFY_AGAIN) if broker_is_empty else false()
        waits = (jobs.c.status == "queued") & ~HELD
        query = select(jobs.c.id).where(waits, or_(jobs.c.notified_at.is_(None), lost))
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

    def expired(self) -> list[str]:
        """Return the jobs whose files' time is over."""
        due = jobs.c.finished_at + jobs.c.expires_after < now()
        # A sweeper of a version before forgets all files but those that it does not know.
        others = select(job_files.c.job).where(job_files.c.job == jobs.c.id).exists()
        left = or_(jobs.c.expired_at.is_(None), *(jobs.c[name].is_not(None) for name in FILES), others)
        query = select(jobs.c.id).where(due, left, jobs.c.status.in_(TERMINAL))
        with self.database.read() as connection:
            return list(connection.execute(query).scalars())

    def drop_files(self, job_id: str) -> list[str]:
        """Forget the files of a job whose time is over; returns the blobs to collect. The record stays, and what was measured.

        Nothing is done while another job learns from them.
        """
        with self.database.write() as connection:
            # The lock first: a job that names this one as its teacher takes it, too.
            row = connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).first()
            if row is None or _student(connection, job_id) is not None:
                return []
            files, held = [getattr(row, name) for name in FILES], _blobs_of_parts(connection, job_id)
            if row.expired_at is not None and not any(files) and not held:
                return []
            for table in (snapshots, job_files):
                connection.execute(delete(table).where(table.c.job == job_id))
            gone: dict[str, object] = dict.fromkeys(FILES)
            gone["expired_at"] = func.coalesce(jobs.c.expired_at, now())
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(**gone))
            return [*filter(None, files), *held]

    # The one place where a status changes.

    def move(self, job_id: str, target: JobStatus, claim: Claim | None = None, **values: object) -> bool:
        """Change the status along the table of wbar.states, its event and what webhooks are told. False if it has moved on."""
        statement = update(jobs).where(jobs.c.id == job_id, jobs.c.status.in_(sources(target)))
        if claim is not None:
            statement = statement.where(jobs.c.attempts == claim.attempt)
        if target in TERMINAL:
            values["finished_at"] = now()
        # A request to finish outlives the worker that has not answered it.
        values["stop"] = case((jobs.c.stop == "finish", "finish"), else_=None) if target == "queued" else None
        moved = statement.values(status=target, lease_until=None, **values).returning(jobs.c.id)
        with self.database.write() as connection:
            if connection.execute(moved).first() is None:
                return False
            said: dict[str, object] = {name: values[name] for name in ("error", "result") if name in values}
            self._events.append(job_id, "status", {"status": target, **said})
            outbox.job_moved(connection, job_id)
            if target in TERMINAL:
                self._counters.add("jobs_ended", target)
        return True


def _student(connection: Connection, job_id: str) -> str | None:
    """Return a job that has not ended and learns from this one."""
    students = select(jobs.c.id).join(job_inputs, job_inputs.c.job == jobs.c.id)
    found: str | None = connection.execute(
        students.where(job_inputs.c.input == job_id, jobs.c.status.not_in(TERMINAL)).limit(1)
    ).scalar()
    return found


def _blobs_of_parts(connection: Connection, job_id: str) -> list[str]:
    """Return the blobs of a job's snapshots and further files."""
    named = (select(table.c.sha256).where(table.c.job == job_id) for table in (snapshots, job_files))
    return [blob for query in named for blob in connection.execute(query).scalars()]
