"""The routes of /v1/checkpoints."""

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Query, Request, Response

from wbar.catalog import ARCHITECTURES, SMP, catalog_name, similar_names
from wbar.checkpoints import Checkpoint, CheckpointSource, Purpose
from wbar.errors import CheckpointNotReady, ValidationFailed
from wbar.jobs import Deleted
from wbar.lists import Page
from wbar.request import ExpiresAfter
from wbar.states import UploadStatus
from wbar.text import NAME_PATTERN
from wbar.uploads import UploadReference
from wbar_service.answers import answer, polled
from wbar_service.arriving import arriving, named_content
from wbar_service.auth import AuthenticatedRoute, StoreOf, TenantOf
from wbar_service.checkpoints.made import made_by
from wbar_service.downloads import OPENAPI_RESPONSES, blob_response
from wbar_service.idempotency import IdempotencyKey, fingerprint, once
from wbar_service.paging import ANY_OF, page_of, paged_by
from wbar_service.problems import responses
from wbar_service.receiving import shown_name
from wbar_service.schema import reference
from wbar_store.checkpoints import CheckpointRecord, GivenNetwork
from wbar_store.repository import PageRequest
from wbar_store.store import Store

router = APIRouter(
    prefix="/v1/checkpoints",
    tags=["checkpoints"],
    route_class=AuthenticatedRoute,
    responses=responses(401, 403, 429, 503),
)

_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_FORM: dict[str, Any] = {
    "schema": {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
}


@router.post(
    "",
    status_code=201,
    response_model=Checkpoint,
    responses=responses(400, 404, 409, 413, 422, 507),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": _BINARY,
                "multipart/form-data": _FORM,
                "application/json": {"schema": {"oneOf": [reference(UploadReference), reference(CheckpointSource)]}},
            },
        }
    },
)
async def create_checkpoint(
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    name: Annotated[str | None, Query(max_length=256, json_schema_extra={"pattern": NAME_PATTERN})] = None,
    architecture: Annotated[
        str | None,
        Query(
            max_length=128,
            description="A name of /v1/architectures, `timm/…` for one of timm's that others have too. Default: detected.",
        ),
    ] = None,
    num_classes: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
    purpose: Annotated[
        Purpose,
        Query(
            description="`merge`: the tensors of any network are taken, also of one that this service does not know, "
            "and LoRA adapters; such a checkpoint can be merged (POST /v1/merges) and not trained."
        ),
    ] = "train",
    expires_after: Annotated[
        ExpiresAfter | None,
        Query(description="Seconds until it is deleted, or once no job needs it any more. Default: it stays."),
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Upload a checkpoint: a safetensors file, or a PyTorch file that `torch.load(weights_only=True)` accepts.

    Or a `.pt2` archive of torch.export: a network that is in no catalog, in training mode and with a free batch size.

    The body is the file itself, streamed, or JSON that names a finished upload of /v1/uploads, or a job or merge whose
    weights are taken as they are. Its content is validated after the answer: poll until `status` is `ready` or `rejected`.
    """
    if architecture is not None:
        architecture = await run_sync(_known, store, architecture)
    shown_name(name, None, "")  # before the upload
    named = await named_content(request)
    upload = named.upload if isinstance(named, UploadReference) else None
    made = None
    if isinstance(named, CheckpointSource):
        made, itself = await run_sync(made_by, store, tenant, named.source)
        architecture = architecture or itself
    limit = request.app.state.settings.max_checkpoint_bytes
    network = GivenNetwork(architecture=architecture, num_classes=num_classes, purpose=purpose)
    async with arriving(request, store, tenant, limit, upload, idempotency_key, made) as arrived:

        def create() -> CheckpointRecord:
            received = arrived.claim()
            shown = shown_name(name, arrived.filename, "checkpoint")
            return store.checkpoints.create(tenant, shown, received, network, expires_after)

        print_ = fingerprint(
            "checkpoint", name, network.model_dump(exclude={"purpose"}), arrived.sha256, expires_after=expires_after,
            purpose=None if purpose == "train" else purpose,
        )  # fmt: skip
        return await run_sync(once, store, tenant, idempotency_key, print_, create, arrived.received)


def _known(store: Store, architecture: str) -> str:
    """Return the catalog's name of an architecture. Raises ValidationFailed where neither we nor a worker know it."""
    name = catalog_name(architecture)
    # Those of segmentation-models-pytorch a worker knows, whether or not they are listed.
    if name not in ARCHITECTURES and not name.startswith(SMP) and store.architectures.find(name) is None:
        raise ValidationFailed(
            f"{architecture!r} is not an architecture of this service{similar_names(name, store.architectures.names())}; "
            "GET /v1/architectures lists the names",
            [{"pointer": "", "parameter": "architecture", "detail": "unknown architecture"}],
        )
    return name


@router.get("", response_model=Page[Checkpoint], responses=responses(422))
def list_checkpoints(
    store: StoreOf,
    tenant: TenantOf,
    page: Annotated[PageRequest, Depends(paged_by("ckpt"))],
    status: Annotated[list[UploadStatus] | None, Query(description=ANY_OF)] = None,
) -> Response:
    """List the checkpoints, newest first."""
    return answer(page_of(store.checkpoints.page(tenant, page, status or ()), CheckpointRecord.to_api))


@router.get("/{checkpoint_id}", response_model=Checkpoint, responses=responses(404))
async def get_checkpoint(checkpoint_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Return a checkpoint. Poll until its `status` is `ready` or `rejected`."""
    return await polled(store.checkpoints, tenant, checkpoint_id)


@router.delete("/{checkpoint_id}", response_model=Deleted, responses=responses(404, 409))
def delete_checkpoint(checkpoint_id: str, store: StoreOf, tenant: TenantOf) -> Deleted:
    """Delete a checkpoint and its bytes; 409 `in_use` while a queued, running or paused job needs it."""
    store.blobs.collect(store.checkpoints.remove(tenant, checkpoint_id))
    return Deleted(id=checkpoint_id, object="checkpoint")


@router.head("/{checkpoint_id}/content", response_class=Response, include_in_schema=False)
@router.get(
    "/{checkpoint_id}/content",
    response_class=Response,
    responses={**OPENAPI_RESPONSES, **responses(404, 409, 416)},
)
def get_checkpoint_content(checkpoint_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Download the bytes as they were uploaded; 409 unless the checkpoint is `ready`."""
    checkpoint = store.checkpoints.get(tenant, checkpoint_id)
    if checkpoint.status != "ready" or checkpoint.content is None:
        raise CheckpointNotReady(
            f"{checkpoint_id} is {checkpoint.status}: only the bytes of a ready checkpoint are kept"
        )
    kind = checkpoint.facts.format if checkpoint.facts else "safetensors"
    extension = "pth" if kind == "pytorch" else kind
    return blob_response(request, store.blobs, checkpoint.content, f"{checkpoint_id}.{extension}")
