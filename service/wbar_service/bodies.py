"""Bodies that are read into memory are small: counted as they come, and refused before they fill it."""

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from wbar.errors import BadRequest, TooLarge

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


async def with_small_body(request: Request, limit: int = JSON_BYTES) -> Request:
    """Return the same request with its whole body read. Raises TooLarge (413), BadRequest where it was cut off.

    It is read here since the framework, where it reads a body, takes every error for a mistake in it.
    """
    small = limited(request, limit)
    try:
        await small.body()
    except ClientDisconnect:
        raise BadRequest("the connection ended before the body did") from None
    return small
