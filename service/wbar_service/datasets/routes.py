"""The routes of /v1/datasets."""

import json
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from wbar.catalog import BUILTINS
from wbar.datasets import Dataset, DatasetSource, Task
from wbar.errors import DatasetNotReady, NotFound, TaskUnsupported, ValidationFailed
from wbar.jobs import Deleted
from wbar.lists import Page
from wbar.request import ExpiresAfter
from wbar.text import NAME_PATTERN
from wbar_service.answers import answer, polled
from wbar_service.auth import AuthenticatedRoute, StoreOf, TenantOf
from wbar_service.bodies import with_small_body
from wbar_service.downloads import blob_response
from wbar_service.idempotency import IdempotencyKey, fingerprint, once
from wbar_service.paging import page_of, paged_by
from wbar_service.problems import responses
from wbar_service.receiving import announced_bytes, receive, shown_name
from wbar_service.schema import reference
from wbar_store.datasets import DatasetOptions, DatasetRecord
from wbar_store.repository import PageRequest
from wbar_store.sources import locate

router = APIRouter(
    prefix="/v1/datasets", tags=["datasets"], route_class=AuthenticatedRoute, responses=responses(401, 403, 429, 503)
)

TASKS = ("classification", "multilabel")  # of those that the contract names
SOURCE_BYTES = 64 * 1024
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


@router.post(
    "",
    status_code=201,
    response_model=Dataset,
    responses=responses(400, 409, 413, 422, 507),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": reference(DatasetSource),
                    "examples": {
                        "digits": {"value": {"source": "builtin:digits"}},
                        "fashion": {"value": {"source": "builtin:fashion-mnist", "max_train_images": 10000}},
                        "folder": {"value": {"source": "file:///data/flowers.tar"}},
                    },
                },
                "application/octet-stream": _BINARY,
            },
        }
    },
)
async def create_dataset(
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    name: Annotated[str | None, Query(max_length=256, json_schema_extra={"pattern": NAME_PATTERN})] = None,
    task: Annotated[Task, Query(json_schema_extra={"enum": [*TASKS]})] = "classification",
    expires_after: Annotated[
        ExpiresAfter | None,
        Query(description="Seconds until it is deleted, or once no job needs it any more. Default: it stays."),
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Upload a zip or tar(.gz/.zst) archive of `train/<class>/*.{jpg,png,webp}` and `val/<class>/…`, or name a source.

    With `task=multilabel` the archive is `train/…`, `val/…` and `labels.csv`: a column `image` (the path from `train/` or
    `val/` on) and one of 0 and 1 for each class, or `image,labels` with names separated by `|`.

    An archive's content type may also be `application/zip` or `application/x-tar`: the content decides.

    Without `val/` a stratified 20 % of `train/` is held out. Every image is decoded before `status` becomes `ready`.
    """
    if task not in TASKS:
        raise TaskUnsupported(
            f"task={task} comes later; this version takes {' and '.join(f'task={one}' for one in TASKS)}"
        )
    shown_name(name, None, "")  # before the upload
    if request.headers.get("content-type", "").split(";")[0].strip().lower() == "application/json":
        source = await _source(request, task)
        print_ = fingerprint("dataset", name, task, source.model_dump(), expires_after=expires_after)
        options = DatasetOptions(max_train_images=source.max_train_images)

        def name_source() -> DatasetRecord:
            store.quotas.check_bytes(tenant, request.app.state.settings.quotas, 0)
            shown = shown_name(name, source.source, "dataset")
            return store.datasets.create(tenant, shown, task, source.source, options, expires_after)

        return await run_sync(once, store, tenant, idempotency_key, print_, name_source)
    if not idempotency_key:  # a request that comes again counts already; what is new is checked where its row is made
        await run_sync(store.quotas.check_bytes, tenant, request.app.state.settings.quotas, announced_bytes(request))
    received, filename = await receive(request, store.blobs, request.app.state.settings.max_dataset_bytes)
    try:
        print_ = fingerprint("dataset", name, task, received.sha256, expires_after=expires_after)

        def create() -> DatasetRecord:
            store.quotas.check_bytes(tenant, request.app.state.settings.quotas, received.bytes)
            shown = shown_name(name, filename, "dataset")
            return store.datasets.create(tenant, shown, task, received, expires_after=expires_after)

        return await run_sync(once, store, tenant, idempotency_key, print_, create, received)
    finally:
        await run_sync(store.blobs.discard, received.temporary)


async def _source(request: Request, task: str) -> DatasetSource:
    body = await (await with_small_body(request, SOURCE_BYTES)).body()
    try:
        source = DatasetSource.model_validate_json(body)
    except ValidationError as error:
        failures = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(failures, body=_json(body)) from None
    kind, _, rest = source.source.partition(":")
    if kind == "builtin" and task != "classification":
        raise TaskUnsupported(f"{source.source} has one label per image: leave task={task} out")
    if kind == "builtin":
        if rest not in BUILTINS:
            names = ", ".join(f"builtin:{name}" for name in BUILTINS)
            raise ValidationFailed(
                f"{source.source!r} does not exist; there are {names}",
                [{"pointer": "/source", "detail": f"one of {names}"}],
            )
    elif locate(source.source, request.app.state.settings.sources) is None:
        raise ValidationFailed(
            f"{source.source!r} is not below a root that this service's operator allows (WBAR_SOURCES)",
            [{"pointer": "/source", "detail": "not below an allowed root"}],
        )
    if kind != "builtin" and source.max_train_images is not None:
        raise ValidationFailed(
            "max_train_images is for built-in datasets; leave images out of the archive instead",
            [{"pointer": "/max_train_images", "detail": "only with a builtin: source"}],
        )
    return source


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


@router.get("", response_model=Page[Dataset], responses=responses(422))
def list_datasets(store: StoreOf, tenant: TenantOf, page: Annotated[PageRequest, Depends(paged_by("ds"))]) -> Response:
    """List the datasets, newest first."""
    return answer(page_of(store.datasets.page(tenant, page), DatasetRecord.to_api))


@router.get("/{dataset_id}", response_model=Dataset, responses=responses(404))
async def get_dataset(dataset_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Return a dataset. Poll until its `status` is `ready` or `rejected`."""
    return await polled(store.datasets, tenant, dataset_id)


@router.get(
    "/{dataset_id}/samples",
    response_class=Response,
    responses={
        200: {
            "description": "A sheet, 48 × 48 pixels an image: row k shows the first images of class k (up to 100 classes).",
            "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        },
        **responses(404, 409),
    },
)
def get_dataset_samples(dataset_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Return a few training images of each class, as one picture."""
    dataset = store.datasets.get(tenant, dataset_id)
    if dataset.status != "ready":
        raise DatasetNotReady(f"{dataset_id} is {dataset.status}: its samples are there once it is ready")
    if dataset.samples is None:
        raise NotFound(f"{dataset_id} was read before version 0.7, which draws samples: add it again to have them")
    return blob_response(request, store.blobs, dataset.samples, f"{dataset_id}.png", "image/png", inline=True)


@router.delete("/{dataset_id}", response_model=Deleted, responses=responses(404, 409))
def delete_dataset(dataset_id: str, store: StoreOf, tenant: TenantOf) -> Deleted:
    """Delete a dataset and its images; 409 `in_use` while a queued, running or paused job needs it."""
    store.blobs.collect(store.datasets.remove(tenant, dataset_id))
    return Deleted(id=dataset_id, object="dataset")
