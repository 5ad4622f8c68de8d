"""Downloads of blobs: strong ETags, single ranges, conditional requests, digests. RFC 9110 and RFC 9530."""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from wbar.errors import PreconditionFailed, RangeNotSatisfiable
from wbar_service.problems import responses
from wbar_service.settings import ServiceSettings
from wbar_store.blobs import Blobs

PRESIGNED_SECONDS = 600.0


def _header(description: str) -> dict[str, object]:
    return {"description": description, "schema": {"type": "string"}}


_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_HEADERS = {
    "ETag": _header("The sha256 of all the bytes in hex, in quotes: a strong validator."),
    "Last-Modified": _header("When these bytes were last stored; `ETag` is the more exact validator."),
    "Repr-Digest": _header("The same sha256 as `sha-256=:<base64>:` (RFC 9530)."),
    "Content-Disposition": _header("A file name that carries the object's id."),
    "Accept-Ranges": _header("`bytes`."),
}
OPENAPI_RESPONSES: dict[int | str, dict[str, object]] = {
    200: {"description": "The bytes.", "content": _BYTES, "headers": _HEADERS},
    206: {
        "description": "One range of the bytes (`Range`).",
        "content": _BYTES,
        "headers": {**_HEADERS, "Content-Range": _header("`bytes FIRST-LAST/SIZE`.")},
    },
    307: {
        "description": "Where the operator chose so: the bytes are at `Location`, in the bucket, for ten minutes.",
        "headers": {**_HEADERS, "Location": _header("A presigned URL.")},
    },
    304: {"description": "The client has these bytes already (`If-None-Match`, `If-Modified-Since`)."},
    **responses(412),
}


def blob_response(
    request: Request,
    blobs: Blobs,
    sha256: str,
    filename: str,
    media_type: str = "application/octet-stream",
    inline: bool = False,
) -> Response:
    """Answer GET or HEAD for one blob. Raises PreconditionFailed (412), RangeNotSatisfiable (416).

    sha256: of the blob, which is also its name.
    filename: for Content-Disposition.
    inline: whether a browser shows it instead of saving it.
    """
    size, stored = blobs.described(sha256)
    stored = stored.replace(microsecond=0)  # as exact as the header says it
    etag = f'"{sha256}"'
    digest = base64.b64encode(bytes.fromhex(sha256)).decode()
    headers = {
        "ETag": etag,
        "Last-Modified": format_datetime(stored, usegmt=True),
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{digest}:",
        "Cache-Control": "private, no-cache",
    }
    _check_match(request, etag)
    if _has_it(request, etag, stored):
        return Response(status_code=304, headers=headers)
    headers["Content-Disposition"] = f'{"inline" if inline else "attachment"}; filename="{filename}"'
    begin, end, status = 0, size, 200
    wanted = request.headers.get("range") if request.method == "GET" else None  # RFC 9110, 14.2: of GET alone
    if wanted is not None and _fresh(request.headers.get("if-range"), etag, headers["Last-Modified"]):
        span = _parse(wanted, size)
        if span is not None:
            begin, end = span
            status = 206
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - begin)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    if not inline and (elsewhere := _by_another(request, blobs, sha256, ranged=status == 206)):
        for name in ("Content-Length", "Accept-Ranges", "Content-Range"):  # whoever sends the bytes says these
            headers.pop(name, None)
        return Response(status_code=elsewhere.status, headers=headers | elsewhere.headers, media_type=media_type)

    def body() -> Iterator[bytes]:
        yield from blobs.chunks(sha256, begin, end)

    return StreamingResponse(body(), status, headers, media_type=media_type)


@dataclass(frozen=True)
class _Elsewhere:
    """The status and the header that have somebody else send the bytes."""

    status: int
    headers: dict[str, str]


def _by_another(request: Request, blobs: Blobs, sha256: str, ranged: bool) -> _Elsewhere | None:
    """Return how the bytes are handed over, or None if the API sends them.

    A web server's own ETags and ranges are not ours, so it gets whole files only; a page is never handed over, for the
    headers that confine it would be lost.
    """
    settings: ServiceSettings = request.app.state.settings
    match settings.downloads:
        case "presigned":
            return _Elsewhere(307, {"Location": blobs.presigned(sha256, PRESIGNED_SECONDS)})
        case "x-accel-redirect" if not ranged:
            return _Elsewhere(200, {"X-Accel-Redirect": settings.accel_prefix + blobs.path(sha256)})
        case "x-sendfile" if not ranged and blobs.root is not None:
            return _Elsewhere(200, {"X-Sendfile": str(blobs.root / blobs.path(sha256))})
    return None


def _check_match(request: Request, etag: str) -> None:
    """Raise PreconditionFailed where If-Match names other content only; it compares strongly (RFC 9110, 13.1.1)."""
    wanted = _tags(request, "if-match")
    if wanted and not {"*", etag} & wanted:
        raise PreconditionFailed(f"the content is {etag}, and If-Match names {', '.join(sorted(wanted))[:200]}")


def _tags(request: Request, header: str) -> set[str]:
    """Return the entity tags of a header, whose lines are one list (RFC 9110, 5.3)."""
    lines = request.headers.getlist(header)
    return {tag for line in lines for tag in map(str.strip, line.split(",")) if tag}


def _has_it(request: Request, etag: str, stored: datetime) -> bool:
    """Return whether the client holds these bytes. A date counts only where no tag is sent (RFC 9110, 13.2.2)."""
    if "if-none-match" not in request.headers:
        since = _date(request.headers.get("if-modified-since"))
        return since is not None and stored <= since
    # If-None-Match compares weakly: a W/ prefix that a proxy added does not matter.
    tags = {tag.removeprefix("W/") for tag in _tags(request, "if-none-match")}
    return "*" in tags or etag in tags


def _date(header: str | None) -> datetime | None:
    """Return the date of a header, or None for one that is not a date, which a server ignores."""
    try:
        date = parsedate_to_datetime(header or "")
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _fresh(if_range: str | None, etag: str, last_modified: str) -> bool:
    # Without If-Range a range is a range; with another tag or date the whole is sent.
    return if_range is None or if_range.strip() in (etag, last_modified)


def _parse(header: str, size: int) -> tuple[int, int] | None:
    """Return [begin, end) of a single byte range; None for what a server should ignore (other units, several ranges)."""
    match = re.fullmatch(r"bytes=\s*([0-9]{0,1000})\s*-\s*([0-9]{0,1000})\s*", header.strip(), re.IGNORECASE)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
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
