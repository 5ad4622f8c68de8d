"""The routes of /v1/datasets."""

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import ValidationError

from wbar.catalog import BUILTINS
from wbar.datasets import VOID_LABEL, Dataset, DatasetSource, Task
from wbar.errors import DatasetNotReady, NotFound, TaskUnsupported, ValidationFailed
from wbar.jobs import Deleted
from wbar.lists import Page
from wbar.request import ExpiresAfter
from wbar.states import UploadStatus
from wbar.text import NAME_PATTERN
from wbar_service.answers import answer, polled
from wbar_service.arriving import arriving, not_valid
from wbar_service.auth import AuthenticatedRoute, StoreOf, TenantOf
from wbar_service.bodies import is_json, with_small_body
from wbar_service.downloads import blob_response
from wbar_service.idempotency import IdempotencyKey, fingerprint, once
from wbar_service.paging import ANY_OF, page_of, paged_by
from wbar_service.problems import responses
from wbar_service.receiving import shown_name
from wbar_service.schema import reference
from wbar_store.database import Tenant
from wbar_store.datasets import DatasetOptions, DatasetRecord
from wbar_store.repository import PageRequest
from wbar_store.sources import locate
from wbar_store.store import Store

router = APIRouter(
    prefix="/v1/datasets", tags=["datasets"], route_class=AuthenticatedRoute, responses=responses(401, 403, 429, 503)
)

SOURCE_BYTES = 64 * 1024
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


