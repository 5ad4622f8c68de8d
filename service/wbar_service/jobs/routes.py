"""The routes of /v1/jobs."""

import csv
import io
from typing import Annotated, Any, Literal, NoReturn

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import Row
from sse_starlette.sse import EventSourceResponse

from wbar.errors import JobNotFinished, NotFound, NoWeights, ValidationFailed
from wbar.jobs import Deleted, Event, EventType, Job, JobRequest, MetricsPoint, Snapshot
from wbar.lists import Page
from wbar.states import JobStatus
from wbar_service.answers import answer
from wbar_service.auth import StoreOf, TenantOf
from wbar_service.creating import IdempotencyKey, fingerprint, once
from wbar_service.downloads import OPENAPI_RESPONSES, blob_response
from wbar_service.jobs.creating import dry_run, gpu_at_hand, resolve
from wbar_service.jobs.stream import job_events
from wbar_service.paging import Paging
from wbar_service.problems import responses
from wbar_service.reading import read
from wbar_store import events
from wbar_store.jobs import Filters, metric_points, sent, snapshot_rows, snapshot_sent
from wbar_store.lists import as_page

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=responses(401))


@router.post(
    "",
    status_code=201,
    response_model=Job,
    responses={
        200: {"model": Job, "description": "A dry run: resolved, estimated, not created."},
        **responses(404, 409, 422),
    },
)
def create_job(body: JobRequest, store: StoreOf, tenant: TenantOf, idempotency_key: IdempotencyKey = None) -> Response:
    """Create a job. Only `checkpoint` and `dataset` are required; every `auto` comes back resolved."""
    gpu = gpu_at_hand(store)
    if body.dry_run:
        with store.database.read() as connection:
            return JSONResponse(dry_run(connection, tenant, resolve(connection, tenant, body, gpu)))

    def create() -> dict[str, Any]:
        with store.database.write() as connection:
            created = store.jobs.submit(connection, tenant, resolve(connection, tenant, body, gpu))
        store.jobs.notify(created["id"])
        return created

    return once(store, tenant, idempotency_key, fingerprint("job", body.model_dump(mode="json")), create)


