"""A real `wbar up` on a free loopback port, with its own folder and configuration, which never outlives the block.

    with running() as service:
        service.client.jobs.create(...)

What its processes use is read from /proc: the benchmarks that need it run on Linux.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from wbar import Client
from wbar.errors import InvalidTransition
from wbar.jobs import Job

ROOT = Path(__file__).resolve().parents[1]
THREADS = len(os.sched_getaffinity(0))  # for the service's jobs and for whatever they are compared with
START_SECONDS, STOP_SECONDS = 90.0, 100.0
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Service:
    """A running service: a client of it, its processes, and the folder of what it keeps."""

    pid: int
    url: str
    api_key: str
    client: Client
    data: Path

    @property
    def api(self) -> int:
        """The process id of the API."""
        return self._part("wbar_service")

    @property
    def train_worker(self) -> int:
        return self._part("wbar_worker", "train")

    def submit(self, **fields: Any) -> str:
        """The id of a new job."""
        created: Job = self.client.jobs.create(**fields)
        assert created.id is not None
        return created.id

    def cancel(self, job_id: str) -> None:
        """Whether it has ended or not: a benchmark leaves no job behind."""
        with suppress(InvalidTransition):
            self.client.jobs.cancel(job_id)

    def _part(self, *words: str) -> int:
        for pid in children(self.pid):
            if _command(pid)[-len(words) :] == list(words):
                return pid
        raise RuntimeError(f"the service has no process that ends in {' '.join(words)}")


@contextmanager
def running(
    device: str = "cpu", workers: int = 1, threads: int = THREADS, transformers: bool = False
) -> Iterator[Service]:
    """Start `wbar up` on `device`, wait until its workers are there, and stop it with SIGTERM however the block ends.

    workers: jobs at a time. threads: of each. transformers: whether its networks are listed, which takes half a minute.
    """
    with tempfile.TemporaryDirectory(prefix="wbar-bench-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        log = home / "up.log"
        # Nothing that was set for the user's own service may reach this one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WBAR_")}
        environment |= {"WBAR_CONFIG": str(home / "config.toml"), "WBAR_DEVICE": device, "WBAR_THREADS": str(threads)}
        # As a service that has been up for a minute: new ones list the networks of installed libraries, once for each version.
        environment |= {"WBAR_TRANSFORMERS": str(transformers), "WBAR_SMP": "false"}
        command = [
            sys.executable,
            "-P",
            "-c",
            "from wbar.cli import main; main()",
            "up",
            "--port",
            "0",
            "--data",
            str(home / "data"),
            "--workers",
            str(workers),
        ]
        with open(log, "wb") as out:
            process = subprocess.Popen(
                command, env=environment, cwd=home, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,  # Ctrl-C reaches the benchmark alone, which then stops the service
            )  # fmt: skip
        try:
            wait_until(lambda: _ready(process, home / "config.toml", log), START_SECONDS, "the service to be ready")
            url, key = _address(home / "config.toml")
            with Client(url, key) as client:
                yield Service(process.pid, url, key, client, home / "data")
        finally:
            _stop(process)


def _address(path: Path) -> tuple[str, str]:
    found = tomllib.loads(path.read_text())
    return found["url"], found["api_key"]


def _ready(process: subprocess.Popen[bytes], config: Path, log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"`wbar up` ended with exit code {process.returncode}: {log.read_text()[-2000:]}")
    if not config.exists():
        return False
    try:
        return httpx.get(f"{_address(config)[0]}/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # its parts are told by the system when it dies, and end with it
        process.wait()


def wait_until(condition: Callable[[], bool], seconds: float, what: str, poll: float = 0.1) -> None:
    """Raises TimeoutError, naming what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(poll)


# What /proc says.


def children(pid: int) -> list[int]:
    return [child for child, parent in _parents().items() if parent == pid]


def descendants(pid: int) -> set[int]:
    parents, found, fresh = _parents(), set[int](), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh}
        found |= fresh
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads, in steps of the system's clock tick."""
    return sum(map(int, _stat(pid)[11:13])) / TICK


def tree_seconds(pid: int) -> float:
    """The same of the process, all its living descendants, and those that have ended and been waited for."""
    total = 0
    for member in {pid} | descendants(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            total += sum(map(int, _stat(member)[11:15]))
    return total / TICK


def machine_seconds() -> float:
    """Processor seconds that all CPUs together have been busy or taken away by the host, since the machine started."""
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    )
    return (user + nice + system + interrupts + soft + stolen) / TICK


def memory(pid: int, field: str) -> int:
    """`VmRSS` (resident now) or `VmHWM` (its peak), in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no {field}")


def forget_peak(pid: int) -> None:
    """Let `VmHWM` start again from what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _parents() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
                found[int(entry.name)] = int(_stat(int(entry.name))[1])
    return found


def _stat(pid: int) -> list[str]:
    # The command's name, in parentheses, may hold anything: what follows it is counted from the state on.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
