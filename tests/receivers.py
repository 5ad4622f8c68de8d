"""Receivers of webhooks: real HTTP servers on a free port, that answer as they are told and remember what came."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.conftest import wait_until
from wbar.webhooks import WebhookEvent, verify


@dataclass(frozen=True)
class Received:
    """A request: its path, its headers in lower case, its body."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def event(self, secret: str) -> WebhookEvent:
        return verify(secret, self.headers, self.body)


@dataclass(frozen=True)
class Answering:
    """An answer: its status and headers."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)


class Receiver:
    """Answers the n-th request, counted from 0, with what `answers(n)` returns."""

    def __init__(self, server: ThreadingHTTPServer, answers: Callable[[int], Answering]) -> None:
        self._server, self._answers = server, answers
        self.received: list[Received] = []
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://{self._server.server_address[0]!s}:{self.port}/hook"

    def take(self, request: Received) -> Answering:
        with self._lock:
            n = len(self.received)
            self.received.append(request)
        return self._answers(n)

    def wait_for(self, n: int, seconds: float = 30) -> list[Received]:
        wait_until(lambda: len(self.received) >= n, seconds, f"{n} requests, of which {len(self.received)} came")
        return self.received[:]


@contextmanager
def receiver(
    answers: Callable[[int], Answering] = lambda _: Answering(),
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = made.take(Received(self.path, headers, body))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.status != 204:
                self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A sender that was killed has closed its connection: that is what these tests are about."""

    server = Server((host, port), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    made = Receiver(server, answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
