"""The only writer of job state. A claim is a compare-and-set that raises the attempt number, the fence; every later
write carries the fence and changes nothing once another attempt, a cancel or the sweeper has moved the row on.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Update, delete, false, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from wbar.errors import AttemptsExhausted, InUse, InvalidTransition, NotFound
from wbar.states import TERMINAL, JobStatus, sources
from wbar_store import events
from wbar_store.database import Database, Tenant, now, rfc3339
from wbar_store.ids import new_id
from wbar_store.lists import PageRequest, page
from wbar_store.notifier import RUN_JOB, Notifier
from wbar_store.tables import checkpoints, datasets, job_checkpoints, job_metadata, jobs, metrics, snapshots

MAX_LOSSES = 3  # attempts in a row that died without having saved a state
NOTIFY_AGAIN = 5.0  # a queued row that a worker was notified of so long ago, with nothing left in the broker


@dataclass(frozen=True)
class Filters:
    status: str | None = None
    checkpoint: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()


class Jobs:
    def __init__(self, database: Database, notifier: Notifier) -> None:
        self.database, self.notifier = database, notifier

    # What the API does.

    def submit(self, connection: Connection, tenant: Tenant, values: dict[str, Any]) -> dict[str, Any]:
        """Insert a queued job in the caller's transaction; the caller notifies once it is committed."""
        job_id = new_id("job")
        connection.execute(
            insert(jobs).values(
                id=job_id,
                tenant=tenant.name,
                status="queued",
                attempts=0,
                losses=0,
                last_event=0,
                created_at=now(),
                **values,
            )
        )
        pairs = [{"job": job_id, "key": key, "value": value} for key, value in values["metadata"].items()]
        if pairs:
            connection.execute(insert(job_metadata), pairs)
        needed = _checkpoints_beside_the_start(values)
        if needed:
            rows = [{"job": job_id, "checkpoint": one} for one in dict.fromkeys(needed)]
            connection.execute(insert(job_checkpoints), rows)
        events.append(connection, job_id, "status", {"status": "queued"})
        return sent(self.get(connection, tenant, job_id))

    def notify(self, job_id: str) -> None:
        # The row is committed already: whatever fails here, the sweeper notifies again.
        with suppress(DBAPIError):
            if self.notifier.notify(RUN_JOB, job_id):
                with self.database.write() as connection:
                    connection.execute(update(jobs).where(jobs.c.id == job_id).values(notified_at=now()))

    @staticmethod
    def get(connection: Connection, tenant: Tenant, job_id: str, lock: bool = False) -> Row[Any]:
        """The row. Raises NotFound, also for another tenant's."""
        row = tenant.row(connection, jobs, job_id, lock)
        if row is None:
            raise NotFound(f"there is no job {job_id[:64]!r}")
        return row

    @staticmethod
    def listed(connection: Connection, tenant: Tenant, request: PageRequest, filters: Filters) -> dict[str, Any]:
        rows = tenant.select(jobs)
        if filters.status is not None:
            rows = rows.where(jobs.c.status == filters.status)
        if filters.checkpoint is not None:
            rows = rows.where(jobs.c.checkpoint == filters.checkpoint)
        for key, value in filters.metadata:
            tagged = select(job_metadata.c.job).where(job_metadata.c.key == key, job_metadata.c.value == value)
            rows = rows.where(jobs.c.id.in_(tagged))
        return page(connection, jobs, rows, request, sent)

    def cancel(self, tenant: Tenant, job_id: str) -> dict[str, Any]:
        """End the job now; its attempt learns it with the next heartbeat. Idempotent; 409 once it ended otherwise."""
        with self.database.write() as connection:
            row = self.get(connection, tenant, job_id, lock=True)
            if row.status != "cancelled" and not self._move(connection, job_id, "cancelled"):
                raise InvalidTransition(f"{job_id} is {row.status} and cannot be cancelled")
            return sent(self.get(connection, tenant, job_id))

    def pause(self, tenant: Tenant, job_id: str) -> dict[str, Any]:
        """Ask a running job to stop at the next step with its exact position saved; it becomes `paused` when it has."""
        with self.database.write() as connection:
            row = self.get(connection, tenant, job_id, lock=True)
            if row.status not in ("running", "paused"):
                raise InvalidTransition(f"{job_id} is {row.status}: only a running job can be paused")
            if row.status == "running":
                connection.execute(update(jobs).where(jobs.c.id == job_id).values(stop="pause"))
            return sent(self.get(connection, tenant, job_id))

    def resume(self, tenant: Tenant, job_id: str) -> dict[str, Any]:
        """Queue a paused job again; it goes on from where it stopped, to the same bits."""
        with self.database.write() as connection:
            row = self.get(connection, tenant, job_id, lock=True)
            if row.status != "paused":
                raise InvalidTransition(f"{job_id} is {row.status}: only a paused job can be resumed")
            self._move(connection, job_id, "queued", notified_at=None)
            return sent(self.get(connection, tenant, job_id))

    def remove(self, tenant: Tenant, job_id: str) -> list[str]:
        """Delete an ended job with its events, metrics and snapshots; returns the blobs to collect."""
        with self.database.write() as connection:
            row = self.get(connection, tenant, job_id, lock=True)
            if row.status not in TERMINAL:
                raise InvalidTransition(f"{job_id} is {row.status}: only an ended job can be deleted; cancel it first")
            pupil = _pupil(connection, job_id)
            if pupil is not None:
                raise InUse(f"{job_id} is the teacher of {pupil}: cancel that job or wait for it")
            held = list(connection.execute(select(snapshots.c.sha256).where(snapshots.c.job == job_id)).scalars())
            connection.execute(delete(jobs).where(jobs.c.id == job_id))
            for table, column in ((checkpoints, jobs.c.checkpoint), (datasets, jobs.c.dataset)):
                # A deleted checkpoint or dataset was kept, hidden, only for the jobs that name it.
                named = select(column)
                connection.execute(delete(table).where(table.c.status == "deleted", table.c.id.not_in(named)))
            return [blob for blob in (row.weights, row.weights_pytorch, row.report, row.state, *held) if blob]

    # What a worker does. Every write but the claim carries (job_id, attempt).

    def claim(self, job_id: str, lease_seconds: float) -> Row[Any] | None:
        """Take a queued job: it runs, its attempt number is raised, its lease is set. None if it is not queued."""
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
            if row is not None:
                events.append(connection, job_id, "status", {"status": "running", "attempt": row.attempts})
            return row

    def heartbeat(
        self, job_id: str, attempt: int, lease_seconds: float, progress: dict[str, Any] | None, event: bool = False
    ) -> str | None:
        """Carry progress out, renew the lease, bring a reason to stop in: None, `pause`, or `gone` (the fence is stale)."""
        with self.database.write(durable=False) as connection:
            values: dict[str, Any] = {"lease_until": now() + lease_seconds}
            if progress is not None:
                values["progress"] = progress
            row = connection.execute(_mine(job_id, attempt).values(**values).returning(jobs.c.stop)).first()
            if row is None:
                return "gone"
            if event and progress is not None:
                events.append(connection, job_id, "progress", progress)
            return str(row.stop) if row.stop else None

    def log(self, job_id: str, attempt: int, level: str, message: str) -> bool:
        with self.database.write() as connection:
            if not self._is_mine(connection, job_id, attempt):
                return False
            events.append(connection, job_id, "log", {"level": level, "message": message})
            return True

    def add_metrics(self, job_id: str, attempt: int, points: list[dict[str, Any]]) -> bool:
        """Points of the training series; a step that was reported before keeps its first report (they are equal)."""
        with self.database.write(durable=False) as connection:
            if not self._is_mine(connection, job_id, attempt):
                return False
            statement = _dialect(connection).insert(metrics)
            rows = [{"job": job_id, "step": point["step"], "point": point} for point in points]
            connection.execute(statement.on_conflict_do_nothing(), rows)
            return True

    def add_averaged(self, job_id: str, attempt: int, n: int, score: dict[str, Any]) -> bool:
        """A point of the curve, as a `metrics` event."""
        with self.database.write() as connection:
            if not self._is_mine(connection, job_id, attempt):
                return False
            events.append(connection, job_id, "metrics", {"n": n, **score})
            return True

    def add_snapshot(self, connection: Connection, job_id: str, attempt: int, values: dict[str, Any]) -> bool:
        """Record w_n in the caller's transaction; False if the same was recorded before or the fence is stale.

        A job that had to start over (its state was another version's) replaces what it recorded.
        """
        if not self._is_mine(connection, job_id, attempt):
            return False
        statement = _dialect(connection).insert(snapshots)
        row = connection.execute(
            statement.values(id=new_id("snap"), job=job_id, created_at=now(), **values)
            .on_conflict_do_update(
                index_elements=[snapshots.c.job, snapshots.c.n],
                set_=values,
                where=snapshots.c.sha256 != values["sha256"],
            )
            .returning(*snapshots.c)
        ).first()
        if row is None:
            return False
        events.append(connection, job_id, "snapshot", snapshot_sent(row))
        return True

    def got_further(self, job_id: str, attempt: int) -> None:
        """The attempt saved a state on its host: earlier losses are forgiven."""
        with self.database.write(durable=False) as connection:
            connection.execute(_mine(job_id, attempt).values(losses=0))

    def save_state(self, connection: Connection, job_id: str, attempt: int, sha256: str, step: int) -> str | None:
        """Point to the latest resumable state; returns the blob it replaces. Getting further forgives earlier losses."""
        old = connection.execute(select(jobs.c.state).where(jobs.c.id == job_id)).scalar()
        # No comparison of steps: the fence keeps late writers out, and a job that started over counts from zero again.
        moved = connection.execute(_mine(job_id, attempt).values(state=sha256, state_step=step, losses=0)).rowcount
        return old if moved and old != sha256 else None

    def succeed(
        self,
        connection: Connection,
        job_id: str,
        attempt: int,
        weights: str,
        pytorch: str,
        report: str | None,
        result: dict[str, Any],
        progress: dict[str, Any] | None,
    ) -> bool:
        values = {"weights": weights, "weights_pytorch": pytorch, "report": report, "result": result} | (
            {"progress": progress} if progress else {}
        )
        return self._move(connection, job_id, "succeeded", attempt, **values)

    def fail(self, job_id: str, attempt: int, error: dict[str, Any]) -> bool:
        with self.database.write() as connection:
            return self._move(connection, job_id, "failed", attempt, error=error)

    def yield_back(self, job_id: str, attempt: int, target: JobStatus) -> bool:
        """A stopped attempt gives the job back with its state saved: `paused` as asked, or `queued` when draining."""
        with self.database.write() as connection:
            return self._move(connection, job_id, target, attempt, notified_at=None)

    def lose(self, job_id: str, attempt: int, why: str) -> JobStatus | None:
        """An attempt died. Queue the job again, or fail it after MAX_LOSSES in a row; None if the fence is stale."""
        with self.database.write() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).first()
            if row is None or row.status != "running" or row.attempts != attempt:
                return None
            losses = row.losses + 1
            if losses < MAX_LOSSES:
                events.append(
                    connection, job_id, "log", {"level": "warning", "message": f"attempt {attempt} was lost: {why}"}
                )
                target: JobStatus = "paused" if row.stop == "pause" else "queued"
                self._move(connection, job_id, target, attempt, losses=losses, notified_at=None)
                return target
            error = {
                "code": AttemptsExhausted.code,
                "message": f"{losses} attempts in a row were lost without getting further; the last one: {why}",
            }
            self._move(connection, job_id, "failed", attempt, losses=losses, error=error)
            return "failed"

    def drop_state(self, job_id: str) -> str | None:
        """Let go of an ended job's resumable state; returns the blob to collect."""
        with self.database.write() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id, jobs.c.status.in_(TERMINAL))).first()
            if row is None or row.state is None:
                return None
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(state=None))
            return str(row.state)

    # What the sweeper does.

    def expired(self) -> list[tuple[str, int]]:
        """Running jobs whose lease has run out, with their attempt."""
        with self.database.read() as connection:
            found = select(jobs.c.id, jobs.c.attempts).where(jobs.c.status == "running", jobs.c.lease_until < now())
            return [(row.id, row.attempts) for row in connection.execute(found)]

    def expire_leases(self) -> None:
        """Every running job's worker is known to be gone: the sweeper need not wait for the leases."""
        with self.database.write() as connection:
            connection.execute(update(jobs).where(jobs.c.status == "running").values(lease_until=0.0))

    def unfinished(self) -> int:
        """How many jobs are queued or running."""
        with self.database.read() as connection:
            found = select(func.count()).where(jobs.c.status.in_(("queued", "running")))
            return int(connection.execute(found).scalar_one())

    def unrung(self, broker_is_empty: bool) -> list[str]:
        """Queued jobs nobody was told of, or whose message is gone."""
        forgotten = or_(
            jobs.c.notified_at.is_(None), (jobs.c.notified_at < now() - NOTIFY_AGAIN) if broker_is_empty else false()
        )
        with self.database.read() as connection:
            found = select(jobs.c.id).where(jobs.c.status == "queued", forgotten).order_by(jobs.c.id).limit(1000)
            return list(connection.execute(found).scalars())

    def ended_with_state(self) -> list[str]:
        """Ended jobs that still hold a resumable state: they ended while no worker was there to let it go."""
        with self.database.read() as connection:
            found = select(jobs.c.id).where(jobs.c.status.in_(TERMINAL), jobs.c.state.is_not(None))
            return list(connection.execute(found).scalars())

    def has_ended(self, job_id: str) -> bool:
        """Whether the job is in a terminal state, or deleted."""
        with self.database.read() as connection:
            status = connection.execute(select(jobs.c.status).where(jobs.c.id == job_id)).scalar()
            return status is None or status in TERMINAL

    # The one place where a status changes.

    def _move(
        self, connection: Connection, job_id: str, target: JobStatus, attempt: int | None = None, **values: Any
    ) -> bool:
        """Compare-and-set along the table of wbar.states, with its event. False if the row is elsewhere by now."""
        statement = update(jobs).where(jobs.c.id == job_id, jobs.c.status.in_(sources(target)))
        if attempt is not None:
            statement = statement.where(jobs.c.attempts == attempt)
        if target in TERMINAL:
            values["finished_at"] = now()
        moved = connection.execute(
            statement.values(status=target, stop=None, lease_until=None, **values).returning(*jobs.c)
        ).first()
        if moved is None:
            return False
        data: dict[str, Any] = {"status": target}
        if target == "failed":
            data["error"] = moved.error
        if target == "succeeded":
            data["result"] = moved.result
        events.append(connection, job_id, "status", data)
        return True

    @staticmethod
    def _is_mine(connection: Connection, job_id: str, attempt: int) -> bool:
        # An update, not a select: it takes the row's lock, so that the fence still holds when the caller commits.
        return connection.execute(_mine(job_id, attempt).values(attempts=attempt)).rowcount == 1


