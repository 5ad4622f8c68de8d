"""The routes of /v1/uploads: tus 1.0.0, and a list and a status in JSON for those who look."""

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import Field

from wbar.errors import BadRequest, OffsetMismatch, TooLarge, UnsupportedMediaType, UploadIsFinal, ValidationFailed
from wbar.lists import Page
from wbar.uploads import CONTENT_TYPE, TUS_VERSION, Upload, decode_metadata
from wbar_service.answers import answer
from wbar_service.auth import AuthenticatedRoute, StoreOf, TenantOf
from wbar_service.bodies import check_not_encoded
from wbar_service.idempotency import IdempotencyKey, fingerprint, once
from wbar_service.paging import page_of, paged_by
from wbar_service.problems import responses
from wbar_service.query_parameters import DIGITS
from wbar_service.receiving import announced_sha256, is_sha256
from wbar_service.settings import ServiceSettings
from wbar_service.uploads.appending import append, longest
from wbar_service.uploads.protocol import (
    ALGORITHMS,
    EXTENSIONS,
    PATH,
    VERSION_PARAMETER,
    carries_bytes,
    check_version,
    checksum_of,
    described,
    partials_of,
    progress,
)
from wbar_store.database import Tenant
from wbar_store.repository import PageRequest
from wbar_store.resumable import ResumableUpload
from wbar_store.store import Store

router = APIRouter(
    prefix=PATH, tags=["uploads"], route_class=AuthenticatedRoute, responses=responses(401, 403, 429, 503)
)

# None of them is required by the framework: whether an upload exists is said before what a request about it lacks.
Bytes = Annotated[int, Field(ge=0), DIGITS]
UploadLength = Annotated[Bytes | None, Header(alias="Upload-Length", description="Bytes in all.")]
UploadOffset = Annotated[
    Bytes | None, Header(alias="Upload-Offset", description="Where the bytes go on: the upload's `offset`.")
]
UploadChecksum = Annotated[
    str | None,
    Header(
        alias="Upload-Checksum",
        max_length=200,
        description="Of the body: `crc32`, `sha256` or `sha1`, a space, base64.",
    ),
]
TUS = [Depends(check_version)]
_VERSION: dict[str, Any] = {"parameters": [VERSION_PARAMETER]}
_BYTES: dict[str, Any] = {"content": {CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}}}


