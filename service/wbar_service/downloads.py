"""Downloads of blobs: strong ETags, single ranges, conditional requests, digests. RFC 9110 and RFC 9530."""

import base64
import re
from collections.abc import Iterator

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from wbar.errors import RangeNotSatisfiable
from wbar_store.blobs import Blobs

OPENAPI_RESPONSES: dict[int | str, dict[str, object]] = {
    200: {
        "description": "The bytes. `ETag` is their sha256; `Repr-Digest` repeats it.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    206: {"description": "One range of the bytes."},
    304: {"description": "The client has these bytes already (`If-None-Match`)."},
}


def blob_response(
    request: Request,
    blobs: Blobs,
    sha256: str,
    filename: str,
    media_type: str = "application/octet-stream",
    inline: bool = False,
) -> Response:
    """Answer GET or HEAD for one blob. Raises RangeNotSatisfiable (416)."""
    size = blobs.size(sha256)
    etag = f'"{sha256}"'
    digest = base64.b64encode(bytes.fromhex(sha256)).decode()
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{digest}:",
        "Cache-Control": "private, no-cache",
    }
    if _names(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    headers["Content-Disposition"] = f'{"inline" if inline else "attachment"}; filename="{filename}"'
    begin, end, status = 0, size, 200
    wanted = request.headers.get("range")
    if wanted is not None and _fresh(request.headers.get("if-range"), etag):
        span = _parse(wanted, size)
        if span is not None:
            begin, end = span
            status = 206
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - begin)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)

    def body() -> Iterator[bytes]:
        yield from blobs.chunks(sha256, begin, end)

    return StreamingResponse(body(), status, headers, media_type=media_type)


def _names(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    # If-None-Match compares weakly: a W/ prefix that a proxy added does not matter.
    tags = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    return "*" in tags or etag in tags


def _fresh(if_range: str | None, etag: str) -> bool:
    # Without If-Range a range is a range; with another tag (or a date, which we do not give) the whole is sent.
    return if_range is None or if_range.strip() == etag


def _parse(header: str, size: int) -> tuple[int, int] | None:
    """[begin, end) of a single byte range; None for what a server should ignore (other units, several ranges)."""
    found = re.fullmatch(r"bytes=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", header.strip())
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if first == "":
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if begin >= size or begin >= end:
        raise RangeNotSatisfiable(
            f"{header!r} lies outside the {size} bytes of the content",
            headers={"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"},
        )
    return begin, end
