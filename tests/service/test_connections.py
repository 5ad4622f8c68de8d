"""Clients that ask for too much, or keep the service waiting, are refused below the routes; the others go on."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import uvicorn
from fastapi import FastAPI, Request

from tests.conftest import wait_until
from wbar_service import connections

TIMEOUT = 0.2
SERVERS: list[uvicorn.Server] = []  # the one of the fixture


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that counts bytes, with little patience."""
    app = FastAPI()

    @app.post("/")
    async def count(request: Request) -> dict[str, int]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
        return {"bytes": size}

    @app.post("/slow")
    async def slow(request: Request) -> dict[str, int]:
        await asyncio.sleep(6 * TIMEOUT)  # longer than any client may take
        return {"bytes": len(await request.body())}

    @app.get("/large")
    async def large() -> list[str]:
        return ["x" * 1000] * 20_000

    config = uvicorn.Config(app, log_level="critical", http=connections.protocol(TIMEOUT), ws="none")
    server = uvicorn.Server(config)
    SERVERS[:] = [server]
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def rest(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection; a reset ends it too."""
    answer = b""
    try:
        while part := connection.recv(65536):
            answer += part
    except ConnectionResetError:
        pass
    return answer


def test_headers_that_never_end_are_refused(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Half: ")
        head, _, body = rest(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["code"] == "request_timeout"


def test_a_connection_that_asks_nothing_is_closed(port: int) -> None:
    with connect(port) as connection:
        assert rest(connection) == b""


@pytest.mark.parametrize("ends", [True, False])
def test_headers_that_are_too_large_are_refused(port: int, ends: bool) -> None:
    with connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + b"a" * 100_000 + (b"\r\n\r\n" if ends else b""))
        head, _, body = rest(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["code"] == "request_header_fields_too_large"


def test_a_body_that_stops_coming_ends_the_connection(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        assert rest(connection) == b""


def test_a_body_may_come_slowly_as_long_as_it_comes(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\nConnection: close\r\n\r\n")
        for _ in range(8):  # together longer than a body may stand still
            threading.Event().wait(TIMEOUT)
            connection.sendall(b"a")
        assert b'{"bytes":8}' in rest(connection)


def test_a_client_does_not_pay_for_a_slow_service(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\nConnection: close\r\n\r\n")
        connection.sendall(b"a" * 300_000)
        assert b'{"bytes":300000}' in rest(connection)


def test_an_answer_that_nobody_takes_ends_the_connection(port: int) -> None:
    with connect(port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: SERVERS[0].server_state.connections, 10, "the connection")
        wait_until(lambda: not SERVERS[0].server_state.connections, 20 * TIMEOUT, "its end")


def test_what_is_not_http_is_refused(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"\x16\x03\x01 this is TLS\r\n\r\n")
        head, _, body = rest(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["code"] == "bad_request"


def test_one_connection_serves_many_requests(port: int) -> None:
    with connect(port) as connection:
        request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
        for _ in range(3):
            connection.sendall(request)
            answer = b""
            while not answer.endswith(b'{"bytes":3}'):
                answer += connection.recv(65536)
        connection.sendall(request * 2)  # pipelined
        answer = b""
        while answer.count(b'{"bytes":3}') < 2:
            answer += connection.recv(65536)


def test_trailers_without_an_end_are_not_kept(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n")
        assert sent_until_cut_off(connection, b"x: " + b"y" * 60_000 + b"\r\n", 400) < 400


def test_trailers_are_dropped(port: int) -> None:
    with connect(port) as connection:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        connection.sendall(head + b"3\r\nabc\r\n0\r\nx: y\r\n\r\n")
        assert b'{"bytes":3}' in rest(connection)


def test_an_empty_line_does_not_keep_a_connection_open(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
        answer = b""
        while not answer.endswith(b'{"bytes":3}'):
            answer += connection.recv(65536)
        connection.sendall(b"\r\n")
        assert rest(connection) == b""


def test_a_body_that_was_refused_is_not_taken_for_ever(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
        assert sent_until_cut_off(connection, b"a", 100, TIMEOUT / 4) < 100, "however steadily it comes"


def sent_until_cut_off(connection: socket.socket, piece: bytes, times: int, pause: float = 0.0) -> int:
    """Send a piece again and again; how often it was taken."""
    for sent in range(times):
        if pause:
            threading.Event().wait(pause)
        try:
            connection.sendall(piece)
        except OSError:
            return sent
    return times
