"""Signing in with an API key, or with the one-time link that `wbar up` prints; and signing out."""

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from wbar_service import sessions
from wbar_service.auth import RememberedKeys, StoreOf
from wbar_service.bodies import with_small_body
from wbar_service.dashboard.pages import page
from wbar_service.dashboard.route import PageRoute
from wbar_store.sessions import LIFETIMES, Session

router = APIRouter(include_in_schema=False)
signed_in = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/sign-in")
async def show_sign_in(
    request: Request,
    store: StoreOf,
    next: Annotated[str, Query(max_length=2000)] = "/",
    link: Annotated[str | None, Query(max_length=128)] = None,
) -> Response:
    """Show the form; with a one-time link, begin the session that it stands for."""
    if link is not None:
        session = await run_sync(store.sessions.follow, link)
        if session is not None:
            return _enter(request, session, next)
        minutes = round(LIFETIMES["link"] / 60)
        return _refuse(
            request, next, f"this link was used before, or is older than {minutes} minutes: sign in with an API key"
        )
    return page(request, "sign_in.html", next=next, fault=None)


@router.post("/sign-in")
async def sign_in(request: Request, store: StoreOf) -> Response:
    """Begin a session for an API key."""
    form = await (await with_small_body(request)).form(max_files=0, max_fields=10)
    api_key, after = str(form.get("api_key", "")).strip(), str(form.get("next", "/"))
    keys: RememberedKeys = request.app.state.keys
    record = await keys.valid(api_key) if api_key else None
    if record is None:
        return _refuse(request, after, "this API key is not known here, or no longer")
    return _enter(request, await run_sync(store.sessions.begin, record), after)


@signed_in.post("/sign-out")
def sign_out(request: Request, store: StoreOf) -> Response:
    """End the session."""
    token = sessions.token_of(request)
    if token is not None:
        store.sessions.end(token)
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(sessions.COOKIE, path="/", httponly=True, samesite="strict")
    return answer


def _enter(request: Request, session: Session, after: str) -> Response:
    # A path of this service, and never another host's: `//host` and `/\\host` are addresses, too.
    local = after.startswith("/") and not after.startswith(("//", "/\\"))
    answer = RedirectResponse(after if local else "/", 303)
    sessions.set_cookie(request, answer, session.token)
    return answer


def _refuse(request: Request, after: str, fault: str) -> Response:
    return page(request, "sign_in.html", 401, next=after, fault=fault)
