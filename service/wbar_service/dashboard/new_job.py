"""The page for a new job: a checkpoint, a dataset, the options as a form, and what it would cost before it is asked for."""

import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from wbar.errors import NotFound, Refused
from wbar.job_request import JobRequest
from wbar.jobs import Job
from wbar.method import TYPES
from wbar_service.auth import StoreOf, TenantOf
from wbar_service.dashboard.job_form import DEFAULT_METHOD, METHODS, RECOMMENDED, fields, filled_with, grouped, read
from wbar_service.dashboard.pages import page
from wbar_service.dashboard.route import PageRoute, PreviewRoute
from wbar_service.dashboard.schedule_picture import Picture, picture_of
from wbar_service.idempotency import once
from wbar_service.jobs.cloning import changed
from wbar_service.jobs.creating import Creation, digest_of, dry_run, gpu_at_hand, insert_job, make_spec
from wbar_service.traced import TRACEPARENT
from wbar_store.database import Tenant
from wbar_store.repository import PageRequest
from wbar_store.store import Store
from wbar_store.validated_uploads import AnyUpload, UploadRepository

router = APIRouter(include_in_schema=False, route_class=PageRoute)
previews = APIRouter(include_in_schema=False, route_class=PreviewRoute)
MOST_CHOICES = 100
TOKEN, MOST_TOKEN = "token", 64  # the field that names one showing of the form, and its most characters


@router.get("/jobs/new")
def show_new_job(
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    clone: Annotated[str | None, Query(max_length=64)] = None,
    checkpoint: Annotated[str, Query(max_length=64)] = "",
    dataset: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Show the form: blank, or filled with what another job was asked for."""
    form = {**RECOMMENDED, "checkpoint": checkpoint, "dataset": dataset}
    if clone is not None:
        former = store.jobs.get(tenant, clone)
        form = filled_with(changed(former, {}).as_sent())
    return _shown(request, store, tenant, form)


@previews.post("/jobs/new/preview")
async def preview(request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Show what the job would be: the estimate, the schedule, what is wrong. Nothing is created."""
    form = await _form(request)
    return await run_sync(lambda: page(request, "_preview.html", **_tried(store, tenant, form)))


@previews.post("/jobs/new/again")
async def show_again(request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Show the form as it is filled, with the fields of the method that was chosen: for browsers without scripts."""
    form = await _form(request)
    return await run_sync(_shown, request, store, tenant, form)


@previews.post("/jobs/new/fields")
async def show_fields(request: Request) -> Response:
    """Show the fields of the method that was chosen, filled as far as they are the same."""
    form = await _form(request)
    return page(request, "_method_fields.html", **_form_values(form))


@router.post("/jobs/new")
async def create(request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Create the job and show it; a form that is not a good one comes back as it was, with what is wrong."""
    form = await _form(request)
    return await run_sync(_create, request, store, tenant, form)


def _create(request: Request, store: Store, tenant: Tenant, form: Mapping[str, str]) -> Response:
    filled = read(form)
    if filled.request is None:
        return _shown(request, store, tenant, form, 422)
    body = filled.request
    settings = request.app.state.settings
    made = Creation(gpu_at_hand(store), settings.quotas, request.scope.get(TRACEPARENT), settings.max_replicas)
    # A form that is sent twice, by a double click or a reload, makes one job; filled otherwise, it makes another.
    digest = digest_of(body)
    key = f"page-{form[TOKEN][:MOST_TOKEN]}-{digest}" if form.get(TOKEN) else None
    try:
        answer = once(store, tenant, key, digest, lambda: insert_job(store, tenant, body, made))
    except Refused as problem:
        return _shown(request, store, tenant, form, problem.status)
    return RedirectResponse(f"/jobs/{Job.model_validate_json(bytes(answer.body)).id}", 303)


async def _form(request: Request) -> dict[str, str]:
    return {name: str(value) for name, value in (await request.form()).items()}


def _shown(request: Request, store: Store, tenant: Tenant, form: Mapping[str, str], status: int = 200) -> Response:
    wanted = PageRequest(MOST_CHOICES)
    tried: dict[str, Any] = {"job": None, "faults": {}, "picture": None, "warnings": {}}
    if form.get("checkpoint") and form.get("dataset"):
        tried = _tried(store, tenant, form)
    return page(
        request, "new_job.html", status, token=form.get(TOKEN) or secrets.token_urlsafe(16),
        checkpoints=_choices(store.checkpoints, tenant, wanted, form.get("checkpoint")),
        datasets=_choices(store.datasets, tenant, wanted, form.get("dataset")),
        **_form_values(form), **tried,
    )  # fmt: skip


def _choices(
    repository: UploadRepository[AnyUpload], tenant: Tenant, wanted: PageRequest, chosen: str | None
) -> list[AnyUpload]:
    """Return the latest uploads that can be chosen, and the one that is, however old."""
    found = [one for one in repository.page(tenant, wanted).records if one.status != "rejected"]
    if chosen and chosen not in {one.id for one in found}:
        with suppress(NotFound):
            found.append(repository.get(tenant, chosen))
    return found


def _form_values(form: Mapping[str, str]) -> dict[str, Any]:
    method = form.get("method.type", DEFAULT_METHOD)
    method = method if method in TYPES else DEFAULT_METHOD
    return {
        "form": form, "methods": METHODS, "method": method, "fields": fields(method), "groups": grouped(method, form),
    }  # fmt: skip


def _tried(store: Store, tenant: Tenant, form: Mapping[str, str]) -> dict[str, Any]:
    """Return the dry run of a form: the job as it would be, or the faults by field."""
    filled = read(form)
    job: Job | None = None
    picture: Picture | None = None
    faults = dict(filled.faults)
    if filled.request is not None:
        try:
            job, picture = _dry_run(store, tenant, filled.request)
        except Refused as problem:
            faults = {_path(one.get("pointer", "")): one["detail"] for one in problem.errors or ()} or {
                "": problem.detail
            }
    warnings: dict[str, list[str]] = {}
    for one in (job.warnings or ()) if job else ():
        warnings.setdefault(_path(one.pointer), []).append(one.detail)
    return {"job": job, "faults": faults, "picture": picture, "warnings": warnings}


def _dry_run(store: Store, tenant: Tenant, body: JobRequest) -> tuple[Job, Picture | None]:
    gpu = gpu_at_hand(store)
    with store.database.write():
        spec = make_spec(store, tenant, body, gpu)
        facts = store.datasets.get(tenant, spec.dataset.id).facts()
        return dry_run(store, tenant, body, spec), picture_of(spec, facts)


def _path(pointer: str) -> str:
    return pointer.strip("/").replace("/", ".")
