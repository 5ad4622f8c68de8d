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
def show_sign_in(
    request: Request,
    store: StoreOf,
    next: Annotated[str, Query(max_length=2000)] = "/",
    link: Annotated[str, Query(max_length=128)] = "",
) -> Response:
    """Show the form; for a one-time link its one button. Following an address changes nothing: previewers do it, too."""
    if link and store.sessions.valid(link, "link") is None:
        return _refuse(request, next, _used_up())
    return page(request, "sign_in.html", next=_local(next), link=link, fault=None)


@router.post("/sign-in")
async def sign_in(request: Request, store: StoreOf) -> Response:
    """Begin a session for an API key or a link. Only this service's own form may ask: no other site signs a reader in."""
    form = await (await with_small_body(request)).form(max_files=0, max_fields=10)
    api_key, link, after = (str(form.get(name, "")).strip() for name in ("api_key", "link", "next"))
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return _refuse(request, after, "another site has sent this form: sign in here")
    if link:
        session = await run_sync(store.sessions.follow, link)
        if session is not None:
            return _enter(request, session, after)
        return _refuse(request, after, _used_up())
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
        request.app.state.keys.forget_session(token)
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(sessions.COOKIE, path="/", httponly=True, samesite="strict")
    return answer


def _enter(request: Request, session: Session, after: str) -> Response:
    answer = RedirectResponse(_local(after), 303)
    sessions.set_cookie(request, answer, session.token)
    return answer


def _used_up() -> str:
    minutes = round(LIFETIMES["link"] / 60)
    return (
        f"this link was used before, is older than {minutes} minutes, or was never one: `wbar open` makes a new one, "
        "or sign in with an API key"
    )


def _local(after: str) -> str:
    """Return a path of this service, and never another host's: `//host` and `/\\host` are addresses, too."""
    return after if after.startswith("/") and not after.startswith(("//", "/\\")) else "/"


def _refuse(request: Request, after: str, fault: str) -> Response:
    return page(request, "sign_in.html", 401, next=_local(after), link="", fault=fault)
