"""Small answers: requests per second beside a FastAPI endpoint that does nothing, and how long one request waits.

Both servers run as processes of their own, and a client that does no more than write and read bytes asks them in turn:
first over several kept-alive connections at once, which shows what a request costs the server, then one request after the
other on one connection, which shows what it waits for (a missing TCP_NODELAY shows here, as 40 ms). The turns are short and
many, and the ratios are medians over the turns: what disturbs the machine for a while disturbs both sides of a turn.
"""

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from benchmarks.running import Service, running, wait_until
from benchmarks.start import write_start
from benchmarks.table import Findings, Row, Sample

CONNECTIONS = 8
LATENCY_GOAL = 2.0  # ms
GOALS = {"/healthz": 0.8, "GET /v1/jobs/{id}": 0.3, "GET /v1/checkpoints/{id}": None, "GET /v1/jobs (20)": None}
TRIVIAL = """
import sys
import fastapi, uvicorn
app = fastapi.FastAPI()
@app.get("/")
async def trivial():
    return {"status": "ok"}
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
"""


@dataclass(frozen=True)
class Question:
    """One GET request, and where it goes."""

    port: int
    path: str
    key: str = ""

    @property
    def bytes(self) -> bytes:
        authorization = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        return f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\n{authorization}\r\n".encode()


def measure(quick: bool) -> Findings:
    turns, seconds, requests = (5, 0.2, 50) if quick else (31, 0.25, 100)
    with tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder, _trivial() as trivial, running() as service:
        questions = {"trivial": trivial, **_questions(service, Path(folder))}
        for question in questions.values():
            _rate(question, 0.2)  # whatever is loaded late is loaded now
        rates: dict[str, list[float]] = {name: [] for name in questions}
        waits: dict[str, list[float]] = {name: [] for name in questions}
        for turn in range(turns):
            order = list(questions) if turn % 2 == 0 else list(reversed(questions))
            for name in order:
                rates[name].append(_rate(questions[name], seconds))
                waits[name].append(1e3 * _wait(questions[name], requests))
    return _findings(rates, waits)


def _questions(service: Service, folder: Path) -> dict[str, Question]:
    """The routes that clients poll, with a finished job to poll."""
    checkpoint = service.client.checkpoints.create(write_start(folder / "start.safetensors"))
    dataset = service.client.datasets.create("builtin:digits")
    job = service.submit(checkpoint=checkpoint.id, dataset=dataset.id, method={"type": "cyclic_swa", "cycles": 1})
    service.client.jobs.wait(job)
    for number in range(20):
        service.cancel(service.submit(checkpoint=checkpoint.id, dataset=dataset.id, seed=number))
    port, key = urlsplit(service.url).port or 0, service.api_key
    paths = ("/healthz", f"/v1/jobs/{job}", f"/v1/checkpoints/{checkpoint.id}", "/v1/jobs")
    return {name: Question(port, path, key) for name, path in zip(GOALS, paths, strict=True)}


@contextmanager
def _trivial() -> Iterator[Question]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-P", "-c", TRIVIAL, str(port)])
    try:
        wait_until(lambda: _answers(port), 30, "the trivial endpoint")
        yield Question(port, "/")
    finally:
        process.terminate()
        process.wait(30)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True


def _rate(question: Question, seconds: float) -> float:
    """Requests per second over CONNECTIONS connections, each with one request on its way."""
    connections = [_connection(question.port) for _ in range(CONNECTIONS)]
    request, count, began = question.bytes, 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for connection in connections:
            connection.sendall(request)
        for connection in connections:
            _receive(connection)
        count += CONNECTIONS
    rate = count / (time.perf_counter() - began)
    for connection in connections:
        connection.close()
    return rate


def _wait(question: Question, requests: int) -> float:
    """Median seconds from a request to its whole answer, one after the other on one connection."""
    request, waits = question.bytes, []
    with _connection(question.port) as connection:
        for _ in range(requests):
            began = time.perf_counter()
            connection.sendall(request)
            _receive(connection)
            waits.append(time.perf_counter() - began)
    return median(waits)


def _connection(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _receive(connection: socket.socket) -> None:
    """Read one answer. Raises RuntimeError unless it is a 200 with its whole body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the service answers {head[:100]!r}")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    missing = int(fields[b"content-length"]) - len(body)
    while missing > 0:
        missing -= len(_more(connection))


def _more(connection: socket.socket) -> bytes:
    received = connection.recv(65536)
    if not received:
        raise RuntimeError("the service closed the connection")
    return received


def _findings(rates: dict[str, list[float]], waits: dict[str, list[float]]) -> Findings:
    rows = []
    trivial = Sample(rates["trivial"], "requests/s")
    for name, goal in GOALS.items():
        rate = Sample(rates[name], "requests/s")
        ratio = median(one / other for one, other in zip(rates[name], rates["trivial"], strict=True))
        rows.append(
            Row(
                f"{name} under `wbar up`, {CONNECTIONS} kept-alive connections",
                str(rate),
                f"trivial FastAPI endpoint: {trivial}",
                f"{ratio:.2f}",
                "–" if goal is None else f"≥ {goal}",
                None if goal is None else ratio >= goal,
            )
        )
    for name, goal in GOALS.items():
        wait = Sample(waits[name], "ms")
        rows.append(
            Row(
                f"{name} under `wbar up`, one kept-alive connection: median latency",
                str(wait),
                f"trivial FastAPI endpoint: {Sample(waits['trivial'], 'ms')}",
                f"{median(one / other for one, other in zip(waits[name], waits['trivial'], strict=True)):.2f}",
                "–" if goal is None else f"≤ {LATENCY_GOAL:g} ms",
                None if goal is None else wait.median <= LATENCY_GOAL,
            )
        )
    return Findings(rows)
