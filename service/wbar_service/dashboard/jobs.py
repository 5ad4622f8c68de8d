"""The pages of one job, and what is done to jobs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from wbar.errors import Conflict, NotFound
from wbar.measures import measure_in
from wbar.predictions import MOST_BYTES, MOST_IMAGES
from wbar.results import Comparisons, JobResult
from wbar.states import TERMINAL
from wbar_service.auth import StoreOf, TenantOf
from wbar_service.dashboard.options import options_of
from wbar_service.dashboard.pages import page
from wbar_service.dashboard.route import PageRoute, is_fragment
from wbar_store.database import Tenant
from wbar_store.events import EventRecord
from wbar_store.job_records import JobRecord
from wbar_store.repository import PageRequest
from wbar_store.store import Store

router = APIRouter(include_in_schema=False, route_class=PageRoute)

MOST_AT_ONCE = 50
LOG_LINES = 200
# Tasks whose networks answer about single pictures, and how much of the answers a page shows.
ASKED = {
    "classification": "top=3",
    "multilabel": "top=3",
    "attributes": "top=1",
    "regression": "",
    "segmentation": "",
    "detection": "score=0.5",
}


@router.get("/jobs/confirm")
def confirm(
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    action: Annotated[str, Query(pattern="^(cancel|delete)$")],
    job: Annotated[list[str] | None, Query(max_length=MOST_AT_ONCE)] = None,
) -> Response:
    """Ask before several jobs are cancelled or deleted; those for which it is too early or too late are named."""
    found = [store.jobs.get(tenant, one) for one in dict.fromkeys(job or ())]
    able = [one for one in found if (one.status in TERMINAL) == (action == "delete")]
    unable = [one for one in found if one not in able]
    return page(request, "confirm.html", action=action, able=able, unable=unable)


@router.post("/jobs/act")
def act_on_several(
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    action: Annotated[str, Form(pattern="^(cancel|delete)$")],
    job: Annotated[list[str], Form(max_length=MOST_AT_ONCE)],
) -> Response:
    """Cancel or delete the jobs that were confirmed. One that has gone meanwhile is no fault; one that must stay is said."""
    refused = []
    for one in job:
        try:
            _ACTIONS[action](store, tenant, one)
        except NotFound:
            continue
        except Conflict as problem:
            refused.append(problem.detail)
    if refused:
        return page(request, "problem.html", 409, problem=Conflict("; ".join(refused)))
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


@router.get("/jobs/{job_id}/ask")
def show_asking(job_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Show the form that asks the job's networks about pictures, as a part of a page; nothing where none can be asked."""
    job = store.jobs.get(tenant, job_id)
    return page(request, "_ask.html", job=job, **_asking(store, tenant, job))


def _asking(store: Store, tenant: Tenant, job: JobRecord) -> dict[str, Any]:
    """Return the networks that can be asked, by their names in the API, and how much one question takes."""
    networks = list[tuple[str, str]]()
    task = store.datasets.tasks_for(tenant, [job.id]).get(job.id)
    if task in ASKED and job.weights is not None and not job.expired_at:
        networks = [("averaged", Comparisons.label("averaged")), ("start", Comparisons.label("start"))]
        if store.jobs.file(job, "control") is not None:
            networks.append(("control", "the control"))
        if store.jobs.file(job, "swag") is not None:
            networks.append(("swag", "networks drawn around the snapshots (SWAG)"))
        networks += [(f"snapshot_{one.n}", f"snapshot {one.n}") for one in store.snapshots.all(tenant, job.id)]
    return {
        "networks": networks,
        "most_images": MOST_IMAGES,
        "most_bytes": MOST_BYTES,
        "asked": ASKED.get(task or "", ""),
    }


def _job_values(store: Store, tenant: Tenant, job: JobRecord) -> dict[str, Any]:
    log = store.events.page(tenant, job.id, PageRequest(LOG_LINES, None, "desc"), ("status", "log", "snapshot"))
    latest = store.events.page(tenant, job.id, PageRequest(1, None, "desc")).records
    if job.status not in TERMINAL and latest and latest[0].type == "status":
        job = store.jobs.get(tenant, job.id)  # it may have ended since it was read, and no event follows that one
    curve = store.events.page(tenant, job.id, PageRequest(100, None, "asc"), ("metrics",)).records
    return {
        "job": job,
        "shown": job.to_api(),
        "measure": measure_in(store.datasets.tasks_for(tenant, [job.id]).get(job.id)),
        "ended": job.status in TERMINAL,
        "place": store.queue.positions(tenant).get(job.id) if job.status == "queued" else None,
        "replicas": store.jobs.replicas(tenant, job) or [],
        "snapshots": store.snapshots.all(tenant, job.id),
        "log": [EventRecord.to_api(one) for one in log.records],
        "fault": None,
        "last_event": EventRecord.to_api(latest[0]).id if latest else "",
        "curve": [one.data for one in curve],
        # Of other methods the average is made of more than the snapshots, or of fewer.
        "plain_mean": job.spec.method.type in ("cyclic_swa", "swa")
        and not getattr(job.spec.method, "include_start", False),
        "anew": job.spec.recipe.batch_norm in ("recompute", "consistent"),
        "options": options_of(job),
        **_asking(store, tenant, job),
        "rows": comparisons_of(job.result) if job.result else [],
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
    ece: float | None
    mean_iou: float | None
    ap50: float | None
    mask_ap: float | None
    accuracy_gain: float | None
    loss_gain: float | None
    delivered: bool


def comparisons_of(result: JobResult) -> list[ComparisonRow]:
    """Return the comparisons of a result, in the order of the report."""
    start = result.metrics.start
    return [
        ComparisonRow(
            name, Comparisons.label(name), score.accuracy, score.loss, score.ece, score.mean_iou,
            None if score.boxes is None else score.boxes.ap50,
            None if score.masks is None else score.masks.ap,
            None if name == "start" else score.accuracy - start.accuracy,
            None if name == "start" else start.loss - score.loss,
            name == result.delivered,
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
