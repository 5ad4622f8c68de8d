"""The API starts without torch: until it is loaded, until it answers, and the whole command, beside `import fastapi`."""

import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.running import ROOT
from benchmarks.table import Findings, Row, Sample
from wbar_store.database import Database
from wbar_store.migrate import upgrade

GOAL = 1.0
SECONDS = 120.0
LOADED = "import os, wbar_service.app; os._exit(0)"  # without the interpreter's end, which no start waits for


@dataclass(frozen=True)
class Cost:
    seconds: float
    cpu_seconds: float


def measure(quick: bool) -> Findings:
    repetitions = 3 if quick else 7
    _python(
        "import sys, wbar_service.app; assert 'torch' not in sys.modules, 'the API loads torch'"
    )  # and writes byte code
    _python("import fastapi")
    loaded, whole, theirs, started = list[Cost](), list[Cost](), list[Cost](), list[float]()
    with tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder:
        upgrade(Database(f"sqlite:///{folder}/wbar.db"))
        for _ in range(repetitions):
            loaded.append(_python(LOADED))
            whole.append(_python("import wbar_service.app"))
            theirs.append(_python("import fastapi"))
            started.append(_start(Path(folder)))
    peer = Sample([cost.seconds for cost in theirs])
    rows = [
        _row("import wbar_service.app in a new interpreter; torch is not loaded", _seconds(loaded), peer, GOAL),
        _row("python -m wbar_service, until its first answer (/healthz)", Sample(started), peer, GOAL),
        _row("python -c 'import wbar_service.app', to the end of the interpreter", _seconds(whole), peer),
    ]
    used = Sample([cost.cpu_seconds for cost in loaded])
    return Findings(rows, [f"import wbar_service.app uses {used} of processor time, which a busy machine changes less"])


def _seconds(costs: list[Cost]) -> Sample:
    return Sample([cost.seconds for cost in costs])


def _row(what: str, found: Sample, peer: Sample, goal: float | None = None) -> Row:
    ratio = f"{found.median / peer.median:.2f}"
    if goal is None:
        return Row(what, str(found), f"import fastapi: {peer}", ratio)
    return Row(what, str(found), f"import fastapi: {peer}", ratio, f"≤ {goal:g} s", found.median <= goal)


def _python(code: str) -> Cost:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-P", "-c", code], cwd=ROOT, env=environment, check=True, timeout=SECONDS)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _start(folder: Path) -> float:
    """Start the API by itself, on a database that is there; return the seconds until it answers, and stop it."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WBAR_")}
    environment |= {
        "WBAR_DATABASE_URL": f"sqlite:///{folder}/wbar.db",
        "WBAR_BLOBS_URL": f"file://{folder}/blobs",
        "WBAR_SCRATCH": f"{folder}/scratch",
        "WBAR_PORT": str(port),
    }
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-P", "-m", "wbar_service"], cwd=folder, env=environment)
    try:
        _until(lambda: _answers(port), began + SECONDS, process)
        return time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(SECONDS)


def _until(condition: Callable[[], bool], deadline: float, process: subprocess.Popen[bytes]) -> None:
    while not condition():
        if process.poll() is not None or time.perf_counter() > deadline:
            raise RuntimeError(f"the API did not answer (exit code {process.poll()})")
        time.sleep(0.002)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return connection.recv(64).startswith(b"HTTP/1.1 200")
    return False
