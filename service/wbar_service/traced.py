"""A span for each request, which goes on with the trace that the client began (W3C `traceparent`)."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wbar_store.tracing import Tracing

TRACEPARENT = "wbar.traceparent"  # where the request's scope has that of its span
QUIET = {"/healthz", "/readyz", "/metrics"}  # asked every few seconds, by machines


class TracedRequests:
    """Pure ASGI middleware, for an API that traces."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in QUIET:
            await self.app(scope, receive, send)
            return
        names = (b"traceparent", b"tracestate")
        parent = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in names}
        method, status = scope["method"], 0
        known = {"http.request.method": method, "url.path": scope["path"], "wbar.request": scope["wbar.request_id"]}

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._tracing.span(method, known, parent, "server") as span:
            scope[TRACEPARENT] = self._tracing.current()  # here: FastAPI has spans of its own, for others' exporters
            await self.app(scope, receive, seen)
            route = getattr(scope.get("route"), "path", None)
            if route is not None:
                span.name(f"{method} {route}")
                span.note({"http.route": route})
            span.note({"http.response.status_code": status})
            if status >= 500:
                span.failed(f"answered with {status}")
