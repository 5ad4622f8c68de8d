"""The pages of jobs: the list with its filters, one job, and what is done to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from wbar.errors import Conflict, NotFound, ValidationFailed
from wbar.results import VERDICTS, Comparisons, JobResult, Verdict
from wbar.states import TERMINAL, JobStatus
from wbar.text import fault_of
from wbar_service.auth import StoreOf, TenantOf
from wbar_service.dashboard.options import options_of
from wbar_service.dashboard.pages import page
from wbar_service.dashboard.route import PageRoute, is_fragment
from wbar_store.database import Tenant
from wbar_store.events import EventRecord
from wbar_store.job_lists import Filters, OrderBy
from wbar_store.jobs import JobRecord
from wbar_store.repository import PageRequest
from wbar_store.store import Store

router = APIRouter(include_in_schema=False, route_class=PageRoute)

COLUMNS = {
    "checkpoint": "Checkpoint",
    "dataset": "Dataset",
    "accuracy": "Accuracy",
    "loss": "NLL",
    "accuracy_gain": "Δ accuracy, start",
    "loss_gain": "Δ NLL, start",
    "accuracy_control": "Δ accuracy, control",
    "loss_control": "Δ NLL, control",
    "metadata": "Metadata",
    "priority": "Priority",
    "created": "Created",
    "finished": "Finished",
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
LOG_LINES = 200


@dataclass(frozen=True)
class ListView:
    """What the list shows: the query of its address, as text, so that every link keeps the rest of it."""

    query: dict[str, str | list[str]]
    columns: tuple[str, ...]

    def link(self, **changes: str | None) -> str:
        """Return the address with some of it changed, from its first page on. None removes."""
        kept = {name: value for name, value in {**self.query, "after": None, **changes}.items() if value}
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
    order: Annotated[str, Query(pattern="^(asc|desc)$")] = "desc",
    after: Annotated[str | None, Query(max_length=64)] = None,
    columns: Annotated[list[str] | None, Query(max_length=20)] = None,
) -> Response:
    """Show the tenant's jobs; as a fragment the table alone."""
    for text in (name, checkpoint, dataset, metadata):
        if fault := fault_of(text):
            raise ValidationFailed(fault)
    statuses = tuple(one for one in get_args(JobStatus) if one in (status or ()))
    chosen = _columns(request, columns)
    view = ListView(
        {
            "status": list(statuses), "name": name, "checkpoint": checkpoint, "dataset": dataset, "verdict": verdict,
            "metadata": metadata, "order_by": order_by if order_by != "created_at" else "",
            "order": order if order != "desc" else "", "after": after or "",
        },
        chosen,
    )  # fmt: skip
    key, _, value = metadata.partition("=")
    found = next((one for one in get_args(Verdict) if one == verdict), None)
    filters = Filters(
        statuses, checkpoint or None, dataset or None, name or None, found, ((key, value),) if metadata else ()
    )
    wanted = PageRequest(ROWS, after, "asc" if order == "asc" else "desc")
    rows = store.jobs.summaries(tenant, wanted, filters, order_by)
    places = store.queue.positions(tenant) if any(job.status == "queued" for job in rows.records) else {}
    answer = page(
        request, "_job_rows.html" if is_fragment(request) else "jobs.html",
        jobs=rows, view=view, places=places, counts=store.jobs.counts(tenant), statuses=get_args(JobStatus),
        all_columns=COLUMNS, sorted_by=SORTED_BY, order=order, order_by=order_by, filtered=any(view.query[one] for one in
        ("status", "name", "checkpoint", "dataset", "verdict", "metadata")),
    )  # fmt: skip
    if columns is not None:
        answer.set_cookie(COLUMNS_COOKIE, ".".join(chosen), max_age=365 * 86400, samesite="strict", httponly=True)
    return answer


def _columns(request: Request, asked: Sequence[str] | None) -> tuple[str, ...]:
    """Return the columns to show: those that are asked for, else those that the browser remembers."""
    remembered = request.cookies.get(COLUMNS_COOKIE)
    names = asked if asked is not None else remembered.split(".") if remembered is not None else SHOWN
    return tuple(name for name in COLUMNS if name in names)


@router.get("/jobs/confirm")
def confirm(
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    action: Annotated[str, Query(pattern="^(cancel|delete)$")],
    job: Annotated[list[str] | None, Query(max_length=ROWS)] = None,
) -> Response:
    """Ask before several jobs are cancelled or deleted; those for which it is too early or too late are named."""
    found = [store.jobs.get(tenant, one) for one in dict.fromkeys(job or ())]
    able = [one for one in found if (one.status in TERMINAL) == (action == "delete")]
    unable = [one for one in found if one not in able]
    return page(request, "confirm.html", action=action, able=able, unable=unable)


