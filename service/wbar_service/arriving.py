"""The content of a new checkpoint or dataset: the body of the request, or what the body names.

That is a finished upload, or for a checkpoint the weights that a job or a merge has made. Either way it comes as one object
under a temporary name, with its digest and its size, so that what is made of it is the same.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from wbar.checkpoints import CheckpointSource
from wbar.errors import DigestMismatch, FilesExpired, TooLarge, UploadNotFinished
from wbar.uploads import UploadReference
from wbar_service.bodies import is_json, with_small_body
from wbar_service.receiving import announced_bytes, announced_sha256, receive
from wbar_service.settings import ServiceSettings
from wbar_store.blobs import Received
from wbar_store.database import Tenant
from wbar_store.resumable import ResumableUpload
from wbar_store.store import Store


@dataclass(frozen=True)
class Made:
    """The weights of a job or a merge. of: its id. blob: their content. name: what they are called."""

    of: str
    blob: str
    name: str


@dataclass
class Arrived:
    """Content that has arrived.

    received: under its temporary name; None of an upload that was used before, which only a request sent again may name.
    filename: as its sender calls it.
    """

    sha256: str
    received: Received | None
    filename: str | None
    _claim: Callable[[], list[str]]
    parts: list[str] = field(default_factory=list)

    def claim(self) -> Received:
        """Return the content for the row that is written in this transaction. Raises QuotaExceeded, UploadUsed, NotFound."""
        self.parts = self._claim()
        assert self.received is not None
        return self.received


def not_valid(error: ValidationError, body: bytes) -> RequestValidationError:
    """Return the error of a body that the route has read itself, as of one that the framework has read."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = None
    return RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in error.errors()], body=parsed)


async def named_content(request: Request) -> UploadReference | CheckpointSource | None:
    """Return what the JSON body of a new checkpoint names; None for a body that is the content itself."""
    if not await is_json(request):
        return None
    body = await (await with_small_body(request)).body()
    named = CheckpointSource if _has_source(body) else UploadReference
    try:
        return named.model_validate_json(body)
    except ValidationError as error:
        raise not_valid(error, body) from None


def _has_source(body: bytes) -> bool:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(parsed, dict) and "source" in parsed


@asynccontextmanager
async def arriving(
    request: Request,
    store: Store,
    tenant: Tenant,
    limit: int,
    upload_id: str | None,
    idempotency_key: str | None,
    made: Made | None = None,
) -> AsyncIterator[Arrived]:
    """Yield the content, of at most `limit` bytes; what of it was not kept by then is deleted at the end.

    upload_id: of the upload that is named. made: what a job or a merge has made. Neither: the body is the content.

    Raises as `receive`, UploadNotFinished, and FilesExpired where what was made is deleted at this moment.
    """
    settings: ServiceSettings = request.app.state.settings
    if made is not None:
        arrived = await run_sync(_copied, store, tenant, settings, made)
    elif upload_id is not None:
        upload = await run_sync(store.uploads.get, tenant, upload_id)
        arrived = await run_sync(_joined, store, tenant, upload, limit, announced_sha256(request, "Repr-Digest"))
    else:
        if (
            not idempotency_key
        ):  # a request that comes again counts already; what is new is checked where its row is made
            await run_sync(store.quotas.check_bytes, tenant, settings.quotas, announced_bytes(request))
        received, filename = await receive(request, store.blobs, limit)
        arrived = _checked(store, tenant, settings, received, filename)
    try:
        yield arrived
    except BaseException:
        arrived.parts = []  # the transaction that claimed them may have been rolled back
        raise
    finally:
        if arrived.received is not None:  # a replay or a refusal left it under its first name
            await run_sync(store.blobs.discard, arrived.received.temporary)
        await run_sync(store.discard_parts, arrived.parts)


def _checked(
    store: Store, tenant: Tenant, settings: ServiceSettings, received: Received, filename: str | None
) -> Arrived:
    def check() -> list[str]:
        store.quotas.check_bytes(tenant, settings.quotas, received.bytes)
        return []

    return Arrived(received.sha256, received, filename, check)


def _copied(store: Store, tenant: Tenant, settings: ServiceSettings, made: Made) -> Arrived:
    try:
        received = store.blobs.copy(made.blob)
    except FileNotFoundError:
        raise FilesExpired(f"what {made.of} has made was deleted while it was read: nothing was kept") from None
    return _checked(store, tenant, settings, received, made.name)


def _joined(store: Store, tenant: Tenant, upload: ResumableUpload, limit: int, expected: str | None) -> Arrived:
    """Return a finished upload's content as one object. It is read once more on the way, which gives its digest."""
    filename = upload.metadata.get("filename")
    if upload.used_at is not None:
        return Arrived(upload.sha256 or "", None, filename, partial(store.uploads.use, tenant, upload.id, ""))
    _check_finished(upload, limit)
    try:
        received = store.blobs.join(store.uploads.names(tenant, upload.id))
    except FileNotFoundError:
        received = None
    if received is None or received.bytes != upload.received:
        # Deleted meanwhile, or used by another request, perhaps the same one sent again.
        if received is not None:
            store.blobs.discard(received.temporary)
        now = store.uploads.get(tenant, upload.id)
        if now.used_at is None:
            raise RuntimeError(f"{upload.id}: the {upload.received} bytes that had arrived are not all there")
        return _joined(store, tenant, now, limit, expected)
    for digest in {expected, upload.sha256} - {None}:
        if received.sha256 != digest:
            store.blobs.discard(received.temporary)
            raise DigestMismatch(
                f"announced sha-256 {digest}, {upload.id} has {received.sha256}: nothing was made of it; delete it and send "
                "the file again"
            )
    return Arrived(received.sha256, received, filename, partial(store.uploads.use, tenant, upload.id, received.sha256))


def _check_finished(upload: ResumableUpload, limit: int) -> None:
    if upload.kind == "partial":
        raise UploadNotFinished(f"{upload.id} is partial: make a final upload of it with `Upload-Concat`")
    if upload.status != "finished":
        length = "an unknown number of" if upload.length is None else upload.length
        raise UploadNotFinished(f"{upload.id} has {upload.received} of {length} bytes: send the rest with PATCH")
    if upload.received > limit:
        raise TooLarge(f"the upload has {upload.received} bytes and this service takes {limit}")
