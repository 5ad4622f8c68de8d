"""A proxy before the real service whose network does what networks do: it loses requests and answers, and cuts bodies."""

import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import httpx

Fault = (
    Literal["request lost", "answer lost", "answer cut"] | tuple[int, dict[str, str], str]
)  # or: status, headers, body


@dataclass
class FaultyProxy:
    """What is to happen to the next requests, in order (then they pass), and what came."""

    url: str
    faults: deque[Fault] = field(default_factory=deque)
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, idempotency key

    def next(self, *faults: Fault) -> None:
        """Set what happens to the next requests, and forget those before."""
        self.faults.extend(faults)
        self.seen.clear()


@contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    """Forward to `target` until the block ends."""
    onward = httpx.Client(base_url=target, timeout=60, trust_env=False)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def handle_any(self) -> None:
            body = self._body()
            proxy.seen.append((self.command, self.path, self.headers["Idempotency-Key"]))
            fault = proxy.faults.popleft() if proxy.faults else None
            if isinstance(fault, tuple):
                self._answer(*fault)
                return
            if fault == "request lost":
                self._hang_up()
                return
            kept = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
            answer = onward.request(self.command, self.path, content=body, headers=kept)
            if fault == "answer lost":
                self._hang_up()
                return
            self.send_response_only(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            if fault == "answer cut":
                self.wfile.write(answer.content[: len(answer.content) // 2])
                self._hang_up()
                return
            self.wfile.write(answer.content)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(self, status: int, headers: dict[str, str], body: str) -> None:
            self.send_response_only(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def _hang_up(self) -> None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    proxy = FaultyProxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        onward.close()
