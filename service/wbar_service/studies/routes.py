"""The routes of /v1/studies."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from wbar.jobs import Deleted
from wbar.lists import Page
from wbar.studies import Study, StudyPlan, StudyRequest
from wbar.study_report import PATIENCE
from wbar.study_results import ReportRows, StudyReport
from wbar_service.answers import answer
from wbar_service.auth import AuthenticatedRoute, StoreOf, TenantOf
from wbar_service.idempotency import IdempotencyKey, fingerprint, once
from wbar_service.jobs.creating import Creation, gpu_at_hand
from wbar_service.paging import page_of, paged_by
from wbar_service.problems import responses
from wbar_service.studies.creating import check_size, insert_study, plan_study
from wbar_service.studies.reporting import as_csv, study_report
from wbar_service.traced import TRACEPARENT
from wbar_store.repository import PageRequest

router = APIRouter(
    prefix="/v1/studies", tags=["studies"], route_class=AuthenticatedRoute, responses=responses(401, 403, 429, 503)
)


@router.post(
    "",
    status_code=201,
    response_model=Study,
    responses={
        200: {"model": StudyPlan, "description": "A dry run: its jobs resolved, estimated, not created."},
        **responses(400, 404, 409, 413, 422, 507),
    },
)
def create_study(
    request: Request, body: StudyRequest, store: StoreOf, tenant: TenantOf, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create one job many times: over batch sizes, rates (fixed, or scaled with the batch), seeds and any other field.

    The jobs are ordinary ones, with the tag `study`, of which at most `at_once` run at a time. All of them are made, or none: a
    job that makes no sense is named by its settings. A job that fails later, or diverges, is a result.
    """
    settings = request.app.state.settings
    check_size(body, settings.max_study_jobs)
    if body.dry_run:
        plan = plan_study(store, tenant, body, gpu_at_hand(store))
        return Response(plan.model_dump_json(), media_type="application/json")
    made = Creation(gpu_at_hand(store), settings.quotas, request.scope.get(TRACEPARENT))
    print_ = fingerprint("study", body.model_dump(mode="json", exclude_unset=True))
    return once(store, tenant, idempotency_key, print_, lambda: insert_study(store, tenant, body, made))


@router.get("", response_model=Page[Study], responses=responses(422))
def list_studies(
    store: StoreOf, tenant: TenantOf, page: Annotated[PageRequest, Depends(paged_by("study"))]
) -> Response:
    """List the studies, newest first, with how many of their jobs are in which state."""
    return answer(page_of(store.studies.listed(tenant, page), lambda study: study))


@router.get("/{study_id}", response_model=Study, responses=responses(404))
def get_study(study_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Return a study and its jobs as they are now. Poll until its `status` is `ended`."""
    return answer(store.studies.shown(tenant, study_id))


@router.get(
    "/{study_id}/report",
    response_model=StudyReport,
    responses={
        200: {"description": "What its jobs measured.", "content": {"text/csv": {"schema": {"type": "string"}}}},
        **responses(404, 422),
    },
)
def get_study_report(
    study_id: str,
    store: StoreOf,
    tenant: TenantOf,
    format: Literal["json", "csv"] = "json",
    rows: Annotated[
        ReportRows,
        Query(
            description="Of CSV, a row for each job; each epoch of each job; each epoch and bin of its histograms of update "
            "norms (`updates`); each point of its loss surfaces (`surface`)."
        ),
    ] = "jobs",
    patience: Annotated[
        float,
        Query(
            gt=0, le=10_000, description="Epochs without a lower validation loss after which the minimum is settled."
        ),
    ] = PATIENCE,
) -> Response:
    """Return what the jobs of a study measured, while they run and after: losses, distances, flatness, seconds, throughput.

    Distances of epochs, update norms, sharpness, eigenvalues and the line from the start are there for jobs with `flatness`.
    """
    made = study_report(store, tenant, study_id, patience)
    if format == "csv":
        return Response(as_csv(made, rows), media_type="text/csv")
    return answer(made)


@router.post("/{study_id}/cancel", response_model=Study, responses=responses(404, 409))
def cancel_study(study_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """End all of its jobs that have not ended; what they made so far stays. 409 once all have ended otherwise."""
    return answer(store.studies.cancel(tenant, study_id))


@router.post("/{study_id}/pause", response_model=Study, responses=responses(404, 409))
def pause_study(study_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Let no further job begin, and ask those that run to stop at their next step, with their exact positions saved."""
    return answer(store.studies.pause(tenant, study_id))


@router.post("/{study_id}/resume", response_model=Study, responses=responses(404, 409))
def resume_study(study_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Let its jobs begin again; those that were stopped go on, to the same weights as if they had never been."""
    resumed = store.studies.resume(tenant, study_id)
    store.notify(study_id)
    return answer(resumed)


@router.delete("/{study_id}", response_model=Deleted, responses=responses(404, 409))
def delete_study(study_id: str, store: StoreOf, tenant: TenantOf) -> Deleted:
    """Delete a study and its jobs with everything they made; 409 before all of them have ended."""
    store.blobs.collect(store.studies.remove(tenant, study_id))
    return Deleted(id=study_id, object="study")
