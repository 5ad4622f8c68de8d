"""The routes of /v1/jobs; those of a job's files are in `files`, those of predictions in `predicting`."""

import csv
import io
from collections.abc import Callable
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from sse_starlette.sse import EventSourceResponse

from wbar.errors import ValidationFailed
from wbar.job_request import MOST_TAGS, JobRequest
from wbar.jobs import Deleted, Event, EventType, Job, MetricsPoint, Snapshot
from wbar.lists import Page
from wbar.replicas import check_count
from wbar.results import Verdict
from wbar.states import TERMINAL, JobStatus
from wbar.text import TEXT_PATTERN, fault_of
from wbar_service.answers import answer, made_of, stored_now
from wbar_service.auth import AuthenticatedRoute, StoreOf, TenantOf, store_of
from wbar_service.idempotency import IdempotencyKey, fingerprint, once
from wbar_service.jobs.cloning import CHANGES, changed
from wbar_service.jobs.creating import Creation, digest_of, dry_run, gpu_at_hand, insert_job, make_spec
from wbar_service.jobs.stream import EventStreams, wants_stream
from wbar_service.paging import ANY_OF, PageSize, page_of, paged_by
from wbar_service.problems import responses
from wbar_service.query_parameters import DIGITS
from wbar_service.traced import TRACEPARENT
from wbar_store.database import Tenant
from wbar_store.events import EventRecord, sequence
from wbar_store.job_lists import Filters, OrderBy
from wbar_store.job_records import JobRecord
from wbar_store.repository import PageRequest
from wbar_store.snapshots import SnapshotRecord
from wbar_store.store import Store

Step = Annotated[int, Field(ge=0, lt=2**31), DIGITS]
_Text = Annotated[str | None, Query(max_length=64, pattern=TEXT_PATTERN)]

router = APIRouter(
    prefix="/v1/jobs", tags=["jobs"], route_class=AuthenticatedRoute, responses=responses(401, 403, 429, 503)
)


