"""What a monitor asks about all tenants together: jobs by status, what waits and for how long, speed, bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from sqlalchemy import ColumnElement, Float, Select, Table, case, cast, func, select

from wbar.states import JobStatus, UploadStatus
from wbar_store.database import Database, now
from wbar_store.tables import blobs, checkpoints, datasets, jobs


@dataclass(frozen=True)
class Counts:
    """The counts of one moment.

    jobs: by status. uploads: checkpoints and datasets together, by status.
    oldest_job, oldest_upload: seconds that the oldest one has waited that no worker has taken; 0 where none waits.
    expired_leases: running jobs whose worker is silent, which the sweeper has not queued again yet.
    attempts: of all jobs that are kept.
    images_per_second: of all running jobs together.
    stored_bytes: of all blobs.
    """

    jobs: Mapping[str, int]
    uploads: Mapping[str, int]
    oldest_job: float
    oldest_upload: float
    expired_leases: int
    attempts: int
    images_per_second: float
    stored_bytes: int


def count(database: Database) -> Counts:
    """Count, in one block of `read()`."""
    running, speed = jobs.c.status == "running", cast(jobs.c.progress["images_per_second"].as_string(), Float)
    silent = func.sum(case((jobs.c.lease_until < now(), 1), else_=0))
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
        )


def _by_status(table: Table) -> Select[Any]:
    return select(table.c.status, func.count().label("n")).group_by(table.c.status)


def _longest_wait(table: Table, waits: ColumnElement[bool]) -> Select[Any]:
    return select(now() - func.min(table.c.created_at)).where(waits)
