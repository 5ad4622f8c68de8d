"""The bytes of one PATCH: streamed into parts, each durable before the offset that counts it is committed.

A part ends with the request, or after some megabytes or seconds, so that a server that is killed loses no more than that. A
connection that ends in the middle leaves what has arrived. With a checksum the request is one part, kept only if it fits.
"""

import time

from anyio.to_thread import run_sync
from fastapi import Request
from starlette.requests import ClientDisconnect

from wbar.errors import BadRequest, ChecksumMismatch, Refused, TooLarge
from wbar_service.receiving import BUFFER, announced_bytes
from wbar_service.settings import ServiceSettings
from wbar_service.uploads.protocol import Checksum, checksum_by
from wbar_store.blobs import PartUpload
from wbar_store.database import Tenant
from wbar_store.resumable import ResumableUpload
from wbar_store.store import Store

PART_BYTES = 64 * BUFFER
PART_SECONDS = 5.0  # after which also a slow client's bytes are made durable


async def append(
    request: Request, store: Store, tenant: Tenant, upload: ResumableUpload, checksum: Checksum | None
) -> ResumableUpload:
    """Append the body to the upload, and return where it stands then.

    Raises TooLarge, QuotaExceeded, OffsetMismatch, BadRequest where the body was cut off: what is durable by then stays.
    Raises ChecksumMismatch: nothing stays.
    """
    settings: ServiceSettings = request.app.state.settings
    announced = announced_bytes(request)
    if announced > room(upload, settings):
        raise _too_large(upload, settings)
    if announced > 0:  # before the bytes come; what is new is checked again where its row is made
        await run_sync(store.quotas.check_bytes, tenant, settings.quotas, announced)
    parts = _Parts(store, tenant, upload, settings, checksum)
    pieces: list[bytes] = []
    try:
        size = 0
        async for piece in request.stream():
            pieces.append(piece)
            size += len(piece)
            if size >= BUFFER or parts.is_due():
                await run_sync(parts.write, pieces)
                pieces, size = [], 0
        await run_sync(parts.write, pieces)
        await run_sync(parts.finish)
    except ClientDisconnect:
        await run_sync(parts.cut_off, pieces)
        raise BadRequest("the connection ended before the body did: ask with HEAD what was kept") from None
    finally:
        await run_sync(parts.abort)
    return parts.upload


def longest(settings: ServiceSettings) -> int:
    """Return the bytes that an upload may have: those of the largest thing that is made of one."""
    return max(settings.max_checkpoint_bytes, settings.max_dataset_bytes)


def room(upload: ResumableUpload, settings: ServiceSettings) -> int:
    """Return the bytes that the upload has yet to get."""
    return (longest(settings) if upload.length is None else upload.length) - upload.received


def _too_large(upload: ResumableUpload, settings: ServiceSettings) -> TooLarge:
    length = f"at most {longest(settings)}" if upload.length is None else str(upload.length)
    return TooLarge(f"the upload has {upload.received} of {length} bytes, and the body has more than are left")


class _Parts:
    """The parts of one request, written in threads, one call at a time. upload: as it stands with what is durable."""

    def __init__(
        self,
        store: Store,
        tenant: Tenant,
        upload: ResumableUpload,
        settings: ServiceSettings,
        checksum: Checksum | None,
    ) -> None:
        self.upload = upload
        self._store, self._tenant, self._settings, self._checksum = store, tenant, settings, checksum
        self._hash = None if checksum is None else checksum_by(checksum.algorithm)
        self._part: PartUpload | None = None
        self._begun = time.monotonic()

    def is_due(self) -> bool:
        """Return whether the part has been open for long enough."""
        return self._checksum is None and time.monotonic() - self._begun >= PART_SECONDS

    def write(self, pieces: list[bytes]) -> None:
        """Append bytes, and make the part durable where it is time."""
        if self._part is None and any(pieces):
            self._part, self._begun = self._store.blobs.receive_part(), time.monotonic()
        for piece in pieces:
            if self._hash is not None:
                self._hash.update(piece)
            if self._part is not None:
                self._part.write(piece)
        written = self._part.bytes if self._part is not None else 0
        if written > room(self.upload, self._settings):
            raise _too_large(self.upload, self._settings)
        if self._checksum is None and (written >= PART_BYTES or self.is_due()):
            self._commit()

    def finish(self) -> None:
        """Check the checksum, and make what is left durable."""
        if self._checksum is not None and self._hash is not None and self._hash.digest() != self._checksum.digest:
            raise ChecksumMismatch(
                f"announced {self._checksum.algorithm} {self._checksum.digest.hex()}, received {self._hash.hexdigest()}: "
                "nothing of this request was kept"
            )
        self._commit()

    def cut_off(self, pieces: list[bytes]) -> None:
        """Keep what has arrived, unless its checksum is wanted."""
        if self._checksum is None:
            self.write(pieces)
            self._commit()

    def abort(self) -> None:
        """Delete the part that is not durable, if there is one."""
        part, self._part = self._part, None
        if part is not None:
            part.abort()

    def _commit(self) -> None:
        part = None if self._part is None else self._part.finish()
        self._part, self._begun = None, time.monotonic()
        store, lifetime = self._store, self._settings.uploads_expire_after
        try:
            with store.database.write():
                if part is not None:
                    store.quotas.check_bytes(self._tenant, self._settings.quotas, part.bytes)
                self.upload = store.uploads.append(self._tenant, self.upload.id, self.upload.received, part, lifetime)
        except Refused:
            if part is not None:
                store.discard_parts([part.name])
            raise
        # After any other error the part stays: the database may have taken its row before the connection was lost.