@router.post(
    "",
    status_code=201,
    response_model=Upload,
    responses=responses(400, 404, 409, 412, 413, 422, 460, 507),
    dependencies=TUS,
    openapi_extra=_VERSION | {"requestBody": {"required": False, **_BYTES}},
)
async def create_upload(
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    upload_length: UploadLength = None,
    upload_defer_length: Annotated[
        str | None, Header(alias="Upload-Defer-Length", description="`1`: the length comes with a PATCH.")
    ] = None,
    upload_metadata: Annotated[
        str,
        Header(
            alias="Upload-Metadata",
            max_length=4096,
            description="tus's pairs. `filename` is the default name of what is made of the upload, `sha256` is verified.",
        ),
    ] = "",
    upload_concat: Annotated[
        str | None,
        Header(
            alias="Upload-Concat", max_length=32768, description="`partial`, or `final;` and URLs of partial uploads."
        ),
    ] = None,
    upload_checksum: UploadChecksum = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Begin an upload; `Location` is where its bytes go with PATCH, and HEAD says how many are there.

    This is tus 1.0.0 with creation, creation-with-upload, creation-defer-length, expiration, checksum (crc32, sha1, sha256),
    termination and concatenation: any client of tus does it. Name the finished upload in a POST of a checkpoint or dataset.
    """
    settings: ServiceSettings = request.app.state.settings
    check_not_encoded(request)
    sha256 = _announced(request, upload_metadata)
    checksum = checksum_of(upload_checksum)
    ids = partials_of(upload_concat)
    lifetime = settings.uploads_expire_after
    if ids is not None:
        if upload_length is not None or upload_defer_length is not None:
            raise BadRequest("a final upload has the length of its parts: send no Upload-Length")
        print_ = fingerprint("upload", ids, upload_metadata, sha256)

        def create() -> ResumableUpload:
            return store.uploads.concatenate(tenant, ids, upload_metadata, lifetime, sha256)

    else:
        _check_length(settings, upload_length, upload_defer_length)
        print_ = fingerprint("upload", upload_length, upload_metadata, upload_concat, sha256)

        def create() -> ResumableUpload:
            store.quotas.check_bytes(tenant, settings.quotas, upload_length or 0)
            partial = upload_concat == "partial"
            return store.uploads.create(tenant, upload_length, upload_metadata, lifetime, partial, sha256)

    created = await run_sync(once, store, tenant, idempotency_key, print_, create)
    upload = await run_sync(store.uploads.get, tenant, Upload.model_validate_json(bytes(created.body)).id)
    if ids is None and carries_bytes(request) and upload.received == 0:
        upload = await append(request, store, tenant, upload, checksum)
    body = upload.to_api().model_dump_json()
    headers = {"Location": f"{PATH}/{upload.id}", **progress(upload)}
    headers |= {name: created.headers[name] for name in ("Idempotent-Replayed",) if name in created.headers}
    return Response(body, 201, headers, media_type="application/json")


def _check_length(settings: ServiceSettings, length: int | None, deferred: str | None) -> None:
    if deferred is not None and deferred != "1":
        raise BadRequest(f"Upload-Defer-Length is `1` or not there, not {deferred[:40]!r}")
    if (length is None) == (deferred is None):
        raise BadRequest("send Upload-Length, or `Upload-Defer-Length: 1` where the length is not known yet")
    if length is not None and length > longest(settings):
        raise TooLarge(f"the upload has {length} bytes, and this service takes {longest(settings)}")


def _announced(request: Request, given: str) -> str | None:
    """Return the sha-256 of the whole content, if it was announced. Raises BadRequest, ValidationFailed."""
    try:
        announced = decode_metadata(given).get("sha256", "").lower() or None
    except ValueError as error:
        raise BadRequest(f"Upload-Metadata: {error}") from None
    if announced is not None and not is_sha256(announced):
        raise ValidationFailed(
            f"Upload-Metadata: sha256 is 64 hexadecimal digits, not {announced[:80]!r}",
            [{"pointer": "", "parameter": "Upload-Metadata", "detail": "sha256 is no sha-256"}],
        )
    return announced or announced_sha256(request, "Repr-Digest")


@router.options("", include_in_schema=False)
@router.options("/{upload_id}", include_in_schema=False)
async def describe_protocol(request: Request) -> Response:
    """Say what of tus this service does."""
    headers = {
        "Tus-Version": TUS_VERSION,
        "Tus-Extension": ",".join(EXTENSIONS),
        "Tus-Max-Size": str(longest(request.app.state.settings)),
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
    }
    return Response(status_code=204, headers=headers)


@router.get("", response_model=Page[Upload], responses=responses(422))
def list_uploads(
    store: StoreOf, tenant: TenantOf, page: Annotated[PageRequest, Depends(paged_by("upload"))]
) -> Response:
    """List the uploads that arrive in parts, newest first."""
    return answer(page_of(store.uploads.page(tenant, page), ResumableUpload.to_api))


@router.head("/{upload_id}", dependencies=TUS, include_in_schema=False)
async def get_upload_offset(upload_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Say in headers how many bytes are there."""
    return Response(headers=described(await run_sync(store.uploads.get, tenant, upload_id)))


@router.get("/{upload_id}", response_model=Upload, responses=responses(404))
async def get_upload(upload_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Return an upload as JSON; HEAD answers with tus's headers: `Upload-Offset`, `Upload-Length`, `Upload-Expires`."""
    upload = await run_sync(store.uploads.get, tenant, upload_id)
    return Response(upload.to_api().model_dump_json(), headers=described(upload), media_type="application/json")


@router.patch(
    "/{upload_id}",
    status_code=204,
    response_class=Response,
    responses=responses(400, 404, 409, 412, 413, 415, 422, 460, 507),
    dependencies=TUS,
    openapi_extra=_VERSION | {"requestBody": {"required": True, **_BYTES}},
)
async def append_to_upload(
    upload_id: str,
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    upload_offset: UploadOffset = None,
    upload_length: UploadLength = None,
    upload_checksum: UploadChecksum = None,
) -> Response:
    """Send bytes from `Upload-Offset` on; what has arrived when the connection ends is kept, unless it has a checksum.

    409 `offset_mismatch` where the upload stands elsewhere: ask with HEAD, and go on there. 460 where the checksum does not
    fit: nothing of this request was kept. Every PATCH lets the upload live longer: `Upload-Expires`.
    """
    upload = await run_sync(store.uploads.get, tenant, upload_id)
    checksum = checksum_of(upload_checksum)
    if not carries_bytes(request):
        raise UnsupportedMediaType(f"the content type of a PATCH is {CONTENT_TYPE}")
    check_not_encoded(request)
    if upload.kind == "final":
        raise UploadIsFinal(f"{upload_id} was made of partial uploads, and takes no bytes")
    if upload_offset is None:
        raise BadRequest(f"send Upload-Offset: the upload stands at {upload.received}")
    if upload_offset != upload.received:
        raise OffsetMismatch(
            f"{upload_id} stands at {upload.received}, not at {upload_offset}",
            headers={"Upload-Offset": str(upload.received)},
        )
    if upload_length is not None:
        upload = await run_sync(_with_length, store, tenant, upload, upload_length, request.app.state.settings)
    upload = await append(request, store, tenant, upload, checksum)
    return Response(status_code=204, headers=progress(upload))


def _with_length(
    store: Store, tenant: Tenant, upload: ResumableUpload, length: int, settings: ServiceSettings
) -> ResumableUpload:
    if length > longest(settings):
        raise TooLarge(f"the upload has {length} bytes, and this service takes {longest(settings)}")
    return store.uploads.fix_length(tenant, upload.id, length)


@router.delete(
    "/{upload_id}",
    status_code=204,
    response_class=Response,
    responses=responses(404, 412),
    dependencies=TUS,
    openapi_extra=_VERSION,
)
def delete_upload(upload_id: str, store: StoreOf, tenant: TenantOf) -> Response:
    """Delete an upload and what has arrived of it; what was made of it stays."""
    store.discard_parts(store.uploads.remove(tenant, upload_id))
    return Response(status_code=204)
