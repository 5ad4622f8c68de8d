"""The pages of checkpoints and datasets: what was uploaded, what was recognized in it, and how it is deleted."""

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from wbar.catalog import BUILTINS
from wbar.errors import Conflict, NotFound, ValidationFailed
from wbar_service.auth import StoreOf, TenantOf
from wbar_service.dashboard.pages import page
from wbar_service.dashboard.route import PageRoute, is_fragment
from wbar_store.database import Tenant
from wbar_store.repository import PageRequest
from wbar_store.store import Store

router = APIRouter(include_in_schema=False, route_class=PageRoute)
ROWS = 50
Kind = Literal["checkpoints", "datasets"]
After = Annotated[str | None, Query(max_length=64)]


@router.get("/checkpoints")
def show_checkpoints(request: Request, store: StoreOf, tenant: TenantOf, after: After = None) -> Response:
    """Show the checkpoints; as a fragment the table alone."""
    return _list(request, store, tenant, "checkpoints", after)


@router.get("/datasets")
def show_datasets(request: Request, store: StoreOf, tenant: TenantOf, after: After = None) -> Response:
    """Show the datasets; as a fragment the table alone."""
    return _list(request, store, tenant, "datasets", after)


def _list(
    request: Request,
    store: Store,
    tenant: Tenant,
    kind: Kind,
    after: str | None,
    fault: str | None = None,
    status: int = 200,
) -> Response:
    template = f"_{kind[:-1]}_rows.html" if is_fragment(request) else f"{kind}.html"
    rows = (store.checkpoints if kind == "checkpoints" else store.datasets).page(tenant, PageRequest(ROWS, after))
    return page(request, template, status, rows=rows, shown=[one.to_api() for one in rows.records], fault=fault)


@router.get("/checkpoints/{checkpoint_id}")
def show_checkpoint(checkpoint_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Show one checkpoint."""
    return page(request, "checkpoint.html", one=store.checkpoints.get(tenant, checkpoint_id).to_api())


@router.get("/datasets/{dataset_id}")
def show_dataset(dataset_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Show one dataset."""
    dataset = store.datasets.get(tenant, dataset_id)
    return page(request, "dataset.html", one=dataset.to_api(), sampled=dataset.samples is not None)


@router.post("/datasets/builtin")
def add_builtin(store: StoreOf, tenant: TenantOf, source: Annotated[str, Form(max_length=64)]) -> Response:
    """Add a dataset that is on this service's machines, and go back to the new job."""
    if source.removeprefix("builtin:") not in BUILTINS:
        raise ValidationFailed(f"{source!r} is none of {', '.join(f'builtin:{name}' for name in BUILTINS)}")
    added = store.datasets.create(tenant, source, "classification", source)
    store.notify(added.id)
    return RedirectResponse(f"/jobs/new?dataset={added.id}", 303)


@router.get("/{kind}/{object_id}/delete")
def confirm_delete(kind: Kind, object_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Ask before a checkpoint or dataset is deleted, and say what is lost."""
    found = (store.checkpoints if kind == "checkpoints" else store.datasets).get(tenant, object_id)
    return page(request, "confirm_upload.html", kind=kind[:-1], one=found.to_api())


@router.post("/{kind}/{object_id}/delete")
def delete_upload(kind: Kind, object_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Delete a checkpoint or dataset; one that a job needs stays, and the page says which job."""
    repository = store.checkpoints if kind == "checkpoints" else store.datasets
    try:
        store.blobs.collect(repository.remove(tenant, object_id))
    except NotFound:
        pass  # deleted meanwhile
    except Conflict as problem:
        return _list(request, store, tenant, kind, None, problem.detail, problem.status)
    return RedirectResponse(f"/{kind}", 303)