@router.get("", response_model=Page[Job], responses=responses(422))
def list_jobs(
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    page: Paging,
    status: JobStatus | None = None,
    checkpoint: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """The jobs, newest first; `?metadata[team]=vision` keeps those with that tag."""
    tags = tuple(
        (name[len("metadata[") : -1], value)
        for name, value in request.query_params.multi_items()
        if name.startswith("metadata[") and name.endswith("]")
    )
    with store.database.read() as connection:
        return answer(store.jobs.listed(connection, tenant, page, Filters(status, checkpoint, tags)))


@router.get("/{job_id}", response_model=Job, responses=responses(404))
async def get_job(job_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """The job as it is now: status, progress, and once it has succeeded the result."""
    row = await read(store.database, lambda connection: store.jobs.get(connection, tenant, job_id))
    return answer(sent(row))


@router.post("/{job_id}/cancel", response_model=Job, responses=responses(404, 409))
def cancel_job(job_id: str, store: StoreOf, tenant: TenantOf) -> dict[str, Any]:
    """End the job now; what it made so far stays downloadable. Idempotent."""
    return store.jobs.cancel(tenant, job_id)


@router.post("/{job_id}/pause", response_model=Job, responses=responses(404, 409))
def pause_job(job_id: str, store: StoreOf, tenant: TenantOf) -> dict[str, Any]:
    """Ask a running job to stop at its next step, with its exact position saved; poll until it is `paused`."""
    return store.jobs.pause(tenant, job_id)


@router.post("/{job_id}/resume", response_model=Job, responses=responses(404, 409))
def resume_job(job_id: str, store: StoreOf, tenant: TenantOf) -> dict[str, Any]:
    """Queue a paused job again; it ends in the same weights as if it had never been paused."""
    resumed = store.jobs.resume(tenant, job_id)
    store.jobs.notify(job_id)
    return resumed


@router.delete("/{job_id}", response_model=Deleted, responses=responses(404, 409))
def delete_job(job_id: str, store: StoreOf, tenant: TenantOf) -> dict[str, Any]:
    """Delete an ended job with everything it made."""
    store.blobs.collect(store.jobs.remove(tenant, job_id))
    return {"id": job_id, "object": "job", "deleted": True}


@router.get(
    "/{job_id}/events",
    response_model=Page[Event],
    responses={
        200: {
            "description": "A list, or with `Accept: text/event-stream` the live log.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **responses(404, 422),
    },
)
def list_job_events(
    job_id: str,
    store: StoreOf,
    tenant: TenantOf,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    last_event_id: Annotated[str | None, Header(description="Resume a stream after this event.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[
        str | None, Query(max_length=64, description="An event id; the page or stream begins after it.")
    ] = None,
    order: Literal["asc", "desc"] = "asc",
    type: Annotated[list[EventType] | None, Query(description="Keep these types only (list, not stream).")] = None,
) -> Any:
    """The job's event log, oldest first; as Server-Sent Events it ends after the terminal `status`."""
    with store.database.read() as connection:
        store.jobs.get(connection, tenant, job_id)
        begin = last_event_id or after
        seq = events.sequence(job_id, begin) if begin else None
        if begin and seq is None:
            raise ValidationFailed(f"{begin[:64]!r} is not an event of {job_id}")
        if "text/event-stream" in accept:
            return EventSourceResponse(
                job_events(store, job_id, seq or 0), ping=15, headers={"X-Accel-Buffering": "no"}
            )
        if order == "asc":
            found = events.after(connection, job_id, seq or 0, limit + 1, list(type) if type else None)
        else:
            found = events.before(connection, job_id, seq or 2**31 - 1, limit + 1, list(type) if type else None)
    return as_page(found[:limit], len(found) > limit)


@router.get(
    "/{job_id}/metrics",
    response_model=Page[MetricsPoint],
    responses={
        200: {"description": "The training series.", "content": {"text/csv": {"schema": {"type": "string"}}}},
        **responses(404),
    },
)
def get_job_metrics(
    job_id: str,
    store: StoreOf,
    tenant: TenantOf,
    format: Literal["json", "csv"] = "json",
) -> Response:
    """Step, rate, loss, pull, gradient norm and distance to w̄, at about a thousand steps of the job."""
    with store.database.read() as connection:
        store.jobs.get(connection, tenant, job_id)
        points = list(metric_points(connection, job_id))
    if format == "json":
        return JSONResponse({"object": "list", "data": points, "has_more": False, "first_id": None, "last_id": None})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(MetricsPoint.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    return Response(text.getvalue(), media_type="text/csv")


@router.get("/{job_id}/snapshots", response_model=Page[Snapshot], responses=responses(404))
def list_job_snapshots(job_id: str, store: StoreOf, tenant: TenantOf, page: Paging) -> dict[str, Any]:
    """The w_n of the cycles that have ended, in the order of n whatever `order` says."""
    with store.database.read() as connection:
        store.jobs.get(connection, tenant, job_id)
        rows = [snapshot_sent(row) for row in snapshot_rows(connection, job_id)]
    known = [row["id"] for row in rows]
    begin = known.index(page.after) + 1 if page.after in known else 0
    chosen = rows[begin : begin + page.limit]
    return as_page(chosen, begin + page.limit < len(rows))


@router.head("/{job_id}/snapshots/{n}/weights", response_class=Response, include_in_schema=False)
@router.get(
    "/{job_id}/snapshots/{n}/weights",
    response_class=Response,
    responses={**OPENAPI_RESPONSES, **responses(404, 416)},
)
def get_job_snapshot_weights(job_id: str, n: int, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """w_n as a safetensors file, while the job runs and after it ended however it did."""
    with store.database.read() as connection:
        store.jobs.get(connection, tenant, job_id)
        rows = {row.n: row for row in snapshot_rows(connection, job_id)}
    if n not in rows:
        raise NotFound(f"{job_id} has no snapshot {n}; it has {sorted(rows) or 'none yet'}")
    return blob_response(request, store.blobs, rows[n].sha256, f"{job_id}-snapshot-{n}.safetensors")


@router.head("/{job_id}/report", response_class=Response, include_in_schema=False)
@router.get(
    "/{job_id}/report",
    response_class=Response,
    responses={
        200: {
            "description": "One HTML page, with its plots in it.",
            "content": {"text/html": {"schema": {"type": "string"}}},
        },
        **responses(404, 409),
    },
)
def get_job_report(job_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """What the job did and found, as a page that needs nothing else: the arms, the curve, the schedule, the flatness."""
    with store.database.read() as connection:
        row = store.jobs.get(connection, tenant, job_id)
    if row.report is None:
        _no_result(row, "a report")
    page = blob_response(request, store.blobs, row.report, f"{job_id}.html", "text/html; charset=utf-8", inline=True)
    # Names come from users: whatever the page holds, it runs in an origin of its own and reaches nothing.
    page.headers["Content-Security-Policy"] = "sandbox allow-scripts; default-src 'unsafe-inline' data:"
    return page


@router.head("/{job_id}/weights", response_class=Response, include_in_schema=False)
@router.get(
    "/{job_id}/weights",
    response_class=Response,
    responses={**OPENAPI_RESPONSES, **responses(404, 409, 416)},
)
def get_job_weights(
    job_id: str,
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    format: Literal["safetensors", "pytorch"] = "safetensors",
) -> Response:
    """w̄ with recomputed BatchNorm statistics, under the uploaded names; `pytorch` is a flat state_dict."""
    with store.database.read() as connection:
        row = store.jobs.get(connection, tenant, job_id)
    if row.weights is None:
        _no_result(row, "averaged weights")
    if format == "pytorch":
        return blob_response(request, store.blobs, row.weights_pytorch, f"{job_id}.pth")
    return blob_response(request, store.blobs, row.weights, f"{job_id}.safetensors")


def _no_result(row: Row[Any], what: str) -> NoReturn:
    if row.status in ("queued", "running", "paused"):
        raise JobNotFinished(f"{row.id} is {row.status}: {what} will be there once it has succeeded")
    raise NoWeights(f"{row.id} has {row.status} and made no {what}; its snapshots are at /snapshots")
