"""The pages of studies: how far their jobs are, and what they measured. They are made by the API or the command line."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from wbar.errors import Conflict, NotFound
from wbar.study_report import PATIENCE
from wbar_service.auth import StoreOf, TenantOf
from wbar_service.dashboard.pages import page
from wbar_service.dashboard.route import PageRoute, is_fragment
from wbar_service.dashboard.study_pictures import histograms_of, surfaces_of
from wbar_service.studies.reporting import study_report
from wbar_store.database import Tenant
from wbar_store.repository import PageRequest
from wbar_store.store import Store

router = APIRouter(include_in_schema=False, route_class=PageRoute)
ROWS = 50


@router.get("/studies")
def show_studies(
    request: Request, store: StoreOf, tenant: TenantOf, after: Annotated[str | None, Query(max_length=64)] = None
) -> Response:
    """Show the tenant's studies; as a fragment the table alone."""
    rows = store.studies.listed(tenant, PageRequest(ROWS, after))
    template = "_study_rows.html" if is_fragment(request) else "studies.html"
    return page(request, template, rows=rows, after=after)


@router.get("/studies/{study_id}")
def show_study(study_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Show a study and its report; as a fragment what changes while it runs."""
    return _one(request, store, tenant, study_id)


@router.post("/studies/{study_id}/cancel")
def cancel_study(study_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """End all jobs of a study that have not ended."""
    return _act(request, store, tenant, study_id, "cancel")


@router.post("/studies/{study_id}/pause")
def pause_study(study_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Let no further job of a study begin, and stop those that run."""
    return _act(request, store, tenant, study_id, "pause")


@router.post("/studies/{study_id}/resume")
def resume_study(study_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Let the jobs of a study go on."""
    return _act(request, store, tenant, study_id, "resume")


@router.post("/studies/{study_id}/delete")
def delete_study(study_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Delete a study that has ended, with its jobs."""
    try:
        with suppress(NotFound):  # deleted meanwhile
            store.blobs.collect(store.studies.remove(tenant, study_id))
    except Conflict as problem:
        return _one(request, store, tenant, study_id, problem.detail, problem.status)
    return RedirectResponse("/studies", 303)


def _act(request: Request, store: Store, tenant: Tenant, study_id: str, action: str) -> Response:
    acts = {"cancel": store.studies.cancel, "pause": store.studies.pause, "resume": store.studies.resume}
    try:
        acts[action](tenant, study_id)
    except Conflict as problem:  # it has ended meanwhile
        return _one(request, store, tenant, study_id, problem.detail, problem.status)
    if action == "resume":
        store.notify(study_id)
    return RedirectResponse(f"/studies/{study_id}", 303)


def _one(
    request: Request, store: Store, tenant: Tenant, study_id: str, fault: str | None = None, status: int = 200
) -> Response:
    template = "_study_state.html" if is_fragment(request) else "study.html"
    study = store.studies.shown(tenant, study_id)
    report = study_report(store, tenant, study_id, PATIENCE)
    drawn = {"surfaces": surfaces_of(report), "histograms": histograms_of(report)}
    return page(request, template, status, one=study, report=report, fault=fault, **drawn)