@router.post(
    "",
    status_code=201,
    response_model=Dataset,
    responses=responses(400, 404, 409, 413, 422, 507),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": reference(DatasetSource),
                    "examples": {
                        "digits": {"value": {"source": "builtin:digits"}},
                        "fashion": {"value": {"source": "builtin:fashion-mnist", "max_train_images": 10000}},
                        "upload": {"value": {"upload": "upload_0mk3q8v6zr5d2a7x9c4t"}},
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
    task: Annotated[Task, Query()] = "classification",
    void_label: Annotated[
        int,
        Query(
            ge=0,
            le=255,
            description="Of `segmentation`: the label of pixels that belong to no class, and count nowhere.",
        ),
    ] = VOID_LABEL,
    expires_after: Annotated[
        ExpiresAfter | None,
        Query(description="Seconds until it is deleted, or once no job needs it any more. Default: it stays."),
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Upload a zip or tar(.gz/.zst) archive of `train/<class>/*.{jpg,png,webp}` and `val/<class>/…`, or name one.

    JSON names a source, or a finished upload of /v1/uploads that is an archive.

    With `task=multilabel` the archive is `train/…`, `val/…` and `labels.csv`: a column `image` (the path from `train/` or
    `val/` on) and one of 0 and 1 for each class, or `image,labels` with names separated by `|`, `;` or spaces.

    With `task=attributes` it is `train/…`, `val/…` and `attributes.csv`: a column `image` (as in `labels.csv`) and one of
    categories for each attribute, an empty cell where it is not known. `classes` are then `attribute=category`, the categories
    of one attribute after the other, and `attributes` has them by attribute. Every image needs a category of one attribute
    or more, and every category an image in `train/`.

    With `task=segmentation` it is `train/images/…`, `train/masks/*.png`, the same for `val/`, and `classes.txt` with a name a
    line: a mask has the name and the size of its image, is grey or has a palette, and its values are labels. The labels
    other than `void_label`, in their order from 0, are the lines of `classes.txt`.

    With `task=detection` it is `train/images/…` and `train/annotations.json`, the same for `val/`, or COCO's own
    `train2017/…` and `annotations/instances_train2017.json`: COCO's JSON with `images`, `categories` and `annotations` of
    `bbox` [x, y, width, height] in pixels. The classes are `background` and the categories in the order of their ids. Crowds
    (`iscrowd`) are not trained on, and count neither for nor against; images without annotations are background. Pascal VOC's
    XML, `train/annotations/a.xml` for each image, is read as well, its classes by name. Where every annotation has a
    `segmentation` (polygons, or runs of COCO's library as numbers or as text), the dataset has `masks`, which a Mask R-CNN
    learns and other detectors do not read.

    Pascal VOC's own folders are taken as they are, also below `VOCdevkit/VOC2012/`: `JPEGImages/` with `Annotations/` and
    `ImageSets/Main/train.txt` and `val.txt` for `task=detection`, with `SegmentationClass/` and `ImageSets/Segmentation/` for
    `task=segmentation`, whose classes are VOC's 21 where there is no `classes.txt`.

    With `task=regression` it is `train/…`, `val/…` and `targets.csv`: a column `image` (as in `labels.csv`) and one of numbers
    for each target, in your own units. `classes` are then the targets' names. Every image needs every target; a target that
    is one number everywhere is taken, with a warning.

    With `task=unlabelled` it is up to 512 images in any folders, for the `probe` of a job: nothing is trained on them.

    An archive's content type may also be `application/zip` or `application/x-tar`: the content decides.

    Without `val/` a stratified 20 % of `train/` is held out. Every image is decoded before `status` becomes `ready`.
    """
    shown_name(name, None, "")  # before the upload
    if task != "segmentation" and void_label != VOID_LABEL:
        raise ValidationFailed(
            f"void_label={void_label} is for task=segmentation, and the task is {task}: leave it out",
            [{"pointer": "/void_label", "detail": "only with task=segmentation"}],
        )
    options = DatasetOptions(void_label=void_label)
    source = await _source(request, task) if await is_json(request) else None
    if source is not None and source.source is not None:
        options = DatasetOptions(max_train_images=source.max_train_images, void_label=void_label)
        return await run_sync(
            _name_source, request, store, tenant, name, task, source, options, expires_after, idempotency_key
        )
    limit = request.app.state.settings.max_dataset_bytes
    upload = None if source is None else source.upload
    async with arriving(request, store, tenant, limit, upload, idempotency_key) as arrived:

        def create() -> DatasetRecord:
            received = arrived.claim()
            shown = shown_name(name, arrived.filename, "dataset")
            return store.datasets.create(tenant, shown, task, received, options, expires_after)

        print_ = fingerprint("dataset", name, _task_print(task, options), arrived.sha256, expires_after=expires_after)
        return await run_sync(once, store, tenant, idempotency_key, print_, create, arrived.received)


def _name_source(
    request: Request, store: Store, tenant: Tenant, name: str | None, task: Task, given: DatasetSource,
    options: DatasetOptions, expires_after: int | None, idempotency_key: str | None,
) -> Response:  # fmt: skip
    source = given.source or ""

    def create() -> DatasetRecord:
        store.quotas.check_bytes(tenant, request.app.state.settings.quotas, 0)
        return store.datasets.create(tenant, shown_name(name, source, "dataset"), task, source, options, expires_after)

    asked = given.model_dump(exclude={"upload"})  # as it was before there were uploads to name
    print_ = fingerprint("dataset", name, _task_print(task, options), asked, expires_after=expires_after)
    return once(store, tenant, idempotency_key, print_, create)


def _task_print(task: Task, options: DatasetOptions) -> str:
    """Return the task as an idempotency key's digest has it, with the void label where it is not the usual one."""
    return task if options.void_label == VOID_LABEL else f"{task}/{options.void_label}"


async def _source(request: Request, task: str) -> DatasetSource:
    body = await (await with_small_body(request, SOURCE_BYTES)).body()
    try:
        source = DatasetSource.model_validate_json(body)
    except ValidationError as error:
        raise not_valid(error, body) from None
    if source.source is not None:
        _check_source(request, source, source.source, task)
    return source


def _check_source(request: Request, given: DatasetSource, source: str, task: str) -> None:
    kind, _, rest = source.partition(":")
    if kind == "builtin" and task != "classification":
        raise TaskUnsupported(f"{source} has one label per image: leave task={task} out")
    if kind == "builtin":
        if rest not in BUILTINS:
            names = ", ".join(f"builtin:{name}" for name in BUILTINS)
            raise ValidationFailed(
                f"{source!r} does not exist; there are {names}",
                [{"pointer": "/source", "detail": f"one of {names}"}],
            )
    elif locate(source, request.app.state.settings.sources) is None:
        raise ValidationFailed(
            f"{source!r} is not below a root that this service's operator allows (WBAR_SOURCES)",
            [{"pointer": "/source", "detail": "not below an allowed root"}],
        )
    if kind != "builtin" and given.max_train_images is not None:
        raise ValidationFailed(
            "max_train_images is for built-in datasets; leave images out of the archive instead",
            [{"pointer": "/max_train_images", "detail": "only with a builtin: source"}],
        )


@router.get("", response_model=Page[Dataset], responses=responses(422))
def list_datasets(
    store: StoreOf,
    tenant: TenantOf,
    page: Annotated[PageRequest, Depends(paged_by("ds"))],
    status: Annotated[list[UploadStatus] | None, Query(description=ANY_OF)] = None,
) -> Response:
    """List the datasets, newest first."""
    return answer(page_of(store.datasets.page(tenant, page, status or ()), DatasetRecord.to_api))


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