@router.post(
    "",
    status_code=201,
    response_model=Job,
    responses={
        200: {"model": Job, "description": "A dry run: resolved, estimated, not created."},
        **responses(400, 404, 409, 413, 422, 507),
    },
)
def create_job(
    request: Request, body: JobRequest, store: StoreOf, tenant: TenantOf, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a job. Only `checkpoint` and `dataset` are required; every `auto` comes back resolved."""
    if body.dry_run:
        return _dry_run(request, body, store, tenant)
    return _create(request, lambda: body, store, tenant, idempotency_key, digest_of(body))


def _dry_run(request: Request, body: JobRequest, store: Store, tenant: Tenant) -> Response:
    check_count(body, request.app.state.settings.max_replicas)
    gpu = gpu_at_hand(store)
    with store.database.write():
        job = dry_run(store, tenant, body, make_spec(store, tenant, body, gpu))
    return Response(job.model_dump_json(), media_type="application/json")


def _create(
    request: Request,
    wanted: Callable[[], JobRequest],
    store: Store,
    tenant: Tenant,
    idempotency_key: str | None,
    print_: str,
) -> Response:
    """Create the job that is wanted, which a request that comes again need not find out."""
    settings = request.app.state.settings
    made = Creation(gpu_at_hand(store), settings.quotas, request.scope.get(TRACEPARENT), settings.max_replicas)
    return once(store, tenant, idempotency_key, print_, lambda: insert_job(store, tenant, wanted(), made))


@router.get("", response_model=Page[Job], responses=responses(422))
def list_jobs(
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    page: Annotated[PageRequest, Depends(paged_by("job"))],
    status: Annotated[list[JobStatus] | None, Query(description=ANY_OF)] = None,
    checkpoint: _Text = None,
    dataset: _Text = None,
    name: Annotated[
        str | None, Query(max_length=256, pattern=TEXT_PATTERN, description="A part of the name, whatever the case.")
    ] = None,
    verdict: Verdict | None = None,
    order_by: Annotated[
        OrderBy,
        Query(
            description="What `order` goes by. Gains are of w̄ over the start, positive where it won. Jobs without the number "
            "come last."
        ),
    ] = "created_at",
) -> Response:
    """List the jobs, newest first; `?metadata[team]=vision` keeps those with that tag."""
    filters = Filters(tuple(status or ()), checkpoint, dataset, name, verdict, _tags(request))
    found = page_of(store.jobs.filtered(tenant, page, filters, order_by), JobRecord.to_api)
    if any(job.status == "queued" for job in found.data):
        places = store.queue.positions(tenant)
        data = [job.model_copy(update={"queue_position": places.get(job.id or "")}) for job in found.data]
        found = found.model_copy(update={"data": data})
    return answer(found)


def _tags(request: Request) -> tuple[tuple[str, str], ...]:
    """Return the pairs of `metadata[KEY]=VALUE` in the query. Raises ValidationFailed for more than a job can have."""
    tags = tuple(
        (name[len("metadata[") : -1], value)
        for name, value in request.query_params.multi_items()
        if name.startswith("metadata[") and name.endswith("]")
    )
    if len(tags) > MOST_TAGS:
        raise ValidationFailed(
            f"{len(tags)} conditions on metadata, and a job has at most {MOST_TAGS} tags",
            [{"pointer": "", "parameter": "metadata", "detail": f"at most {MOST_TAGS} conditions"}],
        )
    fault = next((found for pair in tags for text in pair if (found := fault_of(text)) is not None), None)
    if fault is not None:
        raise ValidationFailed(f"metadata: {fault}", [{"pointer": "", "parameter": "metadata", "detail": fault}])
    return tags


@router.get("/{job_id}", response_model=Job, responses=responses(404))
async def get_job(job_id: str, request: Request, tenant: TenantOf) -> Response:
    """Return the job as it is now: status, progress, and once it has succeeded the result."""
    # What is polled most has one dependency less than the others.
    store = store_of(request)
    stored = await stored_now(store.jobs, tenant, job_id)
    if store.jobs.waits(stored) or store.jobs.may_have_replicas(stored):
        return await run_sync(_beside_its_row, store, tenant, job_id)
    return made_of(store.jobs, stored)


def _beside_its_row(store: Store, tenant: Tenant, job_id: str) -> Response:
    """Answer with a job and what is not in its row: its place in the queue, and its replicas."""
    job = store.jobs.get(tenant, job_id)
    place = store.queue.positions(tenant).get(job_id) if job.status == "queued" else None
    beside = {"queue_position": place, "replicas": store.jobs.replicas(tenant, job)}
    return answer(job.to_api().model_copy(update=beside))


@router.post(
    "/{job_id}/clone",
    status_code=201,
    response_model=Job,
    responses={
        200: {"model": Job, "description": "A dry run: resolved, estimated, not created."},
        **responses(400, 404, 409, 413, 422, 507),
    },
)
def clone_job(
    job_id: str,
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    changes: Annotated[dict[str, Any] | None, Body(openapi_examples=CHANGES)] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a job like another one, whatever has become of it. The body is what differs, a JSON merge patch (RFC 7396).

    It is applied to the request as it was sent, so that an `auto` is resolved anew. Another `method.type` replaces the method.
    """
    differing = changes or {}

    def wanted() -> JobRequest:
        return changed(store.jobs.get(tenant, job_id), differing)

    if differing.get("dry_run") is not None and (body := wanted()).dry_run:
        return _dry_run(request, body, store, tenant)
    return _create(request, wanted, store, tenant, idempotency_key, fingerprint("clone", job_id, differing))


@router.post("/{job_id}/cancel", response_model=Job, responses=responses(404, 409))
def cancel_job(job_id: str, store: StoreOf, tenant: TenantOf) -> Job:
    """End the job now; what it made so far stays downloadable. A cancelled job may be cancelled again."""
    return store.jobs.cancel(tenant, job_id).to_api()


@router.post("/{job_id}/pause", response_model=Job, responses=responses(404, 409))
def pause_job(job_id: str, store: StoreOf, tenant: TenantOf) -> Job:
    """Ask a running job to stop at its next step, with its exact position saved; poll until it is `paused`."""
    return store.jobs.pause(tenant, job_id).to_api()


@router.post("/{job_id}/finish", response_model=Job, responses=responses(404, 409))
def finish_job(job_id: str, store: StoreOf, tenant: TenantOf) -> Job:
    """Ask a running job to end its training at its next step; what it visited so far is averaged, compared and delivered.

    409 before its first snapshot. `result.finished_early` says that training was not over; a control that has not ended is
    left out.
    """
    return store.jobs.finish(tenant, job_id).to_api()


@router.post("/{job_id}/resume", response_model=Job, responses=responses(404, 409))
def resume_job(job_id: str, store: StoreOf, tenant: TenantOf) -> Job:
    """Queue a paused job again; it ends in the same weights as if it had never been paused."""
    resumed = store.jobs.resume(tenant, job_id)
    store.notify(job_id)
    return resumed.to_api()


@router.delete("/{job_id}", response_model=Deleted, responses=responses(404, 409))
def delete_job(job_id: str, store: StoreOf, tenant: TenantOf) -> Deleted:
    """Delete an ended job with everything it made."""
    store.blobs.collect(store.jobs.remove(tenant, job_id))
    return Deleted(id=job_id, object="job")


@router.get(
    "/{job_id}/events",
    response_model=Page[Event],
    responses={
        200: {
            "description": "A list, or with `Accept: text/event-stream` the live log.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        204: {"description": "A stream that would begin after the last event of a job that has ended."},
        **responses(404, 422),
    },
)
def list_job_events(
    job_id: str,
    http: Request,
    store: StoreOf,
    tenant: TenantOf,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    last_event_id: Annotated[str | None, Header(description="Resume a stream after this event.")] = None,
    last_event_id_too: Annotated[
        str | None,
        Query(
            alias="lastEventId",
            max_length=64,
            description="The same, as a stand-in for EventSource sends it that can send a key.",
        ),
    ] = None,
    limit: Annotated[PageSize, Query()] = 20,
    after: Annotated[
        str | None, Query(max_length=64, description="An event id; the page or stream begins after it.")
    ] = None,
    order: Literal["asc", "desc"] = "asc",
    type: Annotated[list[EventType] | None, Query(description="Keep these types only (list, not stream).")] = None,
) -> Page[Event] | Response:
    """Return the job's event log, oldest first; as Server-Sent Events it ends after the terminal `status`.

    A stream that is to begin after the last event of a job that has ended is answered 204.
    """
    last = last_event_id or last_event_id_too
    request = PageRequest(limit, last or after, order)
    if wants_stream(accept):
        status = store.jobs.status(tenant, job_id)  # NotFound comes before the stream
        named = "Last-Event-ID" if last else "after"
        begin = sequence(job_id, request.after, named) if request.after else 0
        if status in TERMINAL and not store.events.after(tenant, job_id, begin, 1):
            return Response(status_code=204)  # which ends a browser's attempts to connect again
        streams: EventStreams = http.app.state.streams
        return EventSourceResponse(streams.events(tenant, job_id, begin), ping=15, headers={"X-Accel-Buffering": "no"})
    return page_of(store.events.page(tenant, job_id, request, type or ()), EventRecord.to_api)


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
    after: Annotated[Step | None, Query(description="Keep the points of later steps only.")] = None,
) -> Response:
    """Return the training series: rate, loss, pull, gradient norm and distance to w̄ at about a thousand steps of the job."""
    points = [point.model_dump() for point in store.metrics.all(tenant, job_id, after)]
    if format == "json":
        return JSONResponse({"object": "list", "data": points, "has_more": False, "first_id": None, "last_id": None})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(MetricsPoint.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    return Response(text.getvalue(), media_type="text/csv")


@router.get("/{job_id}/snapshots", response_model=Page[Snapshot], responses=responses(404))
def list_job_snapshots(
    job_id: str, store: StoreOf, tenant: TenantOf, page: Annotated[PageRequest, Depends(paged_by("snap"))]
) -> Page[Snapshot]:
    """List the snapshots of the cycles that have ended, in the order of n whatever `order` says."""
    return page_of(store.snapshots.page(tenant, job_id, page), SnapshotRecord.to_api)
