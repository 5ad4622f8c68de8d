"""Attempts at jobs: how one begins, what it may write, and how it ends. A claim is a compare-and-set that raises the attempt
number, the fence; every later write carries the fence and changes nothing once another attempt, a cancel or the sweeper has
moved the row on.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import Connection, Row, case, delete, func, insert, select, update

from wbar.checkpoints import Fault
from wbar.errors import AttemptsExhausted, TimeLimit
from wbar.jobs import Progress
from wbar.results import JobResult
from wbar.scores import Score
from wbar.spec import JobSpec
from wbar.states import JobStatus, sources
from wbar_store import outbox, replica_slots, study_slots
from wbar_store.claims import Claim, holds, of_running
from wbar_store.counters import Counters
from wbar_store.database import Database, Tenant, now
from wbar_store.events import Events
from wbar_store.job_lists import sort_values
from wbar_store.job_records import FileName, JobRecord
from wbar_store.jobs import Jobs
from wbar_store.tables import events, job_files, jobs, metrics, snapshots

MAX_CRASHES = 3  # attempts whose own process failed, without progress between them
MAX_KILLED = 10  # attempts that something else ended, alike: their worker died, or a signal came from outside
FURTHER = 0.01  # of all steps: an attempt that came so much further than any before has got further


@dataclass(frozen=True)
class ResultBlobs:
    """The files of an ended job: the weights in both formats, the report where it could be drawn, the losses of images.

    averaged, averaged_pytorch: w̄, where `weights` and `pytorch` are the start.
    files: the others that it has, by what they are.
    """

    weights: str
    pytorch: str
    report: str | None
    losses: str | None = None
    averaged: str | None = None
    averaged_pytorch: str | None = None
    files: Mapping[FileName, str] = field(default_factory=dict)


class Attempts:
    """The attempts at the jobs of all tenants. Every write but the claim carries the claim."""

    def __init__(self, database: Database, jobs_: Jobs, events_: Events) -> None:
        self.database, self._jobs, self._events = database, jobs_, events_
        self._counters = Counters(database)

    def claim(self, job_id: str, lease_seconds: float, worker: str | None = None) -> JobRecord | None:
        """Claim a queued job: it runs, its attempt number is raised, its lease is set.

        worker: the name of the one that claims it.

        None if it is not queued, if the others of its study have all of the study's slots, or if it waits for replicas.
        """
        with self.database.write() as connection:
            if not study_slots.has_room(connection, job_id):
                return None
            replica_slots.lock_joining(connection, job_id)
            row = connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.status.in_(sources("running")), ~replica_slots.WAITS_FOR_REPLICAS)
                .values(
                    status="running",
                    attempts=jobs.c.attempts + 1,
                    lease_until=now() + lease_seconds,
                    worker=worker,
                    started_at=func.coalesce(jobs.c.started_at, now()),
                )
                .returning(*jobs.c)
            ).first()
            if row is None:
                return None
            claimed = JobRecord.of(row)
            self._events.append(job_id, "status", {"status": "running", "attempt": claimed.attempts})
            outbox.job_moved(connection, job_id)
        return claimed

    def heartbeat(
        self,
        claim: Claim,
        lease_seconds: float,
        progress: Progress | None,
        event: bool = False,
        ran: float = 0.0,
        limit: float | None = None,
    ) -> Literal["pause", "finish", "gone"] | None:
        """Write the progress, renew the lease, and return why to stop, or None to keep going.

        `gone`: the fence is stale, or the job has just failed for having run longer than its request or the operator
        allows.

        event: whether the progress is an event too.
        ran: seconds that the attempt ran since the last heartbeat; they add up over the attempts.
        limit: seconds that the operator allows a job.
        """
        values: dict[str, object] = {"lease_until": now() + lease_seconds, "ran_seconds": jobs.c.ran_seconds + ran}
        if progress is not None:
            values["progress"] = progress.model_dump()
        beat = of_running(claim).values(**values).returning(jobs.c.stop, jobs.c.ran_seconds, jobs.c.max_seconds)
        with self.database.write(durable=False) as connection:
            row = connection.execute(beat).first()
            if row is None:
                return "gone"
            if event and progress is not None:
                self._events.append(claim.id, "progress", progress.model_dump())
            most = min(row.max_seconds or math.inf, limit or math.inf)
            if row.ran_seconds > most:
                message = f"the job ran for {most:g} s, which is its limit; the snapshots made before are kept"
                self.fail(claim, Fault(code=TimeLimit.code, message=message))
                return "gone"
        asked: Literal["pause", "finish"] | None = row.stop
        return asked

    def log(self, claim: Claim, level: str, message: str) -> bool:
        """Append a `log` event. False if the fence is stale."""
        return self._tell(claim, "log", {"level": level, "message": message})

    def averaged(self, claim: Claim, n: int, score: Score) -> bool:
        """Append a point of the curve, as a `metrics` event, unless an earlier attempt did. False if the fence is stale."""
        data = {"n": n, **score.model_dump()}
        told = select(events.c.data).where(events.c.job == claim.id, events.c.type == "metrics")
        with self.database.write() as connection:
            if not holds(connection, claim):
                return False
            if data not in connection.execute(told).scalars().all():
                self._events.append(claim.id, "metrics", data)
        return True

    def _tell(self, claim: Claim, kind: Literal["log"], data: Mapping[str, object]) -> bool:
        with self.database.write() as connection:
            if not holds(connection, claim):
                return False
            self._events.append(claim.id, kind, data)
        return True

    def got_further(self, claim: Claim, step: int) -> None:
        """Forgive the lost attempts so far, if this one saved a state on its host that is beyond all states before it.

        Where a host's files do not survive it, each attempt begins at the last phase end: saving there is no progress.
        """
        values = {"lost_attempts": 0, "crashes": 0, "furthest_step": step}
        with self.database.write(durable=False) as connection:
            connection.execute(of_running(claim).where(jobs.c.furthest_step < step).values(**values))

    def save_state(self, claim: Claim, sha256: str, step: int) -> str | None:
        """Point to the latest resumable state, whose blob the caller holds meanwhile; returns the blob it replaces.

        The lost attempts so far are forgiven.
        """
        with self.database.write() as connection:
            old = connection.execute(select(jobs.c.state).where(jobs.c.id == claim.id)).scalar()
            # No comparison of steps: the fence keeps late writers out, and a job that started over counts from zero again.
            values: dict[str, object] = {"state": sha256, "state_step": step, "lost_attempts": 0, "crashes": 0}
            values["furthest_step"] = case((jobs.c.furthest_step < step, step), else_=jobs.c.furthest_step)
            moved = connection.execute(of_running(claim).values(**values)).rowcount
        return old if moved and old != sha256 else None

    def succeed(self, claim: Claim, result: JobResult, blobs: ResultBlobs, progress: Progress | None) -> bool:
        """End the job with its result, whose blobs the caller holds meanwhile. False if the fence is stale."""
        values: dict[str, object] = {
            "weights": blobs.weights,
            "weights_pytorch": blobs.pytorch,
            "averaged": blobs.averaged,
            "averaged_pytorch": blobs.averaged_pytorch,
            "report": blobs.report,
            "losses": blobs.losses,
            "result": result.model_dump(mode="json"),
            **sort_values(result),
        }
        if progress is not None:
            values["progress"] = progress.model_dump()
        with self.database.write() as connection:
            if not self._jobs.move(claim.id, "succeeded", claim, **values):
                return False
            spec = connection.execute(select(jobs.c.spec).where(jobs.c.id == claim.id)).scalar_one()
            files = {**blobs.files, **_control_of(connection, spec.get("replicas"))}
            if files:
                rows = [{"job": claim.id, "name": name, "sha256": sha256} for name, sha256 in files.items()]
                connection.execute(insert(job_files), rows)
            # Rows of a run that started over, where this one was finished before it had made as many again.
            made = len(result.curve) - bool(spec["method"].get("include_start"))
            connection.execute(delete(snapshots).where(snapshots.c.job == claim.id, snapshots.c.n > made))
        return True

    def fail(self, claim: Claim, fault: Fault) -> bool:
        """End the job with a fault. False if the fence is stale."""
        return self._jobs.move(claim.id, "failed", claim, error=fault.model_dump(mode="json"))

    def yield_back(self, claim: Claim, target: Literal["paused", "queued"]) -> bool:
        """Give a stopped job back with its state saved: `paused` as asked, or `queued` when draining.

        A pause that was asked for meanwhile is kept: the job is then `paused` in both cases. False if the fence is stale.
        """
        with self.database.write() as connection:
            row = connection.execute(of_running(claim).values(attempts=claim.attempt).returning(jobs.c.stop)).first()
            if row is None:
                return False
            return self._jobs.move(claim.id, "paused" if row.stop == "pause" else target, claim, notified_at=None)

    def lose(self, claim: Claim, why: str, crashed: bool = False) -> JobStatus | None:
        """Queue the job again after its attempt died, or fail it after too many in a row that got no further.

        crashed: whether the attempt's own process failed, by an error or by a signal of its own making. What ends it from
            outside is rarely the job's fault, and is borne longer.

        Returns the new status; None if the fence is stale.
        """
        with self.database.write() as connection:
            row = connection.execute(of_running(claim).values(attempts=claim.attempt).returning(*jobs.c)).first()
            if row is None:
                return None
            forgiven, furthest = _further(row)
            crashes = (0 if forgiven else row.crashes) + crashed
            killed = (0 if forgiven else row.lost_attempts) + (not crashed)
            counts = {"crashes": crashes, "lost_attempts": killed, "furthest_step": furthest}
            if crashes < MAX_CRASHES and killed < MAX_KILLED:
                message = f"attempt {claim.attempt} was lost: {why}"
                self._events.append(claim.id, "log", {"level": "warning", "message": message})
                target: JobStatus = "paused" if row.stop == "pause" else "queued"
                self._jobs.move(claim.id, target, claim, notified_at=None, **counts)
                return target
            fault = Fault(
                code=AttemptsExhausted.code,
                message=f"{crashes + killed} attempts in a row were lost without getting further; the last one: {why}",
            )
            self._jobs.move(claim.id, "failed", claim, error=fault.model_dump(mode="json"), **counts)
        return "failed"

    def retry_in_smaller_parts(self, claim: Claim, why: str) -> bool:
        """Queue a job that ran out of memory again, once, with every batch in twice as many parts.

        The global batch stays; the job starts over, since its weights are a function of the parts. False if it was tried
        before, if the parts cannot be smaller, or if the fence is stale.
        """
        with self.database.write() as connection:
            row = connection.execute(of_running(claim).values(attempts=claim.attempt).returning(*jobs.c)).first()
            if row is None or row.memory_retries:
                return False
            spec = JobSpec.model_validate(row.spec)
            if spec.meetings is not None and replica_slots.snapshots_of(connection, [claim.id])[claim.id]:
                return False  # others may have met it, and it would come to the meeting with other weights
            recipe = spec.recipe
            parts = 2 * recipe.accumulate
            if (
                not spec.trains
                or not isinstance(recipe.batch_size, int)
                or recipe.batch_size < 2 * recipe.devices * parts
            ):
                return False
            smaller = spec.model_copy(update={"recipe": recipe.model_copy(update={"accumulate": parts})})
            message = (
                f"{why}: the job starts over with its batches of {recipe.batch_size} in {parts} parts (recipe.accumulate), "
                "which need less memory and add up to the same batch"
            )
            self._events.append(claim.id, "log", {"level": "warning", "message": message})
            # It is another run from here on: what was recorded of this one would stand between its points.
            for table in (metrics, snapshots):
                connection.execute(delete(table).where(table.c.job == claim.id))
            fresh = {"state": None, "state_step": None, "furthest_step": 0, "crashes": 0, "lost_attempts": 0}
            target: JobStatus = "paused" if row.stop == "pause" else "queued"
            values = {"spec": smaller.document(), "memory_retries": 1, "notified_at": None, **fresh}
            moved = self._jobs.move(claim.id, target, claim, **values)
            # What there was to finish is gone with the first run.
            connection.execute(update(jobs).where(jobs.c.id == claim.id).values(stop=None))
            return moved

    # What the sweeper and `wbar up` do.

    def expired(self) -> list[tuple[Tenant, Claim]]:
        """Return the claims of running jobs whose lease has run out, each with the job's tenant."""
        silent = (jobs.c.status == "running") & (jobs.c.lease_until < now())
        query = select(jobs.c.tenant, jobs.c.id, jobs.c.attempts).where(silent)
        with self.database.read() as connection:
            return [(Tenant(row.tenant), Claim(row.id, row.attempts)) for row in connection.execute(query)]

    def expire(self, claim: Claim, why: str) -> JobStatus | None:
        """Settle an attempt whose lease has run out, and count it. Returns as `lose`."""
        with self.database.write():
            moved = self.lose(claim, why)
            if moved is not None:
                self._counters.add("lease_expiries", moved)
        return moved

    def expire_leases(self) -> None:
        """End every lease: the workers of all running jobs are known to be gone."""
        with self.database.write() as connection:
            connection.execute(update(jobs).where(jobs.c.status == "running").values(lease_until=0.0))


def _control_of(connection: Connection, replicas: list[str] | None) -> dict[FileName, str]:
    """Return the control's weights of a job that joins replicas: the first has trained it, and may be gone before the job."""
    query = select(job_files.c.sha256).where(job_files.c.job == (replicas or [""])[0], job_files.c.name == "control")
    control = connection.execute(query).scalar() if replicas else None
    return {"control": control} if control else {}


def _further(row: Row[tuple[object, ...]]) -> tuple[bool, int]:
    """Return whether the attempt came further than any before it, by its last progress, and the furthest step so far."""
    progress = row.progress if isinstance(row.progress, dict) else {}
    step, steps = int(progress.get("step", 0)), int(progress.get("total_steps", 0))
    return step >= row.furthest_step + max(1.0, FURTHER * steps), max(step, row.furthest_step)
