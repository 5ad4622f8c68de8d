"""Bodies that are read into memory are small: counted as they come, and refused before they fill it."""

import json

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from wbar.errors import BadRequest, TooLarge, UnsupportedMediaType

JSON_BYTES = 1024 * 1024


def limited(request: Request, limit: int = JSON_BYTES, what: str = "a JSON body") -> Request:
    """Return the same request, whose body raises TooLarge (413) once it has more bytes than `limit`.

    An announced length is believed where it is too large: raises TooLarge at once. what: the body's name in the error.
    """
    problem = TooLarge(f"{what} has at most {limit} bytes here")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and (len(length) > 18 or int(length) > limit):
        raise problem
    received = 0

    async def counted() -> Message:
        nonlocal received
        message: Message = await request.receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise problem
        return message

    return Request(request.scope, counted)


def content_type(request: Request) -> str:
    """Return the content type without its parameters, in lower case; empty where there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_not_encoded(request: Request) -> None:
    """Raise UnsupportedMediaType (415) for a body that is compressed: it would be taken for its content."""
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise UnsupportedMediaType(f"the body has Content-Encoding {coding[:40]!r}: send it as it is, without one")


async def is_json(request: Request) -> bool:
    """Return whether the body of a request that may also be a file is JSON, by its content type.

    Raises UnsupportedMediaType (415) for a body that is compressed, and for JSON with the type that curl gives it.
    """
    check_not_encoded(request)
    given, length = content_type(request), request.headers.get("content-length", "")
    few = length.isascii() and length.isdigit() and len(length) < 5  # no file of anybody's
    # What is read here is there for whoever reads it again.
    if few and given in ("application/x-www-form-urlencoded", "text/plain") and _is_object(await _whole(request)):
        raise UnsupportedMediaType(
            f"the body is JSON and is sent as {given}: send it with `Content-Type: application/json`"
        )
    return given == "application/json"


async def _whole(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect:
        raise BadRequest("the connection ended before the body did: nothing was kept") from None


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


async def with_json_body(request: Request) -> Request:
    """Return the same request with its JSON read.

    Raises TooLarge (413), UnsupportedMediaType (415), and BadRequest, saying where, for what is no JSON or was cut off.
    """
    small = await with_small_body(request)
    body = await small.body()
    if not body:
        return small  # the framework says that it is missing
    check_not_encoded(request)
    given = content_type(request)
    if not (given == "application/json" or (given.startswith("application/") and given.endswith("+json"))):
        sent = f"is sent as {given[:80]!r}" if given else "has no Content-Type"
        raise UnsupportedMediaType(f"the body {sent}: send JSON, with `Content-Type: application/json`")
    try:
        await small.json()
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not JSON: no UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise BadRequest("the body is not JSON that can be read: it is nested too deeply") from None
    except ValueError:
        raise BadRequest("the body is not JSON that can be read: a number has too many digits") from None
    return small


async def with_small_body(request: Request, limit: int = JSON_BYTES) -> Request:
    """Return the same request with its whole body read. Raises TooLarge (413), BadRequest where it was cut off.

    It is read here since the framework, where it reads a body, takes every error for a mistake in it.
    """
    small = limited(request, limit)
    await _whole(small)
    return small
