"""Fresh processes from a forkserver that has imported torch: milliseconds to start, and memory that really comes back.

The worker owns the database and the lease; a child has one pipe to it and ends when that pipe closes, so a killed worker
leaves nothing running. A child gets its request as it starts; after that both sides exchange small messages as JSON. Nothing
that a child sends is unpickled, since some children read uploads of strangers. The worker itself never imports torch.
"""

import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, TypeAdapter

from wbar_averaging.quoting import reason
from wbar_store import logs
from wbar_training.messages import Crashed, Stop, StopReason
from wbar_worker.isolation import isolate

_preload = ["wbar_worker.attempt", "wbar_worker.validate"]
MAX_MESSAGE = 256 * 1024**2  # bytes; the indices of a very large dataset's held-out images
OPEN_FILES = 256  # of a process that reads uploads: one upload, one result, the pipes, libraries that are still loaded
# No process sends these to itself by mistake.
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Where control groups are mounted (version 2, version 1), with the file that counts the processes killed in a group.
_GROUPS = ((Path("/sys/fs/cgroup"), "memory.events"), (Path("/sys/fs/cgroup/memory"), "memory.oom_control"))
_OF_THE_SYSTEM = Path("/proc/vmstat")
UNSEEN = 255  # multiprocessing's exit code of a child whose forkserver ended first, so that its end was not seen
# Variables with the credentials of the store and of S3 sources, by how they begin. Children use neither.
CREDENTIALS = ("WBAR_DATABASE_URL", "WBAR_BROKER_URL", "WBAR_BLOBS_URL", "AWS_", "AZURE_", "GOOGLE_", "PG", "OTEL_")
ORPHANED = 70  # the exit code of a child whose worker is gone

Request = TypeVar("Request")
Message = TypeVar("Message")


@dataclass(frozen=True)
class Entry(Generic[Request]):
    """A function that runs in a child, `function(request: Request, channel: ControlChannel) -> None`.

    It is named, not referred to: the worker must not import its module, which loads torch.

    isolated: it reads strangers' files, and runs without network and without the right to start programs.
    """

    module: str
    function: str
    isolated: bool = False


@dataclass
class Child:
    """A running child: `receive` its messages, `send` it one, `end` it."""

    process: ForkServerProcess
    pipe: Connection
    oom_kills: int = 0  # when it was started

    def send(self, message: BaseModel) -> None:
        """Send a message; a child that has ended does not get it."""
        try:
            self.pipe.send_bytes(message.model_dump_json().encode())
        except (OSError, ValueError):
            return  # it has ended; its exit is noticed where its messages are read

    def receive(self, messages: TypeAdapter[Message]) -> Message:
        """Return the next message. Raises EOFError or OSError when the child is gone, ValueError for anything else."""
        return messages.validate_json(self.pipe.recv_bytes(MAX_MESSAGE))

    @contextmanager
    def ended_after(self, seconds: float) -> Iterator[None]:
        """Kill the process after so many seconds, unless the block is left before."""
        timer = threading.Timer(max(0.0, seconds), self.process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def end(self) -> None:
        """Kill the child if it still runs, and close its pipe. It should have been asked to stop before."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()

    def crashed(self) -> Crashed:
        """Return how the child ended, and whether that was its own doing."""
        self.process.join(5)
        code = self.process.exitcode
        if code in (-signal.SIGKILL, UNSEEN) and oom_kills() > self.oom_kills:
            return Crashed(why="its process was ended by the system, which was out of memory", cause="memory")
        if code is None or code >= 0:
            return Crashed(why=f"its process ended with exit code {code}")
        name = signal.Signals(-code).name
        hint = " (the system was out of memory?)" if -code == signal.SIGKILL else ""
        return Crashed(
            why=f"its process was ended by {name}{hint}", cause="outside" if -code in FROM_OUTSIDE else "itself"
        )


def oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory.

    Counted in this process's control group; where none counts, in the whole system; where that does not either, 0.
    """
    for counters in (*_own_groups(), _OF_THE_SYSTEM):
        with suppress(OSError):
            for line in counters.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def _own_groups() -> list[Path]:
    """Return the files that may count for this process's group, the likeliest first.

    A kill is counted in the group of the process that was killed, not in the groups above it. Inside a container the path
    in /proc may be the host's: then the mount's root is the container's own group.
    """
    names = {"": "/"}
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            names |= dict.fromkeys(controllers.split(","), path)
    # Version 2 has one hierarchy, whose line names no controller.
    paths = (names[""], names.get("memory", "/"))
    own = [root / path.lstrip("/") / file for (root, file), path in zip(_GROUPS, paths, strict=True)]
    return [*own, *(root / file for root, file in _GROUPS)]


def first_line(error: Exception) -> str:
    """Return an exception's type and the first line of its message, at most 300 characters of it, without addresses."""
    return f"{type(error).__name__}: {reason(error) if str(error) else ''}"


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_preload)
    return context


def load_ahead(module: str) -> None:
    """Have the forkserver import one module more; call it before the first start."""
    _preload.append(module)


@contextmanager
def without_credentials() -> Iterator[None]:
    """Keep credentials out of what the block starts: for milliseconds, other threads do not find them either."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(CREDENTIALS)}
    for name in kept:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)


def _start_forkserver() -> None:
    """Start the forkserver, or start it again, without credentials: what a process was started with can be read in /proc.

    A connection that another thread opens in just that moment, by variables, fails and is tried again as after an outage.
    """
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is None or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
        _context()  # what it imports first
        with without_credentials():
            forkserver.ensure_running()


def start(entry: Entry[Request], request: Request) -> Child:
    """Run `entry` in a fresh process. The first start of a worker takes seconds: the forkserver imports torch."""
    worker_end, child_end = _context().Pipe(duplex=True)
    kills = oom_kills()
    _start_forkserver()
    process = _context().Process(target=_main, args=(entry, request, child_end, logs.current()), daemon=False)
    process.start()
    child_end.close()
    return Child(process, worker_end, kills)


# In the child.


class ControlChannel:
    """The child's end of the pipe: sends messages, remembers a request to stop, and ends this process with the worker."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._sending = pipe, threading.Lock()
        self.stop_requested: StopReason | None = None
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def send(self, message: BaseModel) -> None:
        """Send a message to the worker, from any thread."""
        data = message.model_dump_json().encode()
        with self._sending:  # a longer message is written in two parts, and another one must not come between them
            self._pipe.send_bytes(data)

    def _listen(self) -> None:
        while True:
            try:
                self.stop_requested = Stop.model_validate_json(self._pipe.recv_bytes()).reason
            except (EOFError, OSError):
                os._exit(ORPHANED)  # there is no receiver for the result, and a successor may be at work already


def _main(entry: Entry[Request], request: Request, pipe: Connection, belongs: Mapping[str, str | int]) -> None:
    # Ctrl-C in a terminal reaches the whole process group; stopping is the worker's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.configure(entry.function, belongs)
    if entry.isolated:
        isolate()  # before the channel's thread, which would keep its rights
    run: Callable[[Request, ControlChannel], None] = getattr(import_module(entry.module), entry.function)
    run(request, ControlChannel(pipe))
    pipe.close()


def confine(memory: int, seconds: float, file_bytes: int) -> None:
    """Limit a process that reads uploads, and forbid core dumps.

    memory: bytes of heap.
    seconds: of processor time, per core.
    file_bytes: of one file that it writes; more raises OSError.

    Processes are not limited: the system counts a user's threads together, and torch needs its own.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    cpu = int(seconds) * max(1, os.cpu_count() or 1)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
