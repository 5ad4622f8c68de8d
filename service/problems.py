"""Every answer that is not what was asked for is an RFC 9457 problem; every answer carries a request id."""

import logging
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wbar.errors import BadRequest, Conflict, InternalError, MethodNotAllowed, NotFound, Refused, ValidationFailed

log = logging.getLogger("wbar.service")


class ProblemError(BaseModel):
    pointer: str = Field(description="JSON pointer into the body.")
    detail: str


class Problem(BaseModel):
    """RFC 9457, `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable; what programs should look at.")
    errors: list[ProblemError] | None = None


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries for these problems."""
    names = {401: "No valid API key", 404: "No such object", 409: "The object's state does not allow this",
             413: "Too large", 416: "The range lies outside the content", 422: "The request does not fit"}  # fmt: skip
    return {
        status: {"model": Problem, "description": names[status], "content": {"application/problem+json": {}}}
        for status in statuses
    }


def as_response(problem: Refused, headers: dict[str, str] | None = None) -> JSONResponse:
    body: dict[str, Any] = {
        "type": f"urn:wbar:problem:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
    }
    if problem.errors is not None:
        body["errors"] = problem.errors
    body.update(problem.extra)
    if problem.status == 401:
        headers = {"WWW-Authenticate": "Bearer", **(headers or {})}
    return JSONResponse(body, problem.status, headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Handlers for our own refusals, the framework's, and what nobody foresaw."""

    @app.exception_handler(Refused)
    async def refused(_request: Request, error: Refused) -> JSONResponse:
        return as_response(error, error.extra.pop("headers", None))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        return as_response(_validation(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        known: dict[int, Refused] = {
            404: NotFound(f"there is nothing at {request.url.path[:200]}"),
            405: MethodNotAllowed(f"{request.url.path[:200]} does not take {request.method}"),
            400: BadRequest(str(error.detail)),
        }
        headers = dict(error.headers) if error.headers else None
        return as_response(known.get(error.status_code, Conflict(str(error.detail))), headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        request_id = request.scope.get("wbar.request_id", "")
        return as_response(
            InternalError(f"the service failed on this request; its log names {request_id}"),
            {"X-Request-ID": request_id},
        )


def _validation(error: RequestValidationError) -> Refused:
    errors = []
    for found in error.errors():
        where, *path = found["loc"]
        if found["type"] == "json_invalid":
            return BadRequest(f"the body is not JSON: {found.get('ctx', {}).get('error', found['msg'])}")
        item = {"pointer": _pointer(path) if where == "body" else "", "detail": _detail(found)}
        if where != "body":
            item["parameter"] = str(path[0]) if path else str(where)
        errors.append(item)
    first = errors[0]
    place = first["pointer"] or first.get("parameter") or "the body"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ValidationFailed(f"{place}: {first['detail']}{more}", errors)


def _detail(found: dict[str, Any]) -> str:
    message = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        return "this field is not known; check its spelling against the schema at /docs"
    value = found.get("input")
    shown = isinstance(value, str | int | float | bool) and found["type"] != "missing"
    return f"{message}, not {str(value)[:80]!r}" if shown and not isinstance(value, str) else message


_TAGS = {"function-after[", "literal[", "constrained", "float", "int", "str", "tuple["}


def _pointer(path: list[Any]) -> str:
    # pydantic adds the branch of a union ("float", "literal['auto']") to the path; a JSON pointer has no such part.
    kept = []
    for part in path:
        text = str(part)
        if isinstance(part, str) and (text in _TAGS or "[" in text or text in ("Normalization",)):
            continue
        kept.append(text.replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{part}" for part in kept)


class RequestId:
    """Pure ASGI middleware: keeps an incoming X-Request-ID, makes one where there is none, adds it to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        usable = 0 < len(given) <= 200 and given.isprintable() and given.isascii()
        request_id = given if usable else uuid.uuid4().hex
        scope["wbar.request_id"] = request_id

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
                message = {**message, "headers": [*headers, (b"x-request-id", request_id.encode())]}
            await send(message)

        await self.app(scope, receive, tagged)
