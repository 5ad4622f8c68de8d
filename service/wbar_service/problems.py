"""Every answer that is not what was asked for is an RFC 9457 problem; the id of its request is in the log."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from obstore.exceptions import BaseError
from pydantic import BaseModel, Field
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from starlette.exceptions import HTTPException
from starlette.routing import Match

from wbar.errors import (
    BadRequest,
    FieldError,
    InternalError,
    MethodNotAllowed,
    NotFound,
    Refused,
    StorageFull,
    Unavailable,
    ValidationFailed,
)
from wbar_service.schema import reference
from wbar_store.full_disk import is_full

log = logging.getLogger("wbar.service")

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
MOST_ERRORS = 20  # of one request that are looked at and told: a megabyte of JSON has room for a hundred thousand


class ProblemError(BaseModel):
    """One place of the request that does not fit."""

    pointer: str = Field(description="JSON pointer into the body; empty where the place is not in the body.")
    detail: str
    parameter: str | None = Field(None, description="The query parameter or header, where the place is one.")


class Problem(BaseModel):
    """Why a request was refused (RFC 9457, `application/problem+json`)."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable; what programs should look at.")
    errors: list[ProblemError] | None = None


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI entries for the problems with these statuses."""
    names = {
        400: "The request cannot be read",
        401: "No valid API key",
        403: "The API key lacks the scope",
        404: "No such object",
        409: "The object's state does not allow this",
        410: "The time of the job's files is over (`expires_after`)",
        412: "Other content than `If-Match` names, or another version of tus",
        413: "Too large",
        415: "Another content type",
        416: "The range lies outside the content",
        422: "The request does not fit",
        429: "Too many requests, or the tenant's quota is used up",
        460: "The bytes have another checksum than announced",
        503: "A part of the service does not answer",
        507: "No room is left",
    }
    # By reference: as `model` the framework would build a validator for each status of each route, a tenth of the API's start.
    content = {"application/problem+json": {"schema": reference(Problem)}}
    return {status: {"description": names[status], "content": content} for status in statuses}


def as_response(problem: Refused, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the answer of a refusal, as `application/problem+json` (RFC 9457)."""
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
    own = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else {}
    sent = own | problem.headers | (headers or {})
    return JSONResponse(body, problem.status, sent, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Handlers for our own refusals, the framework's, and for every other exception."""

    @app.exception_handler(Refused)
    async def refused(_request: Request, error: Refused) -> JSONResponse:
        return as_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        return as_response(refusal_of(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        refusals: dict[int, Refused] = {
            404: NotFound(f"there is nothing at {request.url.path[:200]}"),
            405: MethodNotAllowed(f"{request.url.path[:200]} does not take {request.method}"),
            400: BadRequest(str(error.detail)),
        }
        refused = refusals.get(error.status_code)
        if refused is None:  # the framework raises no other
            return await unforeseen(request, error)
        headers = dict(error.headers) if error.headers else None
        if error.status_code == 405:
            headers = {"Allow": ", ".join(_allowed(request))}
        return as_response(refused, headers)

    @app.exception_handler(OSError)
    @app.exception_handler(BaseError)
    async def storage(request: Request, error: Exception) -> JSONResponse:
        return full() if is_full(error) else await unforeseen(request, error)

    def full() -> JSONResponse:
        log.error("no room is left on the disk")
        return as_response(
            StorageFull("no room is left for this: nothing was kept. Delete what is not needed, or tell the operator"),
            {"Retry-After": "60"},
        )

    @app.exception_handler(DBAPIError)
    async def away(request: Request, error: DBAPIError) -> JSONResponse:
        if is_full(error):
            return full()
        if isinstance(error, DataError):
            return as_response(
                ValidationFailed("a text holds a character (NUL) or a number a size that cannot be stored")
            )
        if not isinstance(error, OperationalError | InterfaceError):
            return await unforeseen(request, error)
        log.error("the database is away: %s", (str(error.orig).splitlines() or [""])[0])
        return as_response(Unavailable("the database does not answer: try again"), {"Retry-After": "5"})

    @app.exception_handler(NoConnectionFree)
    async def busy(_request: Request, error: NoConnectionFree) -> JSONResponse:
        log.error("no connection to the database was free: %s", str(error).splitlines()[0])
        return as_response(Unavailable("all connections to the database are in use: try again"), {"Retry-After": "5"})

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        request_id = request.scope.get("wbar.request_id", "")
        return as_response(
            InternalError(f"the service failed on this request; its log names {request_id}"),
            {"X-Request-ID": request_id},
        )


def _allowed(request: Request) -> list[str]:
    """Return every method that some route takes on the request's path; the framework names those of the first one only."""
    taken = {
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    }
    return sorted(taken | ({"HEAD"} if "GET" in taken else set()))


def refusal_of(error: RequestValidationError) -> Refused:
    """Return the refusal of a body or a parameter that is not valid, with pointers into the body."""
    failures = error.errors()
    errors = list[FieldError]()
    for failure in failures[:MOST_ERRORS]:
        where, *path = failure["loc"]
        if failure["type"] == "json_invalid":
            return BadRequest(f"the body is not JSON: {failure.get('ctx', {}).get('error', failure['msg'])}")
        item = FieldError(pointer="", detail=_detail(failure))
        if failure["type"] == "method_type":
            path.append("type")  # the union's tag: pydantic names the union
        if where == "body":
            item["pointer"] = _pointer(path, error.body, failure["type"] == "missing")
        if where != "body":
            item["parameter"] = str(path[0]) if path else str(where)
        errors.append(item)
    errors = _without_branches(errors)
    first = errors[0]
    place = first["pointer"] or first.get("parameter") or "the body"
    others = len(errors) - 1 + max(0, len(failures) - MOST_ERRORS)
    return ValidationFailed(f"{place}: {first['detail']}{f' (and {others} more)' if others else ''}", errors)


def _without_branches(errors: list[FieldError]) -> list[FieldError]:
    """Merge the errors of one place (a value fails once for each branch of a union) and leave out the places above others."""
    merged: dict[str, FieldError] = {}
    above: set[str] = set()
    for item in errors:
        place = item["pointer"] or item.get("parameter", "")
        if place in merged:
            merged[place]["detail"] += f"; or: {item['detail']}"
        else:
            merged[place] = item
            parts = place.split("/")
            above.update("/".join(parts[:depth]) for depth in range(2, len(parts)))
    return [item for place, item in merged.items() if place not in above]


def _detail(failure: dict[str, Any]) -> str:
    message = str(failure["msg"]).removeprefix("Value error, ")
    if failure["type"] == "extra_forbidden":
        return "this field is not known; check its spelling against the schema at /docs"
    value = failure.get("input")
    shown = isinstance(value, str | int | float | bool) and failure["type"] != "missing"
    return f"{message}, not {str(value)[:80]!r}" if shown and not isinstance(value, str) else message


def _pointer(path: list[Any], body: Any, missing: bool) -> str:
    """Return the JSON pointer of an error, by walking the body itself.

    pydantic puts the branches of unions into its paths ("float", "Normalization"); they are no places in the body.
    """
    kept = []
    node = body
    for part in path:
        if (isinstance(node, dict) and part in node) or (isinstance(node, list) and isinstance(part, int)):
            node = node[part] if isinstance(node, dict) or part < len(node) else None
            kept.append(part)
    if missing and path:
        kept.append(path[-1])
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in kept)
