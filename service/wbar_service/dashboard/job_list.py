"""The list of jobs: filtered, sorted, with the columns that the browser remembers, looked up again while it is seen."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from wbar.errors import ValidationFailed
from wbar.measures import measure_in
from wbar.results import Verdict
from wbar.states import JobStatus
from wbar.text import fault_of
from wbar_service.auth import StoreOf, TenantOf
from wbar_service.dashboard.pages import as_page, page, rendered
from wbar_service.dashboard.route import PageRoute, is_fragment
from wbar_store.database import Tenant
from wbar_store.job_lists import Filters, JobSummary, OrderBy
from wbar_store.repository import PageRequest
from wbar_store.store import Store

router = APIRouter(include_in_schema=False, route_class=PageRoute)

COLUMNS = {
    "checkpoint": "Checkpoint",
    "dataset": "Dataset",
    "accuracy": "Score",
    "loss": "Loss",
    "accuracy_gain": "Score vs start",
    "loss_gain": "Loss vs start",
    "accuracy_control": "Score vs control",
    "loss_control": "Loss vs control",
    "metadata": "Metadata",
    "priority": "Priority",
    "created": "Created",
    "finished": "Finished",
}
EXPLAINED = {
    "accuracy": "score",
    "loss": "loss",
    "accuracy_gain": "vs_start",
    "loss_gain": "vs_start",
    "accuracy_control": "vs_control",
    "loss_control": "vs_control",
    "priority": "priority",
}
SHOWN = ("accuracy", "accuracy_gain", "loss_gain", "accuracy_control", "loss_control", "created")
SORTED_BY: dict[str, OrderBy] = {
    "accuracy": "result.accuracy",
    "loss": "result.loss",
    "accuracy_gain": "result.accuracy_gain",
    "loss_gain": "result.loss_gain",
    "accuracy_control": "result.accuracy_gain_over_control",
    "loss_control": "result.loss_gain_over_control",
    "created": "created_at",
    "finished": "finished_at",
}
COLUMNS_COOKIE = "wbar_columns"
ROWS = 50
FRESH_SECONDS = 1.0  # for which the rows of one view are shown to everybody of the tenant who looks at it


@dataclass(frozen=True)
class ListView:
    """A view of the list, as its address says it: every link keeps the rest of it."""

    statuses: tuple[JobStatus, ...]
    name: str
    checkpoint: str
    dataset: str
    verdict: str
    metadata: str
    order_by: OrderBy
    order: Literal["asc", "desc"]
    after: str | None
    columns: tuple[str, ...]

    @property
    def filters(self) -> Filters:
        """The conditions on the jobs."""
        key, _, value = self.metadata.partition("=")
        return Filters(
            self.statuses,
            self.checkpoint or None,
            self.dataset or None,
            self.name or None,
            next((one for one in get_args(Verdict) if one == self.verdict), None),
            ((key, value),) if self.metadata else (),
        )

    @property
    def filtered(self) -> bool:
        """Whether there is any condition."""
        return self.filters != Filters()

    def link(self, **changes: str | None) -> str:
        """Return the address with some of it changed, from its first page on. None removes."""
        query: dict[str, object] = {
            "status": list(self.statuses), "name": self.name, "checkpoint": self.checkpoint, "dataset": self.dataset,
            "verdict": self.verdict, "metadata": self.metadata,
            "order_by": self.order_by if self.order_by != "created_at" else "",
            "order": self.order if self.order != "desc" else "",
        }  # fmt: skip
        kept = {name: value for name, value in {**query, **changes}.items() if value}
        return "/?" + urlencode(kept, doseq=True) if kept else "/"


@router.get("/")
def show_jobs(
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    status: Annotated[list[str] | None, Query(max_length=10)] = None,
    name: Annotated[str, Query(max_length=256)] = "",
    checkpoint: Annotated[str, Query(max_length=64)] = "",
    dataset: Annotated[str, Query(max_length=64)] = "",
    verdict: Annotated[str, Query(pattern="^(better|same|worse)?$")] = "",
    metadata: Annotated[str, Query(max_length=700)] = "",
    order_by: OrderBy = "created_at",
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=64)] = None,
    columns: Annotated[list[str] | None, Query(max_length=20)] = None,
) -> Response:
    """Show the tenant's jobs; as a fragment the table alone."""
    for text in (name, checkpoint, dataset, metadata):
        if fault := fault_of(text):
            raise ValidationFailed(fault)
    statuses = tuple(one for one in get_args(JobStatus) if one in (status or ()))
    chosen = _columns(request, columns)
    view = ListView(statuses, name, checkpoint, dataset, verdict, metadata, order_by, order, after, chosen)
    if is_fragment(request):
        return as_page(_rows_lately(store, tenant, view, int(time.monotonic() / FRESH_SECONDS)))
    answer = page(
        request,
        "jobs.html",
        rows=_rows(store, tenant, view),
        view=view,
        statuses=get_args(JobStatus),
        all_columns=COLUMNS,
    )
    if columns is not None:
        answer.set_cookie(COLUMNS_COOKIE, ".".join(chosen), max_age=365 * 86400, samesite="strict", httponly=True)
    return answer


def _rows(store: Store, tenant: Tenant, view: ListView) -> str:
    """Return the table of the jobs that the view shows."""
    found = store.jobs.summaries(tenant, PageRequest(ROWS, view.after, view.order), view.filters, view.order_by)
    tasks = store.datasets.tasks_for(tenant, [job.id for job in found.records])
    return rendered(
        "_job_rows.html",
        jobs=found,
        view=view,
        places=store.queue.positions(tenant) if any(job.status == "queued" for job in found.records) else {},
        counts=store.jobs.counts(tenant),
        statuses=get_args(JobStatus),
        all_columns=COLUMNS,
        sorted_by=SORTED_BY,
        explained=EXPLAINED,
        measures={job.id: measure_in(tasks.get(job.id)) for job in found.records},
        names=_names(store, tenant, found.records, view.columns),
    )


def _names(store: Store, tenant: Tenant, jobs: Sequence[JobSummary], columns: tuple[str, ...]) -> dict[str, str]:
    """Return the names of the checkpoints and datasets that the columns show, by id; deleted ones have none."""
    found: dict[str, str] = {}
    if "checkpoint" in columns:
        found |= store.checkpoints.names(tenant, {job.checkpoint for job in jobs})
    if "dataset" in columns:
        found |= store.datasets.names(tenant, {job.dataset for job in jobs})
    return found


@lru_cache(maxsize=64)
def _rows_lately(store: Store, tenant: Tenant, view: ListView, _moment: int) -> str:
    # Many pages that show one list cost as much as one of them.
    return _rows(store, tenant, view)


def _columns(request: Request, asked: Sequence[str] | None) -> tuple[str, ...]:
    """Return the columns to show: those that are asked for, else those that the browser remembers."""
    remembered = request.cookies.get(COLUMNS_COOKIE)
    names = asked if asked is not None else remembered.split(".") if remembered is not None else SHOWN
    return tuple(name for name in COLUMNS if name in names)
