"""The headers of tus 1.0.0 (https://tus.io/protocols/resumable-upload), read and written in one place."""

import base64
import binascii
import hashlib
import re
import zlib
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wbar.errors import BadRequest, UnsupportedTusVersion
from wbar.uploads import CONTENT_TYPE, TUS_VERSION, UPLOAD_ID
from wbar_store.resumable import ResumableUpload

PATH = "/v1/uploads"
EXTENSIONS = (
    "creation", "creation-with-upload", "creation-defer-length", "expiration", "checksum", "termination", "concatenation",
)  # fmt: skip
ALGORITHMS = ("crc32", "sha1", "sha256")
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST")
# A request without it is answered by tus's own status; the framework would answer with another one.
VERSION_PARAMETER: dict[str, Any] = {
    "name": "Tus-Resumable",
    "in": "header",
    "required": True,
    "schema": {"type": "string", "enum": [TUS_VERSION]},
}
MOST_PARTIALS = 256


@dataclass(frozen=True)
class Checksum:
    """The checksum of the bytes of one PATCH, as it was announced."""

    algorithm: str
    digest: bytes


class _Crc32:
    """The checksum of gzip and zip as hashlib's digests are used; four bytes, the most significant first.

    It finds what a line damages at a tenth of a digest's cost. Whether the whole is what was sent, its sha-256 says.
    """

    digest_size = 4

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")

    def hexdigest(self) -> str:
        return self.digest().hex()


def checksum_by(algorithm: str) -> "_Crc32 | hashlib._Hash":
    """Return the checksum of no bytes yet, by one of ALGORITHMS."""
    return _Crc32() if algorithm == "crc32" else hashlib.new(algorithm)


class TusMethod:
    """Pure ASGI middleware for the paths of uploads: X-HTTP-Method-Override is the method, and answers name the version.

    It stands before the routes, so that the scope that a key needs is that of the method that is done.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"] == PATH or scope["path"].startswith(f"{PATH}/")):
            await self.app(scope, receive, send)
            return
        override = Headers(scope=scope).get("x-http-method-override", "").upper()
        if override in METHODS:
            scope["method"] = override

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(raw=message["headers"])["Tus-Resumable"] = TUS_VERSION
            await send(message)

        await self.app(scope, receive, named)


async def check_version(request: Request) -> None:
    """Raise UnsupportedTusVersion (412) unless the request names our version."""
    version = request.headers.get("Tus-Resumable")
    if version != TUS_VERSION:
        raise UnsupportedTusVersion(
            f"send `Tus-Resumable: {TUS_VERSION}`" + ("" if version is None else f", not {version[:40]!r}"),
            headers={"Tus-Version": TUS_VERSION},
        )


def progress(upload: ResumableUpload) -> dict[str, str]:
    """Return the headers that say how far an upload has come, until when it may go on, and by what bytes are checked."""
    return {
        "Upload-Offset": str(upload.received),
        "Upload-Expires": formatdate(upload.expires_at, usegmt=True),
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),  # so that a client need not ask with OPTIONS
    }


def described(upload: ResumableUpload) -> dict[str, str]:
    """Return all headers about an upload."""
    headers = progress(upload) | {"Cache-Control": "no-store"}
    headers |= {"Upload-Defer-Length": "1"} if upload.length is None else {"Upload-Length": str(upload.length)}
    if upload.given:
        headers["Upload-Metadata"] = upload.given
    if upload.kind == "partial":
        headers["Upload-Concat"] = "partial"
    elif upload.partials is not None:
        headers["Upload-Concat"] = f"final;{' '.join(f'{PATH}/{one}' for one in upload.partials.split())}"
    return headers


def carries_bytes(request: Request) -> bool:
    """Return whether the body is bytes of an upload, by its content type."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == CONTENT_TYPE


def checksum_of(header: str | None) -> Checksum | None:
    """Return what Upload-Checksum announces. Raises BadRequest for another algorithm, and for what is no digest."""
    if header is None:
        return None
    algorithm, _, encoded = header.strip().partition(" ")
    if algorithm not in ALGORITHMS:
        raise BadRequest(f"Upload-Checksum: {', '.join(ALGORITHMS)} are known, not {algorithm[:40]!r}")
    try:
        digest = base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != checksum_by(algorithm).digest_size:
        raise BadRequest(f"Upload-Checksum: {encoded[:100]!r} is no {algorithm} in base64")
    return Checksum(algorithm, digest)


def partials_of(header: str | None) -> list[str] | None:
    """Return the ids that `Upload-Concat: final;…` names by their URLs; None for `partial`, and without the header.

    Raises BadRequest for anything else.
    """
    if header is None or header == "partial":
        return None
    kind, _, rest = header.partition(";")
    ids = [url.rstrip("/").rpartition("/")[2] for url in rest.split()]
    if kind != "final" or not ids or not all(re.match(UPLOAD_ID, one) for one in ids):
        raise BadRequest(
            "Upload-Concat is `partial`, or `final;` and the URLs of partial uploads with spaces between them"
        )
    if len(ids) > MOST_PARTIALS:
        raise BadRequest(f"Upload-Concat names {len(ids)} uploads, and {MOST_PARTIALS} is the most")
    return ids