@router.post("/jobs/act")
def act_on_several(
    store: StoreOf,
    tenant: TenantOf,
    action: Annotated[str, Form(pattern="^(cancel|delete)$")],
    job: Annotated[list[str], Form(max_length=ROWS)],
) -> Response:
    """Cancel or delete the jobs that were confirmed; one that has gone meanwhile is no fault."""
    for one in job:
        try:
            _ACTIONS[action](store, tenant, one)
        except (NotFound, Conflict):
            continue
    return RedirectResponse("/", 303)


def _delete(store: Store, tenant: Tenant, job_id: str) -> None:
    store.blobs.collect(store.jobs.remove(tenant, job_id))


def _resume(store: Store, tenant: Tenant, job_id: str) -> None:
    store.jobs.resume(tenant, job_id)
    store.notify(job_id)


_ACTIONS: dict[str, Callable[[Store, Tenant, str], object]] = {
    "cancel": lambda store, tenant, job_id: store.jobs.cancel(tenant, job_id),
    "pause": lambda store, tenant, job_id: store.jobs.pause(tenant, job_id),
    "finish": lambda store, tenant, job_id: store.jobs.finish(tenant, job_id),
    "resume": _resume,
    "delete": _delete,
}


@router.get("/jobs/{job_id}")
def show_job(job_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Show one job; as a fragment what changes while it runs."""
    job = store.jobs.get(tenant, job_id)
    template = "_job_state.html" if is_fragment(request) else "job.html"
    return page(request, template, **_job_values(store, tenant, job))


def _job_values(store: Store, tenant: Tenant, job: JobRecord) -> dict[str, Any]:
    log = store.events.page(tenant, job.id, PageRequest(LOG_LINES, None, "desc"), ("status", "log", "snapshot"))
    latest = store.events.page(tenant, job.id, PageRequest(1, None, "desc")).records
    curve = store.events.page(tenant, job.id, PageRequest(100, None, "asc"), ("metrics",)).records
    return {
        "job": job,
        "shown": job.to_api(),
        "ended": job.status in TERMINAL,
        "place": store.queue.positions(tenant).get(job.id) if job.status == "queued" else None,
        "snapshots": store.snapshots.all(tenant, job.id),
        "log": [EventRecord.to_api(one) for one in log.records],
        "fault": None,
        "last_event": EventRecord.to_api(latest[0]).id if latest else "",
        "curve": [one.data for one in curve],
        "options": options_of(job),
        "rows": comparisons_of(job.result) if job.result else [],
        "verdicts": VERDICTS,
        "checkpoint": _name(store.checkpoints.get, tenant, job.spec.start.id),
        "dataset": _name(store.datasets.get, tenant, job.spec.dataset.id),
    }


def _name(get: Callable[[Tenant, str], object], tenant: Tenant, object_id: str) -> str | None:
    """Return an object's name; None where it was deleted after the job had begun."""
    try:
        return str(getattr(get(tenant, object_id), "name", ""))
    except NotFound:
        return None


@dataclass(frozen=True)
class ComparisonRow:
    """One row of the table of comparisons. Gains are over the start; delivered: whether it is what a download gives."""

    field: str
    label: str
    accuracy: float
    loss: float
    ece: float
    accuracy_gain: float | None
    loss_gain: float | None
    delivered: bool


def comparisons_of(result: JobResult) -> list[ComparisonRow]:
    """Return the comparisons of a result, in the order of the report."""
    start = result.metrics.start
    delivered = result.selection.delivered if result.selection else "averaged"
    return [
        ComparisonRow(
            name, Comparisons.label(name), score.accuracy, score.loss, score.ece,
            None if name == "start" else score.accuracy - start.accuracy,
            None if name == "start" else start.loss - score.loss,
            name == delivered,
        )
        for name, score in result.metrics.named().items()
    ]  # fmt: skip


@router.post("/jobs/{job_id}/{action}")
def act(job_id: str, action: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Do to one job what its button says, and show it again."""
    if action not in _ACTIONS:
        raise NotFound(f"there is nothing at {request.url.path[:200]}")
    try:
        _ACTIONS[action](store, tenant, job_id)
    except Conflict as problem:
        values = _job_values(store, tenant, store.jobs.get(tenant, job_id))
        return page(request, "job.html", problem.status, **(values | {"fault": problem.detail}))
    return RedirectResponse("/" if action == "delete" else f"/jobs/{job_id}", 303)
