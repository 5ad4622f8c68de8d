"""What a monitor asks about all tenants together: jobs by status, what waits and for how long, speed, bytes, webhooks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from sqlalchemy import ColumnElement, Float, Select, Table, case, cast, func, select

from wbar.states import JobStatus, UploadStatus
from wbar_store.database import Database, now
from wbar_store.outbox import RETRY_SECONDS
from wbar_store.tables import blobs, checkpoints, datasets, jobs, webhook_deliveries


@dataclass(frozen=True)
class Counts:
    """The counts of one moment.

    jobs: by status. uploads: checkpoints and datasets together, by status.
    oldest_job, oldest_upload: seconds that the oldest one has waited that no worker has taken; 0 where none waits.
    expired_leases: running jobs whose worker is silent, which the sweeper has not queued again yet.
    attempts: of all jobs that are kept.
    images_per_second: of all running jobs together.
    stored_bytes: of all blobs.
    pending_deliveries: events that no receiver of a webhook has taken yet, those that are tried again included.
    oldest_delivery: seconds since the oldest of them happened, or was asked for again; 0 where there is none.
    """

    jobs: Mapping[str, int]
    uploads: Mapping[str, int]
    oldest_job: float
    oldest_upload: float
    expired_leases: int
    attempts: int
    images_per_second: float
    stored_bytes: int
    pending_deliveries: int
    oldest_delivery: float


def count(database: Database) -> Counts:
    """Count, in one block of `read()`."""
    running, speed = jobs.c.status == "running", cast(jobs.c.progress["images_per_second"].as_string(), Float)
    silent = func.sum(case((jobs.c.lease_until < now(), 1), else_=0))
    pending = webhook_deliveries.c.next_attempt_at.is_not(None)  # by its index: those that have ended are many more
    due_since = webhook_deliveries.c.retry_until - RETRY_SECONDS
    uploads = dict.fromkeys(get_args(UploadStatus), 0)
    with database.read() as connection:

        def scalar(query: Select[Any]) -> float:
            return float(connection.execute(query).scalar() or 0)

        for table in (checkpoints, datasets):
            for row in connection.execute(_by_status(table)):
                if row.status in uploads:  # not a deleted one that is hidden for its jobs
                    uploads[row.status] += row.n
        return Counts(
            jobs=dict.fromkeys(get_args(JobStatus), 0)
            | {row.status: row.n for row in connection.execute(_by_status(jobs))},
            uploads=uploads,
            oldest_job=scalar(_longest_wait(jobs, jobs.c.status == "queued")),
            oldest_upload=max(
                scalar(_longest_wait(table, (table.c.status == "processing") & table.c.lease_until.is_(None)))
                for table in (checkpoints, datasets)
            ),
            expired_leases=int(scalar(select(silent).where(running))),
            attempts=int(scalar(select(func.sum(jobs.c.attempts)))),
            images_per_second=scalar(select(func.sum(speed)).where(running)),
            stored_bytes=int(scalar(select(func.sum(blobs.c.bytes)))),
            pending_deliveries=int(scalar(select(func.count(webhook_deliveries.c.next_attempt_at)).where(pending))),
            oldest_delivery=scalar(select(now() - func.min(due_since)).where(pending)),
        )


def _by_status(table: Table) -> Select[Any]:
    return select(table.c.status, func.count().label("n")).group_by(table.c.status)


def _longest_wait(table: Table, waits: ColumnElement[bool]) -> Select[Any]:
    return select(now() - func.min(table.c.created_at)).where(waits)
