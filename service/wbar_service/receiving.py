"""Uploads: streamed to the blob store in constant memory, hashed on the fly, kept only if the announced digest fits."""

import base64
import re

from anyio.to_thread import run_sync
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from wbar.errors import BadRequest, DigestMismatch, TooLarge, ValidationFailed
from wbar.text import LONGEST_NAME, name_fault_of
from wbar_service.bodies import limited
from wbar_store.blobs import Blobs, Received, Upload

BUFFER = 1024 * 1024
FORM_BYTES = 64 * 1024  # of a form beside its file


def is_sha256(text: str) -> bool:
    """Return whether a text is a sha-256 in hex."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def announced_sha256(request: Request, *names: str) -> str | None:
    """Return the sha-256 of the first of these headers that is sent, in hex; None where none is.

    names: of digests by RFC 9530; default: Repr-Digest and Content-Digest.

    Raises ValidationFailed (422) for a header without a readable sha-256: a digest that is not checked protects nothing.
    """
    for name in names or ("Repr-Digest", "Content-Digest"):
        header = request.headers.get(name)
        if header is None:
            continue
        match = re.search(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):\s*(?:$|[,;])", header, re.IGNORECASE)
        if match is None:
            raise ValidationFailed(
                f"{name} has no readable sha-256: send `sha-256=:<the 32 bytes in base64>:`, not {header[:100]!r}",
                [{"pointer": "", "parameter": name, "detail": "no readable sha-256"}],
            )
        return base64.b64decode(match.group(1)).hex()
    return None


def announced_bytes(request: Request) -> int:
    """Return the length that the request announces; 0 where it does not."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else 0


async def receive(request: Request, blobs: Blobs, limit: int) -> tuple[Received, str | None]:
    """Store the body (or the multipart field `file`) under a temporary name; return it, and the file name if one was sent.

    Raises TooLarge, DigestMismatch, ValidationFailed or BadRequest; then nothing is left behind.
    """
    expected = announced_sha256(request)
    length = announced_bytes(request)
    if length > limit:
        raise TooLarge(f"the body has {length} bytes and this service takes {limit}")
    upload = await run_sync(blobs.receive)
    try:
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            filename = await _from_form(limited(request, limit + FORM_BYTES, "a form"), upload, limit)
        else:
            filename = None
            await _from_stream(request, upload, limit)
        received = await run_sync(upload.finish)
    except ClientDisconnect:
        await run_sync(upload.abort)
        raise BadRequest("the connection ended before the body did: nothing was kept") from None
    except BaseException:
        await run_sync(upload.abort)
        raise
    if expected is not None and received.sha256 != expected:
        await run_sync(blobs.discard, received.temporary)
        raise DigestMismatch(f"announced sha-256 {expected}, received {received.sha256}: nothing was kept")
    return received, filename


async def _from_stream(request: Request, upload: Upload, limit: int) -> None:
    # The event loop only gathers; hashing and writing (which release the GIL) happen a megabyte at a time in a thread.
    parts: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        parts.append(chunk)
        size += len(chunk)
        if size >= BUFFER:
            await run_sync(_write, upload, parts, limit)
            parts, size = [], 0
    await run_sync(_write, upload, parts, limit)


def _write(upload: Upload, parts: list[bytes], limit: int) -> None:
    for part in parts:
        upload.write(part)
    if upload.bytes > limit:
        raise TooLarge(f"the body has more than the {limit} bytes that this service takes")


async def _from_form(request: Request, upload: Upload, limit: int) -> str | None:
    async with request.form(max_files=1, max_fields=16) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise BadRequest("the form has no file in its field `file`")
        while chunk := await file.read(BUFFER):
            await run_sync(_write, upload, [chunk], limit)
        return file.filename


def shown_name(given: str | None, filename: str | None, default: str) -> str:
    """Return the name of an upload: the given one, else its file's. Raises ValidationFailed for one that cannot be shown."""
    for parameter, name in (("name", given), ("filename", filename)):
        if name is None or (parameter == "filename" and not name):
            continue
        fault = name_fault_of(name[:LONGEST_NAME])
        if fault is not None:
            raise ValidationFailed(
                f"the {parameter} {name[:80]!a} cannot be taken: {fault}; give another as ?name=",
                [{"pointer": "", "parameter": parameter, "detail": fault}],
            )
        return name[:LONGEST_NAME]
    return default
