"""Lists of jobs: which are kept, in what order, and where a page begins.

The numbers that a list is sorted by stand in columns with an index each, beside the tenant and the id: a page costs the
same at any depth. Jobs without the number come last in both directions, by creation.
"""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Column, Connection, Select, func, select, tuple_

from wbar.checkpoints import Fault
from wbar.jobs import Progress
from wbar.results import JobResult, Verdict
from wbar.states import JobStatus
from wbar_store.database import Tenant
from wbar_store.ids import is_id
from wbar_store.repository import PageRequest, Record, wrong_after
from wbar_store.tables import job_metadata, jobs

OrderBy = Literal[
    "created_at",
    "finished_at",
    "result.accuracy",
    "result.loss",
    "result.accuracy_gain",
    "result.loss_gain",
    "result.accuracy_gain_over_control",
    "result.loss_gain_over_control",
]
COLUMNS: dict[str, Column[Any]] = {
    "finished_at": jobs.c.finished_at,
    "result.accuracy": jobs.c.result_accuracy,
    "result.loss": jobs.c.result_loss,
    "result.accuracy_gain": jobs.c.result_accuracy_gain,
    "result.loss_gain": jobs.c.result_loss_gain,
    "result.accuracy_gain_over_control": jobs.c.result_accuracy_gain_over_control,
    "result.loss_gain_over_control": jobs.c.result_loss_gain_over_control,
}


@dataclass(frozen=True)
class Filters:
    """The conditions on a list of jobs, all of which a job must meet.

    statuses: any of them. name: a part of it, whatever the case. metadata: pairs that a job must all have.
    """

    statuses: tuple[JobStatus, ...] = ()
    checkpoint: str | None = None
    dataset: str | None = None
    name: str | None = None
    verdict: Verdict | None = None
    metadata: tuple[tuple[str, str], ...] = ()


class JobSummary(Record):
    """A row of a list: what `jobs` holds beside the spec and the whole result, which cost ten times as much to read."""

    name: str | None
    status: JobStatus
    checkpoint: str
    dataset: str
    metadata: dict[str, str]
    progress: Progress | None
    error: Fault | None
    verdict: Verdict | None
    result_accuracy: float | None
    result_loss: float | None
    result_accuracy_gain: float | None
    result_loss_gain: float | None
    result_accuracy_gain_over_control: float | None
    result_loss_gain_over_control: float | None
    priority: int
    worker: str | None
    stop: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None


def kept(tenant: Tenant, filters: Filters) -> Select[Any]:
    """Return the query for the tenant's jobs that meet the conditions, in no order."""
    rows = tenant.select(jobs)
    if filters.statuses:
        rows = rows.where(jobs.c.status.in_(filters.statuses))
    for column, value in (
        (jobs.c.checkpoint, filters.checkpoint),
        (jobs.c.dataset, filters.dataset),
        (jobs.c.verdict, filters.verdict),
    ):
        if value is not None:
            rows = rows.where(column == value)
    if filters.name is not None:
        rows = rows.where(func.lower(jobs.c.name).contains(filters.name.lower(), autoescape=True))
    for key, value in filters.metadata:
        tagged = select(job_metadata.c.job).where(job_metadata.c.key == key, job_metadata.c.value == value)
        rows = rows.where(jobs.c.id.in_(tagged))
    return rows


def sorted_rows(
    connection: Connection, tenant: Tenant, rows: Select[Any], request: PageRequest, order_by: OrderBy
) -> list[Any]:
    """Return one row more than the page that is asked for has, where there are as many. Raises ValidationFailed for `after`."""
    column, ascending, rest = COLUMNS[order_by], request.order == "asc", rows
    key = tuple_(column, jobs.c.id)
    begin: Any = None
    if request.after is not None:
        row = tenant.row(connection, jobs, request.after) if is_id("job", request.after) else None
        if row is None:
            raise wrong_after(
                f"there is no job {request.after!r}: give a page's `last_id`, and begin anew where that job was deleted"
            )
        begin = row._mapping[column.name]
        after = tuple_(begin, request.after)
        rows = rows.where(key > after if ascending else key < after)
        if begin is None:
            rest = rest.where(jobs.c.id > request.after if ascending else jobs.c.id < request.after)
    found: list[Any] = []
    wanted = request.limit + 1
    if request.after is None or begin is not None:
        order = (column, jobs.c.id) if ascending else (column.desc(), jobs.c.id.desc())
        found = [*connection.execute(rows.where(column.is_not(None)).order_by(*order).limit(wanted))]
    if len(found) < wanted:
        order_of_rest = jobs.c.id if ascending else jobs.c.id.desc()
        without = rest.where(column.is_(None)).order_by(order_of_rest).limit(wanted - len(found))
        found += connection.execute(without)
    return found


def sort_values(result: JobResult) -> dict[str, object]:
    """Return the columns of a job that its result decides, for lists to filter and sort by. Gains are positive where w̄ won."""
    start, averaged, control = result.metrics.start, result.metrics.averaged, result.metrics.control
    return {
        "verdict": result.verdict,
        "result_accuracy": averaged.accuracy,
        "result_loss": averaged.loss,
        "result_accuracy_gain": averaged.accuracy - start.accuracy,
        "result_loss_gain": start.loss - averaged.loss,
        "result_accuracy_gain_over_control": control and averaged.accuracy - control.accuracy,
        "result_loss_gain_over_control": control and control.loss - averaged.loss,
    }
