"""A route of the dashboard: it belongs to a session, and where there is none the reader is asked to sign in."""

import logging
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute

from wbar.errors import InternalError, Refused, Unauthorized, ValidationFailed
from wbar.keys import Scope
from wbar_service import sessions
from wbar_service.auth import KEY, RememberedKeys, admit, check_scope
from wbar_service.bodies import with_small_body
from wbar_service.dashboard.pages import page

log = logging.getLogger("wbar.service")

FRAGMENT = "hx-request"  # the header of htmx: a part of a page is asked for


class PageRoute(APIRoute):
    """A route that needs a session, and answers a refusal with a page that says why.

    scope: of the session's key; None: `read` for GET, `write` for POST.
    """

    scope: ClassVar[Scope | None] = None
    counts: ClassVar[bool] = True  # whether a POST is a change, for the limit of the key's rate

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler that finds the session, checks a change's token, and lets the framework do the rest."""
        handle = super().get_route_handler()
        changes = "POST" in (self.methods or set())
        scope = self.scope or ("write" if changes else "read")

        async def checked(request: Request) -> Response:
            try:
                token = sessions.token_of(request)
                keys: RememberedKeys = request.app.state.keys
                record = await keys.of_session(token) if token else None
                if token is None or record is None:
                    raise Unauthorized("sign in to see this")
                request.scope[KEY] = record  # also on the page that says what it may not
                check_scope(record, scope)
                await admit(request, record, changes and self.counts)
                if changes:
                    request = await with_small_body(request)
                    form = await request.form(max_files=0, max_fields=2000)
                    sessions.check(
                        token, str(form.get(sessions.CSRF_FIELD) or request.headers.get(sessions.CSRF_HEADER, ""))
                    )
                return await handle(request)
            except Unauthorized:
                return _to_sign_in(request)
            except Refused as problem:
                return page(request, "problem.html", problem.status, problem=problem)
            except RequestValidationError as error:
                first = error.errors()[0]
                unfit = ValidationFailed(f"{first['loc'][-1]}: {first['msg']}")
                return page(request, "problem.html", 422, problem=unfit)
            except Exception as error:
                # As everywhere: the log has it all, and the reader learns which line.
                log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
                request_id = request.scope.get("wbar.request_id", "")
                failed = InternalError(f"the service failed on this page; its log names {request_id}")
                return page(request, "problem.html", 500, problem=failed)

        return checked


class PreviewRoute(PageRoute):
    """A route that is POSTed a form, and changes nothing."""

    scope = "read"
    counts = False


class AdminPageRoute(PageRoute):
    """A route for sessions whose key has the scope `admin`."""

    scope = "admin"


def is_fragment(request: Request) -> bool:
    """Return whether a part of a page is asked for, which a page that is shown takes in."""
    return request.headers.get(FRAGMENT) == "true"


def _to_sign_in(request: Request) -> Response:
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = "/sign-in" if asked == "/" or request.method != "GET" else f"/sign-in?next={quote(asked, safe='')}"
    if is_fragment(request):
        return Response(status_code=401, headers={"HX-Redirect": target})
    return RedirectResponse(target, 303)
