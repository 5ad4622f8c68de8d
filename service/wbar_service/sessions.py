"""The session of a browser: a cookie that scripts cannot read, and a token of the page's own for every change.

The cookie alone reads. A change carries the second token, which is derived from the first and stands in the pages that this
service made: a page of another origin has the browser send the cookie, where it may, and does not know the token.
"""

import hashlib
import hmac

from fastapi import Request, Response

from wbar.errors import Forbidden
from wbar_store.sessions import LIFETIMES

COOKIE = "wbar_session"
CSRF_HEADER, CSRF_FIELD = "x-csrf-token", "csrf"
LONGEST = 128


def token_of(request: Request) -> str | None:
    """Return the session's token, which may be over."""
    token = request.cookies.get(COOKIE)
    return token if token and len(token) <= LONGEST else None


def csrf_of(token: str) -> str:
    """Return the token that a change within this session carries."""
    return hmac.new(token.encode("utf-8", "surrogateescape"), b"csrf", hashlib.sha256).hexdigest()


def check(token: str, sent: str) -> None:
    """Raise Forbidden (403) unless the token that came with a change is the session's."""
    if not hmac.compare_digest(csrf_of(token).encode(), sent.encode("utf-8", "surrogateescape")):
        raise Forbidden("this change does not come from a page of this session: reload the page and try again")


def set_cookie(request: Request, response: Response, token: str) -> None:
    """Have the browser keep the session: for this site's own requests, out of reach of scripts."""
    response.set_cookie(
        COOKIE, token, max_age=int(LIFETIMES["session"]), path="/", httponly=True, samesite="strict",
        secure=request.url.scheme == "https",
    )  # fmt: skip
