"""Every answer carries a request id and the headers that keep a browser from doing more with it than show it."""

import base64
import hashlib
import logging
import random
import re
import time

from starlette.datastructures import MutableHeaders
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wbar_store import logs, row_security

log = logging.getLogger("wbar.service")

OF_THE_KEY = "wbar.rate_limit"  # where the request's scope has the headers of its key's limit, once it was counted
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
DATA = "default-src 'none'; frame-ancestors 'none'"  # an answer is no page: nothing is loaded or run for it
# The pages of the documentation: their own files, and the one script that is written into them.
PAGE = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; worker-src 'self' blob:; "
    "script-src 'self'{hashes}; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_INLINE = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def new_request_id() -> str:
    """Return an id for a request that brings none; they only have to differ."""
    return f"{random.getrandbits(128):032x}"


class RequestId:
    """Pure ASGI middleware: keeps an incoming X-Request-ID, makes one where there is none, adds it to every answer.

    The headers of a rate limit come with it, so that refusals have them, too.

    Changes and refusals are logged with it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        row_security.act_for(None)  # until the key is known
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        usable = 0 < len(given) <= 200 and given.isprintable() and given.isascii()
        request_id = given if usable else new_request_id()
        scope["wbar.request_id"] = request_id
        began, status, received, sent = time.monotonic(), 0, 0, 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def tagged(message: Message) -> None:
            nonlocal status, sent
            sent += len(message.get("body", b""))
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
                headers += [(k.lower().encode(), v.encode()) for k, v in scope.get(OF_THE_KEY, {}).items()]
                message = {**message, "headers": [*headers, (b"x-request-id", request_id.encode())]}
            await send(message)

        with logs.belonging_to(request=request_id):
            await self.app(scope, counted, tagged)
            scope["app"].state.metrics.answered(scope, status, time.monotonic() - began, received, sent)
            if scope["method"] not in ("GET", "HEAD") or status >= 400:
                seconds = round(time.monotonic() - began, 4)
                shown = {"method": scope["method"], "path": scope["path"][:200], "status": status, "seconds": seconds}
                log.info("%s %s %d", scope["method"], scope["path"][:200], status, extra=shown)


class HeadAsGet:
    """Pure ASGI middleware: HEAD is answered as GET, without the body, where no route takes it itself (RFC 9110, 9.3.2).

    The server leaves the body out. What is answered is what a plain GET is: a stream would not end, and ranges are GET's alone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or _is_taken(scope):
            await self.app(scope, receive, send)
            return
        plain = [(name, value) for name, value in scope["headers"] if name not in (b"accept", b"range", b"if-range")]
        as_get = {**scope, "method": "GET", "headers": plain}

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":  # for those outside: the route, the rate limit
                scope.update({name: value for name, value in as_get.items() if name not in ("method", "headers")})
            await send(message)

        await self.app(as_get, receive, told)


def _is_taken(scope: Scope) -> bool:
    return any(route.matches(scope)[0] is Match.FULL for route in scope["app"].routes)


class SafeHeaders:
    """Pure ASGI middleware: adds the headers that browsers obey; a route's own Content-Security-Policy stays."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun: Message | None = None

        async def safe(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                for name, value in SAFE.items():
                    headers.setdefault(name, value)
                if "content-security-policy" not in headers:
                    if headers.get("content-type", "").startswith("text/html"):
                        begun = message  # kept until the page is there: its scripts are named by their digests
                        return
                    headers["Content-Security-Policy"] = DATA
            elif begun is not None:
                headers = MutableHeaders(raw=begun["headers"])
                headers["Content-Security-Policy"] = PAGE.format(hashes=_hashes(message.get("body", b"")))
                await send(begun)
                begun = None
            await send(message)

        await self.app(scope, receive, safe)


def _hashes(page: bytes) -> str:
    digests = (hashlib.sha256(script).digest() for script in _INLINE.findall(page))
    return "".join(f" 'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