def _mine(job_id: str, attempt: int) -> Update:
    return update(jobs).where(jobs.c.id == job_id, jobs.c.status == "running", jobs.c.attempts == attempt)


def _dialect(connection: Connection) -> Any:
    return {"sqlite": sqlite, "postgresql": postgresql}[connection.dialect.name]


def _checkpoints_beside_the_start(values: dict[str, Any]) -> list[str]:
    """Those of a soup, and a distillation's teacher: they cannot be deleted before the job has ended."""
    teacher = (values["recipe"].get("distillation") or {}).get("teacher", "")
    return [*values["method"].get("checkpoints", []), *([teacher] if teacher.startswith("ckpt_") else [])]


def _pupil(connection: Connection, job_id: str) -> str | None:
    """A job that has not ended and learns from this one's snapshots."""
    teacher = jobs.c.recipe["distillation"]["teacher"].as_string()
    found = select(jobs.c.id).where(teacher == job_id, jobs.c.status.not_in(TERMINAL)).limit(1)
    return connection.execute(found).scalar()


def metric_points(connection: Connection, job_id: str) -> Iterable[dict[str, Any]]:
    """The training series in the order of its steps."""
    return connection.execute(select(metrics.c.point).where(metrics.c.job == job_id).order_by(metrics.c.step)).scalars()


def snapshot_rows(connection: Connection, job_id: str) -> list[Row[Any]]:
    """The snapshots in the order of n."""
    found = select(snapshots).where(snapshots.c.job == job_id).order_by(snapshots.c.n)
    return list(connection.execute(found))


def sent(row: Row[Any]) -> dict[str, Any]:
    """The job as it is sent."""
    return {
        "id": row.id,
        "object": "job",
        "name": row.name,
        "status": row.status,
        "checkpoint": row.checkpoint,
        "dataset": row.dataset,
        "method": row.method,
        "recipe": row.recipe,
        "classes": row.classes,
        "seed": row.seed,
        "flatness": row.flatness,
        "swag": row.swag,
        "metadata": row.metadata,
        "progress": row.progress,
        "result": row.result,
        "error": row.error,
        "attempts": row.attempts,
        "created_at": rfc3339(row.created_at),
        "started_at": rfc3339(row.started_at),
        "finished_at": rfc3339(row.finished_at),
    }


def snapshot_sent(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "snapshot",
        "job": row.job,
        "n": row.n,
        "step": row.step,
        "metrics": row.metrics,
        "bytes": row.bytes,
        "sha256": row.sha256,
        "created_at": rfc3339(row.created_at),
    }
